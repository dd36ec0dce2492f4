"""The section of a sweep: the scores in its folder as heat maps, against their costs, and as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import pyarrow.parquet as pq

from embedkit.errors import OutputError
from embedkit.output.safe_reading import readable
from embedkit.output.sweep_summary import EVALUATION, RESULTS, SUMMARY, is_of_vectors, read_summary
from embedkit.report.charts import COLOURS, SYMBOLS, Figure, heat_map, names_axis, plain
from embedkit.report.evaluation import SHARES, evaluation_values, number, title
from embedkit.storage.disk_errors import as_read_error
from embedkit.storage.filesystem import exists, file_names, is_folder, read_file
from embedkit.storage.opener import IN_PLACE
from embedkit.storage.protocol import FilePath

#: Most characters of a name beside the heat map.
_NAME = 32
#: Most characters of the names below it that are level.
_LEVEL_NAME = 10


@dataclass(frozen=True, slots=True)
class Sweep:
    """A finished sweep."""

    path: FilePath
    rows: Sequence[Mapping[str, Any]]  # of results.parquet, one for each candidate
    summary: Mapping[str, Any]
    metrics: tuple[str, ...]  # the deciding one first
    evaluation: Mapping[str, Any] | None  # of the winner; None in the folders of earlier versions


def is_sweep(path: FilePath) -> bool:
    """Returns True if this is the folder of a sweep, finished or not."""
    with as_read_error(path):
        if exists(path / "manifest.json") or exists(path / "plan.json"):
            return False
        if any(exists(path / name) for name in (RESULTS, SUMMARY)):
            return True
        folders = filter(is_of_vectors, file_names(path) if is_folder(path) else ())
        return any(exists(path / name / "plan.json") for name in folders)


def read_sweep(path: FilePath) -> Sweep:
    """Reads the results of a sweep.

    Raises:
        OutputError: it is unfinished, or a file is damaged.
    """
    summary = read_summary(path, [RESULTS, EVALUATION])
    if summary is None:
        raise OutputError(
            f"{path} is a sweep that is not finished, or its {SUMMARY} and {RESULTS} are not of one sweep",
            hint="run the same `embedkit sweep` again with --on-exists resume",
        )
    with readable(path / RESULTS):
        with IN_PLACE.native(path / RESULTS) as file:
            found = pq.read_table(file, page_checksum_verification=True)
        ends_in_low = [name.removesuffix("_low") for name in found.column_names if name.endswith("_low")]
        metrics = [name for name in ends_in_low if not name.startswith("versus_")]
        metrics.sort(key=lambda name: name != summary["metric"])
        scores = [name + end for name in metrics for end in ("", "_low", "_high")]
        columns = ["name", "layers", "layer_agg", "pool", "dims", "is_baseline", "is_winner", *scores]
        # Columns that earlier versions did not write.
        costs = [
            name for name in ("model", "seconds_per_1000_rows", "bytes_per_vector") if name in found.column_names
        ]
        rows = [{"model": "", **row} for row in found.select([*columns, *costs]).to_pylist()]
    return Sweep(path, rows, summary, tuple(metrics), _evaluation(path, summary))


def _evaluation(path: FilePath, summary: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if EVALUATION not in summary.get("files", {}):
        return None
    with readable(path / EVALUATION):
        return dict(json.loads(read_file(path / EVALUATION)))


def sweep_section(sweep: Sweep, place: int) -> dict[str, Any]:
    """Returns the values for the template sweep.html.j2; `place` makes the section's ids unique on the page."""
    summary, metric = sweep.summary, sweep.metrics[0]
    return {
        "id": f"sweep-{place}",
        "name": sweep.path.name,
        "sentence": summary["sentence"],
        "metric": title(metric),
        "metrics": [title(name) for name in sweep.metrics],
        "estimates": list(_estimates(summary, metric)),
        "label": summary.get("label") or _asked(summary, "label"),
        "facts": [
            (name, f"{value:,}" if isinstance(value, int) else value)
            for name, value in _facts(summary).items()
            if value not in {None, ""}
        ],
        "warnings": summary.get("warnings", []),
        "models": [_model(of) for of in summary.get("models", [])],
        "command": summary.get("command"),
        "heat_maps": heat_maps(sweep.rows, metric),
        "costs": cost_figures(sweep.rows, metric),
        "scores": [
            {**row, "scores": [_interval(_scores(row, name), name) for name in sweep.metrics]}
            for row in sorted(sweep.rows, key=lambda row: -row[metric] if _is_defined(row[metric]) else math.inf)
        ],
        "evaluation": None if sweep.evaluation is None else evaluation_values(sweep.evaluation),
    }


