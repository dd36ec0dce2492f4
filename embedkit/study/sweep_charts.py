"""The pictures of a sweep, as PNG and SVG: scores by layer and pooling, and scores against their cost.

The same scores give the same bytes. Names of models, labels and candidates are shortened if they are long.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np

from embedkit.study.verdict import Row, Verdict, printed

#: Characters of a name, and of a line of a title.
_LONGEST_NAME, _LONGEST_LINE = 48, 110
#: Ratio of the largest cost to the smallest from which an axis is logarithmic.
_FAR_APART = 10
_MARKERS = "osD^vP*X"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a candidate costs."""

    seconds_per_1000_rows: float | None  # of encoding with its model; None if not measured
    bytes_per_vector: int


def heat_map(verdict: Verdict, title: Sequence[str]) -> dict[str, bytes]:
    """Draws layers down and poolings across, the score with its ± in every cell, a panel a model.

    Darker is better, so that it can be read in black and white.

    Args:
        verdict: of the sweep.
        title: its lines.

    Returns:
        Image format → content.
    """
    panels: dict[str, list[Row]] = {}
    # The constant prediction has no layers, and so no place.
    drawn = [row for row in verdict.rows if row.candidate.layers]
    for row in drawn:
        panels.setdefault(row.candidate.model, []).append(row)
    columns = list(dict.fromkeys(_pool(row) for row in drawn))
    n_lines = [len({row.candidate.layers_text for row in rows}) for rows in panels.values()]
    means = np.array([row.intervals[verdict.metric].mean for row in drawn], np.float64)
    defined = means[np.isfinite(means)]
    # The shades span the upper nine tenths: layer 0's CLS, equal for all texts, would take up the whole range.
    low, high = (float(np.quantile(defined, 0.1)), float(defined.max())) if len(defined) else (0.0, 1.0)
    with _drawing() as figure_of:
        size = (2.6 + 0.95 * len(columns), 1.7 + 0.5 * len(panels) + 0.42 * sum(n_lines))
        figure = figure_of(size)
        ratios = {"height_ratios": n_lines}
        all_axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw=ratios)[:, 0]
        for axes, (model, rows) in zip(all_axes, panels.items(), strict=True):
            # The best does not get the darkest shade, on which its frame would be invisible.
            _panel(axes, rows, columns, verdict.metric, (low - 1e-9, high + 0.25 * (high - low) + 1e-9))
            if model:
                axes.set_title(shown_name(model), fontsize=9, loc="left", weight="bold")
        _put_title(figure, title)
        note = "±: half of the 95 % interval; thick frame: the best; dashed frame: a baseline"
        figure.supxlabel(note, fontsize=8, x=0.02, ha="left")
        return _images(figure)


