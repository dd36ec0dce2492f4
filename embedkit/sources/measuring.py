"""Lengths of the texts in a record batch, without an object for each: planning needs no more of most rows."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from embedkit.arrow_values import holds, is_binary, is_exact, is_string, stored, stored_type
from embedkit.sources.columns import Columns


def names_to_measure(schema: Any, columns: Columns, floats: Collection[str] | None) -> list[str] | None:
    """Lists the columns that show how long the texts are, and which rows are faulty.

    Args:
        schema: of the file.
        columns: those in use.
        floats: kept columns whose NaN and infinities are counted; None if planning needs the kept values.

    Returns:
        The names; None if each row must be read as a record.
    """
    if floats is None or columns.template is not None:
        return None
    types = {name: stored_type(schema.field(name).type) for name in columns.named}
    names = list(columns.text)
    if not all(_is_text(types[name]) for name in columns.text):
        return None
    if columns.id is not None and not pa.types.is_integer(types[columns.id]):
        if not _is_text(types[columns.id]):
            return None
        names.append(columns.id)
    for name in columns.keep:
        if name in floats and not pa.types.is_floating(types[name]):
            return None
        if name in floats or holds(types[name], is_string):
            names.append(name)
    return list(dict.fromkeys(names))


def measure(batch: Any, columns: Columns, floats: Collection[str]) -> tuple[list[int], dict[str, int]] | None:
    """Counts the characters of the texts of a batch, 0 for null, and NaN and infinities by column.

    Returns:
        None if a cell is not UTF-8, so that its row is faulty.

    Raises:
        pa.ArrowException: the batch has a type that cannot be measured.
    """
    checked = {name: _checked(batch.column(name)) for name in batch.schema.names}
    if any(array is None for array in checked.values()):
        return None
    counts = [
        pc.fill_null(pc.utf8_length(checked[name]), 0).to_numpy(zero_copy_only=False) for name in columns.text
    ]
    lengths = sum(counts[1:], counts[0].astype("int64"))
    if len(counts) > 1:  # joined by a newline, without the empty ones
        lengths += (sum((count > 0).astype("int64") for count in counts) - 1).clip(min=0)
    finite = {name: pc.sum(pc.is_finite(checked[name])).as_py() or 0 for name in floats}
    non_finite = {name: len(batch) - checked[name].null_count - finite[name] for name in floats}
    return lengths.tolist(), {name: count for name, count in non_finite.items() if count}


def _is_text(kind: pa.DataType) -> bool:
    is_bytes = is_binary(kind) and not pa.types.is_fixed_size_binary(kind)
    return is_string(kind) or is_bytes or kind == pa.null()


def _checked(array: Any) -> Any:
    """Returns an array in its stored type, bytes as strings; None if it has invalid UTF-8."""
    plain = stored(array)
    if plain.type == pa.null():
        return plain.cast(pa.large_string())
    try:
        if is_binary(plain.type):
            return plain.cast(pa.large_string())
        if not is_exact(plain.type):
            plain.validate(full=True)
    except pa.ArrowInvalid:
        return None
    return plain
