"""How many bytes an output has: shards are written as they would be, with made-up vectors, to nowhere."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

from embedkit.output.formats import FORMATS, Layout, make_sink
from embedkit.output.formats.schema import ARRAYS_KEY, REJECTS_KEY
from embedkit.types import EncodedShard

#: Rows that the other formats are tried on.
_TRIED = 512


class _Scales(io.RawIOBase):
    """A file that counts its bytes and keeps none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.bytes

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        self.bytes += size
        return size


class Weights:
    """Bytes of an output, shard by shard.

    Args:
        layout: its columns.
        form: parquet, npy, jsonl or arrow.
        single: whether it is one file.
    """

    def __init__(self, layout: Layout, form: str, single: bool) -> None:
        self.layout = _of_single(layout, form) if single else layout
        self.form = form
        self.single = single
        self._bytes = self._rows = self._shards = self._of_none = 0
        self._others: dict[str, int] = {}
        self._tried_rows = 0

    def add(self, shard: EncodedShard) -> None:
        """Weigh a shard; of the first one, some rows in the other formats, too."""
        if not self._tried_rows:
            part, nothing = first_rows(shard, _TRIED), first_rows(shard, 0)
            self._tried_rows = len(part.ids)
            self._others = {
                form: weigh(form, self.layout, part) - weigh(form, self.layout, nothing)
                for form in FORMATS
                if form != self.form and not (form == "npy" and self.layout.token_vectors)
            }
        if self.form == "npy" and not shard.has_vector.any():
            return
        if not self._shards:
            self._of_none = weigh(self.form, self.layout, first_rows(shard, 0))
        # The rows alone: what a file has without any is added in the end.
        self._bytes += weigh(self.form, self.layout, shard) - self._of_none
        self._rows += int(shard.has_vector.sum()) if self.form == "npy" else len(shard.ids)
        self._shards += 1

    def of_all(self, rows: int, shards: int) -> int:
        """Bytes of the output: of the shards that were weighed, and of the others as these were, by the row."""
        files = min(1, shards) if self.single else shards
        return self._bytes * rows // max(1, self._rows) + self._of_none * files

    def of_others(self, rows: int) -> dict[str, int]:
        """Format → about how many bytes so many rows take in it."""
        return {form: size * rows // max(1, self._tried_rows) for form, size in self._others.items()}


def _of_single(layout: Layout, form: str) -> Layout:
    """With what a single file says beside: which files belong to it, in as many bytes as real hashes take."""
    digest = "0" * 64
    of = {"bytes": 0, "sha256": digest, "sampled": digest}
    arrays = {ARRAYS_KEY: json.dumps({variant.name: of for variant in layout.variants})} if form == "npy" else {}
    return replace(layout, metadata={**layout.metadata, REJECTS_KEY: digest, **arrays})


def weigh(form: str, layout: Layout, shard: EncodedShard) -> int:
    """Bytes of a shard's files."""
    files: list[_Scales] = []

    def create(_: str) -> Any:
        files.append(_Scales())
        return files[-1]

    make_sink(form, layout).write(shard, create)
    return sum(file.bytes for file in files)


def first_rows(shard: EncodedShard, count: int) -> EncodedShard:
    """A shard that ends after so many rows."""
    vectors = int(shard.has_vector[:count].sum())
    return replace(
        shard,
        ids=shard.ids[:count],
        kept={name: values[:count] for name, values in shard.kept.items()},
        n_tokens=shard.n_tokens[:count],
        n_used=shard.n_used[:count],
        n_chunks=shard.n_chunks[:count],
        status=shard.status[:count],
        has_vector=shard.has_vector[:count],
        vectors={name: of_variant[:vectors] for name, of_variant in shard.vectors.items()},
    )
