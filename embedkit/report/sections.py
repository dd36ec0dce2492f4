"""The values of an output's section: tables and figures for the template output.html.j2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from embedkit.report.charts import bin_names, category, histogram_figure, length_bins, lengths_figure, map_figure
from embedkit.report.findings import Findings, RowLabel, row_name
from embedkit.report.geometry import THRESHOLDS
from embedkit.report.page import percent
from embedkit.types import STATUSES

_BINS = 40
#: Characters of a cell from which it has a line of its own.
_LONG = 40
#: Norms whose relative difference is smaller are equal but for rounding.
_EQUAL_NORMS = 1e-3


def output_section(findings: Findings, number: int) -> dict[str, Any]:
    """Returns the values of the section; `number` makes its ids unique on the page."""
    sample, recipe = findings.scan.sample, findings.stored.recipe
    names = [row_name(identity, row) for identity, row in zip(sample.ids, sample.rows, strict=True)]
    return {
        "id": f"output-{number}",
        "name": findings.path.name,
        "findings": findings,
        "recipe": [(key, value) for key, value in flat(recipe) if key != "version"],
        "model_files": recipe.get("model", {}).get("files", {}),
        "statuses": _statuses(findings),
        "lengths": _lengths(findings),
        "norms": _norms(findings),
        "duplicates": [
            (size, ", ".join(findings.labels[row].name for row in rows) + _more(size - len(rows)))
            for rows, size in findings.scan.duplicates.largest
        ],
        "near": [
            (f"{threshold:g} or more", pairs, vectors)
            for threshold, pairs, vectors in zip(THRESHOLDS, findings.near.pairs, findings.near.rows, strict=True)
        ],
        "closest": [(f"{cosine:.5f}", names[one], names[other]) for cosine, one, other in findings.near.closest],
        "map": map_figure(
            findings.map,
            names,
            (findings.color, sample.kept[findings.color]) if findings.color else None,
            {column: sample.kept[column] for column in findings.shown},
        ),
        "neighbours": [
            {
                **_labelled(findings, findings.labels[row]),
                "nearest": [
                    {"cosine": f"{cosine:.4f}", **_labelled(findings, findings.labels[near])}
                    for cosine, near in nearest
                ],
            }
            for row, nearest in zip(findings.queries, findings.nearest, strict=True)
        ],
    }


def flat(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields a name and a value for each field; the name of a nested field contains its parents'."""
    for key, value in recipe.items():
        name = prefix + key.replace("_", " ")
        if isinstance(value, Mapping):
            if key != "files":
                yield from flat(value, f"{name}: ")
        elif isinstance(value, list):
            yield name, ", ".join(map(str, value)) or "none"
        elif isinstance(value, bool):
            yield name, "yes" if value else "no"
        else:
            yield name, "none" if value in {None, ""} else str(value)


def _statuses(findings: Findings) -> list[tuple[str, int, str]]:
    status = findings.totals.statuses
    known = [word for word in STATUSES if word in status]
    words = [*known, *sorted(set(status) - set(known))]
    return [(word, status[word], percent(status[word] / findings.totals.rows)) for word in words]


def _lengths(findings: Findings) -> dict[str, Any] | None:
    lengths, limit = findings.scan.lengths, findings.stored.recipe.get("text", {}).get("max_length")
    if not lengths:
        return None
    bins = length_bins(lengths, limit)
    return {
        "longest": max(lengths),
        "limit": limit,
        "n_longer": sum(rows for tokens, rows in lengths.items() if limit and tokens > limit),
        "figure": lengths_figure(bins, limit),
        "rows": [(name, rows) for name, (*_, rows) in zip(bin_names(bins), bins, strict=True)],
    }


def _norms(findings: Findings) -> dict[str, Any] | None:
    if not findings.scan.norms.count:
        return None
    summary = findings.scan.norms.norms()
    if summary.maximum - summary.minimum <= _EQUAL_NORMS * summary.maximum:
        return {"summary": summary, "figure": None}
    counts, edges = findings.scan.norms.histogram(_BINS)
    ends = zip(edges[:-1], edges[1:], counts.tolist(), strict=True)
    return {
        "summary": summary,
        "figure": histogram_figure(counts, edges, title="length of a vector (L2 norm)", unit="vectors"),
        "rows": [(f"{low:.4g} to {high:.4g}", rows) for low, high, rows in ends],
    }


def _more(count: int) -> str:
    return f" and {count:,} more" if count else ""


def _labelled(findings: Findings, label: RowLabel) -> dict[str, Any]:
    """Returns the name of a row, and the names, values and layout of its cells: long ones have a line each."""
    words = [category(cell) for cell in label.cells]
    cells = [(column, word, len(word) > _LONG) for column, word in zip(findings.columns, words, strict=True)]
    return {"name": label.name, "cells": cells}
