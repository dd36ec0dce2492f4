"""The comparison of two outputs: rows, receipts, recipes, vectors."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedkit.comparison.rows import Pairs, Rows, check_alike, matched, read_rows
from embedkit.comparison.similarity import cosines, linear_cka, neighbour_overlap
from embedkit.comparison.vectors import Side, VectorPairs, side_by_side
from embedkit.config import MOST_SEED, at_least
from embedkit.errors import UsageError
from embedkit.output.formats.columns import Vectors
from embedkit.output.formats.layout import RECEIPT
from embedkit.output.open import Stored, open_stored
from embedkit.storage.protocol import FilePath
from embedkit.types import Variant

#: The name in a comparison of all columns of a head.
SCORES = "scores"
#: Cells that are compared at a time.
_CELLS = 65_536
#: Neighbours of a row that are compared.
NEIGHBOURS = 10
#: Most bytes of the sampled vectors of one output.
_SAMPLE_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class ComparisonConfig:
    """The options of a comparison.

    Raises:
        UsageError: a value is not allowed.
    """

    first: FilePath
    second: FilePath
    tolerance: float | None = None  # largest |Δ| of equal rows; None is 0, or any with `min_cosine`
    min_cosine: float | None = None  # smallest cosine of equal rows
    sample: int = 10_000  # most rows of linear CKA and shared neighbours
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("--sample", self.sample, 2)
        at_least("--seed", self.seed, 0, most=MOST_SEED)
        if self.tolerance is not None and not 0 <= self.tolerance < math.inf:
            raise UsageError(f"--tolerance cannot be {self.tolerance:g}", hint="use a number from 0, such as 1e-5")
        if self.min_cosine is not None and not -1 <= self.min_cosine <= 1:
            raise UsageError(f"--min-cosine cannot be {self.min_cosine:g}", hint="use a number from -1 to 1")

    @property
    def rule(self) -> str:
        """The condition of equal vectors in words."""
        parts = [] if self.most_difference == math.inf else [f"|Δ| at most {self.most_difference:g}"]
        parts += [] if self.min_cosine is None else [f"cosine at least {self.min_cosine:g}"]
        return " and ".join(parts)

    @property
    def most_difference(self) -> float:
        """The largest |Δ| of any value in equal vectors."""
        if self.tolerance is None:
            return 0.0 if self.min_cosine is None else math.inf
        return self.tolerance


@dataclass(frozen=True, slots=True)
class VariantComparison:
    """A column of vectors of each output.

    Attributes:
        variants: of the first and the second output.
        difference: float64 [M] largest |Δ| of the values of a pair; NaN without two vectors of one shape.
        cosine: float64 [M] cosine of a pair, of token vectors the smallest; NaN as above.
        differs: bool [M] True for pairs that are out of tolerance.
        only_first, only_second: pairs with a vector in one output only.
        other_shape: pairs with another number of token vectors.
        cka: linear CKA over the sample; None if it is undefined.
        overlap: share of the nearest neighbours that are the same, over the sample; None for fewer than two rows.
        sampled: rows of the sample.
    """

    variants: tuple[Variant, Variant]
    difference: NDArray[np.float64]
    cosine: NDArray[np.float64]
    differs: NDArray[np.bool_]
    only_first: int
    only_second: int
    other_shape: int
    cka: float | None
    overlap: float | None
    sampled: int

    @property
    def name(self) -> str:
        """The column's name, and that in the second output if it is another."""
        first, second = (variant.column for variant in self.variants)
        return first if first == second else f"{first} and {second}"

    @property
    def dims(self) -> tuple[int, int]:
        """Dimensions in the first and the second output."""
        return self.variants[0].dims, self.variants[1].dims

    @property
    def worst(self) -> NDArray[np.int64]:
        """Differing pairs, those without two vectors first, then by falling |Δ|, then by rising cosine."""
        found = np.flatnonzero(self.differs)
        order = np.lexsort((self.cosine[found], -np.nan_to_num(self.difference[found], nan=np.inf)))
        worst: NDArray[np.int64] = found[order]
        return worst


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of `compare_outputs`.

    Attributes:
        outputs: both, opened.
        rows: of both.
        pairs: rows that belong together.
        columns: other computed columns, such as `start` of a unit → bool [M] True for pairs in which they differ;
            those of a head are `scores` together.
        unmatched_columns: such columns of the first and of the second output alone, as many as there are.
        receipts: n_tokens, n_used, n_chunks, status → bool [M] True for pairs in which they differ.
        variants: columns of vectors with the same name in both outputs, or the only one of each.
        only_first, only_second: columns without a partner.
        recipe: name, value and value of each field that differs; None if an output has no recipe.
    """

    config: ComparisonConfig
    outputs: tuple[Stored, Stored]
    rows: tuple[Rows, Rows]
    pairs: Pairs
    receipts: Mapping[str, NDArray[np.bool_]]
    columns: Mapping[str, NDArray[np.bool_]]
    unmatched_columns: tuple[Mapping[str, int], Mapping[str, int]]
    variants: tuple[VariantComparison, ...]
    only_first: tuple[Variant, ...]
    only_second: tuple[Variant, ...]
    recipe: tuple[tuple[str, Any, Any], ...] | None

    @property
    def differs(self) -> NDArray[np.bool_]:
        """Bool [M] True for pairs whose receipts differ, or whose vectors or scores are out of tolerance."""
        found = np.zeros(len(self.pairs.first), np.bool_)
        for part in (*self.receipts.values(), *self.columns.values(), *(of.differs for of in self.variants)):
            found |= part
        return found

    @property
    def is_same(self) -> bool:
        """True if both outputs have the same rows and columns, and no pair differs."""
        unmatched = len(self.pairs.only_first) + len(self.pairs.only_second)
        return not (unmatched or self._columns_of_one or self.differs.any())

    @property
    def _columns_of_one(self) -> int:
        """Number of columns without a partner."""
        computed = sum(sum(of_one.values()) for of_one in self.unmatched_columns)
        return len(self.only_first) + len(self.only_second) + computed

    @property
    def differences(self) -> str:
        """The numbers of rows and columns that differ, in words."""
        only = len(self.pairs.only_first) + len(self.pairs.only_second)
        counts = {
            f"of {len(self.pairs.first):,} rows in both": int(self.differs.sum()),
            "rows in only one of them": only,
            "columns in only one of them": self._columns_of_one,
        }
        return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)

    def numbers(self, pairs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the row numbers of some pairs in the first and the second output."""
        first, second = self.rows
        return first.numbers[self.pairs.first[pairs]], second.numbers[self.pairs.second[pairs]]


