"""The section of a sweep: what `embedkit sweep` left in its folder, as a heat map and a table.

Reads the files alone; knows nothing of how scores come about.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from embedkit.errors import OutputError
from embedkit.output.open import readable
from embedkit.report.charts import Figure, plain
from embedkit.report.markup import Markup, chart, element, folded, joined, table
from embedkit.storage.disk_errors import as_read_error
from embedkit.storage.filesystem import exists, read_file, sha256_of_file

_RESULTS, _SUMMARY, _VECTORS = "results.parquet", "summary.json", "vectors"
#: Scores that are shares, told in per cent.
_SHARES = frozenset({"accuracy", "macro_f1", "auroc"})


@dataclass(frozen=True, slots=True)
class Sweep:
    """A finished sweep.

    Attributes:
        path: its folder.
        rows: results.parquet, a row a candidate.
        summary: summary.json.
        metrics: all metrics, the one that chose first.
    """

    path: Path
    rows: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]
    metrics: tuple[str, ...]


def is_sweep(path: Path) -> bool:
    """Whether this is the folder of a sweep, finished or not.

    Raises:
        OutputError: that cannot be known.
    """
    with as_read_error(path):
        if exists(path / "manifest.json") or exists(path / "plan.json"):
            return False
        return any(exists(path / name) for name in (_RESULTS, _SUMMARY, f"{_VECTORS}/plan.json"))


def read_sweep(path: Path) -> Sweep:
    """Read the results of a sweep.

    Raises:
        OutputError: it is not finished, or a file is not as a sweep writes it.
    """
    with as_read_error(path):
        is_finished = exists(path / _SUMMARY)
    if not is_finished:
        raise OutputError(
            f"{path} is a sweep that is not finished: it has no {_SUMMARY}",
            hint="run the same `embedkit sweep` again with --on-exists resume",
        )
    with readable(path / _SUMMARY):
        summary: Mapping[str, Any] = dict(json.loads(read_file(path / _SUMMARY)))
    with readable(path / _RESULTS):
        if summary.get("files", {}).get(_RESULTS, "") not in {"", sha256_of_file(path / _RESULTS)}:
            raise OutputError(
                f"{path}: {_SUMMARY} and {_RESULTS} are not of one sweep",
                hint="run the same `embedkit sweep` again with --on-exists resume",
            )
        found = pq.read_table(path / _RESULTS, page_checksum_verification=True)
        names = set(found.column_names)
        metrics = [
            name
            for name in found.column_names
            if {f"{name}_low", f"{name}_high"} <= names and not name.startswith("versus_")
        ]
        metrics.sort(key=lambda name: name != summary["metric"])
        rows = found.select(
            [
                *("name", "layers", "layer_agg", "pool", "dims", "is_baseline", "is_winner"),
                *(name + end for name in metrics for end in ("", "_low", "_high")),
            ]
        )
        return Sweep(path, rows.to_pylist(), summary, tuple(metrics))


def sweep_section(it: Sweep, number: int) -> Markup:
    """Everything about one sweep; `number` makes the name of its figure its own."""
    name = f"sweep-{number}"
    parts = [element("h2", it.path.name, id=name), *_verdict(it), *_heat_map(it, name), *_all_scores(it)]
    return element("section", joined(parts), aria_labelledby=name)


def _verdict(it: Sweep) -> Iterator[Markup]:
    summary, metric = it.summary, it.metrics[0]
    yield element("p", f"{summary['sentence']}.", class_="winner")
    nested = summary.get("nested", {}).get(metric)
    if nested:
        yield element(
            "p",
            "Chosen inside of each fold, so that choosing does not flatter it: "
            f"{_title(metric)} {_interval([nested[end] for end in ('mean', 'low', 'high')], metric)}.",
        )
    counted = summary.get("rows", {})
    facts = {
        "label": summary.get("label"),
        "kept together": summary.get("group"),
        "task": summary.get("task"),
        "rows judged": counted.get("judged"),
        "rows of the input": counted.get("input"),
        "classes": summary.get("classes"),
        "folds": summary.get("folds"),
        "probe": summary.get("probe"),
        "seed": summary.get("seed"),
        "model": summary.get("model", {}).get("name"),
        "recipe": summary.get("model", {}).get("fingerprint"),
        "nearly equal texts": summary.get("near_duplicates", {}).get("texts"),
    }
    told = ((key, f"{value:,}" if isinstance(value, int) else value) for key, value in facts.items())
    yield table((), [(key, value) for key, value in told if value not in {None, ""}])
    if "command" in summary:
        yield element("p", "The command that makes the winner's vectors:")
        yield element("pre", element("code", summary["command"]), tabindex="0")


def _heat_map(it: Sweep, name: str) -> Iterator[Markup]:
    metric = it.metrics[0]
    yield element("h3", "Layers and poolings")
    told = (
        f"{_title(metric)} of each layer and pooling, the mean over the folds; darker is better. Thick frame: the "
        "best; dashed frame: a baseline. The mouse tells the 95 % confidence interval."
    )
    yield chart(f"{name}-heat", told, heat_figure(it.rows, metric), tall=True)


def heat_figure(rows: Sequence[Mapping[str, Any]], metric: str) -> Figure:
    """Layers down, the deepest on top, and poolings across: the mean of the metric in every cell."""
    lines = list(dict.fromkeys(map(_line, rows)))
    pools = list(dict.fromkeys(row["pool"] for row in rows))
    means: list[list[float | None]] = [[None] * len(pools) for _ in lines]
    words, hovered = ([[""] * len(pools) for _ in lines] for _ in range(2))
    frames = []
    for row in rows:
        line, pool = lines.index(_line(row)), pools.index(row["pool"])
        mean = row[metric]
        if mean is None or not math.isfinite(mean):
            continue
        means[line][pool] = mean
        shown = _shown(mean, metric)
        words[line][pool] = f"<b>{shown}</b>" if row["is_winner"] else shown
        hovered[line][pool] = (
            f"{plain(lines[line])}, {plain(pools[pool])}<br>"
            f"{_title(metric)} {_interval(_scores(row, metric), metric)}<br>{row['dims']:,} dimensions"
        )
        if row["is_winner"] or row["is_baseline"]:
            frames.append(_frame(pool, line, winner=row["is_winner"]))
    there = [mean for of_line in means for mean in of_line if mean is not None]
    # The shades are for the upper nine tenths: one bad candidate would take them all.
    low, high = (float(np.quantile(there, 0.1)), max(there)) if there else (0.0, 1.0)
    trace = {
        "type": "heatmap",
        "z": means,
        "zmin": low,
        "zmax": high + 1e-9,
        "text": words,
        "texttemplate": "%{text}",
        "customdata": hovered,
        "hovertemplate": "%{customdata}<extra></extra>",
        "hoverongaps": False,
        # Black is read on all of these shades, and the shades tell apart in print.
        "colorscale": [[0, "#f7fafd"], [1, "#4f8ac9"]],
        "textfont": {"color": "#111111", "size": 13},
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
    }
    layout = {
        "xaxis": _names(pools, "pooling"),
        "yaxis": _names(lines, ""),
        "shapes": frames,
        "showlegend": False,
    }
    return {"data": [trace], "layout": layout}


def _names(names: Sequence[str], title: str) -> Figure:
    return {
        "title": {"text": title},
        "tickvals": list(range(len(names))),
        "ticktext": [plain(name) for name in names],
        "showgrid": False,
        "zeroline": False,
        "range": [-0.5, len(names) - 0.5],
    }


def _frame(pool: int, line: int, *, winner: bool) -> Figure:
    return {
        "type": "rect",
        "x0": pool - 0.47,
        "x1": pool + 0.47,
        "y0": line - 0.45,
        "y1": line + 0.45,
        "line": {
            "color": "#111111",
            **({"width": 4, "dash": "solid"} if winner else {"width": 2, "dash": "dash"}),
        },
    }


def _line(row: Mapping[str, Any]) -> str:
    """Where a candidate's states are from."""
    layers = row["layers"]
    if len(layers) == 1:
        return f"layer {layers[0]}"
    return f"{row['layer_agg']} of {', '.join(map(str, layers))}"


