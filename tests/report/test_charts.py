"""Figures that Plotly takes, and histograms that count every text once."""

from __future__ import annotations

import datetime as dt
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkit.report.charts import (
    histogram_figure,
    length_bins,
    lengths_figure,
    map_figure,
    plain,
    short_names,
)
from embedkit.report.geometry import Map

LENGTHS = st.dictionaries(st.integers(0, 5000), st.integers(1, 9), min_size=1)


@given(LENGTHS, st.one_of(st.none(), st.integers(1, 1024)))
def test_each_text_is_in_the_bar_of_its_length_and_no_bar_crosses_the_limit(lengths, limit):
    bins = length_bins(lengths, limit)
    for first, last, rows in bins:
        assert rows == sum(n for tokens, n in lengths.items() if first <= tokens <= (last or tokens))
        assert limit is None or limit >= max(lengths) or last is None or first > limit or last <= limit
    assert sum(rows for *_, rows in bins) == sum(lengths.values())
    assert all(after[0] == before[1] + 1 for before, after in itertools.pairwise(bins))
    assert len(bins) <= 35


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["flu", "measles, mild"], ["flu", "measles, …"]),
        (["measles, mild", "measles, severe", "flu"], ["measl…mild", "measl…vere", "flu"]),
        (["diabetes 1 mellitus", "diabetes 2 mellitus"], ["…1 mellit…", "…2 mellit…"]),
        (["neoplasm of the left lung, NOS"] * 2, ["neoplasm …"] * 2),
        (["neoplasm of left lung, NOS", "neoplasm of right lung, NOS"], ["…left lun…", "…right lu…"]),
        (["aaaaaaaaaaaa1bbbbbbbbbbb", "aaaaaaaaaaaa2bbbbbbbbbbb"], ["…aaaaa1bb…", "…aaaaa2bb…"]),
        (
            ["aaaa bbbbbbbbbb1cccc", "aaaa bbbbbbbbbb2cccc", "aaaa dddddddddddcccc"],
            ["…bbbbb1cc…", "…bbbbb2cc…", "aaaa dddd…"],
        ),
    ],
)
def test_names_that_are_alike_at_the_start_stay_different(names, expected):
    assert short_names(names, 10) == expected


@given(st.lists(st.text("ab… ", min_size=1, max_size=12), max_size=12), st.integers(3, 8))
def test_different_names_are_never_shortened_to_the_same(names, most):
    assert len(set(short_names(names, most))) == len(set(names))


def drawn(cells, points=60):
    spots = Map(np.random.default_rng(0).random((points, 2), np.float32), (0.5, 0.2))
    names = [f"id{number}" for number in range(points)]
    return map_figure(spots, names, ("kind", cells) if cells else None, {"more": [None, *range(points - 1)]})


@pytest.mark.parametrize(
    ("cells", "traces", "scale"),
    [
        (None, 1, False),
        ([f"k{number % 3}" for number in range(60)], 3, False),
        ([None, True, False] * 20, 3, False),
        ([number / 7 for number in range(60)], 1, True),
        ([None, *range(59)], 2, True),
        ([f"k{number}" for number in range(60)], 20, False),  # 19 of their own, and the rest
        ([float("nan"), None, *range(58)], 2, True),
        ([float("inf"), *range(59)], 20, False),
        ([None, *(f"k{number}" for number in range(59))], 21, False),
        ([dt.date(2026, 1, 1 + number % 2) for number in range(60)], 2, False),
    ],
)
def test_a_map_has_every_point_once_by_category_or_on_a_scale(cells, traces, scale):
    figure = drawn(cells)
    texts = sorted(text for trace in figure["data"] for text in trace["text"])
    assert texts[0].startswith("id0<br>")
    assert texts[0].endswith("more: (none)")
    assert (f"kind: {cells[10]}" if cells else "more: 9") in texts[1].split("<br>")
    assert sum(len(trace["x"]) for trace in figure["data"]) == 60
    assert len(figure["data"]) == traces
    assert ("colorscale" in figure["data"][-1]["marker"]) == scale
    looks = {str((trace["marker"]["color"], trace["marker"].get("symbol"))) for trace in figure["data"]}
    assert len(looks) == traces


@pytest.mark.parametrize("cells", [[None, *range(59)], [None, *(f"k{number}" for number in range(59))]])
def test_missing_values_and_rare_categories_are_grey_and_counted_in_the_legend(cells):
    by_name = {trace["name"]: trace for trace in drawn(cells)["data"]}
    assert by_name["(none) (1)"]["marker"]["color"] == "#999999"
    assert len(by_name["(none) (1)"]["x"]) == 1
    if isinstance(cells[1], str):
        assert len(by_name["40 others (40)"]["x"]) == 40
        colours = [trace["marker"]["color"] for trace in by_name.values()]
        assert len(set(colours)) == len(colours) == 21


def test_plotly_takes_every_figure():
    figures = pytest.importorskip("plotly.graph_objects", reason="in the dev extra")
    bins = length_bins({0: 2, 5: 8, 90: 1, 5000: 3}, 64)
    norms = histogram_figure(np.array([1, 2]), np.array([0.5, 1.0, 1.5]), title="norm", unit="vectors")
    for figure in (
        lengths_figure(bins, 64),
        lengths_figure(length_bins({0: 1}, None), None),
        norms,
        drawn(["a", "b"] * 30),
        drawn(None),
    ):
        figures.Figure(figure)


def test_a_label_shows_as_it_is():
    assert plain('<a href="x">&amp;\n') == '&lt;a href="x"&gt;&amp;amp; '
