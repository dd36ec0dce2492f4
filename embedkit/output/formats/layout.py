"""The layout of an output: columns, their types, schema metadata, names of files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from embedkit.errors import UsageError
from embedkit.manifest.identity import files_digest, input_digests
from embedkit.manifest.recipe import canonical_json
from embedkit.manifest.schema import Plan
from embedkit.output.formats.values import arrow_type
from embedkit.types import Variant

#: Opens a new binary file for a path relative to the output folder; the sink closes it.
Create = Callable[[str], BinaryIO]

#: Key of the schema metadata that describes the vector columns of a file:
#: {"precision", "token_vectors", "variants": [{"name", "dims"}]}.
LAYOUT_KEY = "embedkit.layout"
#: Of a single file: SHA-256 of its list of rejects, "" if there is none.
REJECTS_KEY = "embedkit.rejects_sha256"
#: Of a file with predictions of a head: the names of their columns, as JSON.
SCORES_KEY = "embedkit.scores"
#: Of the metadata of .npy arrays: variant's name → `bytes`, `sha256`, and `sampled` of its first and last MiB.
ARRAYS_KEY = "embedkit.arrays"

#: Identifies the key of the hashes of texts, if there are any.
HASH_KEY_KEY = "embedkit.hash_key"
#: Versions of what computed the vectors, as in the plan.
VERSIONS_KEY = "embedkit.versions"
#: Of a single file: rows whose vectors are from earlier outputs, if there are any.
REUSED_KEY = "embedkit.reused"

RECEIPT = ("n_tokens", "n_used", "n_chunks", "status")

#: precision → (Arrow type of one stored value, NumPy type of the same).
_ELEMENTS: Mapping[str, tuple[pa.DataType, str]] = {
    "float32": (pa.float32(), "<f4"),
    "float16": (pa.float16(), "<f2"),
    "int8": (pa.int8(), "|i1"),
    "binary": (pa.uint8(), "|u1"),
}


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of every shard of one output.

    Raises:
        UsageError: two columns would have one name, or a type or precision is unknown.
    """

    variants: tuple[Variant, ...]  # the columns of vectors, in order
    precision: str  # float32, float16, int8 or binary
    token_vectors: bool  # True if a row holds [n, D], a vector per token, instead of [D]
    kept_types: Mapping[
        str, str
    ]  # kept column → an Arrow type such as `int64`, or `json`, `text`: see `values.py`
    metadata: Mapping[str, str]  # of the schema of Parquet and Arrow files

    def __post_init__(self) -> None:
        if self.precision not in _ELEMENTS:
            raise UsageError(
                f"precision {self.precision!r} is none of {', '.join(_ELEMENTS)}",
                hint="choose one of them with --precision",
            )
        ours = ["id", *RECEIPT, *(variant.column for variant in self.variants)]
        if len(set(ours)) < len(ours):
            raise UsageError(
                f"two columns of vectors have one name: {', '.join(v.column for v in self.variants)}",
                hint="ask for each layer and pooling once",
            )
        taken = [name for name in self.kept_types if name in ours]
        if taken:
            raise UsageError(
                f"--keep {taken[0]}: embedkit writes a column of that name (of these: {', '.join(ours)})",
                hint="leave it out of --keep, or rename it in the input",
            )
        for kept in self.kept_types.values():
            arrow_type(kept)

    @classmethod
    def described_by(cls, metadata: Mapping[str, str]) -> Layout | None:
        """Returns the layout that a file's schema metadata describes; None if there is none in it."""
        described = json.loads(metadata.get(LAYOUT_KEY, "{}"))
        if not described:
            return None
        variants = tuple(Variant(**variant) for variant in described["variants"])
        return cls(variants, described["precision"], described["token_vectors"], {}, metadata)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of one stored value, little-endian."""
        return np.dtype(_ELEMENTS[self.precision][1])

    def width(self, variant: Variant) -> int:
        """Returns the stored values in a vector: D, or the ceil(D/8) bytes of D bits."""
        return -(-variant.dims // 8) if self.precision == "binary" else variant.dims

    def vector_type(self, variant: Variant) -> pa.DataType:
        """Returns the Arrow type of one vector: FixedSizeList<item: value not null>[width]."""
        item = pa.field("item", _ELEMENTS[self.precision][0], nullable=False)
        return pa.list_(item, self.width(variant))

    def cell_type(self, variant: Variant) -> pa.DataType:
        """Returns the Arrow type of a cell: one vector, or a list of token vectors."""
        vector = self.vector_type(variant)
        return pa.list_(pa.field("item", vector, nullable=False)) if self.token_vectors else vector

    def facts_schema(self) -> pa.Schema:
        """Returns the columns without vectors: id, kept columns, receipt."""
        counts = [pa.field(name, pa.int32(), nullable=False) for name in RECEIPT[:3]]
        fields = [
            pa.field("id", pa.string()),
            *(pa.field(name, arrow_type(kept)) for name, kept in self.kept_types.items()),
            *counts,
            pa.field("status", pa.string(), nullable=False),
        ]
        described = {
            "precision": self.precision,
            "token_vectors": self.token_vectors,
            "variants": [{"name": variant.name, "dims": variant.dims} for variant in self.variants],
        }
        layout = json.dumps(described, ensure_ascii=False, separators=(",", ":"))
        return pa.schema(fields, metadata={**self.metadata, LAYOUT_KEY: layout})

    def schema(self) -> pa.Schema:
        """Returns the facts, then a column of vectors for each variant, null if a row has none."""
        facts = self.facts_schema()
        vectors = [pa.field(variant.column, self.cell_type(variant)) for variant in self.variants]
        return pa.schema([*facts, *vectors], metadata=facts.metadata)


def layout_of(plan: Plan) -> Layout:
    """Returns the layout of every shard of a plan."""
    described = {
        **plan.input.summary(),
        "on_bad_row": plan.on_bad_row,
        "files_digest": files_digest((file.size, file.sha256) for file in plan.input.files),
    }
    scores = {SCORES_KEY: json.dumps(plan.scores, ensure_ascii=False)} if plan.scores else {}
    ranges = {"embedkit.int8_ranges": canonical_json(plan.int8_ranges)} if plan.int8_ranges else {}
    return Layout(
        variants=plan.variants,
        precision=plan.precision,
        token_vectors=plan.has_token_vectors,
        kept_types=plan.kept_types,
        metadata={
            "embedkit.recipe": canonical_json(plan.recipe),
            "embedkit.fingerprint": plan.fingerprint,
            "embedkit.model": canonical_json(plan.source.summary()),
            "embedkit.input": input_digests(plan)[0],
            "embedkit.read": canonical_json(described),
            **ranges,
            **scores,
            **({HASH_KEY_KEY: plan.hash_key} if plan.hash_key else {}),
            **({VERSIONS_KEY: json.dumps(plan.versions)} if plan.versions else {}),
        },
    )


def shard_name(index: int, suffix: str) -> str:
    """Returns the file name of a shard: `part-00003.parquet`.

    From shard 100,000 on the number is wider, and sorts before 99,999 by name. A reader that sorts by name gets
    another row order, but the same one in `embeddings/` and `metadata/`, so that pairs stay aligned.
    """
    return f"part-{index:05d}{suffix}"
