"""Values of kept columns, ids and groups: in Arrow, as JSON, as text, and sorted.

A kept value is a Python value where that is exact (None, str, bool, int, float). Any other value stays in its
Arrow array, with a `Cell` referring to it, so that nothing is rounded, cut, or limited to the years of `datetime`.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import decimal
import json
import math
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from embedkit.errors import UsageError

_ZONED = re.compile(r"timestamp\[(s|ms|us|ns), tz=(.+)\]")
#: Separates the readable name of a type from its serialized schema.
_ENCODED = " arrow:"
_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
#: The Gregorian calendar repeats after 400 years, its weekdays too, and so do the rules of time zones.
_CYCLE_YEARS, _CYCLE_DAYS = 400, 146_097
_DAY_SECONDS = 86_400
#: The day before 0001-01-01 as days since 1970-01-01.
_ORDINAL_ZERO = -719_163
_DATE = re.compile(
    r"(\d{4}-\d\d(?:-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?)?)?)(?:Z|[+-]\d\d:?\d\d)?", re.ASCII
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class Cell(NamedTuple):
    """A value in an Arrow array; never null."""

    array: Any  # of a stored type: see `stored`
    place: int  # position in the array, from 0


def type_name(kind: pa.DataType) -> str:
    """Returns the name of a stored type, for `named_type`; such as `int64` or `timestamp[us, tz=UTC]`."""
    name = str(kind)
    with contextlib.suppress(UsageError):
        if named_type(name) == kind:
            return name
    encoded = base64.b64encode(pa.schema([pa.field("", kind)]).serialize().to_pybytes()).decode("ascii")
    return f"{name}{_ENCODED}{encoded}"


def named_type(name: str) -> pa.DataType:
    """Returns the Arrow type of a name by `type_name`, or of an alias of pyarrow.

    Raises:
        UsageError: it is neither.
    """
    if zoned := _ZONED.fullmatch(name):  # pyarrow has no alias for these types
        return pa.timestamp(zoned[1], tz=zoned[2])
    _, mark, encoded = name.rpartition(_ENCODED)
    try:
        if mark:
            return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(encoded))).field(0).type
        return pa.type_for_alias(name)
    except (pa.ArrowException, OSError, ValueError):
        raise UsageError(
            f"a kept column cannot have the type {name!r}",
            hint="use string, json, or an Arrow type such as int64, double, bool, timestamp[ms]",
        ) from None


def stored_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type in which values are kept: without dictionaries, run ends and views.

    An Arrow file cannot hold a dictionary that changes between batches; pyarrow 26 can neither filter nor take
    from views.
    """
    return next((make(kind) for is_it, make in _STORED if is_it(kind)), kind)


def stored(array: Any) -> Any:
    """Converts an array to its stored type.

    Raises:
        pa.ArrowException: pyarrow cannot convert it.
    """
    if pa.types.is_run_end_encoded(array.type):
        return stored(pc.run_end_decode(array))
    kind = stored_type(array.type)
    return array if array.type == kind else array.cast(kind)


def is_string(kind: pa.DataType) -> bool:
    """Checks for strings of any layout."""
    return kind in {pa.string(), pa.large_string(), pa.string_view()}


def is_binary(kind: pa.DataType) -> bool:
    """Checks for bytes of any layout."""
    return kind in {pa.binary(), pa.large_binary(), pa.binary_view()} or bool(pa.types.is_fixed_size_binary(kind))


def is_nested(kind: pa.DataType) -> bool:
    """Checks for lists, structs, maps and unions."""
    return bool(pa.types.is_nested(kind) or (_is_extension(kind) and is_nested(kind.storage_type)))


def holds(kind: pa.DataType, is_it: Callable[[pa.DataType], bool]) -> bool:
    """Checks whether a type, or one nested in it, satisfies `is_it`."""
    if _is_extension(kind):
        return holds(kind.storage_type, is_it)
    return is_it(kind) or any(holds(kind.field(at).type, is_it) for at in range(kind.num_fields))


def is_exact(kind: pa.DataType) -> bool:
    """Checks for types whose values have one text each, as ids need it: times, decimals, UUIDs."""
    return bool(pa.types.is_temporal(kind) or pa.types.is_decimal(kind) or isinstance(kind, pa.UuidType))


def _stored_field(field: pa.Field) -> pa.Field:
    return field.with_type(stored_type(field.type))


def _stored_struct(kind: pa.DataType) -> pa.DataType:
    return pa.struct([_stored_field(kind.field(at)) for at in range(kind.num_fields)])


def _stored_map(kind: pa.DataType) -> pa.DataType:
    return pa.map_(_stored_field(kind.key_field), _stored_field(kind.item_field), kind.keys_sorted)


