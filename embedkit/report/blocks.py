"""A stored output as blocks of rows with one float32 vector each, whatever it is stored as.

Knows nothing of what is drawn of them. A block is in memory at a time, and of a mapped array not even that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedkit.arrow_values import plain_values
from embedkit.errors import UsageError
from embedkit.output.formats.columns import Vectors
from embedkit.output.open import Stored
from embedkit.types import Variant

_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Block:
    """Some consecutive rows of an output.

    Attributes:
        facts: [R] id, kept columns and receipt.
        start: number of the first row in the output.
        has_vector: bool [R].
        vectors: float32 [V, D], V = has_vector.sum(): token vectors as their mean, bits as -1 and 1, so that
            cosine is 1 less twice the share of bits that differ.
    """

    facts: pa.Table
    start: int
    has_vector: NDArray[np.bool_]
    vectors: NDArray[np.float32]

    @property
    def rows(self) -> NDArray[np.int64]:
        """[V] numbers, in the output, of the rows that have a vector."""
        return self.start + np.flatnonzero(self.has_vector)

    def column(self, name: str, rows: NDArray[np.int64]) -> list[Any]:
        """Cells of a column for rows given by their numbers in the output; None where it is not there."""
        if name not in self.facts.column_names:
            return [None] * len(rows)
        cells: list[Any] = plain_values(self.facts[name].take(pa.array(rows - self.start)))
        return cells


def chosen_variant(stored: Stored, name: str | None) -> Variant:
    """The column of vectors of this name; the first without a name.

    Raises:
        UsageError: there is none of this name.
    """
    variants = stored.layout.variants
    for variant in variants:
        if name is None or name in {variant.name, variant.column}:
            return variant
    raise UsageError(
        f"--variant {name}: the output has no such column of vectors",
        hint=f"there is {', '.join(variant.name or variant.column for variant in variants)}",
    )


def blocks(stored: Stored, variant: Variant) -> Iterator[Block]:
    """All rows in order.

    Raises:
        OutputError: a file is missing or damaged.
    """
    start = 0
    for piece in stored.pieces([variant]):
        ends = np.concatenate([[0], np.cumsum(piece.has_vector)])
        for first in range(0, len(piece.facts), _ROWS):
            last = min(first + _ROWS, len(piece.facts))
            held = piece.vectors[variant.name][ends[first] : ends[last]]
            facts = piece.facts.slice(first, last - first)
            yield Block(facts, start + first, piece.has_vector[first:last], _floats(stored, variant, held))
        start += len(piece.facts)


def _floats(stored: Stored, variant: Variant, held: Vectors) -> NDArray[np.float32]:
    if isinstance(held, np.ndarray):
        vectors = stored.finite_floats(held, variant)
    else:
        vectors = np.zeros((len(held), variant.dims), np.float32)
        for row, tokens in enumerate(held):
            if len(tokens):
                vectors[row] = stored.finite_floats(tokens, variant).mean(axis=0)
    if stored.layout.precision == "binary":
        vectors = 2 * vectors - 1
    return np.ascontiguousarray(vectors)
