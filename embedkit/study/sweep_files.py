"""The files of a sweep: results.parquet, summary.json, summary.txt and the heat map as PNG and SVG.

The summary holds the SHA-256 of the others, so that files of two sweeps are not mixed. They hold no text, label or
class name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedkit.output.sweep_summary import RESULTS, SUMMARY
from embedkit.storage.disk_errors import as_output_error
from embedkit.storage.filesystem import new_files
from embedkit.study.verdict import Interval, Row, Verdict, printed

_IMAGES = ("png", "svg")
NAMES = (SUMMARY, "summary.txt", RESULTS, *(f"heatmap.{form}" for form in _IMAGES))


def write_files(folder: Path, verdict: Verdict, facts: Mapping[str, Any], *, command: str, title: str) -> None:
    """Writes all files and publishes them together.

    Args:
        folder: of the sweep.
        verdict: its result.
        facts: input and method, for the summary.
        command: makes the winner's vectors.
        title: of the heat map.
    """
    table = BytesIO()
    rows = pa.Table.from_pylist([_columns(row) for row in verdict.rows])
    pq.write_table(rows, table, write_page_checksum=True)
    contents = {
        RESULTS: table.getvalue(),
        "summary.txt": "".join(f"{line}\n" for line in _summary_lines(verdict, facts, command)).encode(
            errors="surrogateescape"
        ),
        **{f"heatmap.{form}": image for form, image in _heat_map(verdict, title).items()},
    }
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(contents.items())}
    summary = {**facts, **_verdict_json(verdict), "command": command, "files": hashes}
    contents[SUMMARY] = json.dumps(summary, indent=2, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
    files = new_files(folder)
    try:
        for name, content in contents.items():
            with files.create(name) as file, as_output_error(folder / name):
                file.write(content)
        files.publish(last=SUMMARY)
    finally:
        files.discard()


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    winner = verdict.winner
    return {
        "metric": verdict.metric,
        "sentence": verdict.sentence,
        "winner": {"options": winner.candidate.options, **_columns(winner)},
        **{
            key: {name: {"mean": of.mean, "low": of.low, "high": of.high} for name, of in intervals.items()}
            for key, intervals in (("nested", verdict.nested), ("nested_versus", verdict.nested_versus))
        },
        "baselines": {row.baseline: _columns(row) for row in verdict.baselines},
        "not_distinguishable": [row.candidate.name for row in verdict.ranked if not row.distinguishable],
        "candidates": len(verdict.rows),
    }


def _summary_lines(verdict: Verdict, facts: Mapping[str, Any], command: str) -> list[str]:
    """Returns the lines of summary.txt."""
    rows, near = facts["rows"], facts["near_duplicates"]
    nested = ", ".join(f"{name} {verdict.value(of, name)}" for name, of in verdict.nested.items())
    ahead = " and ".join(f"{verdict.value(of)} above {name}" for name, of in verdict.nested_versus.items())
    left_out = f"{rows['without_vector']:,} have no vector, {rows['without_label']:,} no label or group"
    judged = f"{rows['judged']:,} of {rows['input']:,} rows judged ({left_out}), {facts['folds']} folds"
    found = [
        f"{verdict.sentence}.",
        f"With the selection repeated inside each fold: {nested}{'; ' * bool(ahead)}{ahead}.",
        f"{judged}, {len(verdict.rows)} candidates; ± is a 95 % confidence interval.",
    ]
    if near["texts"]:
        kept = (
            "kept in one fold each" if facts["dedupe"] else f"{near['pairs_across_folds']:,} pair(s) across folds"
        )
        found.append(f"{near['texts']:,} texts are nearly the same as another: {kept}.")
    return [*found, "", command]


def _columns(row: Row) -> dict[str, Any]:
    """Returns a row of results.parquet."""
    candidate = row.candidate
    scores: dict[str, Any] = {}
    for name, interval in row.intervals.items():
        scores |= _named(name, interval) | {f"{name}_folds": list(row.folds[name])}
    for name, interval in row.versus.items():
        scores |= _named(f"versus_{name.replace('-', '_').replace(' ', '_').lower()}", interval)
    return {
        "name": candidate.name,
        "layers": list(candidate.layers),
        "layer_agg": candidate.layer_agg,
        "pool": candidate.pool,
        "dims": row.dims,
        **scores,
        "is_baseline": bool(row.baseline),
        "is_winner": row.is_winner,
        "distinguishable": row.distinguishable,
    }


def _named(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _heat_map(verdict: Verdict, title: str) -> dict[str, bytes]:
    """Draws layers down and poolings across, the score in every cell; returns image format → content.

    Darker is better, so that it can be read in black and white. The same scores give the same bytes.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    cells = {(row.candidate.layers_text, "+".join(row.candidate.poolings)): row for row in verdict.rows}
    # Deep layers on top, as in a drawing of the network, and combinations of layers above them.
    lines = list(dict.fromkeys(line for line, _ in cells))[::-1]
    columns = list(dict.fromkeys(column for _, column in cells))
    means = np.full((len(lines), len(columns)), np.nan)
    for (line, column), row in cells.items():
        means[lines.index(line), columns.index(column)] = row.intervals[verdict.metric].mean
    # The shades span the upper nine tenths: layer 0's CLS, equal for all texts, would take up the whole range.
    low, high = float(np.nanquantile(means, 0.1)), float(np.nanmax(means))
    images = {}
    # Text stays text in the SVG, and its ids do not change from run to run.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "embedkit", "font.size": 9}):
        figure = Figure(figsize=(2.4 + 0.95 * len(columns), 1.9 + 0.36 * len(lines)), layout="constrained")
        axes = figure.subplots()
        edges = np.arange(len(columns) + 1) - 0.5, np.arange(len(lines) + 1) - 0.5
        shades = axes.pcolormesh(*edges, np.ma.masked_invalid(means), cmap="Blues", edgecolors="white")
        # The best does not get the darkest shade, on which its frame would be invisible.
        shades.set_clim(low - 1e-9, high + 0.25 * (high - low))
        axes.invert_yaxis()
        for (line, column), row in cells.items():
            x, y = columns.index(column), lines.index(line)
            share = (means[y, x] - low) / max(high - low, 1e-9)
            text = printed(row.intervals[verdict.metric].mean, verdict.metric)
            color, weight = "white" if share > 0.8 else "black", "bold" if row.is_winner else "normal"
            axes.text(x, y, text, ha="center", va="center", color=color, weight=weight)
            if row.is_winner or row.baseline:
                width, style = (2.6, "solid") if row.is_winner else (1.4, "dashed")
                frame = Rectangle(
                    (x - 0.46, y - 0.44), 0.92, 0.88, fill=False, edgecolor="black", lw=width, ls=style
                )
                axes.add_patch(frame)
        axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(lines)), lines)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(title, fontsize=9, loc="left")
        figure.supxlabel(
            "thick frame: the best; dashed frame: the last layer's CLS and mean", fontsize=8, x=0.02, ha="left"
        )
        for form in _IMAGES:
            file = BytesIO()
            metadata: dict[str, Any] = {"Software": None} if form == "png" else {"Date": None, "Creator": None}
            figure.savefig(file, format=form, dpi=150, metadata=metadata)
            images[form] = file.getvalue()
    return images
