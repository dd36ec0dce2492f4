"""Arrow arrays → lists of values: texts, ids, kept columns. Knows no file and no record."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from embedkit.arrow_values import (
    holds,
    is_binary,
    is_exact,
    is_string,
    json_values,
    kept_values,
    stored,
    stored_type,
    texts,
    type_name,
)
from embedkit.sources.columns import Kind

#: Positions in a batch of rows with bytes that are not UTF-8.
Unreadable = set[int]


def kind_of(declared: Any) -> Kind:
    """What cells of this Arrow type may be."""
    kind = stored_type(declared)
    if is_exact(kind):
        return "exact"
    plain = _storage_type(kind)
    if is_string(plain):
        return "string"
    if is_binary(plain):
        return "binary"
    if pa.types.is_integer(plain) and plain == kind:
        return "integer"
    return "null" if pa.types.is_null(plain) else "other"


def kept_name(declared: Any) -> str:
    """The name of the type in which a column of this Arrow type is kept."""
    return type_name(stored_type(declared))


def strings(array: Any, unreadable: Unreadable) -> list[str | None]:
    """Cells as text: strings as they are, bytes decoded, numbers and times as `texts` has them."""
    plain = stored(array)
    if not is_exact(plain.type):
        plain = _storage(plain)
    try:
        if not is_binary(plain.type):
            return texts(plain)
    except UnicodeDecodeError:  # pyarrow takes a file's word for what is UTF-8
        pass
    return [_decoded(cell, at, unreadable) for at, cell in enumerate(plain)]


def values(array: Any, unreadable: Unreadable) -> list[Any]:
    """Cells as kept: see `arrow_values.kept_values`."""
    plain = stored(array)
    if is_string(plain.type):
        return strings(plain, unreadable)
    kept = kept_values(plain)
    if holds(plain.type, is_string):
        _look_for_bytes(plain, unreadable)
    return kept


def _look_for_bytes(array: Any, unreadable: Unreadable) -> None:
    """Find the rows with a string inside that is not UTF-8."""
    try:
        json_values(array)
    except UnicodeDecodeError:
        for at in range(len(array)):
            try:
                json_values(array.slice(at, 1))
            except UnicodeDecodeError:
                unreadable.add(at)


def _storage_type(kind: Any) -> Any:
    return _storage_type(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else kind


def _storage(array: Any) -> Any:
    return _storage(array.storage) if isinstance(array.type, pa.BaseExtensionType) else array


def _decoded(cell: Any, at: int, unreadable: Unreadable) -> str | None:
    if not cell.is_valid:
        return None
    try:
        return bytes(cell.as_buffer()).decode()
    except UnicodeDecodeError:
        unreadable.add(at)
        return None
