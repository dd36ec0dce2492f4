"""Figures as Plotly's JSON: traces and a layout.

Labels are escaped, because Plotly renders some HTML in them. page.js sets fonts and theme; bars and points also
differ by pattern and shape, for print.
"""

from __future__ import annotations

import math
import textwrap
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.arrow_values import is_missing
from embedkit.percent import percent
from embedkit.report.geometry import Map

Figure = dict[str, Any]
#: The bars of a histogram: first length, last length or None, and rows.
Bins = list[tuple[int, int | None, int]]

#: Seven colours of Okabe and Ito, distinguishable with any colour vision, then those that are farthest from all
#: before them in CIELAB, of a lightness that shows on white and on black.
COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6BB1"),
    *("#6C00FC", "#00E400", "#FC24D8", "#FC0060", "#606000", "#A8CC30", "#0054E4"),
    *("#FCA884", "#008400", "#A83C3C", "#C0C078", "#CC78FC", "#B40078"),
)
SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "triangle-down", "star")
#: Of heat maps: black text is readable on all of them, also in print.
_SHADES = ((0, "#f7fafd"), (1, "#4f8ac9"))
#: A legend above the chart, where its right side has an axis.
ABOVE = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
#: Most categories with a colour of their own; the rest are drawn as one.
CATEGORIES = len(COLOURS)
#: Markers of missing values and of the categories without a colour of their own, drawn beneath the others.
_MISSING, _OTHERS = {"color": "#999999", "symbol": "circle-open"}, {"color": "#7F7F7F", "symbol": "star"}
_LAST = {"legendrank": 2000}
#: Most characters of a category's name in a legend.
_NAME = 30
_BARS = 32
_WIDTH = 70
_NONE = "(none)"


