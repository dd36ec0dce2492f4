"""The pictures of a sweep: every score with its ±, readable, whatever the names are."""

from __future__ import annotations

import itertools
import re
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest

from embedkit.study.candidates import Candidate
from embedkit.study.sweep_charts import Cost, cost_chart, heat_map, readable_on

ODD = ("$x_1$ <b>&", "a very long name " * 12, "line\x00\nbreak")


def verdict(models, mean=lambda number: 0.5 + number / 100, half=0.0125):
    """Rows of two layers and two poolings of each model; the third is the best, the last a baseline."""
    candidates = [
        Candidate((layer,), "concat", (pool,), model)
        for model, layer, pool in itertools.product(models, (1, 2), ("cls", "mean"))
    ]
    rows = tuple(
        SimpleNamespace(
            candidate=candidate,
            dims=32 * (1 + number % 3),
            intervals={"accuracy": SimpleNamespace(mean=mean(number), half=half)},
            is_winner=number == 2,
            baseline="last-layer mean" if number == len(candidates) - 1 else "",
        )
        for number, candidate in enumerate(candidates)
    )
    return SimpleNamespace(metric="accuracy", rows=rows)


def texts(images):
    assert images["png"].startswith(b"\x89PNG")
    drawing = ET.fromstring(images["svg"])  # noqa: S314 - our own
    return ["".join(element.itertext()) for element in drawing.iter("{http://www.w3.org/2000/svg}text")]


def test_a_heat_map_has_a_panel_a_model_and_a_score_with_its_half_in_each_cell():
    images = heat_map(verdict(ODD), ["accuracy", f"label {ODD[0]}"])
    assert heat_map(verdict(ODD), ["accuracy", f"label {ODD[0]}"]) == images
    found = texts(images)
    assert sorted(text for text in found if re.fullmatch(r"\d\d\.\d", text)) == [f"{50 + n}.0" for n in range(12)]
    assert found.count("± 1.2") == 12  # 1.25 per cent, rounded to even
    assert {f"label {ODD[0]}", ODD[0], "line??break", "layer 1", "layer 2"} <= set(found)
    shortened = next(text for text in found if text.startswith("a very long"))
    assert len(shortened) < 50
    assert "…" in shortened


def test_undefined_scores_are_told_and_leave_the_others_their_shades():
    found = texts(heat_map(verdict([""], mean=lambda n: float("nan") if n == 1 else 0.7), ["accuracy"]))
    assert (found.count("undefined"), found.count("70.0")) == (1, 3)
    assert "undefined" in texts(heat_map(verdict([""], mean=lambda _: float("nan")), ["accuracy"]))


def test_letters_have_the_contrast_that_wcag_asks_for_on_every_shade():
    def luminance(color):
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    for shade in mpl.colormaps["Blues"](np.linspace(0, 1, 64)):
        letters = luminance(mpl.colors.to_rgb(readable_on(shade)))
        light, dark = sorted((letters, luminance(shade[:3])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


@pytest.mark.parametrize("seconds", [[0.5, 300.0, 2.0], [1.0, 1.1, 1.2], [None, None, None], [None, 3.0, 4.0]])
def test_a_chart_of_costs_names_each_model_and_each_candidate_of_the_front_once(seconds):
    swept = verdict(ODD)
    costs = [Cost(seconds[number // 4], 4 * row.dims) for number, row in enumerate(swept.rows)]
    found = texts(cost_chart(swept, costs, ["accuracy against cost"]))
    assert found.count(ODD[0]) == 1
    assert found.count("line??break") == 1
    # The best is dearer in bytes than none: rows 9 (32 dimensions), 10 (64) and 11 (96) are 59, 60 and 61 %.
    names = [text for text in found if re.match(r"\d  ", text)]
    assert [name[:1] for name in names] == [str(number) for number in range(1, len(names) + 1)]
    assert len({name[3:] for name in names}) == len(names) >= 3
    assert all("mean" in name or "cls" in name for name in names)
    # A formula would break names with a `$`, and ticks without it are LaTeX.
    assert not [text for text in found if "mathdefault" in text]
