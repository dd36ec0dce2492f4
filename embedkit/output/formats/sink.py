"""The protocol of output formats: write shards, merge them, read them back.

Temporary names, fsync, renames and records are up to `commit.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from embedkit.output.formats.columns import RecordBatch
from embedkit.output.formats.layout import Create, Layout, shard_name
from embedkit.storage.opener import IN_PLACE, FileOpener
from embedkit.storage.protocol import FilePath
from embedkit.types import EncodedShard, Variant


class Sink(Protocol):
    """One output format with the layout of one output."""

    suffix: ClassVar[str]

    @property
    def layout(self) -> Layout:
        """The columns of every shard."""

    def files(self, index: int) -> tuple[str, ...]:
        """Returns the paths of the files of shard `index`, relative to the output folder."""

    def write(self, shard: EncodedShard, create: Create) -> None:
        """Writes the shard's files and closes them. The same shard gives the same bytes.

        Raises:
            OutputError: a kept value does not fit its column; the error holds no value.
        """

    def merge(self, folder: FilePath, indices: Sequence[int], name: str, create: Create) -> None:
        """Merges shards of `folder`, in this order, into `name`; at most one shard is in memory."""

    def merged_files(self, name: str) -> tuple[str, ...]:
        """Returns the paths of the files that `merge` writes for `name`."""

    def read(
        self,
        files: Sequence[FilePath],
        asked: Sequence[Variant],
        *,
        only: int | None = None,
        opener: FileOpener = IN_PLACE,
    ) -> Iterator[RecordBatch]:
        """Reads the rows of one shard's or one merged output's files, a batch at a time.

        Batches have the vectors of the variants `asked`; no other variant is decoded. With `only`, the batch of
        that number alone is read.
        """


@dataclass(frozen=True, slots=True)
class OneFile:
    """Names the files of a format that has one file per shard."""

    layout: Layout
    suffix: ClassVar[str]

    def files(self, index: int) -> tuple[str, ...]:
        """Returns `embeddings/part-00000` with the suffix."""
        return (f"embeddings/{shard_name(index, self.suffix)}",)

    def merged_files(self, name: str) -> tuple[str, ...]:
        """Returns `name` itself."""
        return (name,)
