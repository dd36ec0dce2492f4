"""The section of a sweep: the scores in its folder as a heat map and a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pyarrow.parquet as pq

from embedkit.errors import OutputError
from embedkit.output.open import readable
from embedkit.output.sweep_summary import RESULTS, SUMMARY, is_of_vectors, read_summary
from embedkit.report.charts import Figure, plain
from embedkit.storage.disk_errors import as_read_error
from embedkit.storage.filesystem import exists, file_names, is_folder

#: Scores that are shown in per cent.
_SHARES = frozenset({"accuracy", "macro_f1", "micro_f1", "auroc", "average_precision"})
#: Most characters of a name beside the heat map.
_NAME = 32


@dataclass(frozen=True, slots=True)
class Sweep:
    """A finished sweep."""

    path: Path
    rows: Sequence[Mapping[str, Any]]  # of results.parquet, one for each candidate
    summary: Mapping[str, Any]
    metrics: tuple[str, ...]  # the deciding one first


def is_sweep(path: Path) -> bool:
    """Returns True if this is the folder of a sweep, finished or not."""
    with as_read_error(path):
        if exists(path / "manifest.json") or exists(path / "plan.json"):
            return False
        if any(exists(path / name) for name in (RESULTS, SUMMARY)):
            return True
        folders = filter(is_of_vectors, file_names(path) if is_folder(path) else ())
        return any(exists(path / name / "plan.json") for name in folders)


def read_sweep(path: Path) -> Sweep:
    """Reads the results of a sweep.

    Raises:
        OutputError: it is unfinished, or a file is damaged.
    """
    summary = read_summary(path, [RESULTS])
    if summary is None:
        raise OutputError(
            f"{path} is a sweep that is not finished, or its {SUMMARY} and {RESULTS} are not of one sweep",
            hint="run the same `embedkit sweep` again with --on-exists resume",
        )
    with readable(path / RESULTS):
        found = pq.read_table(path / RESULTS, page_checksum_verification=True)
        ends_in_low = [name.removesuffix("_low") for name in found.column_names if name.endswith("_low")]
        metrics = [name for name in ends_in_low if not name.startswith("versus_")]
        metrics.sort(key=lambda name: name != summary["metric"])
        scores = [name + end for name in metrics for end in ("", "_low", "_high")]
        rows = found.select(["name", "layers", "layer_agg", "pool", "dims", "is_baseline", "is_winner", *scores])
        return Sweep(path, rows.to_pylist(), summary, tuple(metrics))


def sweep_section(sweep: Sweep, number: int) -> dict[str, Any]:
    """Returns the values for the template sweep.html.j2; `number` makes the section's ids unique on the page."""
    summary, metric = sweep.summary, sweep.metrics[0]
    nested = summary.get("nested", {}).get(metric)
    counts, model = summary.get("rows", {}), summary.get("model", {})
    heat_map = heat_figure(sweep.rows, metric)
    facts = {
        "label": summary.get("label"),
        "kept together": summary.get("group"),
        "task": summary.get("task"),
        "rows judged": counts.get("judged"),
        "rows of the input": counts.get("input"),
        "classes": summary.get("classes"),
        "folds": summary.get("folds"),
        "probe": summary.get("probe"),
        "seed": summary.get("seed"),
        "model": model.get("name"),
        "recipe": model.get("fingerprint"),
        "nearly equal texts": summary.get("near_duplicates", {}).get("texts"),
    }
    return {
        "id": f"sweep-{number}",
        "name": sweep.path.name,
        "sentence": summary["sentence"],
        "metric": _title(metric),
        "metrics": [_title(name) for name in sweep.metrics],
        "nested": nested and _interval([nested[end] for end in ("mean", "low", "high")], metric),
        "facts": [
            (name, f"{value:,}" if isinstance(value, int) else value)
            for name, value in facts.items()
            if value not in {None, ""}
        ],
        "command": summary.get("command"),
        "label": summary.get("label"),
        "heat_map": heat_map,
        "heat_size": tuple(len(heat_map["layout"][axis]["tickvals"]) for axis in ("yaxis", "xaxis")),
        "scores": [
            {**row, "scores": [_interval(_scores(row, name), name) for name in sweep.metrics]}
            for row in sorted(sweep.rows, key=lambda row: -row[metric] if _is_defined(row[metric]) else math.inf)
        ],
    }