def _all_scores(it: Sweep) -> Iterator[Markup]:
    ranked = sorted(it.rows, key=lambda row: -_number(row[it.metrics[0]]))
    rows = [
        (
            element("strong", row["name"]) if row["is_winner"] else row["name"],
            row["dims"],
            *(_interval(_scores(row, metric), metric) for metric in it.metrics),
            "best" if row["is_winner"] else "baseline" if row["is_baseline"] else "",
        )
        for row in ranked
    ]
    headers = ("candidate", "dimensions", *map(_title, it.metrics), "")
    yield folded("All scores as a table, the best first", table(headers, rows))


def _scores(row: Mapping[str, Any], metric: str) -> list[float | None]:
    """Mean, and the two ends of its interval."""
    return [row[f"{metric}{end}"] for end in ("", "_low", "_high")]


def _interval(scores: Sequence[float | None], metric: str) -> str:
    mean, low, high = (_shown(score, metric) for score in scores)
    return f"{mean} ({low} to {high})"


def _number(score: float | None) -> float:
    return -math.inf if score is None or math.isnan(score) else score


def _shown(score: float | None, metric: str) -> str:
    """A score as it is written: `83.7` (per cent), or `0.512`."""
    if score is None or not math.isfinite(score):
        return "none"
    return f"{100 * score:.1f}" if metric in _SHARES else f"{score:.3f}"


def _title(metric: str) -> str:
    return f"{metric.replace('_', ' ')} (%)" if metric in _SHARES else metric.replace("_", " ")
