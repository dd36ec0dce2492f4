"""One pass over an output's rows: lengths of texts, norms, duplicate vectors and a sample.

A block of rows is in memory at a time; besides, there are only counts and the vectors of the sample.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedkit.arrow_values import plain_values
from embedkit.comparison.similarity import unit
from embedkit.errors import UsageError
from embedkit.output.formats.columns import Vectors
from embedkit.output.formats.layout import RECEIPT
from embedkit.output.open import Stored
from embedkit.output.vector_norms import NormCounter
from embedkit.types import HASH_COLUMNS, Variant

#: Rows of a block.
_ROWS = 4096
#: Most bytes of a sample's vectors: long vectors have a smaller sample.
_SAMPLE_BYTES = 256 * 2**20
#: Most hashes held at a time, 24 bytes each; with more vectors, a half, a quarter … of the hashes are used.
_HASHES = 4 * 2**20
#: Rows listed of each group of equal vectors.
_SHOWN = 5
#: Most characters of a kept value on the page.
_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of an output, R of them, V with a vector.

    Attributes:
        facts: [R] id, kept columns and receipt.
        start: number of the first row in the output.
        has_vector: bool [R]
        vectors: float32 [V, D], the mean of token vectors; bits are -1 and 1, so that cosine is 1 less twice the
            share of bits that differ.
    """

    facts: pa.Table
    start: int
    has_vector: NDArray[np.bool_]
    vectors: NDArray[np.float32]

    @property
    def rows(self) -> NDArray[np.int64]:
        """[V] numbers in the output of the rows with a vector."""
        return self.start + np.flatnonzero(self.has_vector)

    def column(self, name: str, rows: NDArray[np.int64]) -> list[Any]:
        """Returns the cells of a column for these row numbers; None if the output has no such column."""
        if name not in self.facts.column_names:
            return [None] * len(rows)
        cells: list[Any] = plain_values(self.facts[name].take(pa.array(rows - self.start)))
        return cells


def chosen_variant(stored: Stored, name: str | None) -> Variant:
    """Returns the column of vectors with this name; without a name the first."""
    variants = stored.layout.variants
    for variant in variants:
        if name is None or name in {variant.name, variant.column}:
            return variant
    raise UsageError(
        f"--variant {name}: the output has no such column of vectors",
        hint=f"it has {', '.join(variant.name or variant.column for variant in variants)}",
    )


def blocks(stored: Stored, variant: Variant) -> Iterator[Block]:
    """Yields all rows in order."""
    start = 0
    for piece in stored.batches([variant]):
        ends = np.concatenate([[0], np.cumsum(piece.has_vector)])
        for first in range(0, len(piece.facts), _ROWS):
            last = min(first + _ROWS, len(piece.facts))
            vectors = piece.vectors[variant.name][ends[first] : ends[last]]
            facts = piece.facts.slice(first, last - first)
            yield Block(facts, start + first, piece.has_vector[first:last], _floats(stored, variant, vectors))
        start += len(piece.facts)


def _floats(stored: Stored, variant: Variant, values: Vectors) -> NDArray[np.float32]:
    if isinstance(values, np.ndarray):
        vectors = stored.finite_floats(values, variant)
    else:
        vectors = np.zeros((len(values), variant.dims), np.float32)
        for row, tokens in enumerate(values):
            if len(tokens):
                vectors[row] = stored.finite_floats(tokens, variant).mean(axis=0)
    if stored.layout.precision == "binary":
        vectors = 2 * vectors - 1
    return np.ascontiguousarray(vectors)


@dataclass(frozen=True, slots=True)
class Sample:
    """A random sample of S rows with a vector, in their order."""

    rows: NDArray[np.int64]  # [S] numbers in the output
    ids: Sequence[str | None]
    vectors: NDArray[np.float32]  # [S, D]
    kept: Mapping[str, Sequence[Any]]  # kept column → [S] shortened cells


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Vectors that occur more than once, equal to the bit.

    Attributes:
        groups: number of such vectors.
        rows: number of rows with one of them.
        one_in: 1, or N if one in N vectors was counted and the numbers are estimates.
        largest: (row numbers, at most five, number of rows) of the largest groups.
    """

    groups: int
    rows: int
    one_in: int
    largest: Sequence[tuple[Sequence[int], int]]


@dataclass
class OutputScan:
    """Counts over all rows, and the sample.

    Attributes:
        vectors: rows with a vector.
        status: status → rows.
        lengths: tokens of a text → rows.
        n_used: tokens that went through the model.
        by_id: requested id → (its first row, unit vector [D]).
    """

    rows: int = 0
    vectors: int = 0
    status: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    n_used: int = 0
    norms: NormCounter = field(default_factory=NormCounter)
    by_id: dict[str, tuple[int, NDArray[np.float32]]] = field(default_factory=dict)
    sample: Sample = field(init=False)
    duplicates: Duplicates = field(init=False)

    def count(self, block: Block) -> None:
        """Adds a block's receipts and norms."""
        self.rows += len(block.facts)
        self.vectors += len(block.vectors)
        self.status.update(block.facts["status"].to_pylist())
        self.lengths.update(block.facts["n_tokens"].to_pylist())
        self.n_used += pc.sum(block.facts["n_used"]).as_py() or 0
        self.norms.add(block.vectors)


