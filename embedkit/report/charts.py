"""Figures as Plotly's JSON: traces and a layout.

Labels are escaped, because Plotly renders some HTML in them. page.js sets fonts and theme; bars and points also
differ by pattern and shape, for print.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.report.geometry import Map

Figure = dict[str, Any]

#: Okabe and Ito's colours, distinguishable with any colour vision, and a shape for each.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6BB1", "#7F7F7F")
SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "triangle-down", "star")
#: Most categories with a colour and shape of their own; the rest are drawn as one.
CATEGORIES = 20
_BARS = 32
_WIDTH = 70


def plain(text: str) -> str:
    """Returns a label that Plotly shows unchanged, on one line."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def length_bins(lengths: Mapping[int, int], limit: int | None) -> list[tuple[int, int | None, int]]:
    """Returns (first, last, rows) of each bar of a histogram of text lengths in tokens.

    The last bar has no end if some texts are far longer. No bar crosses the limit.
    """
    longest = max(1, *lengths)
    shown = min(longest, 2 * limit) if limit else longest
    width = math.ceil(shown / _BARS)
    edges = [0, *range((limit or 0) % width or width, shown + width, width)]
    counts: Counter[int] = Counter()
    for tokens, rows in lengths.items():
        counts[max(bisect_left(edges, tokens) - 1, 0)] += rows
    bins: list[tuple[int, int | None, int]] = [
        (low + (low > 0), high, counts[place]) for place, (low, high) in enumerate(pairwise(edges))
    ]
    return [*bins, (edges[-1] + 1, None, counts[len(bins)])] if longest > edges[-1] else bins


def lengths_figure(bins: Sequence[tuple[int, int | None, int]], limit: int | None) -> Figure:
    """Returns the bars of `length_bins`, those above the limit hatched, and the limit as a line."""
    edges = [max(first - 1, 0) for first, *_ in bins]
    edges.append(bins[-1][1] or edges[-1] + (edges[-1] - edges[-2]))
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    names = [f"{first:,} or more" if last is None else f"{first:,} to {last:,}" for first, last, _ in bins]
    cut = [limit is not None and first > limit for first, _, _ in bins]
    trace = {
        "type": "bar",
        "x": middles,
        "y": [rows for *_, rows in bins],
        "width": [high - low for low, high in pairwise(edges)],
        "customdata": names,
        "hovertemplate": "%{customdata} tokens: %{y:,} rows<extra></extra>",
        "marker": {
            "color": [COLOURS[5] if is_above else COLOURS[0] for is_above in cut],
            "pattern": {"shape": ["/" if is_above else "" for is_above in cut], "size": 6},
            "line": {"width": 0.5, "color": "rgba(128,128,128,0.6)"},
        },
    }
    layout: Figure = {
        "xaxis": {"title": {"text": "tokens of a text, before truncation"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "rows"}},
        "showlegend": False,
    }
    if limit is not None and limit <= edges[-1]:
        line = {"type": "line", "x0": limit, "x1": limit, "yref": "paper", "y0": 0, "y1": 1}
        layout["shapes"] = [{**line, "line": {"dash": "dash", "width": 2}}]
        layout["annotations"] = [
            {
                "x": limit,
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "showarrow": False,
                "text": f"limit: {limit:,} tokens",
            }
        ]
    return {"data": [trace], "layout": layout}


def norms_figure(counts: NDArray[np.int64], edges: NDArray[np.float64]) -> Figure:
    """Returns a histogram of the vectors' norms."""
    trace = {
        "type": "bar",
        "x": ((edges[:-1] + edges[1:]) / 2).tolist(),
        "y": counts.tolist(),
        "width": float(edges[1] - edges[0]),
        "customdata": [f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges)],
        "hovertemplate": "%{customdata}: %{y:,} vectors<extra></extra>",
        "marker": {"color": COLOURS[0], "line": {"width": 0.5, "color": "rgba(128,128,128,0.6)"}},
    }
    layout = {
        "xaxis": {"title": {"text": "length of a vector (L2 norm)"}},
        "yaxis": {"title": {"text": "vectors"}},
        "showlegend": False,
    }
    return {"data": [trace], "layout": layout}


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
    for column, cells in shown.items():
        texts = [f"{text}<br>{_folded(column, cell)}" for text, cell in zip(texts, cells, strict=True)]
    traces = []
    for group in _groups(colour, len(names)):
        place = group.pop("places")
        traces.append(
            {
                "type": "scattergl",
                "mode": "markers",
                "x": [round(float(x), 5) for x in drawn.points[place, 0]],
                "y": [round(float(y), 5) for y in drawn.points[place, 1]],
                "text": [texts[one] for one in place],
                "hovertemplate": "%{text}<extra></extra>",
                **group,
            }
        )
    titles = [f"component {n} ({share:.1%} of the variance)" for n, share in enumerate(drawn.shares, 1)]
    layout = {
        "xaxis": {"title": {"text": titles[0]}},
        "yaxis": {"title": {"text": titles[1]}},
        "hovermode": "closest",
        "dragmode": "zoom",
        "showlegend": len(traces) > 1,
        "legend": {"title": {"text": plain(colour[0])}, "itemsizing": "constant"} if colour else {},
    }
    return {"data": traces, "layout": layout}


def _groups(colour: tuple[str, Sequence[Any]] | None, points: int) -> list[dict[str, Any]]:
    """Returns the traces' points and markers: numbers on a colour scale, other values by category."""
    everywhere = np.arange(points)
    marker = {"size": 8 if points <= 500 else 6, "opacity": 0.8}
    if colour is None:
        return [{"places": everywhere, "marker": {**marker, "color": COLOURS[0]}}]
    name, cells = colour
    counted = Counter(category(cell) for cell in cells)
    if len(counted) > CATEGORIES and _are_numbers(cells):
        numbers = [None if cell is None else float(cell) for cell in cells]
        bar = {"title": {"text": plain(name)}, "thickness": 14}
        scale = {"color": numbers, "colorscale": "Cividis", "showscale": True, "colorbar": bar}
        return [{"places": everywhere, "marker": {**marker, **scale}}]
    ranked = sorted(counted, key=lambda word: (-counted[word], word))
    own = ranked if len(ranked) <= CATEGORIES else ranked[: CATEGORIES - 1]
    groups = []
    kinds = np.array([own.index(word) if word in own else len(own) for word in map(category, cells)])
    for number, word in enumerate([*own, f"{len(ranked) - len(own):,} others"][: len(set(kinds.tolist()))]):
        look = {
            "color": COLOURS[number % 8] if number < len(own) else "#BBBBBB",
            "symbol": SYMBOLS[(number + number // 8) % 8],
        }
        count = int((kinds == number).sum())
        label = f"{plain(word if len(word) <= 30 else word[:29] + '…')} ({count:,})"
        groups.append({"places": np.flatnonzero(kinds == number), "name": label, "marker": {**marker, **look}})
    return groups


def category(cell: Any) -> str:
    """Returns the category of a cell."""
    return "(none)" if cell is None else str(cell)


def _are_numbers(cells: Sequence[Any]) -> bool:
    return all(
        cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool) and math.isfinite(cell))
        for cell in cells
    )


def _folded(column: str, cell: Any) -> str:
    """Returns a column's name and a cell, wrapped to lines that fit on a screen."""
    text = plain(f"{column}: {category(cell)}")
    lines, line = [], ""
    for word in text.split(" "):
        if line and len(line) + len(word) >= _WIDTH:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return "<br>".join([*lines, line])
