"""EncodedShards made up for the tests, and a folder that sinks can write into."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow.parquet as pq
from hypothesis import strategies as st

from embedkit.output.formats import FORMATS, Layout, Sink, make_sink
from embedkit.types import EncodedShard, Variant

PRECISIONS = ("float32", "float16", "int8", "binary")
KEPT_TYPES = {
    "age": "int64",
    "weight": "double",
    "died": "bool",
    "tags": "json",
    "ward": "string",
    "seen": "timestamp[ms]",
}
RECIPE = {"model": "tiny", "layers": [-1], "pooling": "mean"}
METADATA = {"embedkit.recipe": json.dumps(RECIPE), "embedkit.fingerprint": "f00d"}

ONE = (Variant("", 11),)  # 11: no multiple of 8, so that binary has bits to spare
SEVERAL = (Variant("L09_mean", 11), Variant("L12_cls", 3))


def layout(
    variants: Sequence[Variant] = ONE,
    precision: str = "float32",
    *,
    token_vectors: bool = False,
    kept_types: dict[str, str] | None = None,
) -> Layout:
    kept = KEPT_TYPES if kept_types is None else kept_types
    return Layout(tuple(variants), precision, token_vectors, kept, METADATA)


def make_shard(like: Layout, has_vector: Sequence[bool], seed: int = 0, index: int = 0) -> EncodedShard:
    """Returns a shard of len(has_vector) rows; all of its bits come from the seed."""
    random = np.random.default_rng([seed, index])
    rows, mask = len(has_vector), np.array(has_vector, np.bool_)
    pools: dict[str, list[Any]] = {
        "age": [None, 0, -1, 2**62],
        "weight": [None, 0.1, -0.0, 1e300],
        "died": [None, True, False],
        "tags": [None, {"é": [1, None, "\n"]}, [], "plain", 7],
        "ward": [None, "", "Ünit\t7", 'a "b"', "null"],
        "seen": [None, datetime(2024, 2, 29, 23, 59, 59, 999000), datetime(1900, 1, 1)],  # noqa: DTZ001
    }
    n_tokens = random.integers(2, 600, rows, dtype=np.int32) * mask
    return EncodedShard(
        index=index,
        start=index * rows,
        stop=(index + 1) * rows,
        ids=[None if random.random() < 0.1 else f"{index:03d}{row:02d}" for row in range(rows)],
        kept={
            name: [pools[name][i] for i in random.integers(0, len(pools[name]), rows)] for name in like.kept_types
        },
        n_tokens=n_tokens,
        n_used=np.minimum(n_tokens, 512),
        n_chunks=mask.astype(np.int32),
        status=[
            ("truncated" if n > 512 else "ok") if has else "empty" for n, has in zip(n_tokens, mask, strict=True)
        ],
        has_vector=mask,
        vectors={variant.name: _vectors(like, variant, int(mask.sum()), random) for variant in like.variants},
        rejects=(),
    )


def _vectors(like: Layout, variant: Variant, count: int, random: np.random.Generator) -> Any:
    def some(n: int) -> np.ndarray:
        """Returns [n, width] any finite bits: subnormals, both zeros and the largest numbers among them."""
        raw = random.integers(0, 256, (n, like.width(variant), like.dtype.itemsize), dtype=np.uint8)
        values = raw.view(like.dtype)[..., 0]
        if like.precision == "binary":  # bits beyond D are zero, as np.packbits leaves them
            return np.packbits(np.unpackbits(values, axis=1, count=variant.dims), axis=1)
        return np.where(np.isfinite(values), values, like.dtype.type(-0.0))

    if like.token_vectors:
        return [some(n) for n in random.integers(0, 5, count)]
    return some(count)


class Folder:
    """What commit.py is to a sink, without its safety."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self, name: str) -> BinaryIO:
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.open("xb")

    def files(self) -> dict[str, bytes]:
        found = sorted(p for p in self.path.rglob("*") if p.is_file())
        return {str(p.relative_to(self.path)): p.read_bytes() for p in found}


def write_output(path: Path, form: str, like: Layout, shards: Sequence[EncodedShard], **more: Any) -> Sink:
    """Writes a finished folder: shards, their records, manifest."""
    sink, folder = make_sink(form, like), Folder(path)
    path.mkdir(exist_ok=True)
    for shard in shards:
        sink.write(shard, folder.create)
        write_record(path, sink, shard)
    manifest = {
        "format": form,
        "precision": like.precision,
        "token_vectors": like.token_vectors,
        "variants": [{"name": v.name, "dims": v.dims} for v in like.variants],
        "recipe": RECIPE,
        "fingerprint": "f00d",
        "shards": len(shards),
        "rows": sum(len(shard.ids) for shard in shards),
        "vectors": sum(int(shard.has_vector.sum()) for shard in shards),
        **more,
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return sink


def write_record(path: Path, sink: Sink, shard: EncodedShard) -> None:
    words, counts = np.unique(shard.status, return_counts=True)
    record = {
        "index": shard.index,
        "start": shard.start,
        "stop": shard.stop,
        "rows": len(shard.ids),
        "vectors": int(shard.has_vector.sum()),
        "status_counts": dict(zip(words.tolist(), counts.tolist(), strict=True)),
        "tokens": {"n_tokens": int(shard.n_tokens.sum()), "n_used": int(shard.n_used.sum())},
        "files": [{"path": f, "bytes": (path / f).stat().st_size, "sha256": ""} for f in sink.files(shard.index)],
    }
    (path / "commits").mkdir(exist_ok=True)
    (path / "commits" / f"{shard.index:05d}.json").write_text(json.dumps(record))


def vector_page(path: Path, column: str) -> tuple[int, int]:
    """Returns where a vector column's bytes lie in a Parquet file: [start, stop)."""
    group = pq.ParquetFile(path).metadata.row_group(0)
    chunks = (group.column(i) for i in range(group.num_columns))
    chunk = next(c for c in chunks if c.path_in_schema.startswith(column))
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    return start, start + chunk.total_compressed_size


layouts = st.builds(
    layout, st.sampled_from([ONE, SEVERAL]), st.sampled_from(PRECISIONS), token_vectors=st.booleans()
)
formats = st.sampled_from(FORMATS)
masks = st.lists(st.booleans(), max_size=12)