def heat_figure(rows: Sequence[Mapping[str, Any]], metric: str) -> Figure:
    """Returns a heat map of the metric's means: layers down, the deepest on top, and poolings across."""
    rows = [row for row in rows if row["layers"]]  # not the constant prediction
    places = [_line_and_pool(row) for row in rows]
    lines, pools = (list(dict.fromkeys(of)) for of in zip(*places, strict=True))
    means: list[list[float | None]] = [[None] * len(pools) for _ in lines]
    words, hovered = ([[""] * len(pools) for _ in lines] for _ in range(2))
    frames = []
    for row, (line_name, pool_name) in zip(rows, places, strict=True):
        line, pool = lines.index(line_name), pools.index(pool_name)
        mean = row[metric]
        if not _is_defined(mean):
            continue
        means[line][pool] = mean
        shown = f"{_shown(mean, metric)}{_half(row, metric)}"
        words[line][pool] = f"<b>{shown}</b>" if row["is_winner"] else shown
        hovered[line][pool] = (
            f"{plain(row['name'])}<br>"
            f"{_title(metric)} {_interval(_scores(row, metric), metric)}<br>{row['dims']:,} dimensions"
        )
        if row["is_winner"] or row["is_baseline"]:
            box = {"x0": pool - 0.47, "x1": pool + 0.47, "y0": line - 0.45, "y1": line + 0.45}
            look = {"width": 4, "dash": "solid"} if row["is_winner"] else {"width": 2, "dash": "dash"}
            frames.append({"type": "rect", **box, "line": {"color": "#111111", **look}})
    defined = [mean for of_line in means for mean in of_line if mean is not None]
    # The shades span the upper nine tenths: one bad candidate would take up the whole range.
    low, high = (float(np.quantile(defined, 0.1)), max(defined)) if defined else (0.0, 1.0)
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
        # Black text is readable on all of these shades, also in print.
        "colorscale": [[0, "#f7fafd"], [1, "#4f8ac9"]],
        "textfont": {"color": "#111111", "size": 13},
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
    }
    axes = {"xaxis": _axis(pools, "pooling"), "yaxis": _axis(lines, "")}
    return {"data": [trace], "layout": {**axes, "shapes": frames, "showlegend": False}}


def _axis(names: Sequence[str], title: str) -> Figure:
    return {
        "title": {"text": title},
        "tickvals": list(range(len(names))),
        "ticktext": [plain(name if len(name) <= _NAME else f"{name[: _NAME - 1]}…") for name in names],
        "showgrid": False,
        "zeroline": False,
        "range": [-0.5, len(names) - 0.5],
    }


def _line_and_pool(row: Mapping[str, Any]) -> tuple[str, str]:
    """Splits the name of a candidate at its pooling."""
    name, pool = row["name"], (row["pool"] or "").replace(",", "+")
    return name.removesuffix(f" {pool}"), pool


def _half(row: Mapping[str, Any], metric: str) -> str:
    """Returns half the interval of a mean as ` ±1.2`, if it is symmetric."""
    mean, low, high = _scores(row, metric)
    if mean is None or not (_is_defined(low) and _is_defined(high)):
        return ""
    is_symmetric = abs((high - mean) - (mean - low)) <= 1e-6 * max(1.0, abs(mean))
    return f" ±{_shown(high - mean, metric)}" if is_symmetric else ""


def _scores(row: Mapping[str, Any], metric: str) -> list[float | None]:
    """Returns the mean and the ends of its interval."""
    return [row[f"{metric}{end}"] for end in ("", "_low", "_high")]


def _interval(scores: Sequence[float | None], metric: str) -> str:
    mean, low, high = (_shown(score, metric) for score in scores)
    return f"{mean} ({low} to {high})"


def _is_defined(score: float | None) -> TypeGuard[float]:
    return score is not None and math.isfinite(score)


def _shown(score: float | None, metric: str) -> str:
    """Returns a score as printed: `83.7` (per cent) or `0.512`."""
    if not _is_defined(score):
        return "none"
    return f"{100 * score:.1f}" if metric in _SHARES else f"{score:.3f}"


def _title(metric: str) -> str:
    return f"{metric.replace('_', ' ')} (%)" if metric in _SHARES else metric.replace("_", " ")