def _panel(
    axes: Any, rows: Sequence[Row], columns: Sequence[str], metric: str, limits: tuple[float, float]
) -> None:
    from matplotlib.patches import Rectangle

    # Deep layers on top, as in a drawing of the network, and combinations of layers above them.
    lines = list(dict.fromkeys(row.candidate.layers_text for row in rows))[::-1]
    means = np.full((len(lines), len(columns)), np.nan)
    places = {}
    for row in rows:
        y, x = lines.index(row.candidate.layers_text), columns.index(_pool(row))
        means[y, x] = row.intervals[metric].mean
        places[y, x] = row
    edges = np.arange(len(columns) + 1) - 0.5, np.arange(len(lines) + 1) - 0.5
    shades = axes.pcolormesh(*edges, np.ma.masked_invalid(means), cmap="Blues", edgecolors="white")
    shades.set_clim(*limits)
    axes.invert_yaxis()
    for (y, x), row in places.items():
        interval = row.intervals[metric]
        is_defined = bool(np.isfinite(interval.mean))
        color = readable_on(shades.to_rgba(means[y, x])) if is_defined else "black"
        weight = "bold" if row.is_winner else "normal"
        score = printed(interval.mean, metric) if is_defined else "undefined"
        axes.text(x, y - 0.14 * is_defined, score, ha="center", va="center", color=color, weight=weight)
        if is_defined and np.isfinite(interval.half):
            half = f"± {printed(interval.half, metric)}"
            axes.text(x, y + 0.24, half, ha="center", va="center", color=color, fontsize=6.5)
        if row.is_winner or row.baseline:
            width, style = (2.6, "solid") if row.is_winner else (1.4, "dashed")
            frame = Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, fill=False, edgecolor="black", lw=width, ls=style)
            axes.add_patch(frame)
    axes.set_xticks(range(len(columns)), map(shown_name, columns), rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(lines)), map(shown_name, lines))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def cost_chart(verdict: Verdict, costs: Sequence[Cost], title: Sequence[str]) -> dict[str, bytes]:
    """Draws the score of each candidate against the time of encoding, and against the size of a vector.

    Candidates that none beats in both score and cost (the Pareto front) are joined by a line, and numbered; their
    names are below.

    Args:
        verdict: of the sweep.
        costs: of its rows, in their order.
        title: its lines.

    Returns:
        Image format → content.
    """
    # The constant prediction has no layers, and costs nothing.
    drawn = [(row, cost) for row, cost in zip(verdict.rows, costs, strict=True) if row.candidate.layers]
    rows, costs = [row for row, _ in drawn], [cost for _, cost in drawn]
    scores = [row.intervals[verdict.metric].mean for row in rows]
    models = list(dict.fromkeys(row.candidate.model for row in rows))
    values_of: dict[str, list[float | None]] = {
        "seconds to encode 1,000 rows (all layers)": [of.seconds_per_1000_rows for of in costs],
        "bytes per vector": [float(of.bytes_per_vector) for of in costs],
    }
    fronts = {name: pareto_front(values, scores) for name, values in values_of.items()}
    numbered = sorted({place for front in fronts.values() for place in front}, key=lambda place: -scores[place])
    with _drawing() as figure_of:
        figure = figure_of((9.5, 4.6 + 0.16 * len(numbered)))
        for axes, (name, values) in zip(figure.subplots(1, 2, sharey=True), values_of.items(), strict=True):
            for place_of_model, model in enumerate(models):
                places = [place for place, row in enumerate(rows) if row.candidate.model == model]
                look = {"marker": _MARKERS[place_of_model % len(_MARKERS)], "ms": 4, "ls": "", "alpha": 0.6}
                x, y = (np.array([of[place] for place in places], np.float64) for of in (values, scores))
                axes.plot(x, y, label=shown_name(model), **look)
            front = fronts[name]
            x, y = (np.array([of[place] for place in front], np.float64) for of in (values, scores))
            axes.plot(x, y, color="black", lw=0.8, marker="o", mfc="none")
            for place in front:
                point = (values[place], scores[place])
                number = str(numbered.index(place) + 1)
                axes.annotate(number, point, (3, 3), textcoords="offset points", fontsize=8)
            _scale_costs(axes, [value for value in values if value])
            axes.set_xlabel(name)
            axes.grid(visible=True, alpha=0.25)
        figure.axes[0].set_ylabel(verdict.metric.replace("_", " "))
        figure.axes[0].legend(fontsize=8, loc="lower right")
        _put_title(figure, title)
        names = [shown_name(rows[place].candidate.name, _LONGEST_LINE) for place in numbered]
        key = [f"{number}  {name}" for number, name in enumerate(names, 1)]
        note = "\n".join(["line: no other candidate is both better and cheaper", *key])
        figure.supxlabel(note, fontsize=8, x=0.02, ha="left")
        return _images(figure)


def _scale_costs(axes: Any, values: Sequence[float]) -> None:
    """Sets a logarithmic axis if costs differ much, else one from 0."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if values and max(values) > _FAR_APART * min(values):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, 1.1 * max(values, default=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def pareto_front(costs: Sequence[float | None], scores: Sequence[float]) -> list[int]:
    """Returns the candidates than which no other is better at the same cost or less, the cheapest first.

    Candidates without a cost or a finite score are left out.
    """
    known = [
        (cost, -score, place)
        for place, (cost, score) in enumerate(zip(costs, scores, strict=True))
        if cost is not None and np.isfinite(score)
    ]
    front: list[int] = []
    for _, _, place in sorted(known):
        if not front or scores[place] > scores[front[-1]]:
            front.append(place)
    return front


def _put_title(figure: Any, lines: Sequence[str]) -> None:
    shown = "\n".join(shown_name(line, _LONGEST_LINE) for line in lines)
    figure.suptitle(shown, fontsize=9, x=0.02, ha="left")


def shown_name(name: str, longest: int = _LONGEST_NAME) -> str:
    """Returns a name that fits: on one line, its middle left out if it is long."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in name)
    half = (longest - 1) // 2
    return plain if len(plain) <= longest else f"{plain[:half]}…{plain[-half:]}"


def _pool(row: Row) -> str:
    return "+".join(row.candidate.poolings)


def readable_on(shade: Sequence[float]) -> str:
    """Returns black or white, whichever has more contrast to a shade, RGBA (WCAG 2.2, relative luminance)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in shade[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "white"


@contextmanager
def _drawing() -> Iterator[Any]:
    """Yields a function that makes a figure of a size in inches."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Text stays text in the SVG, its ids do not change from run to run, and `$` in a name is no formula.
    settings = {"svg.fonttype": "none", "svg.hashsalt": "embedkit", "font.size": 9, "text.parse_math": False}
    with rc_context(settings), warnings.catch_warnings():
        # A name may have letters that the font lacks.
        warnings.filterwarnings("ignore", message=re.escape("Glyph "))
        yield lambda size: Figure(figsize=size, layout="constrained")


def _images(figure: Any) -> dict[str, bytes]:
    images = {}
    for form in ("png", "svg"):
        file = BytesIO()
        metadata: Mapping[str, Any] = {"Software": None} if form == "png" else {"Date": None, "Creator": None}
        figure.savefig(file, format=form, dpi=150, metadata=metadata)
        images[form] = file.getvalue()
    return images