def _facts(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the input and the method."""
    counts, model = summary.get("rows", {}), summary.get("model", {})
    versions = summary.get("versions", {})
    return {
        "label": summary.get("label") or _asked(summary, "label"),
        "kept together": summary.get("group") or _asked(summary, "group"),
        "task": summary.get("task"),
        "rows judged": counts.get("judged"),
        "rows of the input": counts.get("input"),
        **{f"left out: {reason}": rows for reason, rows in summary.get("left_out", {}).items()},
        "classes": summary.get("classes"),
        "folds": summary.get("folds"),
        "probe": summary.get("probe"),
        "seed": summary["seed"] if "seed" in summary else _asked(summary, "seed"),
        # Of earlier versions; since then, there is a table of models.
        "model": model.get("name") if "models" not in summary else None,
        "recipe": model.get("fingerprint") if "models" not in summary else None,
        "nearly equal texts": summary.get("near_duplicates", {}).get("texts"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def _asked(summary: Mapping[str, Any], name: str) -> Any:
    """Returns an option about labels."""
    asked = summary.get("labels", {})
    return asked.get(name) if isinstance(asked, Mapping) else None


def _model(of: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Returns a row of the table of models: name, revision, recipe, seconds for 1,000 rows."""
    seconds = of.get("seconds_per_1000_rows")
    recipe = (of.get("fingerprint") or "")[:12]
    return of["name"], of.get("revision") or "", recipe, "" if seconds is None else f"{seconds:.3g}"


def _estimates(summary: Mapping[str, Any], metric: str) -> Iterator[tuple[str, str]]:
    """Yields what was estimated, and the score: of the selection, and on the test rows."""
    for key, name in (("nested", "with the selection repeated inside each fold"), ("test", "on the test rows")):
        of = (summary.get(key) or {}).get(metric)
        if of:
            yield name, _interval([of["mean"], of["low"], of["high"]], metric)


def heat_maps(rows: Sequence[Mapping[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Returns for each model its name, "" if there is one, its heat map, and the map's height and width in rem.

    A heat map has the metric's means: layers down, the deepest on top, and poolings across.
    """
    rows = [row for row in rows if row["layers"]]  # not the constant prediction
    defined = [row[metric] for row in rows if _is_defined(row[metric])]
    # The shades span the upper nine tenths: one bad candidate would take up the whole range.
    limits = (float(np.quantile(defined, 0.1)), max(defined)) if defined else (0.0, 1.0)
    panels: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        panels.setdefault(row["model"], []).append(row)
    found = []
    for model, of_model in panels.items():
        figure, lines, pools = _heat_map(of_model, metric, limits)
        found.append({"model": model, "figure": figure, "size": (7 + 2 * lines, 13 + 6 * pools)})
    return found


def _heat_map(
    rows: Sequence[Mapping[str, Any]], metric: str, limits: tuple[float, float]
) -> tuple[Figure, int, int]:
    """Returns a heat map, and its numbers of lines and poolings."""
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
        shown = f"{number(mean, metric)}{_half(row, metric)}"
        words[line][pool] = f"<b>{shown}</b>" if row["is_winner"] else shown
        hovered[line][pool] = _hovered(row, metric)
        if row["is_winner"] or row["is_baseline"]:
            box = {"x0": pool - 0.47, "x1": pool + 0.47, "y0": line - 0.45, "y1": line + 0.45}
            look = {"width": 4, "dash": "solid"} if row["is_winner"] else {"width": 2, "dash": "dash"}
            frames.append({"type": "rect", **box, "line": {"color": "#111111", **look}})
    trace = heat_map(means, words, hovered, (limits[0], limits[1] + 1e-9))
    # Turned, a long name ends at its column, and is not cut off at the side.
    turn = -30 if any(len(name) > _LEVEL_NAME for name in pools) else 0
    axes = {
        "xaxis": {**names_axis(pools, title="pooling", most=_NAME), "tickangle": turn},
        "yaxis": names_axis(lines, title="", most=_NAME),
    }
    return {"data": [trace], "layout": {**axes, "shapes": frames, "showlegend": False}}, len(lines), len(pools)


def cost_figures(rows: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[str, Figure]]:
    """Returns the scores of several models against each cost, with its name; none for one model."""
    models = list(dict.fromkeys(row["model"] for row in rows if row["layers"]))
    if len(models) < 2:
        return []
    costs = {"seconds_per_1000_rows": "seconds to encode 1,000 rows", "bytes_per_vector": "bytes of a vector"}
    return [(name, _cost_figure(rows, metric, models, column, name)) for column, name in costs.items()]


def _cost_figure(
    rows: Sequence[Mapping[str, Any]], metric: str, models: Sequence[str], column: str, cost: str
) -> Figure:
    traces = []
    for place, model in enumerate(models):
        of_model = [
            row for row in rows if row["model"] == model and _is_defined(row[metric]) and _is_defined(row[column])
        ]
        marker = {
            "color": COLOURS[place % len(COLOURS)],
            "symbol": ["star" if row["is_winner"] else SYMBOLS[place % (len(SYMBOLS) - 1)] for row in of_model],
            "size": [16 if row["is_winner"] else 8 for row in of_model],
            "opacity": 0.8,
        }
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": plain(model),
                "x": [row[column] for row in of_model],
                "y": [row[metric] * (100 if metric in SHARES else 1) for row in of_model],
                "text": [f"{_hovered(row, metric)}<br>{row[column]:,.4g} {cost}" for row in of_model],
                "hovertemplate": "%{text}<extra></extra>",
                "marker": marker,
            }
        )
    values = [value for trace in traces for value in trace["x"]]
    is_wide = bool(values) and 0 < 10 * min(values) < max(values)
    layout = {
        "xaxis": {"title": {"text": cost}, **({"type": "log"} if is_wide else {"rangemode": "tozero"})},
        "yaxis": {"title": {"text": title(metric)}},
        "hovermode": "closest",
        "showlegend": True,
    }
    return {"data": traces, "layout": layout}


def _hovered(row: Mapping[str, Any], metric: str) -> str:
    """Returns what the mouse shows of a candidate."""
    scores = f"{title(metric)} {_interval(_scores(row, metric), metric)}"
    return f"{plain(row['name'])}<br>{scores}<br>{row['dims']:,} dimensions"


def _line_and_pool(row: Mapping[str, Any]) -> tuple[str, str]:
    """Splits the name of a candidate at its pooling, without the model's name."""
    name, pool = row["name"].removeprefix(f"{row['model']} "), (row["pool"] or "").replace(",", "+")
    line, mark, rest = name.rpartition(f" {pool}")
    return (line, f"{pool}{rest}") if mark else (name, pool)


def _half(row: Mapping[str, Any], metric: str) -> str:
    """Returns half the interval of a mean as ` ±1.2`, if it is symmetric."""
    mean, low, high = _scores(row, metric)
    if mean is None or not (_is_defined(low) and _is_defined(high)):
        return ""
    is_symmetric = abs((high - mean) - (mean - low)) <= 1e-6 * max(1.0, abs(mean))
    return f" ±{number(high - mean, metric)}" if is_symmetric else ""


def _scores(row: Mapping[str, Any], metric: str) -> list[float | None]:
    """Returns the mean and the ends of its interval."""
    return [row[f"{metric}{end}"] for end in ("", "_low", "_high")]


def _interval(scores: Sequence[float | None], metric: str) -> str:
    mean, low, high = (number(score, metric) for score in scores)
    return f"{mean} ({low} to {high})"


def _is_defined(score: float | None) -> TypeGuard[float]:
    return score is not None and math.isfinite(score)
