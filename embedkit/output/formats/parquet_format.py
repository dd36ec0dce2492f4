"""Shards as Parquet files, vectors as FixedSizeList columns.

The same shard gives the same bytes. A null in a FixedSizeList needs pyarrow 26 to be written and read
(apache/arrow#35692); polars and DuckDB read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from embedkit.errors import OutputError
from embedkit.output.formats.columns import RecordBatch, check_types, full_table, split
from embedkit.output.formats.layout import Create
from embedkit.output.formats.sink import OneFile
from embedkit.storage.opener import IN_PLACE, FileOpener
from embedkit.storage.protocol import FilePath
from embedkit.types import EncodedShard, Variant

#: Memory of a reader: 43,000 rows of 384 float32 values. It does not affect speed: with 1 to 256 MiB, files were
#: written at 750 MB/s and read at 1,250.
ROW_GROUP_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class ParquetSink(OneFile):
    """`embeddings/part-00000.parquet`, all columns in it."""

    suffix: ClassVar[str] = ".parquet"

    def write(self, shard: EncodedShard, create: Create) -> None:
        """See Sink."""
        table = full_table(shard, self.layout)
        with create(self.files(shard.index)[0]) as file:
            write_tables(file, table.schema, [table], self.layout.variants)

    def merge(self, folder: FilePath, indices: Sequence[int], name: str, create: Create) -> None:
        """Merges shards into one file, a row group at a time."""
        paths = [folder / self.files(index)[0] for index in indices]
        with create(name) as file:
            write_tables(file, self.layout.schema(), row_groups(paths), self.layout.variants)

    def read(
        self,
        files: Sequence[FilePath],
        asked: Sequence[Variant],
        *,
        only: int | None = None,
        opener: FileOpener = IN_PLACE,
    ) -> Iterator[RecordBatch]:
        """Reads one file, a row group at a time, and verifies page checksums."""
        unasked = {variant.column for variant in self.layout.variants} - {v.column for v in asked}
        schema = file_schema(files[0], opener)
        check_types(files[0], schema, self.layout, asked)
        columns = [name for name in schema.names if name not in unasked]
        pieces = 0
        for table in row_groups(files, columns, only, opener):
            yield split(table, asked)
            pieces += 1
        if not pieces:
            yield split(schema.empty_table().select(columns), asked)


def write_tables(
    file: BinaryIO, schema: pa.Schema, tables: Iterable[pa.Table], variants: Sequence[Variant] = ()
) -> None:
    """Writes tables into one Parquet file; no row group has rows of two tables.

    Raises:
        OutputError: a value is out of Parquet's range: its milliseconds reach less far than Arrow's seconds.
    """
    vectors = {variant.column for variant in variants}
    facts = [name for name in schema.names if name not in vectors]
    leaves = [_leaf(schema.field(variant.column)) for variant in variants]
    with pq.ParquetWriter(
        file,
        schema,
        # 100,000 x 384 float32 on 2 cores: 640 MB/s plain; zstd 450 MB/s for 8 % off the size, and with
        # byte-stream-split 437 MB/s for 16 %. Floats barely compress; text and counts do.
        compression=dict.fromkeys(facts, "zstd"),
        # Not for ids and floats, which rarely repeat. Plain Parquet stores a byte as 4, having no smaller
        # integer; with a dictionary of its 256 values it takes 1.02 (zstd: 1.34, and slower).
        use_dictionary=[*facts[1:], *(path for path, is_byte in leaves if is_byte)],
        write_statistics=facts,
        # Without them, 43 of 200 flipped bits were read back as numbers.
        write_page_checksum=True,
    ) as writer:
        for table in tables:
            rows = max(1, ROW_GROUP_BYTES * table.num_rows // max(1, table.nbytes))
            if not _written(writer, _conform(table, schema), rows):
                raise OutputError(
                    "a kept time in seconds is out of range for Parquet, which stores milliseconds",
                    hint="use --output-format arrow, or leave the column out of --keep",
                )


def _written(writer: pq.ParquetWriter, table: pa.Table, rows: int) -> bool:
    """Writes a table; False if a value is out of range. The exception is dropped: it quotes the value."""
    try:
        writer.write_table(table, row_group_size=rows)
    except pa.ArrowInvalid:
        return False
    return True


def file_schema(path: FilePath, opener: FileOpener = IN_PLACE) -> pa.Schema:
    """Returns the schema of a file."""
    with opener.native(path) as file:
        return pq.read_schema(file)


def row_groups(
    paths: Iterable[FilePath],
    columns: Sequence[str] | None = None,
    only: int | None = None,
    opener: FileOpener = IN_PLACE,
) -> Iterator[pa.Table]:
    """Yields the row groups of the files, of each file one if `only` gives its number; verifies page checksums."""
    for path in paths:
        with opener.native(path) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups) if only is None else (only,):
                yield file.read_row_group(group, columns=columns)


def _leaf(field: pa.Field) -> tuple[str, bool]:
    """Returns Parquet's path of the values in a column of lists, and True if a value is one byte."""
    path, kind = field.name, field.type
    while pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        path, kind = f"{path}.list.element", kind.value_type
    return path, kind.bit_width == 8


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Casts a table to the types of `schema`: Parquet has no seconds and returns milliseconds."""
    columns: list[Any] = [
        column if column.type == field.type else column.cast(field.type)
        for column, field in zip(table.columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=schema)