def plain(text: str) -> str:
    """Returns a label that Plotly shows unchanged, on one line."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def short_names(names: Sequence[str], most: int) -> list[str]:
    """Cuts names to `most` characters so that different names stay different.

    A name keeps its start; where another has the same, its start and end; where another has these too, the part in
    which it differs from the name most like it. Names that are still equal are numbered.
    """
    of_name = {name: name if len(name) <= most else f"{name[: most - 1]}…" for name in names}
    end = (most - 1) // 2
    for name in _alike(of_name, most):
        of_name[name] = f"{name[: most - 1 - end]}…{name[-end:]}"
    alike = sorted(_alike(of_name, most))
    shared = [_same_start(*pair) for pair in pairwise(["", *alike, ""])]
    for name, before, after in zip(alike, shared, shared[1:], strict=False):
        first = max(before, after)
        first = max(name.rfind(" ", 0, first) + 1, first - most // 2)
        part = name[first : first + most - 2]
        of_name[name] = f"…{part}…" if first + len(part) < len(name) else f"…{part}"
    numbers = Counter[str]()
    for name in _alike(of_name, most):
        numbers[of_name[name]] += 1
        of_name[name] = f"{of_name[name]} ({numbers[of_name[name]]})"
    return [of_name[name] for name in names]


def _alike(of_name: Mapping[str, str], most: int) -> list[str]:
    """Returns the names of more than `most` characters whose short name is that of another as well."""
    counts = Counter(of_name.values())
    return [name for name, short in of_name.items() if counts[short] > 1 and len(name) > most]


def _same_start(one: str, other: str) -> int:
    """Returns the number of characters at the start in which two names are equal."""
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def length_bins(lengths: Mapping[int, int], limit: int | None) -> Bins:
    """Returns the bars of a histogram of text lengths in tokens, none of which crosses the limit.

    The last bar has no end if some texts are far longer.
    """
    longest = max(1, *lengths)
    shown = min(longest, 2 * limit) if limit else longest
    width = math.ceil(shown / _BARS)
    edges = [0, *range((limit or 0) % width or width, shown + width, width)]
    counts: Counter[int] = Counter()
    for tokens, rows in lengths.items():
        counts[max(bisect_left(edges, tokens) - 1, 0)] += rows
    bins: Bins = [(low + (low > 0), high, counts[place]) for place, (low, high) in enumerate(pairwise(edges))]
    return [*bins, (edges[-1] + 1, None, counts[len(bins)])] if longest > edges[-1] else bins


def bin_names(bins: Bins) -> list[str]:
    """Returns the range of lengths of each bar in words."""
    return [f"{first:,} or more" if last is None else f"{first:,} to {last:,}" for first, last, _ in bins]


def lengths_figure(bins: Bins, limit: int | None) -> Figure:
    """Returns the bars of `length_bins`, those above the limit hatched, and the limit as a line."""
    edges = [max(first - 1, 0) for first, *_ in bins]
    edges.append(bins[-1][1] or edges[-1] + (edges[-1] - edges[-2]))
    cut = [limit is not None and first > limit for first, _, _ in bins]
    bars = {
        "x": [(low + high) / 2 for low, high in pairwise(edges)],
        "y": [rows for *_, rows in bins],
        "width": [high - low for low, high in pairwise(edges)],
        "customdata": bin_names(bins),
        "hovertemplate": "%{customdata} tokens: %{y:,} rows<extra></extra>",
    }
    marker = {
        "color": [COLOURS[5] if is_above else COLOURS[0] for is_above in cut],
        "pattern": {"shape": ["/" if is_above else "" for is_above in cut], "size": 6},
    }
    x_axis = {"title": {"text": "tokens of a text, before truncation"}, "rangemode": "tozero"}
    figure = _bar_chart(bars, marker, x_axis, "rows")
    if limit is not None and limit <= edges[-1]:
        line = {"type": "line", "x0": limit, "x1": limit, "yref": "paper", "y0": 0, "y1": 1}
        text = {"yref": "paper", "yanchor": "bottom", "showarrow": False, "text": f"limit: {limit:,} tokens"}
        figure["layout"]["shapes"] = [{**line, "line": {"dash": "dash", "width": 2}}]
        figure["layout"]["annotations"] = [{"x": limit, "y": 1, **text}]
        figure["layout"]["margin"] = {"t": 56}  # the text is below the chart's buttons
    return figure


def histogram_figure(counts: NDArray[np.int64], edges: NDArray[np.float64], *, title: str, unit: str) -> Figure:
    """Returns a histogram of numbers; `title` says of what, and `unit` what is counted."""
    bars = {
        "x": ((edges[:-1] + edges[1:]) / 2).tolist(),
        "y": counts.tolist(),
        "width": float(edges[1] - edges[0]),
        "customdata": [f"{low:.7g} to {high:.7g}" for low, high in pairwise(edges)],
        "hovertemplate": f"%{{customdata}}: %{{y:,}} {unit}<extra></extra>",
    }
    return _bar_chart(bars, {"color": COLOURS[0]}, {"title": {"text": title}}, unit)


def _bar_chart(bars: Figure, marker: Figure, x_axis: Figure, y_title: str) -> Figure:
    marker = {**marker, "line": {"width": 0.5, "color": "rgba(128,128,128,0.6)"}}
    layout = {"xaxis": x_axis, "yaxis": {"title": {"text": y_title}}, "showlegend": False}
    return {"data": [{"type": "bar", **bars, "marker": marker}], "layout": layout}


def heat_map(
    values: Sequence[Sequence[float | None]],
    words: Sequence[Sequence[str]],
    hovered: Sequence[Sequence[str]],
    limits: tuple[float, float],
) -> Figure:
    """Returns the trace of a heat map; None leaves a gap.

    Args:
        values: shades of the cells, by line.
        words: their texts.
        hovered: what the mouse shows of them.
        limits: values of the lightest and of the darkest shade.
    """
    return {
        "type": "heatmap",
        "z": values,
        "zmin": limits[0],
        "zmax": limits[1],
        "text": words,
        "texttemplate": "%{text}",
        "customdata": hovered,
        "hovertemplate": "%{customdata}<extra></extra>",
        "hoverongaps": False,
        "colorscale": _SHADES,
        "textfont": {"color": "#111111", "size": 13},
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
    }


def names_axis(names: Sequence[str], *, title: str, most: int) -> Figure:
    """Returns an axis with a name for each place, cut by `short_names`."""
    return {
        "title": {"text": title},
        "tickvals": list(range(len(names))),
        "ticktext": [plain(name) for name in short_names(names, most)],
        "showgrid": False,
        "zeroline": False,
        "range": [-0.5, len(names) - 0.5],
        "tickangle": 0,
    }


def map_figure(
    drawn: Map, names: Sequence[str], colour: tuple[str, Sequence[Any]] | None, shown: Mapping[str, Sequence[Any]]
) -> Figure:
    """Returns a scatter plot of the sample.

    Args:
        drawn: coordinates of the points.
        names: [S] shown when the mouse hovers over a point.
        colour: a column's name and its [S] cells; None for one colour.
        shown: column → [S] cells that are shown, too.
    """
    texts = [plain(name) for name in names]
    for column, cells in (({colour[0]: colour[1]} if colour else {}) | dict(shown)).items():
        texts = [f"{text}<br>{_folded(column, cell)}" for text, cell in zip(texts, cells, strict=True)]
    traces = [
        {
            "type": "scattergl",
            "mode": "markers",
            "x": [round(float(x), 5) for x in drawn.points[places, 0]],
            "y": [round(float(y), 5) for y in drawn.points[places, 1]],
            "text": [texts[place] for place in places],
            "hovertemplate": "%{text}<extra></extra>",
            **look,
        }
        for places, look in _groups(colour, len(names))
    ]
    titles = [f"component {n} ({percent(share)} of the variance)" for n, share in enumerate(drawn.shares, 1)]
    legend: Figure = {"title": {"text": plain(colour[0])}} if colour else {}
    if any("colorbar" in trace["marker"] for trace in traces):  # which stands where the legend would
        legend = ABOVE
    layout = {
        **{axis: {"title": {"text": title}} for axis, title in zip(("xaxis", "yaxis"), titles, strict=True)},
        "hovermode": "closest",
        "dragmode": "zoom",
        "showlegend": len(traces) > 1,
        "legend": {**legend, "itemsizing": "constant"},
    }
    return {"data": traces, "layout": layout}


def _groups(
    colour: tuple[str, Sequence[Any]] | None, points: int
) -> Iterator[tuple[NDArray[np.int64], dict[str, Any]]]:
    """Yields the traces' points and markers: numbers on a colour scale, other values by category.

    Missing values are a grey trace of their own.
    """
    marker = {"size": 8 if points <= 500 else 6, "opacity": 0.8}
    if colour is None:
        yield np.arange(points), {"marker": {**marker, "color": COLOURS[0]}}
        return
    name, cells = colour
    is_absent = np.array([is_missing(cell) for cell in cells], np.bool_)
    if is_absent.any():
        places = np.flatnonzero(is_absent)
        yield places, {"name": f"{_NONE} ({len(places):,})", **_LAST, "marker": {**marker, **_MISSING}}
    present = np.flatnonzero(~is_absent)
    values = [cells[place] for place in present.tolist()]
    counted = Counter(map(category, values))
    is_numeric = all(map(_is_number, values))
    if len(counted) > CATEGORIES and is_numeric:
        bar = {"title": {"text": plain(name)}, "thickness": 14}
        scale = {"color": list(map(float, values)), "colorscale": "Cividis", "showscale": True, "colorbar": bar}
        yield present, {"name": f"numbers ({len(present):,})", "marker": {**marker, **scale}}
        return
    ranked = sorted(counted, key=lambda word: (-counted[word], word))
    own = ranked if len(ranked) <= CATEGORIES else ranked[: CATEGORIES - 1]
    if is_numeric:
        own = sorted(own, key=float)
    numbers = {word: number for number, word in enumerate(own)}
    kinds = np.array([numbers.get(category(value), len(own)) for value in values])
    if len(ranked) > len(own):
        places = present[kinds == len(own)]
        label = f"{len(ranked) - len(own):,} others ({len(places):,})"
        yield places, {"name": label, **_LAST, "marker": {**marker, **_OTHERS}}
    for number, name in enumerate(short_names(own, _NAME)):
        places = present[kinds == number]
        look = {"color": COLOURS[number], "symbol": SYMBOLS[number % len(SYMBOLS)]}
        label = f"{plain(name)} ({len(places):,})"
        yield places, {"name": label, "marker": {**marker, **look}}


def category(cell: Any) -> str:
    """Returns the category of a cell."""
    return _NONE if is_missing(cell) else str(cell)


def _is_number(cell: Any) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool) and math.isfinite(cell)


def _folded(column: str, cell: Any) -> str:
    """Returns a column's name and a cell, wrapped to lines that fit on a screen."""
    lines = textwrap.wrap(f"{column}: {category(cell)}", _WIDTH, break_on_hyphens=False)
    return "<br>".join(map(plain, lines))
