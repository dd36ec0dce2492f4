"""The section of a comparison of two outputs: counts, histograms of cosines, and the rows that differ most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.comparison import Comparison, VariantComparison
from embedkit.comparison.compare import NEIGHBOURS, SCORES
from embedkit.output.open import Stored
from embedkit.report.charts import histogram_figure
from embedkit.report.findings import row_name
from embedkit.report.page import percent
from embedkit.report.sections import flat

_BINS = 40
#: Rows that are listed of each kind.
_LISTED = 20


def comparison_section(of: Comparison) -> dict[str, Any]:
    """Returns the values for the template comparison.html.j2.

    Raises:
        OutputError: an output is damaged.
    """
    first, second = of.rows
    only = (first.numbers[of.pairs.only_first], second.numbers[of.pairs.only_second])
    worst = {variant.name: variant.worst[:_LISTED] for variant in of.variants}
    differing = {name: np.flatnonzero(mask) for name, mask in of.columns.items() if mask.any()}
    changed = {name: of.numbers(pairs[:_LISTED])[0] for name, pairs in differing.items()}
    listed = [*(of.numbers(pairs)[0] for pairs in worst.values()), *changed.values(), only[0][:_LISTED]]
    names = [_names(of.outputs[0], np.concatenate(listed)), _names(of.outputs[1], only[1][:_LISTED])]
    return {
        "id": "comparison",
        "name": f"{of.config.first.name} and {of.config.second.name}",
        "summary": "The outputs are the same." if of.is_same else f"They differ: {of.differences}.",
        "rule": of.config.rule,
        "counts": [
            (f"rows of {of.config.first.name}", first.count),
            (f"rows of {of.config.second.name}", second.count),
            ("rows in both", len(of.pairs.first)),
            *((f"rows only in {path.name}", len(rows)) for path, rows in zip(_paths(of), only, strict=True)),
            *((_other(name), int(mask.sum())) for name, mask in {**of.receipts, **of.columns}.items()),
        ],
        "rows": [
            *(
                (f"Rows only in {path.name}", len(rows), [of_output[row] for row in rows[:_LISTED].tolist()])
                for path, rows, of_output in zip(_paths(of), only, names, strict=True)
                if len(rows)
            ),
            *(
                (_other(name).capitalize(), len(pairs), [names[0][row] for row in changed[name].tolist()])
                for name, pairs in differing.items()
            ),
        ],
        "columns": [
            (name, count, path.name)
            for path, variants, computed in zip(
                _paths(of), (of.only_first, of.only_second), of.unmatched_columns, strict=True
            )
            for name, count in (*((variant.column, 1) for variant in variants), *computed.items())
        ],
        "recipe": None if of.recipe is None else [(name, *map(_value, values)) for name, *values in of.recipe],
        "outputs": [path.name for path in _paths(of)],
        "variants": [_variant(of, variant, worst[variant.name], names[0]) for variant in of.variants],
    }


def _paths(of: Comparison) -> tuple[Any, Any]:
    return of.config.first, of.config.second


def _other(column: str) -> str:
    return "rows with other scores" if column == SCORES else f"rows with another {column}"


def _value(value: Any) -> str:
    return next((text for _, text in flat({"": value})), "none")


def _variant(
    of: Comparison, variant: VariantComparison, worst: NDArray[np.int64], names: Mapping[int, str]
) -> dict[str, Any]:
    compared = np.flatnonzero(~np.isnan(variant.cosine))
    cosines, differences = variant.cosine[compared], variant.difference[compared]
    figure = None
    if len(compared) and cosines.max() - cosines.min() > 1e-9:
        figure = histogram_figure(*np.histogram(cosines, _BINS), title="cosine of a row", unit="rows")
    return {
        "name": variant.name,
        "dims": variant.dims,
        "facts": [
            ("rows that differ", f"{int(variant.differs.sum()):,} of {len(variant.differs):,}"),
            *_spread("largest |Δ| of a row", differences, (0.5, 0.99, 1.0), "{:.3g}"),
            *_spread("cosine of a row", cosines, (0.5, 0.01, 0.0), "{:.7f}"),
            ("a vector in the first only", f"{variant.only_first:,}"),
            ("a vector in the second only", f"{variant.only_second:,}"),
            ("linear CKA", "undefined" if variant.cka is None else f"{variant.cka:.5f}"),
            (
                f"{NEIGHBOURS} nearest neighbours shared",
                "undefined" if variant.overlap is None else percent(variant.overlap),
            ),
            ("rows of the last two", f"{variant.sampled:,}"),
        ],
        "figure": figure,
        "worst": [
            (names[row], _number(variant.difference[pair], "{:.3g}"), _number(variant.cosine[pair], "{:.7f}"))
            for pair, row in zip(worst.tolist(), of.numbers(worst)[0].tolist(), strict=True)
        ]
        if variant.dims[0] == variant.dims[1]
        else [],
    }


def _spread(
    name: str, values: NDArray[np.float64], quantiles: Iterable[float], form: str
) -> list[tuple[str, str]]:
    words = {0.0: "smallest", 0.01: "1 % are below", 0.5: "median", 0.99: "99 % are below", 1.0: "largest"}
    if not len(values):
        return []
    found = [f"{words[at]} {form.format(np.quantile(values, at))}" for at in quantiles]
    return [(name, ", ".join(found))]


def _number(value: float, form: str) -> str:
    return "none" if np.isnan(value) else form.format(value)


def _names(stored: Stored, rows: NDArray[np.int64]) -> dict[int, str]:
    """Returns the names of some rows of an output."""
    rows, start, names = np.unique(rows), 0, {}
    for batch in stored.batches(()):
        here = rows[(rows >= start) & (rows < start + len(batch.facts))]
        for row in here.tolist():
            names[row] = row_name(batch.facts["id"][row - start].as_py(), row)
        start += len(batch.facts)
    return names
