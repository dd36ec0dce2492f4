"""Shards as plain `.npy` arrays, each with a Parquet file of metadata.

`embeddings/` and `metadata/` are what embedding-reader calls `parquet_npy` (1.8 reads float32 and float16; of a
shard without any vector it skips the array but not the metadata, then stops with an error). Rows without a vector
are in neither.
"""

from __future__ import annotations

import hashlib
import json
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedkit.errors import OutputError
from embedkit.output.formats.arrays import number_array
from embedkit.output.formats.columns import VERIFY, RecordBatch, check_types, facts_table, matrix
from embedkit.output.formats.layout import ARRAYS_KEY, Create, Layout, shard_name
from embedkit.output.formats.parquet_format import row_groups, write_tables
from embedkit.storage.opener import IN_PLACE, FileOpener
from embedkit.storage.protocol import FilePath
from embedkit.types import EncodedShard, Variant

_SAMPLED = 2**20


@dataclass(frozen=True, slots=True)
class NpySink:
    """`embeddings/part-00000.npy`, or `embeddings/L09_mean/part-00000.npy` for several variants."""

    layout: Layout
    suffix: ClassVar[str] = ".npy"

    def files(self, index: int) -> tuple[str, ...]:
        """Returns the relative paths of a shard: an array for each variant, then the metadata."""
        part = shard_name(index, self.suffix)
        folders = (f"embeddings/{variant.name}" for variant in self.layout.variants)
        arrays = (f"{folder.rstrip('/')}/{part}" for folder in folders)
        return (*arrays, f"metadata/{shard_name(index, '.parquet')}")

    def write(self, shard: EncodedShard, create: Create) -> None:
        """Writes the shard's arrays [V, width] and its metadata [V]."""
        *arrays, metadata = self.files(shard.index)
        facts = facts_table(shard, self.layout).filter(number_array(shard.has_vector))
        for variant, path in zip(self.layout.variants, arrays, strict=True):
            vectors = matrix(shard, variant, self.layout)
            with create(path) as file:
                _write_header(file, vectors.dtype, vectors.shape)
                file.write(_bytes(vectors))
        with create(metadata) as file:
            write_tables(file, facts.schema, [facts])

    def merge(self, folder: FilePath, indices: Sequence[int], name: str, create: Create) -> None:
        """Merges shards into one array per variant and one metadata file."""
        shards = [self.files(index) for index in indices]
        *arrays, metadata = self.merged_files(name)
        made: dict[str, dict[str, int | str]] = {}
        for k, (variant, path) in enumerate(zip(self.layout.variants, arrays, strict=True)):
            parts = [folder / files[k] for files in shards]
            rows = sum(map_array(part).shape[0] for part in parts)
            with create(path) as file:
                into = _Hashed(file)
                _write_header(into, self.layout.dtype, (rows, self.layout.width(variant)))
                for part in parts:
                    into.write(_bytes(map_array(part)))
                made[variant.name] = into.facts()
        schema = self.layout.facts_schema()
        named = {**(schema.metadata or {}), ARRAYS_KEY.encode(): json.dumps(made, ensure_ascii=False).encode()}
        with create(metadata) as file:
            facts = row_groups(folder / files[-1] for files in shards)
            write_tables(file, schema.with_metadata(named), facts)

    def merged_files(self, name: str) -> tuple[str, ...]:
        """Returns `x.npy` (`x.L09_mean.npy` for several variants) and `x.metadata.parquet`."""
        stem, variants = name.removesuffix(self.suffix), self.layout.variants
        arrays = (f"{stem}.{v.name}{self.suffix}" if v.name else f"{stem}{self.suffix}" for v in variants)
        return (*arrays, metadata_name(name))

    def read(
        self,
        files: Sequence[FilePath],
        asked: Sequence[Variant],
        *,
        only: int | None = None,  # noqa: ARG002 - there is one
        opener: FileOpener = IN_PLACE,
    ) -> Iterator[RecordBatch]:
        """Reads one shard as one batch, its arrays memory-mapped if they are local."""
        with opener.native(files[-1]) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
            facts = file.read()
        check_types(files[-1], facts.schema, self.layout, ())
        vectors = {v.name: map_array(files[self.layout.variants.index(v)], opener) for v in asked}
        for variant in asked:
            expected, found = (len(facts), self.layout.width(variant)), vectors[variant.name]
            if found.shape != expected or found.dtype != self.layout.dtype or not found.flags.c_contiguous:
                path = files[self.layout.variants.index(variant)]
                raise OutputError(
                    f"{path} is damaged: its header says {found.dtype}{list(found.shape)}, and "
                    f"its rows need {self.layout.dtype}{list(expected)}",
                    hint=VERIFY,
                )
        yield RecordBatch(facts, np.ones(len(facts), np.bool_), vectors)


def metadata_name(name: str) -> str:
    """Returns the metadata file of the single-file output `name`."""
    return f"{name.removesuffix('.npy')}.metadata.parquet"


def map_array(path: FilePath, opener: FileOpener = IN_PLACE) -> NDArray[Any]:
    """Returns [V, width] the array; of a local file, memory-mapped and read-only.

    Raises:
        ValueError: the header is damaged.
    """
    try:
        return opener.array(path)
    except (EOFError, SyntaxError, tokenize.TokenError):
        # numpy reads the header, a Python expression, with Python's own parser.
        raise ValueError("the header is damaged") from None


class _Hashed:
    """A file being written, with its size and hashes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest, self._head = hashlib.sha256(), hashlib.sha256()
        self._tail = b""
        self._bytes = 0

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data)
        self._file.write(view)
        self._digest.update(view)
        in_head = max(0, min(len(view), _SAMPLED - self._bytes))
        self._head.update(view[:in_head])
        # Head and tail do not overlap in a file that is shorter than both.
        self._tail = (self._tail + bytes(view[in_head:][-_SAMPLED:]))[-_SAMPLED:]
        self._bytes += len(view)
        return len(view)

    def facts(self) -> dict[str, int | str]:
        self._head.update(self._tail)
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest(), "sampled": self._head.hexdigest()}


def _write_header(file: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Writes a header of format 1.0, whose first line is all that embedding-reader reads."""
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _bytes(array: NDArray[Any]) -> memoryview:
    """Returns the array's memory, not copied; flat, so that its `len` is the number of bytes."""
    return array.reshape(-1).view(np.uint8).data
