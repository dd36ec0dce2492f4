"""What a format can do, whichever it is: write shards, join them, read back what it wrote.

Temporary names, fsync, renames and records are `commit.py`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from embedkit.output.formats.columns import RecordBatch
from embedkit.output.formats.schema import Create, Layout, shard_name
from embedkit.types import EncodedShard, Variant


class Sink(Protocol):
    """One output format with the layout of one output."""

    suffix: ClassVar[str]

    @property
    def layout(self) -> Layout:
        """The columns of every shard."""

    def files(self, index: int) -> tuple[str, ...]:
        """Paths of the files of shard `index`, relative to the output folder."""

    def write(self, shard: EncodedShard, create: Create) -> None:
        """Write the shard's files, whole, and close them. The same shard gives the same bytes.

        Raises:
            OutputError: a kept value does not fit its column; the error holds no value.
        """

    def merge(self, folder: Path, indices: Sequence[int], name: str, create: Create) -> None:
        """Join shards of `folder`, in this order, into `name`; at most a shard is in memory."""

    def merged_files(self, name: str) -> tuple[str, ...]:
        """Paths of the files that `merge` makes for `name`."""

    def read(self, files: Sequence[Path], asked: Sequence[Variant]) -> Iterator[RecordBatch]:
        """The rows of `files`, one shard's or one merged output's, a piece at a time.

        The pieces hold the vectors of the variants `asked`, and no other variant is decoded.
        """


@dataclass(frozen=True, slots=True)
class OneFile:
    """The names of a format that keeps all of a shard in one file."""

    layout: Layout
    suffix: ClassVar[str]

    def files(self, index: int) -> tuple[str, ...]:
        """`embeddings/part-00000` and the suffix."""
        return (f"embeddings/{shard_name(index, self.suffix)}",)

    def merged_files(self, name: str) -> tuple[str, ...]:
        """`name` itself."""
        return (name,)
