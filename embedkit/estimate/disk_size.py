"""Bytes of an output in each format: the other columns as the first shards are written, vectors by arithmetic."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from embedkit.output.formats import FORMATS, Layout, Sink, make_sink
from embedkit.types import EncodedShard

#: Shards whose columns are written to count their bytes; later shards are scaled by rows.
_MEASURED_SHARDS = 8
#: Bytes of a float in JSON with its comma: 10.92 - log10(standard deviation), measured on normal variates with
#: deviations of 0.018 to 1 in float32 and float16. Hidden states that are not normalised have about 0.5.
_JSON_FLOAT, _TYPICAL_DEVIATION = 10.92, 0.5
_JSON_INTEGER = {"int8": 3.3, "binary": 3.6}
#: Bytes of a vector column in a file besides its values, and of Parquet's dictionary of bytes.
_COLUMN_BYTES = {"npy": 128, "arrow": 250, "parquet": 150, "jsonl": 0}
_DICTIONARY_BYTES = 256 * 4
#: Bytes of Parquet's repetition levels of a vector: a bit-packed run and an RLE run.
_LEVEL_BYTES = 4
#: Bytes of a cell that a classification head adds, in binary formats and in JSON without its key.
_SCORE_BYTES, _JSON_SCORE_BYTES = 8, 12


class DiskSize:
    """Sums the bytes of an output, shard by shard.

    Args:
        layout: columns of the output, without those that a head adds.
        normalized: True if vectors have length 1.
        scores: names of the columns that a head adds.
        is_single_file: True if the shards are joined into one file.
    """

    def __init__(self, layout: Layout, *, normalized: bool, scores: Iterable[str], is_single_file: bool) -> None:
        self._layout = layout
        self._normalized = normalized
        self._scores = tuple(scores)
        self._is_single_file = is_single_file
        forms = [form for form in FORMATS if form != "npy" or not layout.token_vectors]
        without_vectors = replace(layout, variants=(), token_vectors=False)
        self._sinks = {form: make_sink(form, without_vectors) for form in forms}
        self._measured = dict.fromkeys(forms, 0)
        self._measured_rows = 0
        self._rows = self._rows_with_vector = self._vectors = self._shards = 0

    def add(self, shard: EncodedShard, n_vectors: int) -> None:
        """Adds a shard without its vectors, of which there are `n_vectors` in each variant."""
        if self._shards < _MEASURED_SHARDS:
            self._measured_rows += len(shard.ids)
            for form, sink in self._sinks.items():
                self._measured[form] += _written_bytes(sink, shard)
        self._shards += 1
        self._rows += len(shard.ids)
        self._rows_with_vector += int(shard.has_vector.sum())
        self._vectors += n_vectors

    def rows(self, form: str) -> int:
        """Returns the rows of the output; `.npy` has none without a vector."""
        return self._rows_with_vector if form == "npy" else self._rows

    def by_format(self) -> dict[str, int]:
        """Returns the bytes of the output in each format that can hold it."""
        scale = self._rows / max(1, self._measured_rows)
        return {form: round(size * scale + self._vector_bytes(form)) for form, size in self._measured.items()}

    def _vector_bytes(self, form: str) -> float:
        layout, precision = self._layout, self._layout.precision
        files = min(1, self._shards) if self._is_single_file else self._shards
        # Arrow has a slot for a null vector, too.
        count = self._rows if form == "arrow" and not layout.token_vectors else self._vectors
        total = 0.0
        for variant in layout.variants:
            width = layout.width(variant)
            if form == "jsonl":
                deviation = 1 / math.sqrt(variant.dims) if self._normalized else _TYPICAL_DEVIATION
                value = _JSON_INTEGER.get(precision, _JSON_FLOAT - math.log10(deviation))
                total += count * (width * value + 2) + self._rows * (len(variant.column) + 4)
            else:
                levels = _LEVEL_BYTES if form == "parquet" else 0
                total += count * (width * layout.dtype.itemsize + levels) + files * _COLUMN_BYTES[form]
                total += files * _DICTIONARY_BYTES if form == "parquet" and layout.dtype.itemsize == 1 else 0
        cells = [_JSON_SCORE_BYTES + len(name) + 4 if form == "jsonl" else _SCORE_BYTES for name in self._scores]
        return total + self._rows * sum(cells)


class _ByteCounter(io.RawIOBase):
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


def _written_bytes(sink: Sink, shard: EncodedShard) -> int:
    files: list[_ByteCounter] = []

    def create(_: str) -> Any:
        files.append(_ByteCounter())
        return files[-1]

    sink.write(shard, create)
    return sum(file.bytes for file in files)
