"""Kept values as JSON, and as text."""

from __future__ import annotations

import base64
import json
import math
import uuid
from collections.abc import Callable, Sequence
from itertools import islice, pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from embedkit.arrow_values.stored_types import Cell, IsType, is_binary, is_extension, is_nested, is_plain, stored
from embedkit.arrow_values.times import counts, iso_writer


def plain_values(values: Any) -> list[Any]:
    """Converts kept values, or a chunked array, to values for JSON; NaN and infinities are unchanged.

    Times and dates become ISO 8601 text (`+10000-01-01` after the year 9999), durations text such as `PT1.5S`,
    decimals and UUIDs text, bytes base64, maps lists of [key, value].
    """
    if isinstance(values, pa.ChunkedArray):
        return [value for chunk in values.chunks for value in json_values(chunk)]
    return convert_cells(values, json_values)


def convert_cells(values: Sequence[Any], convert: Callable[[Any], list[Any]]) -> list[Any]:
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


_CONVERTERS: tuple[tuple[IsType, Callable[[Any], list[Any]]], ...] = (
    (is_extension, _extension_values),
    (is_plain, lambda array: list(array.to_pylist())),
    (pa.types.is_dictionary, lambda array: json_values(stored(array))),
    (pa.types.is_run_end_encoded, lambda array: json_values(stored(array))),
    (is_binary, lambda array: _each(array.to_pylist(), lambda value: base64.b64encode(value).decode("ascii"))),
    (pa.types.is_decimal, lambda array: _each(array.to_pylist(), lambda value: format(value, "f"))),
    (pa.types.is_temporal, lambda array: _each(counts(array), iso_writer(array.type))),
    (pa.types.is_struct, _struct_values),
    (pa.types.is_map, _map_values),
    (lambda kind: is_nested(kind) and not pa.types.is_union(kind), _list_values),
)


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