_Is = Callable[[pa.DataType], bool]
#: Predicates on types, and the functions that return the stored type.
_STORED: tuple[tuple[_Is, Callable[[pa.DataType], pa.DataType]], ...] = (
    (pa.types.is_dictionary, lambda kind: stored_type(kind.value_type)),
    (pa.types.is_run_end_encoded, lambda kind: stored_type(kind.value_type)),
    (pa.types.is_string_view, lambda _: pa.string()),
    (pa.types.is_binary_view, lambda _: pa.binary()),
    (pa.types.is_struct, _stored_struct),
    (pa.types.is_map, _stored_map),
    (pa.types.is_list, lambda kind: pa.list_(_stored_field(kind.value_field))),
    (pa.types.is_large_list, lambda kind: pa.large_list(_stored_field(kind.value_field))),
    (pa.types.is_list_view, lambda kind: pa.list_view(_stored_field(kind.value_field))),
    (pa.types.is_large_list_view, lambda kind: pa.large_list_view(_stored_field(kind.value_field))),
    (pa.types.is_fixed_size_list, lambda kind: pa.list_(_stored_field(kind.value_field), kind.list_size)),
)


def _is_extension(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.BaseExtensionType)


def _is_plain(kind: pa.DataType) -> bool:
    """Checks for types whose values are exact in Python and JSON."""
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return bool(is_number) or is_string(kind) or kind in {pa.null(), pa.bool_()}


def kept_values(array: Any) -> list[Any]:
    """Returns the kept values of an array of a stored type; None for null."""
    if _is_plain(array.type):
        return list(array.to_pylist())
    valid = array.is_valid().to_pylist()
    return [Cell(array, place) if is_valid else None for place, is_valid in enumerate(valid)]


def typed_array(values: Sequence[Any], kind: pa.DataType) -> Any:
    """Makes an array of a given type from kept values.

    Raises:
        pa.ArrowException, ValueError, TypeError, OverflowError: a value is not of that type.
    """
    if not any(isinstance(value, Cell) for value in values):
        return pa.array(values, kind)
    parts = [source.take(pa.array(places, pa.int64())) for source, places in _by_array(values)]
    parts = [part if part.type == kind else part.cast(kind) for part in parts]
    return parts[0] if len(parts) == 1 else pa.concat_arrays(parts)


def _by_array(values: Sequence[Any]) -> Iterator[tuple[Any, list[int | None]]]:
    """Groups consecutive values by their array: yields arrays and places in them; None for null."""
    source: Any = None
    places: list[int | None] = []
    for value in values:
        if value is None:
            places.append(None)
            continue
        if not isinstance(value, Cell):
            raise TypeError("cells and Python values are mixed")
        if source is not None and value.array is not source:
            yield source, places
            places = []
        source = value.array
        places.append(value.place)
    yield source, places


def plain_values(values: Any) -> list[Any]:
    """Converts kept values, or a chunked array, to values for JSON; NaN and infinities are unchanged.

    Times and dates become ISO 8601 text (`+10000-01-01` after the year 9999), durations text such as `PT1.5S`,
    decimals and UUIDs text, bytes base64, maps lists of [key, value].
    """
    if isinstance(values, pa.ChunkedArray):
        return [value for chunk in values.chunks for value in json_values(chunk)]
    return _converted(values, json_values)


def _converted(values: Sequence[Any], convert: Callable[[Any], list[Any]]) -> list[Any]:
    """Converts the cells of kept values; once for all consecutive ones of the same array."""
    found: list[Any] = []
    source: Any = None
    converted: list[Any] = []
    for value in values:
        if not isinstance(value, Cell):
            found.append(value)
            continue
        if value.array is not source:
            source, converted = value.array, convert(value.array)
        found.append(converted[value.place])
    return found


def plain_value(value: Any) -> Any:
    """Converts one kept value to a value for JSON."""
    return json_values(value.array.slice(value.place, 1))[0] if isinstance(value, Cell) else value


def json_values(array: Any) -> list[Any]:
    """Converts the values of an array as `plain_values` does."""
    return next((convert for is_it, convert in _CONVERTERS if is_it(array.type)), _scalar_values)(array)


def counts(array: Any) -> list[Any]:
    """Returns times as integers in their unit; intervals as (months, days, nanoseconds)."""
    kind = array.type
    if pa.types.is_interval(kind):
        return list(array.to_pylist())
    return list(array.view(pa.int32() if kind.bit_width == 32 else pa.int64()).to_pylist())


def _each(values: list[Any], write: Callable[[Any], Any]) -> list[Any]:
    return [None if value is None else write(value) for value in values]


def _extension_values(array: Any) -> list[Any]:
    if isinstance(array.type, pa.UuidType):
        return _each(array.storage.to_pylist(), lambda value: str(uuid.UUID(bytes=value)))
    if isinstance(array.type, pa.Bool8Type):
        return _each(array.storage.to_pylist(), bool)
    return json_values(array.storage)


def _struct_values(array: Any) -> list[Any]:
    names = [array.type.field(at).name for at in range(array.type.num_fields)]
    columns = [json_values(child) for child in array.flatten()]
    rows = zip(*columns, strict=True) if columns else iter([()] * len(array))
    collect = dict if len(set(names)) == len(names) else (lambda pairs: [list(pair) for pair in pairs])
    return [
        collect(zip(names, row, strict=True)) if is_valid else None
        for row, is_valid in zip(rows, array.is_valid().to_pylist(), strict=True)
    ]