def compare_outputs(config: ComparisonConfig) -> Comparison:
    """Compares two outputs, of any format and precision.

    Raises:
        UsageError: their rows do not stand for the same thing.
        OutputError: an output is missing, unfinished or damaged.
    """
    paths = config.first, config.second
    first, second = (open_stored(path) for path in paths)
    # In .npy there are no rows without a vector.
    one_is_npy = (first.format == "npy") != (second.format == "npy")
    ours, theirs = (read_rows(of, with_vector=one_is_npy and of.format != "npy") for of in (first, second))
    rows = ours, theirs
    check_alike(paths, (first, second), rows)
    pairs = matched(ours, theirs)
    columns, only_first, only_second = _matched_variants(first, second)
    of_pairs = [found.numbers[places] for found, places in zip(rows, (pairs.first, pairs.second), strict=True)]
    tokens = [
        float(found.counts[:, 1].mean()) if of.layout.token_vectors and len(found.counts) else 1.0
        for of, found in zip((first, second), rows, strict=True)
    ]
    return Comparison(
        config=config,
        outputs=(first, second),
        rows=rows,
        pairs=pairs,
        receipts=dict(_receipts(ours, theirs, pairs)),
        columns=_compare_columns(ours, theirs, pairs, config.most_difference),
        unmatched_columns=(_columns_of_first(ours, theirs), _columns_of_first(theirs, ours)),
        variants=tuple(
            _compare_variant(
                Side(first, one, of_pairs[0], tokens[0]), Side(second, other, of_pairs[1], tokens[1]), config
            )
            for one, other in columns
        ),
        only_first=only_first,
        only_second=only_second,
        recipe=tuple(_differing(first.recipe, second.recipe)) if first.recipe and second.recipe else None,
    )


