"""A finished output as arrays: `embedkit.read(OUT)`.

Knows files alone: no model is needed, and none is imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedkit.errors import OutputError, UsageError
from embedkit.output.formats.columns import Vectors
from embedkit.output.formats.values import json_text
from embedkit.output.open import Stored, open_stored
from embedkit.types import Variant


def read(path: str | os.PathLike[str], *, check: bool = True) -> Embeddings:
    """Open an output of `embedkit encode`: a folder, or a .parquet, .arrow, .npy or .jsonl file.

    Nothing but its description is read here; vectors are when they are asked for.

    Args:
        path: of the output.
        check: before a file is read, hold it against the SHA-256 of its record; one that has none is parsed by a
            child process first, as a damaged file may end the process that parses it. False reads each file once:
            for large outputs that `embedkit verify` has passed.

    Raises:
        UsageError: `path` is no path.
        OutputError: there is nothing, it is not finished, or embedkit did not write it.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise UsageError(f"path cannot be a {type(path).__name__}", hint="give the output's path as a str or Path")
    return Embeddings(open_stored(Path(path), checks=check))


class Embeddings:
    """The vectors of an output, and the rows they belong to.

    `ids` and `vectors` are aligned and hold the rows that have a vector. `table` holds every stored
    row, so that nothing is hidden; `has_vector` says which of its rows the vectors belong to:
    `table.filter(has_vector)` is aligned with `vectors`.
    """

    def __init__(self, stored: Stored) -> None:
        self._stored = stored
        self._by_name = {variant.name: variant for variant in stored.layout.variants}
        self._columns: dict[str, _Column] = {}

    @property
    def format(self) -> str:
        """parquet, npy, jsonl or arrow."""
        return self._stored.format

    @property
    def precision(self) -> str:
        """What a value is stored as: float32, float16, int8 or binary."""
        return self._stored.layout.precision

    @property
    def recipe(self) -> Mapping[str, Any]:
        """What decided the numbers; {} for a single JSON Lines file, which has no place for it."""
        return self._stored.recipe

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 of the recipe; None where there is no recipe."""
        return self._stored.fingerprint

    @property
    def variants(self) -> tuple[str, ...]:
        """Names for `variant()`; `("",)` where there is one column of vectors."""
        return tuple(self._by_name)

    @property
    def ids(self) -> list[str | None]:
        """[N] ids of the rows that have a vector."""
        ids: list[str | None] = self.table["id"].filter(pa.array(self.has_vector)).to_pylist()
        return ids

    @property
    def vectors(self) -> NDArray[np.float32]:
        """[N, D] vectors of the first variant: see `variant`."""
        return self.variant(self.variants[0])

    @property
    def token_vectors(self) -> list[NDArray[np.float32]]:
        """N arrays [n, D], a vector a token, of the first variant: see `token_variant`."""
        return self.token_variant(self.variants[0])

    @property
    def has_vector(self) -> NDArray[np.bool_]:
        """[R] which rows of `table` have a vector; N of them are True."""
        return self._column(self.variants[0]).has_vector

    @cached_property
    def table(self) -> pa.Table:
        """[R] id, kept columns and receipt of every stored row (of .npy: those with a vector)."""
        tables = [piece.facts for piece in self._stored.batches(())]
        return _concatenate(tables) if tables else self._stored.layout.facts_schema().empty_table()

    def variant(self, name: str) -> NDArray[np.float32]:
        """[N, D] the vectors of one variant.

        One .npy or .arrow file of float32 is memory-mapped, read-only (.arrow: where every row has
        a vector). All else is read into memory: float16 widened, int8 de-quantised with the output's
        ranges, binary a 0 or 1 a bit.

        Raises:
            OutputError: there is no such variant, it is of token vectors, or a file is damaged.
        """
        vectors = self._column(name).vectors
        if isinstance(vectors, list):
            raise OutputError(
                f"{self._by_name[name].column} holds a vector a token, not one a row",
                hint="use .token_vectors, a list of arrays [n, D]",
            )
        return vectors

    def token_variant(self, name: str) -> list[NDArray[np.float32]]:
        """N arrays [n, D] of one variant, n the tokens of that text that have a vector.

        Raises:
            OutputError: there is no such variant, it has one vector a row, or a file is damaged.
        """
        vectors = self._column(name).vectors
        if not isinstance(vectors, list):
            raise OutputError(f"{self._by_name[name].column} holds one vector a row", hint="use .vectors")
        return vectors

    def _column(self, name: str) -> _Column:
        """One variant's column, read once."""
        if name not in self._by_name:
            raise OutputError(
                f"there is no variant {name!r} (there are {', '.join(map(repr, self.variants))})",
                hint="choose one of .variants",
            )
        if name not in self._columns:
            column = _load(self._stored, self._by_name[name])
            if self._stored.vectors not in {None, len(column.vectors)}:
                raise OutputError(
                    f"the files hold {len(column.vectors)} vectors, and manifest.json says {self._stored.vectors}",
                    hint="`embedkit verify` names the shard that differs",
                )
            self._columns[name] = column
        return self._columns[name]


@dataclass(frozen=True, slots=True)
class _Column:
    """A variant's vectors [N, D], or N arrays [n, D], and which rows [R] they belong to."""

    has_vector: NDArray[np.bool_]
    vectors: NDArray[np.float32] | list[NDArray[np.float32]]


def _load(stored: Stored, variant: Variant) -> _Column:
    masks = [np.zeros(0, np.bool_)]

    def pieces() -> Iterator[Vectors]:
        for piece in stored.batches([variant]):
            masks.append(piece.has_vector)
            yield piece.vectors[variant.name]

    if stored.layout.token_vectors:
        tokens = [stored.floats(text, variant) for texts in pieces() for text in texts]
        return _Column(np.concatenate(masks), tokens)
    vectors = _join((stored.floats(np.asanyarray(piece), variant) for piece in pieces()), variant.dims)
    return _Column(np.concatenate(masks), vectors)


def _join(pieces: Iterator[NDArray[np.float32]], dims: int) -> NDArray[np.float32]:
    """[N, D] the pieces one below another; a lone piece stays as it is: mapped, not copied."""
    first = next(pieces, np.empty((0, dims), np.float32))
    second = next(pieces, None)
    if second is None:
        return first
    joined = np.empty((0, dims), np.float32)
    for piece in chain([first, second], pieces):
        filled = len(joined)
        # realloc moves pages, not bytes; a list joined at the end would hold every vector twice
        joined.resize((filled + len(piece), dims), refcheck=False)
        joined[filled:] = piece
    return joined


def _concatenate(tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of all tables; where a column's types cannot be brought together, it becomes text."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:
        clashing = {
            name for name in tables[0].column_names if len({t.schema.field(name).type for t in tables}) > 1
        }
    return pa.concat_tables([_as_text(table, clashing) for table in tables])


def _as_text(table: pa.Table, names: set[str]) -> pa.Table:
    for place, name in enumerate(table.column_names):
        if name in names and not pa.types.is_string(table[name].type):
            values = [None if v is None else json_text(v) for v in table[name].to_pylist()]
            table = table.set_column(place, name, pa.array(values, pa.string()))
    return table
