"""A comparison as lines of text and as JSON: numbers of rows, never their ids or other content."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.comparison.compare import NEIGHBOURS, Comparison, VariantComparison
from embedkit.percent import percent

#: Quantiles of |Δ| and cosine in the JSON.
_QUANTILES = {"min": 0.0, "1 %": 0.01, "median": 0.5, "99 %": 0.99, "max": 1.0}
#: Most characters of a recipe's value in a line.
_CHARACTERS = 60


def as_lines(comparison: Comparison, *, most_rows: int) -> Iterator[str]:
    """Yields the lines that `embedkit diff` prints.

    Args:
        comparison: of two outputs.
        most_rows: rows listed of each kind.
    """
    it = comparison
    yield from _count_lines(it, most_rows)
    for name, mask in it.columns.items():
        if mask.any():
            numbers, _ = it.numbers(np.flatnonzero(mask))
            yield f"{name:10} differs in {mask.sum():,} rows of the first: {_listed(numbers, most_rows)}"
    for number, counts in zip(("first", "second"), it.unmatched_columns, strict=True):
        yield from (f"{name:10} {count:,} columns only in the {number}" for name, count in counts.items())
    for number, others in (("first", it.only_first), ("second", it.only_second)):
        yield from (f"vectors    {variant.column}: only in the {number}" for variant in others)
    for variant in it.variants:
        yield from _variant_lines(variant, it.config.rule)
    if it.recipe is None:
        yield "recipe     not compared: a single JSON Lines file does not hold it"
    elif not it.recipe:
        yield "recipe     the same"
    for name, one, other in it.recipe or ():
        yield f"recipe     {name}: {_shortened(one)}, {_shortened(other)}"
    yield from _row_lines(it, most_rows)


def _count_lines(it: Comparison, most_rows: int) -> Iterator[str]:
    first, second = it.rows
    yield f"rows       {first.count:,} and {second.count:,}, {len(it.pairs.first):,} in both by id"
    for name, of, places in (("first", first, it.pairs.only_first), ("second", second, it.pairs.only_second)):
        if len(places):
            yield f"           {len(places):,} only in the {name}: {_listed(of.numbers[places], most_rows)}"
    left_out = sum(of.count - len(of.numbers) for of in it.rows)
    if left_out:
        yield f"           {left_out:,} without a vector, which .npy does not hold, are left out"
    for name, mask in it.receipts.items():
        if mask.any():
            numbers, _ = it.numbers(np.flatnonzero(mask))
            yield f"{name:10} differs in {mask.sum():,} rows of the first: {_listed(numbers, most_rows)}"


def as_json(comparison: Comparison, *, most_rows: int) -> dict[str, Any]:
    """Returns the comparison for JSON; numbers that are undefined are null."""
    it = comparison
    first, second = it.rows
    return {
        "same": it.is_same,
        "tolerance": None if it.config.most_difference == np.inf else it.config.most_difference,
        "min_cosine": it.config.min_cosine,
        "outputs": [str(it.config.first), str(it.config.second)],
        "rows": [first.count, second.count],
        "matched": len(it.pairs.first),
        "differing": int(it.differs.sum()),
        "only_first": _some(first.numbers[it.pairs.only_first], most_rows),
        "only_second": _some(second.numbers[it.pairs.only_second], most_rows),
        "receipts": {name: int(mask.sum()) for name, mask in it.receipts.items()},
        "columns": {name: int(mask.sum()) for name, mask in it.columns.items()},
        "columns_only_first": dict(it.unmatched_columns[0]),
        "columns_only_second": dict(it.unmatched_columns[1]),
        "variants": [_variant_json(it, of, most_rows) for of in it.variants],
        "variants_only_first": [variant.column for variant in it.only_first],
        "variants_only_second": [variant.column for variant in it.only_second],
        "recipe": it.recipe and [{"field": name, "values": [one, other]} for name, one, other in it.recipe],
    }


def _variant_lines(of: VariantComparison, rule: str) -> Iterator[str]:
    compared = of.difference[~np.isnan(of.difference)]
    if of.dims[0] != of.dims[1]:
        yield f"vectors    {of.name}: {of.dims[0]:,} and {of.dims[1]:,} dimensions: all differ"
    else:
        yield f"vectors    {of.name}: {of.differs.sum():,} of {len(of.differs):,} differ ({rule})"
    if len(compared):
        cosine = of.cosine[~np.isnan(of.cosine)]
        median, high = np.quantile(compared, (0.5, 0.99))
        yield f"           |Δ| max {compared.max():.3g}, median {median:.3g}, 99 % at most {high:.3g}"
        yield f"           cosine min {cosine.min():.7f}, median {np.median(cosine):.7f}"
    if of.only_first or of.only_second:
        yield f"           a vector only in the first: {of.only_first:,}, only in the second: {of.only_second:,}"
    if of.other_shape:
        yield f"           other numbers of token vectors: {of.other_shape:,} rows"
    cka = "undefined" if of.cka is None else f"{of.cka:.5f}"
    if of.overlap is not None:
        yield (
            f"           linear CKA {cka}, {NEIGHBOURS} nearest neighbours shared {percent(of.overlap)} "
            f"({of.sampled:,} rows)"
        )


def _row_lines(it: Comparison, most_rows: int) -> Iterator[str]:
    """Yields a line for each of the worst rows of each column."""
    for of in it.variants:
        if of.dims[0] != of.dims[1]:
            continue
        worst = of.worst[:most_rows]
        for pair, one, other in zip(worst, *it.numbers(worst), strict=True):
            rows = f"row {one}" if one == other else f"row {one} and row {other}"
            what = "one has no vector, or another number of them"
            if not np.isnan(of.difference[pair]):
                what = f"|Δ| {of.difference[pair]:.3g}, cosine {of.cosine[pair]:.7f}"
            yield f"{rows}, {of.name}: {what}"
        if len(worst) < of.differs.sum():
            yield f"and {of.differs.sum() - len(worst):,} more rows of {of.name}: --limit-rows-shown lists them"


def _variant_json(it: Comparison, of: VariantComparison, most_rows: int) -> dict[str, Any]:
    worst = of.worst[:most_rows]
    return {
        "names": [variant.column for variant in of.variants],
        "dims": list(of.dims),
        "differing": int(of.differs.sum()),
        "vector_only_first": of.only_first,
        "vector_only_second": of.only_second,
        "other_shape": of.other_shape,
        "difference": _quantiles(of.difference),
        "cosine": _quantiles(of.cosine),
        "linear_cka": of.cka,
        "shared_neighbours": of.overlap,
        "sampled": of.sampled,
        "rows": [
            {
                "first": int(one),
                "second": int(other),
                "difference": _number(of.difference[pair]),
                "cosine": _number(of.cosine[pair]),
            }
            for pair, one, other in zip(worst, *it.numbers(worst), strict=True)
        ],
    }


def _quantiles(values: NDArray[np.float64]) -> dict[str, float] | None:
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    return dict(zip(_QUANTILES, np.quantile(values, list(_QUANTILES.values())).tolist(), strict=True))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _some(numbers: NDArray[np.int64], most: int) -> dict[str, Any]:
    return {"count": len(numbers), "rows": numbers[:most].tolist()}


def _listed(numbers: NDArray[np.int64], most: int) -> str:
    shown = [*map(str, numbers[:most]), *([f"{len(numbers) - most:,} more"] if len(numbers) > most else [])]
    return f"row{'s' * (len(numbers) > 1)} {', '.join(shown)}"


def _shortened(value: Any) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _CHARACTERS else f"{text[: _CHARACTERS - 1]}…"