def _map_values(array: Any) -> list[Any]:
    ends = array.offsets.to_pylist()
    start, count = ends[0], ends[-1] - ends[0]
    keys, items = (json_values(child.slice(start, count)) for child in (array.keys, array.items))
    valid = array.is_valid().to_pylist()
    return [
        [[keys[at], items[at]] for at in range(first - start, stop - start)] if is_valid else None
        for (first, stop), is_valid in zip(pairwise(ends), valid, strict=True)
    ]


def _list_values(array: Any) -> list[Any]:
    flat = iter(json_values(array.flatten()))
    return _each(pc.list_value_length(array).to_pylist(), lambda length: list(islice(flat, length)))


def _scalar_values(array: Any) -> list[Any]:
    """Converts the values of a union, one by one."""
    return [json_values(pa.array([scalar.value]))[0] if scalar.is_valid else None for scalar in array]


_CONVERTERS: tuple[tuple[_Is, Callable[[Any], list[Any]]], ...] = (
    (_is_extension, _extension_values),
    (_is_plain, lambda array: list(array.to_pylist())),
    (pa.types.is_dictionary, lambda array: json_values(stored(array))),
    (pa.types.is_run_end_encoded, lambda array: json_values(stored(array))),
    (is_binary, lambda array: _each(array.to_pylist(), lambda value: base64.b64encode(value).decode("ascii"))),
    (pa.types.is_decimal, lambda array: _each(array.to_pylist(), lambda value: format(value, "f"))),
    (pa.types.is_temporal, lambda array: _each(counts(array), _writer(array.type))),
    (pa.types.is_struct, _struct_values),
    (pa.types.is_map, _map_values),
    (lambda kind: is_nested(kind) and not pa.types.is_union(kind), _list_values),
)


def _writer(kind: pa.DataType) -> Callable[[Any], str]:
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


def has_non_finite(value: Any) -> bool:
    """Checks a value for JSON for NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(has_non_finite(inner) for inner in value.values())
    return isinstance(value, list) and any(has_non_finite(inner) for inner in value)


def texts(array: Any) -> list[str | None]:
    """Converts values to texts, for ids and groups: strings unchanged, others as JSON.

    Raises:
        UnicodeDecodeError: a string is not UTF-8.
    """
    return [None if value is None else text_of(value) for value in json_values(array)]


def text_of(value: Any) -> str:
    """Converts a value for JSON to text; a string is unchanged."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def is_missing(value: Any) -> bool:
    """Checks for null, NaN, and the empty text."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def number_in(text: str) -> decimal.Decimal | None:
    """Parses a number in ASCII digits, exactly; None if it is not one, such as `nan` and `1_0`."""
    if not _NUMBER.fullmatch(text.strip()):
        return None
    try:
        return decimal.Decimal(text.strip())
    except decimal.InvalidOperation:  # the exponent is too large
        return None


def order_keys(values: Sequence[Any]) -> tuple[list[Any], int, bool]:
    """Makes sort keys for kept values.

    Times and numbers are compared exactly, also texts if all of them are numbers; else all values are compared as
    text.

    Returns:
        A key for each value, None for null, NaN and the empty text; the number of values that are not numbers if
        others are numbers, else 0; and True if text may sort differently from time: unless all values are dates by
        ISO 8601 of one form and one time zone.
    """
    found = _converted(values, _comparable)
    is_absent = [is_missing(value) for value in found]
    numbers = [None if gone else _number(value) for value, gone in zip(found, is_absent, strict=True)]
    others = sum(number is None and not gone for number, gone in zip(numbers, is_absent, strict=True))
    if not others:
        return numbers, 0, False
    as_text = [None if gone else text_of(value) for value, gone in zip(found, is_absent, strict=True)]
    forms = {_date_form(text) for text in as_text if text is not None}
    is_doubtful = len(forms) > 1 or "" in forms
    return as_text, others if any(number is not None for number in numbers) else 0, is_doubtful


def _date_form(text: str) -> str:
    """Returns the form of an ISO 8601 date, with its time zone; within one form, text sorts like time."""
    found = _DATE.fullmatch(text)
    return "" if found is None else re.sub(r"\d", "0", found[1]) + text[len(found[1]) :]


def _comparable(array: Any) -> list[Any]:
    if pa.types.is_decimal(array.type):
        return list(array.to_pylist())
    is_count = pa.types.is_temporal(array.type) and not pa.types.is_interval(array.type)
    return counts(array) if is_count else json_values(array)


def _number(value: Any) -> Any:
    if isinstance(value, str):
        return number_in(value)
    return value if isinstance(value, int | float | decimal.Decimal) else None


def first_alike(values: Sequence[Any]) -> list[int | None]:
    """Returns for each kept value the place of the first equal one, NaN too; None for null."""
    first: dict[Any, int] = {}
    places: list[int | None] = []
    for place, value in enumerate(plain_values(values)):
        key = type(value), value if isinstance(value, str | int) else json.dumps(value, sort_keys=True)
        places.append(None if value is None else first.setdefault(key, place))
    return places
