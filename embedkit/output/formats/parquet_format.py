"""Shards as Parquet files: one row a row, vectors as FixedSizeList columns.

The same shard gives the same bytes. A null in a FixedSizeList takes pyarrow 26 to write and to read
(apache/arrow#35692); polars and DuckDB read it. Knows nothing of commits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from embedkit.errors import OutputError
from embedkit.output.formats.base import OneFile
from embedkit.output.formats.columns import RecordBatch, full_table, refuse_types, split
from embedkit.output.formats.schema import Create
from embedkit.types import EncodedShard, Variant

#: What a reader holds at a time: 43,000 rows of 384 float32 values. Speed does not decide it: from 1 to
#: 256 MiB all were written at 750 MB/s and read at 1,250.
ROW_GROUP_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class ParquetSink(OneFile):
    """`embeddings/part-00000.parquet`, all columns in it."""

    suffix: ClassVar[str] = ".parquet"

    def write(self, shard: EncodedShard, create: Create) -> None:
        """Write the shard's file."""
        table = full_table(shard, self.layout)
        with create(self.files(shard.index)[0]) as file:
            write_tables(file, table.schema, [table], self.layout.variants)

    def merge(self, folder: Path, indices: Sequence[int], name: str, create: Create) -> None:
        """Join shards into the one file `name`, a row group at a time."""
        paths = [folder / self.files(index)[0] for index in indices]
        with create(name) as file:
            write_tables(file, self.layout.schema(), row_groups(paths), self.layout.variants)

    def read(self, files: Sequence[Path], asked: Sequence[Variant]) -> Iterator[RecordBatch]:
        """The rows of one file, a row group at a time, page checksums verified."""
        unasked = {variant.column for variant in self.layout.variants} - {v.column for v in asked}
        schema = pq.read_schema(files[0])
        refuse_types(files[0], schema, self.layout, asked)
        columns = [name for name in schema.names if name not in unasked]
        pieces = 0
        for table in row_groups(files, columns):
            yield split(table, asked)
            pieces += 1
        if not pieces:
            yield split(schema.empty_table().select(columns), asked)


def write_tables(
    file: BinaryIO, schema: pa.Schema, tables: Iterable[pa.Table], variants: Sequence[Variant] = ()
) -> None:
    """One Parquet file of all `tables`; a table never shares a row group with the next.

    Raises:
        OutputError: Parquet has no place for a value: its milliseconds do not reach as far as Arrow's seconds.
    """
    vectors = {variant.column for variant in variants}
    facts = [name for name in schema.names if name not in vectors]
    leaves = [_leaf(schema.field(variant.column)) for variant in variants]
    with pq.ParquetWriter(
        file,
        schema,
        # 100,000 x 384 float32 on 2 cores: 640 MB/s plain; zstd 450 MB/s for 8 % off the size, and with
        # byte-stream-split 437 MB/s for 16 %. Floats barely compress; the facts are text and counts, and do.
        compression=dict.fromkeys(facts, "zstd"),
        # Ids differ and floats do too. A byte is stored as 4 in plain Parquet, which has no smaller
        # integer; a dictionary of its 256 values makes it 1.02 (zstd 1.34, and slower).
        use_dictionary=[*facts[1:], *(path for path, is_byte in leaves if is_byte)],
        write_statistics=facts,
        # Without, 43 of 200 flipped bits were read back as numbers.
        write_page_checksum=True,
    ) as writer:
        for table in tables:
            rows = max(1, ROW_GROUP_BYTES * table.num_rows // max(1, table.nbytes))
            if not _written(writer, _conform(table, schema), rows):
                raise OutputError(
                    "a kept time in seconds is too far away for Parquet, which has milliseconds",
                    hint="use --output-format arrow, or leave the column out of --keep",
                )


def _written(writer: pq.ParquetWriter, table: pa.Table, rows: int) -> bool:
    """Write a table; False where a value has no place. The cause is dropped: pyarrow quotes the value in it."""
    try:
        writer.write_table(table, row_group_size=rows)
    except pa.ArrowInvalid:
        return False
    return True


def row_groups(paths: Iterable[Path], columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The row groups of the files one after another, page checksums verified."""
    for path in paths:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=columns)


def _leaf(field: pa.Field) -> tuple[str, bool]:
    """Parquet's path of the values in a column of lists, and whether they are of one byte."""
    path, kind = field.name, field.type
    while pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        path, kind = f"{path}.list.element", kind.value_type
    return path, kind.bit_width == 8


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` in the types of `schema`: Parquet has no seconds and gives milliseconds back."""
    columns: list[Any] = [
        column if column.type == field.type else column.cast(field.type)
        for column, field in zip(table.columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=schema)
