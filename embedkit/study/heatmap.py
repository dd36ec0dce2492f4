"""The sweep as a picture: layers down, poolings across, the score in every cell; PNG and SVG.

Darker is better, so that it reads in black and white; the numbers do not depend on the shade.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np

from embedkit.study.verdict import Row, Verdict, shown

FORMATS = ("png", "svg")


def draw(verdict: Verdict, title: str) -> dict[str, bytes]:
    """The heat map as a file of each of FORMATS, the same bytes for the same scores.

    Args:
        verdict: what the sweep found.
        title: stands above it.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    cells = {(row.candidate.where, "+".join(row.candidate.poolings)): row for row in verdict.rows}
    # Deep layers on top, as in a drawing of the network; what is made of several layers above them.
    lines = list(dict.fromkeys(line for line, _ in cells))[::-1]
    columns = list(dict.fromkeys(column for _, column in cells))
    means = np.full((len(lines), len(columns)), np.nan)
    for (line, column), row in cells.items():
        means[lines.index(line), columns.index(column)] = row.intervals[verdict.metric].mean
    # The shades are for the upper nine tenths: layer 0's CLS, the same for every text, would take them all.
    low, high = float(np.nanquantile(means, 0.1)), float(np.nanmax(means))
    made = {}
    # Text stays text in the SVG, and its ids do not change from run to run.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "embedkit", "font.size": 9}):
        figure = Figure(figsize=(2.4 + 0.95 * len(columns), 1.9 + 0.36 * len(lines)), layout="constrained")
        axes = figure.subplots()
        edges = np.arange(len(columns) + 1) - 0.5, np.arange(len(lines) + 1) - 0.5
        shades = axes.pcolormesh(*edges, np.ma.masked_invalid(means), cmap="Blues", edgecolors="white")
        # The best is not of the darkest shade, in which its frame would not be seen.
        shades.set_clim(low - 1e-9, high + 0.25 * (high - low))
        axes.invert_yaxis()
        for (line, column), row in cells.items():
            place = columns.index(column), lines.index(line)
            share = (means[place[1], place[0]] - low) / max(high - low, 1e-9)
            text = shown(row.intervals[verdict.metric].mean, verdict.metric)
            look: dict[str, Any] = {
                "color": "white" if share > 0.8 else "black",
                "weight": "bold" if row.is_winner else "normal",
            }
            axes.text(*place, text, ha="center", va="center", **look)
            _frame(axes, row, place)
        axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(lines)), lines)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(title, fontsize=9, loc="left")
        figure.supxlabel(
            "thick frame: the best; dashed frame: the last layer's CLS and mean", fontsize=8, x=0.02, ha="left"
        )
        for form in FORMATS:
            file = BytesIO()
            silent: dict[str, Any] = {"Software": None} if form == "png" else {"Date": None, "Creator": None}
            figure.savefig(file, format=form, dpi=150, metadata=silent)
            made[form] = file.getvalue()
    return made


def _frame(axes: Any, row: Row, place: tuple[int, int]) -> None:
    from matplotlib.patches import Rectangle

    if row.is_winner or row.baseline:
        style = "solid" if row.is_winner else "dashed"
        width = 2.6 if row.is_winner else 1.4
        corner = place[0] - 0.46, place[1] - 0.44
        axes.add_patch(Rectangle(corner, 0.92, 0.88, fill=False, edgecolor="black", lw=width, ls=style))