def scan_output(stored: Stored, variant: Variant, *, size: int, seed: int, ids: Collection[str]) -> OutputScan:
    """Reads all rows once; samples at most `size` of them, and finds the vectors of `ids`.

    Raises:
        OutputError: a file is missing or damaged.
    """
    found, duplicates = OutputScan(), _DuplicateCounter()
    sampler = _Sampler(min(size, _SAMPLE_BYTES // (4 * max(1, variant.dims))), seed, variant.dims)
    for block in blocks(stored, variant):
        found.count(block)
        duplicates.add(block)
        sampler.add(block)
        if ids:
            names = block.column("id", block.rows)
            for place in (place for place, name in enumerate(names) if name in ids):
                found.by_id.setdefault(names[place], (int(block.rows[place]), unit(block.vectors[place])))
    found.sample, found.duplicates = sampler.sample(), duplicates.result()
    return found


class _Sampler:
    """Keeps the rows with the smallest of one random number a row, so that blocks do not matter."""

    def __init__(self, size: int, seed: int, dims: int) -> None:
        self._size, self._random = size, np.random.default_rng(seed)
        self._below = 1.0
        #: Random numbers, row numbers and vectors.
        self._parts = [(np.empty(0), np.empty(0, np.int64), np.empty((0, dims), np.float32))]
        self._ids: list[str | None] = []
        self._kept: dict[str, list[Any]] = {}

    def add(self, block: Block) -> None:
        keys = self._random.random(len(block.vectors))
        chosen = np.flatnonzero(keys < self._below)
        rows = block.rows[chosen]
        for name in block.facts.column_names:
            if name not in {"id", *RECEIPT, *HASH_COLUMNS, *self._kept}:
                self._kept[name] = [None] * len(self._ids)
        self._ids += block.column("id", rows)
        for name, cells in self._kept.items():
            cells += [shortened(cell) for cell in block.column(name, rows)]
        self._parts.append((keys[chosen], rows, block.vectors[chosen]))
        if len(self._ids) > 2 * self._size:
            self._drop()

    def _drop(self) -> None:
        keys, rows, vectors = map(np.concatenate, zip(*self._parts, strict=True))
        stay = np.sort(np.argpartition(keys, self._size)[: self._size])
        self._parts = [(keys[stay], rows[stay], vectors[stay])]
        self._ids = [self._ids[place] for place in stay]
        self._kept = {name: [cells[place] for place in stay] for name, cells in self._kept.items()}
        self._below = float(keys[stay].max())

    def sample(self) -> Sample:
        if len(self._ids) > self._size:
            self._drop()
        _, rows, vectors = map(np.concatenate, zip(*self._parts, strict=True))
        return Sample(rows, self._ids, vectors, self._kept)


class _DuplicateCounter:
    """Counts hashes of vectors; if there are too many, only hashes below a bound that is halved each time."""

    def __init__(self) -> None:
        self._one_in = 1
        #: Hash, row and number of rows, in the first entry of a hash; a frequent hash has five entries.
        self._entries = (np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64))
        self._pending: list[tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]] = []
        self._held = 0

    def add(self, block: Block) -> None:
        digests = b"".join(blake2b(vector, digest_size=8).digest() for vector in block.vectors)
        self._pending.append((np.frombuffer(digests, "<u8"), block.rows, np.ones(len(block.vectors), np.int64)))
        self._held += len(block.vectors)
        if self._held > _HASHES:
            self._merge()
            while len(self._entries[0]) > _HASHES // 2:
                self._one_in *= 2
                self._merge()
            self._held = len(self._entries[0])

    def _merge(self) -> None:
        hashes, rows, counts = map(np.concatenate, zip(self._entries, *self._pending, strict=True))
        self._pending.clear()
        below = np.uint64((2**64 - 1) // self._one_in)
        order = np.lexsort((rows, hashes))
        order = order[hashes[order] <= below]
        hashes, rows, counts = hashes[order], rows[order], counts[order]
        _, starts, groups = np.unique(hashes, return_index=True, return_inverse=True)
        if len(starts):
            counts[starts] = np.add.reduceat(counts, starts)
        rank = np.arange(len(hashes)) - starts[groups]
        counts[rank > 0] = 0
        stay = rank < _SHOWN
        self._entries = (hashes[stay], rows[stay], counts[stay])

    def result(self) -> Duplicates:
        self._merge()
        _, rows, counts = self._entries
        repeated = np.flatnonzero(counts > 1)
        largest = heapq.nsmallest(5, repeated.tolist(), key=lambda first: (-counts[first], rows[first]))
        return Duplicates(
            len(repeated) * self._one_in,
            int(counts[repeated].sum()) * self._one_in,
            self._one_in,
            [(rows[first : first + min(_SHOWN, counts[first])].tolist(), int(counts[first])) for first in largest],
        )


def shortened(cell: Any) -> Any:
    """Returns a cell as the page shows it: strings shortened to 200 characters."""
    return f"{cell[:_CHARACTERS]}…" if isinstance(cell, str) and len(cell) > _CHARACTERS else cell
