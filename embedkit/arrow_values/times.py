"""Times, dates, durations and intervals of Arrow as ISO 8601 text, of any year and to the last digit."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pyarrow as pa

_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
#: The Gregorian calendar repeats after 400 years, its weekdays too, and so do the rules of time zones.
_CYCLE_YEARS, _CYCLE_DAYS = 400, 146_097
_DAY_SECONDS = 86_400
#: The day before 0001-01-01 as days since 1970-01-01.
_ORDINAL_ZERO = -719_163


def counts(array: Any) -> list[Any]:
    """Returns times as integers in their unit; intervals as (months, days, nanoseconds)."""
    kind = array.type
    if pa.types.is_interval(kind):
        return list(array.to_pylist())
    return list(array.view(pa.int32() if kind.bit_width == 32 else pa.int64()).to_pylist())


def iso_writer(kind: pa.DataType) -> Callable[[Any], str]:
    """Returns the function that formats an integer of a temporal type, or an interval, by ISO 8601."""
    types = pa.types
    if types.is_interval(kind):
        return lambda value: f"P{value.months}M{value.days}DT{_seconds(value.nanoseconds, 9)}"
    if types.is_date32(kind):
        return _date
    if types.is_date64(kind):
        return lambda value: _date(value // (_DAY_SECONDS * 1_000))
    digits = _DIGITS[kind.unit]
    if types.is_duration(kind):
        return lambda value: f"{'-' if value < 0 else ''}PT{_seconds(abs(value), digits)}"
    if types.is_time(kind):
        return lambda value: _time(value, digits)
    zone: dt.tzinfo | None = None
    if kind.tz is not None:
        try:
            zone = pa.scalar(0, kind).as_py().tzinfo
        except (pa.ArrowException, LookupError, ValueError, OSError):
            zone = dt.UTC  # this machine does not know the zone
    return lambda value: _timestamp(value, digits, zone)


def _seconds(value: int, digits: int) -> str:
    """Formats a number of units of 10^-digits seconds, such as `1.5S`."""
    sign, value = ("-" if value < 0 else ""), abs(value)
    whole, rest = divmod(value, 10**digits)
    fraction = f".{rest:0{digits}d}".rstrip("0") if rest else ""
    return f"{sign}{whole}{fraction}S"


def _cycles(days: int) -> tuple[int, int]:
    """Splits days since 1970-01-01 into cycles of the calendar and a day from 2000 to 2399."""
    cycles, day = divmod(days - 10_957, _CYCLE_DAYS)  # 2000-01-01 is day 10,957
    return cycles, day + 10_957


def _date(days: int) -> str:
    in_years = 0 < days - _ORDINAL_ZERO <= dt.date.max.toordinal()
    cycles, day = (0, days) if in_years else _cycles(days)
    date = dt.date.fromordinal(day - _ORDINAL_ZERO)
    year = date.year + cycles * _CYCLE_YEARS
    sign = "+" if year > 9_999 else "-" if year < 0 else ""
    return f"{sign}{abs(year):04d}-{date.month:02d}-{date.day:02d}"


def _time(value: int, digits: int) -> str:
    seconds, rest = divmod(value, 10**digits)
    minutes, second = divmod(seconds, 60)
    fraction = f".{rest:0{digits}d}" if rest else ""
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{second:02d}{fraction}"


def _timestamp(value: int, digits: int, zone: dt.tzinfo | None) -> str:
    seconds, rest = divmod(value, 10**digits)
    offset = dt.timedelta() if zone is None else _offset(seconds, zone)
    days, second = divmod(seconds + offset // dt.timedelta(seconds=1), _DAY_SECONDS)
    return f"{_date(days)}T{_time(second * 10**digits + rest, digits)}{'' if zone is None else _signed(offset)}"


def _offset(seconds: int, zone: dt.tzinfo) -> dt.timedelta:
    """Returns a zone's offset at a moment in seconds since 1970 UTC."""
    days, second = divmod(seconds, _DAY_SECONDS)
    # An offset could move the first and the last days of `datetime` out of its range.
    inside = 2 < days - _ORDINAL_ZERO < dt.date.max.toordinal() - 2
    # Moved by whole cycles, to before there were zones, or to after all known changes of their rules.
    day = days if inside else _cycles(days)[1] + (_CYCLE_DAYS if days > 0 else -4 * _CYCLE_DAYS)
    moment = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(days=day, seconds=second)
    return moment.astimezone(zone).utcoffset() or dt.timedelta()


def _signed(offset: dt.timedelta) -> str:
    """Formats an offset, such as `+09:00`; before 1900, zones have seconds too."""
    seconds = offset // dt.timedelta(seconds=1)
    sign, seconds = ("-" if seconds < 0 else "+"), abs(seconds)
    text = f"{sign}{seconds // 3_600:02d}:{seconds // 60 % 60:02d}"
    return f"{text}:{seconds % 60:02d}" if seconds % 60 else text