def _matched_variants(
    first: Stored, second: Stored
) -> tuple[list[tuple[Variant, Variant]], tuple[Variant, ...], tuple[Variant, ...]]:
    """Returns the columns with the same name in both outputs, or the only one of each, and those of one alone."""
    ours, theirs = first.layout.variants, second.layout.variants
    if len(ours) == len(theirs) == 1:
        return [(ours[0], theirs[0])], (), ()
    by_name = {variant.name: variant for variant in theirs}
    pairs = [(variant, by_name[variant.name]) for variant in ours if variant.name in by_name]
    names = {variant.name for variant, _ in pairs}
    rest = [tuple(variant for variant in of if variant.name not in names) for of in (ours, theirs)]
    return pairs, rest[0], rest[1]


def _receipts(first: Rows, second: Rows, pairs: Pairs) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yields the name of a receipt, and bool [M] True where it differs."""
    for number, name in enumerate(RECEIPT[:3]):
        yield name, first.counts[pairs.first, number] != second.counts[pairs.second, number]
    words = list(dict.fromkeys([*first.statuses, *second.statuses]))
    # One more entry, so that an output without rows has an index.
    ours, theirs = (np.array([*map(words.index, of.statuses), 0])[of.status] for of in (first, second))
    yield RECEIPT[3], ours[pairs.first] != theirs[pairs.second]


def _compare_columns(
    first: Rows, second: Rows, pairs: Pairs, most_difference: float
) -> dict[str, NDArray[np.bool_]]:
    """Returns `Comparison.columns`."""
    found: dict[str, NDArray[np.bool_]] = {}
    for name in first.columns.keys() & second.columns.keys():
        differs = _differing_cells(first.columns[name], second.columns[name], pairs, most_difference)
        shown = SCORES if name in first.scores else name
        found[shown] = found[shown] | differs if shown in found else differs
    return dict(sorted(found.items()))


def _columns_of_first(first: Rows, second: Rows) -> dict[str, int]:
    """Returns the computed columns of one output that the other lacks, by name, those of a head together."""
    lacking = [name for name in first.columns if name not in second.columns]
    return dict(Counter(SCORES if name in first.scores else name for name in lacking))


def _differing_cells(
    first: pa.ChunkedArray, second: pa.ChunkedArray, pairs: Pairs, most_difference: float
) -> NDArray[np.bool_]:
    """Returns bool [M] True where cells differ: fractions by more than a tolerance, other cells at all."""
    if all(pa.types.is_floating(column.type) for column in (first, second)):
        # JSON Lines have no float32.
        dtype = np.float32 if pa.float32() in {first.type, second.type} else np.float64
        ours, theirs = (column.to_numpy().astype(dtype) for column in (first, second))  # NaN for null
        one, other = ours[pairs.first].astype(np.float64), theirs[pairs.second].astype(np.float64)
        differs: NDArray[np.bool_] = (np.isnan(one) != np.isnan(other)) | (np.abs(one - other) > most_difference)
        return differs
    differs = np.zeros(len(pairs.first), np.bool_)
    for start in range(0, len(differs), _CELLS):
        here = slice(start, start + _CELLS)
        one, other = first.take(pairs.first[here]).to_pylist(), second.take(pairs.second[here]).to_pylist()
        differs[here] = [_plain(a) != _plain(b) for a, b in zip(one, other, strict=True)]
    return differs


def _plain(cell: Any) -> Any:
    """Returns lists as the text that they are in JSON Lines."""
    return json.dumps(cell, ensure_ascii=False, separators=(",", ":")) if isinstance(cell, list) else cell


def _compare_variant(first: Side, second: Side, config: ComparisonConfig) -> VariantComparison:
    count, same_dims = len(first.rows), first.variant.dims == second.variant.dims
    difference, cosine = np.full(count, np.nan), np.full(count, np.nan)
    has_both, only_one = np.zeros(count, np.bool_), [0, 0]
    differs = np.zeros(count, np.bool_)
    sample = _Sample(count, (first.variant.dims, second.variant.dims), config)
    for block in side_by_side(first, second):
        has_both[block.both] = True
        for number, pairs in enumerate((block.only_first, block.only_second)):
            only_one[number] += len(pairs)
            differs[pairs] = True
        if same_dims:
            difference[block.both], cosine[block.both] = _deviations(block.first, block.second)
        sample.add(block)
    comparable = ~np.isnan(difference)
    differs |= has_both & ~comparable
    differs[comparable] |= difference[comparable] > config.most_difference
    if config.min_cosine is not None:
        differs[comparable] |= cosine[comparable] < config.min_cosine
    one, other = sample.vectors()
    is_equal = len(one) > 1 and np.array_equal(one, other)
    return VariantComparison(
        variants=(first.variant, second.variant),
        difference=difference,
        cosine=cosine,
        differs=differs,
        only_first=only_one[0],
        only_second=only_one[1],
        other_shape=int((has_both & ~comparable).sum()) if same_dims else 0,
        cka=1.0 if is_equal else linear_cka(one, other),
        overlap=1.0 if is_equal else neighbour_overlap(one, other, k=NEIGHBOURS, seed=config.seed),
        sampled=len(one),
    )


class _Sample:
    """The vectors of random pairs; of token vectors, their mean."""

    def __init__(self, count: int, dims: tuple[int, int], config: ComparisonConfig) -> None:
        size = min(config.sample, _SAMPLE_BYTES // (4 * max(*dims, 1)), count)
        self._chosen = np.zeros(count, np.bool_)
        self._chosen[np.random.default_rng(config.seed).permutation(count)[:size]] = True
        self._parts = tuple([np.empty((0, width), np.float32)] for width in dims)

    def add(self, block: VectorPairs) -> None:
        """Adds the chosen pairs of a block."""
        places = np.flatnonzero(self._chosen[block.both]).tolist()
        for part, vectors in zip(self._parts, (block.first, block.second), strict=True):
            if isinstance(vectors, np.ndarray):
                part.append(vectors[places])
            else:
                part.extend(vectors[place].mean(axis=0, keepdims=True) for place in places if len(vectors[place]))

    def vectors(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns [S, D1] and [S, D2] the vectors of the chosen pairs."""
        first, second = map(np.concatenate, self._parts)
        return first, second


def _deviations(first: Vectors, second: Vectors) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns [n] the largest |Δ| and the smallest cosine of each pair; NaN for token vectors of two shapes."""
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return np.abs(first.astype(np.float64) - second).max(axis=1, initial=0.0), cosines(first, second)
    found = np.full((2, len(first)), np.nan)
    for pair, (one, other) in enumerate(zip(first, second, strict=True)):
        if one.shape == other.shape:
            found[0, pair] = np.abs(one.astype(np.float64) - other).max(initial=0.0)
            found[1, pair] = cosines(one, other).min(initial=1.0)
    return found[0], found[1]


def _differing(first: Any, second: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields the fields that differ, such as `text.max_length`, with both values; None if absent."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in dict.fromkeys([*first, *second]):
            yield from _differing(first.get(key), second.get(key), f"{name}.{key}".lstrip("."))
    elif first != second:
        yield name, first, second
