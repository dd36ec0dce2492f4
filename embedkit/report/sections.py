"""The values of an output's section: tables and figures for the template output.html.j2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from embedkit.report.charts import length_bins, lengths_figure, map_figure, norms_figure
from embedkit.report.findings import Findings, RowLabel, row_name
from embedkit.report.geometry import THRESHOLDS
from embedkit.report.page import percent
from embedkit.types import STATUSES

_BINS = 40
#: Norms whose relative difference is smaller are equal but for rounding.
_EQUAL_NORMS = 1e-3


def output_section(it: Findings, number: int) -> dict[str, Any]:
    """Returns the values of the section; `number` makes its ids unique on the page."""
    sample, recipe = it.sample, it.stored.recipe
    names = [row_name(identity, row) for identity, row in zip(sample.ids, sample.rows, strict=True)]
    duplicates = it.scan.duplicates
    return {
        "id": f"output-{number}",
        "name": it.path.name,
        "findings": it,
        "recipe": [(key, value) for key, value in _flat(recipe) if key != "version"],
        "model_files": recipe.get("model", {}).get("files", {}),
        "statuses": _statuses(it),
        "lengths": _lengths(it),
        "norms": _norms(it),
        "duplicates": [
            (size, ", ".join(it.labels[row].name for row in rows) + _more(size - len(rows)))
            for rows, size in zip(duplicates.largest, duplicates.sizes, strict=True)
        ],
        "near": [
            (f"{threshold:g} or more", pairs, vectors)
            for threshold, pairs, vectors in zip(THRESHOLDS, it.near.pairs, it.near.rows, strict=True)
        ],
        "closest": [(f"{cosine:.5f}", names[one], names[other]) for cosine, one, other in it.near.closest],
        "map": map_figure(
            it.map,
            names,
            (it.color, sample.kept[it.color]) if it.color else None,
            {column: sample.kept[column] for column in it.shown},
        ),
        "neighbours": [
            (
                _with_cells(it, it.labels[row]),
                [(f"{cosine:.4f}", it.labels[near].name, *_cells(it.labels[near])) for cosine, near in nearest],
            )
            for row, nearest in zip(it.queries, it.nearest, strict=True)
        ],
    }


def _flat(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields a name and a value for each field; the name of a nested field contains its parents'."""
    for key, value in recipe.items():
        name = prefix + key.replace("_", " ")
        if isinstance(value, Mapping):
            if key != "files":
                yield from _flat(value, f"{name}: ")
        elif isinstance(value, list):
            yield name, ", ".join(map(str, value)) or "none"
        elif isinstance(value, bool):
            yield name, "yes" if value else "no"
        else:
            yield name, "none" if value in {None, ""} else str(value)


def _statuses(it: Findings) -> list[tuple[str, int, str]]:
    status = it.totals.statuses
    known = [word for word in STATUSES if word in status]
    words = [*known, *sorted(set(status) - set(known))]
    return [(word, status[word], percent(status[word] / it.totals.rows)) for word in words]


def _lengths(it: Findings) -> dict[str, Any] | None:
    lengths, limit = it.scan.lengths, it.stored.recipe.get("text", {}).get("max_length")
    if not lengths:
        return None
    bins = length_bins(lengths, limit)
    names = [f"{low:,} or more" if high is None else f"{low:,} to {high:,}" for low, high, _ in bins]
    return {
        "longest": max(lengths),
        "limit": limit,
        "n_longer": sum(rows for tokens, rows in lengths.items() if limit and tokens > limit),
        "figure": lengths_figure(bins, limit),
        "rows": [(name, rows) for name, (*_, rows) in zip(names, bins, strict=True)],
    }


def _norms(it: Findings) -> dict[str, Any] | None:
    if not it.scan.norms.count:
        return None
    summary = it.scan.norms.norms()
    if summary.maximum - summary.minimum <= _EQUAL_NORMS * summary.maximum:
        return {"summary": summary, "figure": None}
    counts, edges = it.scan.norms.histogram(_BINS)
    ends = zip(edges[:-1], edges[1:], counts.tolist(), strict=True)
    return {
        "summary": summary,
        "figure": norms_figure(counts, edges),
        "rows": [(f"{low:.4g} to {high:.4g}", rows) for low, high, rows in ends],
    }


def _more(count: int) -> str:
    return f" and {count:,} more" if count else ""


def _cells(label: RowLabel) -> list[str]:
    return ["" if cell is None else str(cell) for cell in label.cells]


def _with_cells(it: Findings, label: RowLabel) -> str:
    cells = ", ".join(f"{column}: {cell}" for column, cell in zip(it.columns, _cells(label), strict=True))
    return f"{label.name} ({cells})" if cells else label.name
