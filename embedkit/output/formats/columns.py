"""Finished shards as Arrow columns, and back.

Vectors are converted through their flat buffer: `.tolist()` was 10 times slower and made doubles of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedkit.errors import OutputError
from embedkit.output.formats.arrays import number_array, numbers_of, text_array, valid_rows
from embedkit.output.formats.layout import RECEIPT, Layout
from embedkit.output.formats.values import kept_array
from embedkit.storage.protocol import FilePath
from embedkit.types import EncodedShard, Variant

#: Hint for damaged files.
VERIFY = "`embedkit verify` names everything in an output that is not as it was written"

#: The vectors of one variant: [V, width], or V arrays [n, width] of token vectors.
Vectors = NDArray[Any] | Sequence[NDArray[Any]]


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """Consecutive rows of an output, as stored."""

    facts: pa.Table  # [R] id, kept columns and receipt
    has_vector: NDArray[np.bool_]  # [R]; undefined if no variant was asked for
    vectors: Mapping[str, Vectors]  # by variant asked for, V = has_vector.sum() vectors in the stored precision


def facts_table(shard: EncodedShard, layout: Layout) -> pa.Table:
    """Returns [R] id, kept columns and receipt of every row.

    Raises:
        OutputError: a kept value is not of its column's type.
    """
    kept = [kept_array(name, shard.kept[name], kind) for name, kind in layout.kept_types.items()]
    counts = [number_array(getattr(shard, name)) for name in RECEIPT[:3]]
    columns = [kept_array("id", shard.ids, "string"), *kept, *counts, text_array(shard.status)]
    return pa.Table.from_arrays(columns, schema=layout.facts_schema())


def full_table(shard: EncodedShard, layout: Layout) -> pa.Table:
    """Returns [R] the facts and a column of vectors for each variant, null if a row has none."""
    facts = facts_table(shard, layout)
    stored = token_arrays if layout.token_vectors else matrix
    columns = [
        vector_cells(stored(shard, variant, layout), shard.has_vector, layout.cell_type(variant))
        for variant in layout.variants
    ]
    return pa.Table.from_arrays([*facts.columns, *columns], schema=layout.schema())


def matrix(shard: EncodedShard, variant: Variant, layout: Layout) -> NDArray[Any]:
    """Returns [V, width] the shard's vectors as stored: little-endian, C order.

    Raises:
        ValueError: shape or type differ from the layout, by a fault of embedkit.
    """
    expected = (int(shard.has_vector.sum()), layout.width(variant))
    vectors = shard.vectors[variant.name]
    if not isinstance(vectors, np.ndarray) or vectors.shape != expected:
        raise ValueError(f"{variant.column} of shard {shard.index} is not an array of shape {expected}")
    return _stored(vectors, variant, layout)


def token_arrays(shard: EncodedShard, variant: Variant, layout: Layout) -> list[NDArray[Any]]:
    """Returns V arrays [n, width] of token vectors as stored.

    Raises:
        ValueError: a shape or type differs from the layout, by a fault of embedkit.
    """
    vectors, width = shard.vectors[variant.name], layout.width(variant)
    if len(vectors) != shard.has_vector.sum() or any(tokens.shape[1:] != (width,) for tokens in vectors):
        raise ValueError(f"{variant.column} of shard {shard.index} is not an array [n, {width}] for each vector")
    return [_stored(tokens, variant, layout) for tokens in vectors]


def split(table: pa.Table, asked: Sequence[Variant]) -> RecordBatch:
    """Splits a table into facts and vectors; its vector columns are those of `asked`."""
    columns = {variant.name: table[variant.column] for variant in asked}
    facts = table.drop_columns([variant.column for variant in asked])
    valid = next((valid_rows(column) for column in columns.values()), None)
    vectors = {name: _vectors(column) for name, column in columns.items()}
    return RecordBatch(facts, np.zeros(len(facts), np.bool_) if valid is None else valid, vectors)


def check_types(path: FilePath, schema: pa.Schema, layout: Layout, asked: Sequence[Variant]) -> None:
    """Checks that a file's columns, except kept ones and vectors not `asked` for, have the types of the layout.

    Raises:
        OutputError: a column is missing, duplicated, or of another type.
    """
    expected = {field.name: field.type for field in replace(layout, kept_types={}).facts_schema()}
    expected |= {variant.column: layout.cell_type(variant) for variant in asked}
    for name, kind in expected.items():
        places = schema.get_all_field_indices(name)
        if len(places) != 1:
            raise OutputError(f"{path} is damaged: its schema has {len(places)} columns '{name}'", hint=VERIFY)
        found = schema.field(places[0]).type
        if not _same(found, kind):
            raise OutputError(
                f"{path} is damaged: its column '{name}' is {found}, and {kind} is written", hint=VERIFY
            )


def _same(found: pa.DataType, written: pa.DataType) -> bool:
    """Compares types but for the names of list items, which Parquet changes."""
    if pa.types.is_fixed_size_list(written):
        sizes_fit = pa.types.is_fixed_size_list(found) and found.list_size == written.list_size
        return sizes_fit and _same(found.value_type, written.value_type)
    if pa.types.is_list(written):
        return pa.types.is_list(found) and _same(found.value_type, written.value_type)
    return bool(found == written)


def _stored(vectors: NDArray[Any], variant: Variant, layout: Layout) -> NDArray[Any]:
    if vectors.dtype.newbyteorder("<") != layout.dtype:
        raise ValueError(f"{variant.column} holds {vectors.dtype}, not {layout.precision}")
    return np.ascontiguousarray(vectors, dtype=layout.dtype)


def vector_cells(vectors: Vectors, has_vector: NDArray[np.bool_], cell_type: pa.DataType) -> pa.Array:
    """Returns a cell for each row, built from the flat buffer of all vectors.

    Args:
        vectors: [N, width], or N arrays [n, width] of token vectors, of the rows that have one.
        has_vector: [R] True for these; cells of the others are null.
        cell_type: a FixedSizeList; of token vectors a List or LargeList of it.
    """
    absent = number_array(~has_vector)
    if not isinstance(vectors, np.ndarray):
        is_large, vector_type = pa.types.is_large_list(cell_type), cell_type.value_type
        ends = np.zeros(len(has_vector) + 1, np.int64 if is_large else np.int32)
        ends[1:][has_vector] = [len(tokens) for tokens in vectors]
        np.cumsum(ends, out=ends)
        none = np.empty((0, vector_type.list_size), vector_type.value_type.to_pandas_dtype())
        flat = np.concatenate([none, *vectors]).reshape(-1)
        tokens = pa.FixedSizeListArray.from_arrays(number_array(flat), type=vector_type)
        lists = pa.LargeListArray if is_large else pa.ListArray
        return lists.from_arrays(number_array(ends), tokens, type=cell_type, mask=absent)
    if not has_vector.all():
        # A null of a FixedSizeList has D slots in the child as well; zeros keep the bytes equal.
        slots = np.zeros((len(has_vector), vectors.shape[1]), vectors.dtype)
        slots[has_vector] = vectors
        vectors = slots
    return pa.FixedSizeListArray.from_arrays(number_array(vectors.reshape(-1)), type=cell_type, mask=absent)


def _vectors(column: pa.ChunkedArray) -> Vectors:
    """Returns the rows of a column that are not null; no copy if there is one chunk without nulls."""
    if pa.types.is_fixed_size_list(column.type):
        parts = [_flat(chunk) for chunk in column.chunks] or [_flat(pa.array([], column.type))]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
    arrays: list[NDArray[Any]] = []
    for chunk in column.chunks:
        tokens, lengths = _flat(chunk.flatten()), numbers_of(chunk.drop_null().value_lengths())
        arrays.extend(np.split(tokens, np.cumsum(lengths)[:-1]) if len(lengths) else [])
    return arrays


def _flat(array: pa.FixedSizeListArray) -> NDArray[Any]:
    """Returns [V, width] the lists that are not null: `flatten` leaves out the slots of nulls."""
    return numbers_of(array.flatten()).reshape(-1, array.type.list_size)
