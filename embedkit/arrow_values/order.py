"""Sort keys of kept values, equal ones, and missing ones."""

from __future__ import annotations

import decimal
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from embedkit.arrow_values.text import convert_cells, json_values, plain_values, text_of
from embedkit.arrow_values.times import counts

_DATE = re.compile(
    r"(\d{4}-\d\d(?:-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?)?)?)(?:Z|[+-]\d\d:?\d\d)?", re.ASCII
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


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
    found = convert_cells(values, _comparable)
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
