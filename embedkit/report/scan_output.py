"""What one pass over an output's rows finds: lengths of texts, norms, repeated vectors, and a sample.

Knows nothing of charts. Memory is bounded: counts, and as many vectors as the sample has.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedkit.output.formats.schema import RECEIPT
from embedkit.output.norms import NormTally
from embedkit.output.open import Stored
from embedkit.report.blocks import Block, blocks
from embedkit.report.geometry import unit
from embedkit.types import Variant

#: A sample's vectors take at most this many bytes: very long vectors, a smaller sample.
_SAMPLE_BYTES = 256 * 2**20
#: Vectors whose hash is held at a time, 24 bytes each; beyond that a half, a quarter … of them is looked at.
_HASHES = 4 * 2**20
#: Rows that are told of each group of equal vectors.
_SHOWN = 5
#: Letters of a kept value that go to the page.
_LETTERS = 200


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows with a vector, chosen at random by a seed; in their order.

    Attributes:
        rows: [S] their numbers in the output.
        ids: [S]
        vectors: float32 [S, D]
        kept: kept column → [S] cells; strings cut to 200 letters.
    """

    rows: NDArray[np.int64]
    ids: Sequence[str | None]
    vectors: NDArray[np.float32]
    kept: Mapping[str, Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Repeats:
    """Vectors that are there more than once, to the bit.

    Attributes:
        groups: how many vectors are repeated.
        rows: how many rows hold one of these.
        one_in: 1, or N where one in N vectors was looked at and the counts are estimates.
        largest: numbers of the rows of the largest groups, at most five of each group.
        sizes: how many rows each of these groups has.
    """

    groups: int
    rows: int
    one_in: int
    largest: Sequence[Sequence[int]]
    sizes: Sequence[int]


@dataclass
class Survey:
    """Counts over all rows, and the sample.

    Attributes:
        rows: rows of the output. vectors: those with a vector.
        status: word → rows.
        lengths: tokens of a text → rows.
        n_used: tokens that went through the model.
        norms: of all vectors.
        wanted: id → (row, unit vector [D]) of rows that were asked for by id; the first row of an id.
    """

    rows: int = 0
    vectors: int = 0
    status: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    n_used: int = 0
    norms: NormTally = field(default_factory=NormTally)
    wanted: dict[str, tuple[int, NDArray[np.float32]]] = field(default_factory=dict)
    sample: Sample = field(init=False)
    repeats: Repeats = field(init=False)

    def count(self, block: Block) -> None:
        """Add a block's receipts and norms."""
        self.rows += len(block.facts)
        self.vectors += len(block.vectors)
        self.status.update(block.facts["status"].to_pylist())
        self.lengths.update(block.facts["n_tokens"].to_pylist())
        self.n_used += pc.sum(block.facts["n_used"]).as_py() or 0
        self.norms.add(block.vectors)


def survey(stored: Stored, variant: Variant, *, size: int, seed: int, wanted: Collection[str]) -> Survey:
    """Read all rows once.

    Args:
        stored: the output.
        variant: its column of vectors.
        size: most rows of the sample.
        seed: decides which rows are in it, together with how many there are.
        wanted: ids whose vectors are asked for.

    Raises:
        OutputError: a file is missing or damaged.
    """
    found, repeats = Survey(), _Repeats()
    sampling = _Sampling(min(size, _SAMPLE_BYTES // (4 * max(1, variant.dims))), seed, variant.dims)
    for block in blocks(stored, variant):
        found.count(block)
        repeats.add(block)
        sampling.add(block)
        if wanted:
            ids = block.column("id", block.rows)
            for place in (place for place, identity in enumerate(ids) if identity in wanted):
                found.wanted.setdefault(ids[place], (int(block.rows[place]), unit(block.vectors[place])))
    found.sample, found.repeats = sampling.sample(), repeats.result()
    return found


class _Sampling:
    """The rows with the smallest of one random number a row: known after one pass, whatever the blocks."""

    def __init__(self, size: int, seed: int, dims: int) -> None:
        self._size, self._random = size, np.random.default_rng(seed)
        self._below = 1.0
        self._keys, self._rows = [np.empty(0)], [np.empty(0, np.int64)]
        self._vectors = [np.empty((0, dims), np.float32)]
        self._ids: list[str | None] = []
        self._kept: dict[str, list[Any]] = {}

    def add(self, block: Block) -> None:
        keys = self._random.random(len(block.vectors))
        chosen = np.flatnonzero(keys < self._below)
        rows = block.rows[chosen]
        for name in block.facts.column_names:
            if name not in {"id", *RECEIPT, *self._kept}:
                self._kept[name] = [None] * len(self._ids)
        self._ids += block.column("id", rows)
        for name, cells in self._kept.items():
            cells += [shortened(cell) for cell in block.column(name, rows)]
        self._keys.append(keys[chosen])
        self._rows.append(rows)
        self._vectors.append(block.vectors[chosen])
        if len(self._ids) > 2 * self._size:
            self._drop()

    def _drop(self) -> None:
        keys = np.concatenate(self._keys)
        stay = np.sort(np.argpartition(keys, self._size)[: self._size])
        self._keys, self._rows = [keys[stay]], [np.concatenate(self._rows)[stay]]
        self._vectors = [np.concatenate(self._vectors)[stay]]
        self._ids = [self._ids[place] for place in stay]
        self._kept = {name: [cells[place] for place in stay] for name, cells in self._kept.items()}
        self._below = float(keys[stay].max())

    def sample(self) -> Sample:
        if len(self._ids) > self._size:
            self._drop()
        return Sample(np.concatenate(self._rows), self._ids, np.concatenate(self._vectors), self._kept)


class _Repeats:
    """Hashes of vectors, rows and counts; where there are too many, of the hashes below a falling bound."""

    def __init__(self) -> None:
        self._one_in = 1
        #: hash, row, and how many rows the entry stands for: of a hash that is there often, five rows are held.
        self._entries = (np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64))
        self._waiting: list[tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]] = []
        self._held = 0

    def add(self, block: Block) -> None:
        digests = b"".join(blake2b(vector, digest_size=8).digest() for vector in block.vectors)
        self._waiting.append((np.frombuffer(digests, "<u8"), block.rows, np.ones(len(block.vectors), np.int64)))
        self._held += len(block.vectors)
        if self._held > _HASHES:
            self._settle()
            while len(self._entries[0]) > _HASHES // 2:
                self._one_in *= 2
                self._settle()
            self._held = len(self._entries[0])

    def _settle(self) -> None:
        hashes, rows, counts = map(np.concatenate, zip(self._entries, *self._waiting, strict=True))
        self._waiting.clear()
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

    def result(self) -> Repeats:
        self._settle()
        _, rows, counts = self._entries
        repeated = np.flatnonzero(counts > 1)
        largest = heapq.nsmallest(5, repeated.tolist(), key=lambda first: (-counts[first], rows[first]))
        return Repeats(
            len(repeated) * self._one_in,
            int(counts[repeated].sum()) * self._one_in,
            self._one_in,
            [rows[first : first + min(_SHOWN, counts[first])].tolist() for first in largest],
            [int(counts[first]) for first in largest],
        )


def shortened(cell: Any) -> Any:
    """A cell as it goes to the page: strings cut to 200 letters."""
    return f"{cell[:_LETTERS]}…" if isinstance(cell, str) and len(cell) > _LETTERS else cell
