"""The vectors of two outputs side by side, a block of pairs at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.output.formats.columns import RecordBatch, Vectors
from embedkit.output.open import Stored
from embedkit.types import Variant

#: Pairs of a block.
_ROWS = 4096
#: Bytes of vectors of each output to hold if their rows are in different orders. The second output is then read
#: once for every so many bytes of the first.
_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Side:
    """A column of vectors of one of the outputs, and the rows of the pairs in it."""

    stored: Stored
    variant: Variant
    rows: NDArray[np.int64]  # [M] numbers in the output
    tokens: float  # vectors of a row, on average


@dataclass(frozen=True, slots=True)
class VectorPairs:
    """Consecutive pairs of rows, n of them with a vector in both outputs.

    Attributes:
        both, only_first, only_second: places among all pairs.
        first: float32 [n, D1], or n arrays [tokens, D1], of the pairs in `both`.
        second: as `first`.
    """

    both: NDArray[np.int64]
    only_first: NDArray[np.int64]
    only_second: NDArray[np.int64]
    first: Vectors
    second: Vectors


def side_by_side(first: Side, second: Side) -> Iterator[VectorPairs]:
    """Yields all pairs in blocks.

    Args:
        first: with ascending rows.
        second: with rows in any order; ascending ones are read once.

    Raises:
        OutputError: a file is missing or damaged.
    """
    in_order = bool((np.diff(second.rows) > 0).all())
    widest = max(4.0 * side.variant.dims * max(side.tokens, 1.0) for side in (first, second))
    step = min(_ROWS, max(1, int(_BYTES / widest))) if in_order else max(1, int(_BYTES / widest))
    ours, theirs = _Reader(first), _Reader(second)
    for start in range(0, len(first.rows), step):
        pairs = np.arange(start, min(start + step, len(first.rows)))
        if not in_order:
            theirs = _Reader(second)
        order = np.argsort(second.rows[pairs], kind="stable")
        one_has, one = ours.take(first.rows[pairs])
        sorted_has, found = theirs.take(second.rows[pairs][order])
        other_has = np.empty(len(pairs), np.bool_)
        other_has[order] = sorted_has
        theirs_at = np.empty(len(pairs), np.int64)  # place of a pair's vector in `found`
        theirs_at[order] = np.cumsum(sorted_has) - 1
        ours_at = np.cumsum(one_has) - 1
        for at in range(0, len(pairs), _ROWS):
            here = slice(at, at + _ROWS)
            one_here, other_here = one_has[here], other_has[here]
            both = one_here & other_here
            yield VectorPairs(
                both=pairs[here][both],
                only_first=pairs[here][one_here & ~other_here],
                only_second=pairs[here][other_here & ~one_here],
                first=_chosen(one, ours_at[here][both]),
                second=_chosen(found, theirs_at[here][both]),
            )


def _chosen(vectors: Vectors, places: NDArray[np.int64]) -> Vectors:
    return vectors[places] if isinstance(vectors, np.ndarray) else [vectors[place] for place in places]


class _Reader:
    """Reads the vectors of ascending rows, one batch of the output after another."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._batches = side.stored.batches([side.variant])
        self._batch: RecordBatch | None = None
        self._places = np.empty(0, np.int64)  # [R] of each row's vector in the batch
        self._start = self._stop = 0

    def take(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.bool_], Vectors]:
        """Returns bool [n], True for rows with a vector, and their vectors as numbers; bits are -1 and 1.

        `rows` follow those of the last call.
        """
        stored, variant = self._side.stored, self._side.variant
        has, tokens = np.zeros(len(rows), np.bool_), []
        vectors = np.empty((0 if stored.layout.token_vectors else len(rows), variant.dims), np.float32)
        done = filled = 0
        while done < len(rows):
            while self._batch is None or rows[done] >= self._stop:
                self._batch = next(self._batches)
                self._places = np.cumsum(self._batch.has_vector) - 1
                self._start, self._stop = self._stop, self._stop + len(self._batch.facts)
            last = int(np.searchsorted(rows, self._stop))
            here = rows[done:last] - self._start
            has[done:last] = self._batch.has_vector[here]
            found = _chosen(self._batch.vectors[variant.name], self._places[here[has[done:last]]])
            if isinstance(found, np.ndarray):
                vectors[filled : filled + len(found)] = self._floats(found)
                filled += len(found)
            else:
                tokens += [self._floats(text) for text in found]
            done = last
        return has, tokens if stored.layout.token_vectors else vectors[:filled]

    def _floats(self, values: NDArray[Any]) -> NDArray[np.float32]:
        stored = self._side.stored
        numbers = stored.finite_floats(values, self._side.variant)
        return 2 * numbers - 1 if stored.layout.precision == "binary" else numbers
