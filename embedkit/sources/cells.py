"""Arrow arrays → lists of Python values: texts, ids, kept columns. Knows no file and no record.

Kept values are Python's own: `str`, `int`, `float`, `bool`, `bytes`, `datetime`, …. Times in nanoseconds
that `datetime` cannot hold are left as integers, which pyarrow takes back as such; the values of a
`json` column are such that `json.dumps` writes them (times in ISO form, decimals as strings, bytes in
base64).
"""

from __future__ import annotations

import base64
import datetime as dt
import decimal
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from embedkit.sources.columns import Kind

#: Positions in a batch of rows with bytes that are not UTF-8.
Unreadable = set[int]

_MICROSECONDS = {"timestamp[ns]": "timestamp[us]", "duration[ns]": "duration[us]", "time64[ns]": "time64[us]"}


def kind_of(declared: Any) -> Kind:
    """What cells of this Arrow type may be."""
    plain = _plain_type(declared)
    if _is_string(plain):
        return "string"
    if _is_binary(plain):
        return "binary"
    if pa.types.is_integer(plain):
        return "integer"
    return "null" if pa.types.is_null(plain) else "other"


def kept_name(declared: Any) -> str:
    """The type's name as a kept column's: one that `pyarrow.type_for_alias` takes back, or `json`."""
    plain = _plain_type(declared)
    if _is_string(plain):
        return "string"
    try:
        return str(plain) if pa.type_for_alias(str(plain)) == plain else "json"
    except ValueError:
        return "json"


def strings(array: Any, unreadable: Unreadable) -> list[str | None]:
    """Cells as text: strings as they are, bytes decoded, integers in decimal."""
    plain = _plain(array)
    if not (_is_string(plain.type) or _is_binary(plain.type)):
        return [None if cell is None else str(cell) for cell in plain.to_pylist()]
    if _is_string(plain.type):
        try:
            return list(plain.to_pylist())
        except UnicodeDecodeError:  # pyarrow takes a file's word for what is UTF-8
            pass
    return [_decoded(cell, at, unreadable) for at, cell in enumerate(plain)]


def values(array: Any, unreadable: Unreadable) -> list[Any]:
    """Cells as kept."""
    plain = _plain(array)
    name = kept_name(array.type)
    if name == "string":
        return strings(plain, unreadable)
    if name == "json":
        return [_jsonable(cell) for cell in plain.to_pylist()]
    if name in _MICROSECONDS:
        counts = plain.cast(pa.int64())
        coarse = plain.cast(pa.type_for_alias(_MICROSECONDS[name]), safe=False).to_pylist()
        return [
            count if count is not None and count % 1_000 else cell
            for count, cell in zip(counts.to_pylist(), coarse, strict=True)
        ]
    return list(plain.to_pylist())


def _plain_type(declared: Any) -> Any:
    """The type of the values under a dictionary or an extension."""
    if pa.types.is_dictionary(declared):
        return _plain_type(declared.value_type)
    return _plain_type(declared.storage_type) if isinstance(declared, pa.BaseExtensionType) else declared


def _plain(array: Any) -> Any:
    if pa.types.is_dictionary(array.type):
        return _plain(array.dictionary_decode())
    return _plain(array.storage) if isinstance(array.type, pa.BaseExtensionType) else array


def _is_string(declared: Any) -> bool:
    types = pa.types
    return bool(types.is_string(declared) or types.is_large_string(declared) or types.is_string_view(declared))


def _is_binary(declared: Any) -> bool:
    types = pa.types
    return bool(
        types.is_binary(declared)
        or types.is_large_binary(declared)
        or types.is_binary_view(declared)
        or types.is_fixed_size_binary(declared)
    )


def _decoded(cell: Any, at: int, unreadable: Unreadable) -> str | None:
    if not cell.is_valid:
        return None
    try:
        return bytes(cell.as_buffer()).decode()
    except UnicodeDecodeError:
        unreadable.add(at)
        return None


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(inner) for inner in value]
    if isinstance(value, dt.date | dt.time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, decimal.Decimal | dt.timedelta):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value
