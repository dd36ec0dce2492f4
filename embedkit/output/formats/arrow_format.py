"""Shards as Arrow IPC files, with the schema of the Parquet files.

A shard is one record batch, so that its vectors can be memory-mapped without a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from embedkit.output.formats.columns import RecordBatch, check_types, full_table, split
from embedkit.output.formats.layout import Create
from embedkit.output.formats.sink import OneFile
from embedkit.storage.opener import IN_PLACE, FileOpener
from embedkit.storage.protocol import FilePath
from embedkit.types import EncodedShard, Variant


@dataclass(frozen=True, slots=True)
class ArrowSink(OneFile):
    """`embeddings/part-00000.arrow`, all columns in it."""

    suffix: ClassVar[str] = ".arrow"

    def write(self, shard: EncodedShard, create: Create) -> None:
        """See Sink."""
        table = full_table(shard, self.layout)
        with create(self.files(shard.index)[0]) as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    def merge(self, folder: FilePath, indices: Sequence[int], name: str, create: Create) -> None:
        """Merges shards into one file, a record batch per shard."""
        with create(name) as file, pa.ipc.new_file(file, self.layout.schema()) as writer:
            for index in indices:
                writer.write_table(map_table(folder / self.files(index)[0]))

    def read(
        self,
        files: Sequence[FilePath],
        asked: Sequence[Variant],
        *,
        only: int | None = None,
        opener: FileOpener = IN_PLACE,
    ) -> Iterator[RecordBatch]:
        """Reads one file, memory-mapped if it is local, a record batch at a time."""
        columns = {variant.column for variant in self.layout.variants} - {v.column for v in asked}
        stored = map_table(files[0], opener)
        check_types(files[0], stored.schema, self.layout, asked)
        table = stored.drop_columns([name for name in stored.column_names if name in columns])
        for number, batch in enumerate(table.to_batches() or [None]):
            if only not in {None, number}:
                continue
            read = table if batch is None else pa.Table.from_batches([batch])
            # There is no checksum, and following an offset beyond its column would end the process.
            read.validate(full=True)
            yield split(read, asked)


def map_table(path: FilePath, opener: FileOpener = IN_PLACE) -> pa.Table:
    """Returns the file's table; a local one is memory-mapped: nothing is read before it is accessed."""
    return pa.ipc.open_file(opener.mapped(path)).read_all()
