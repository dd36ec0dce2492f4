"""The predictions of a sweep's winner: measures, classes, confusions and calibration, from evaluation.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.report.charts import ABOVE, COLOURS, Figure, heat_map, names_axis, plain
from embedkit.report.page import percent

#: Measures that are shares, shown in per cent.
SHARES = frozenset({"accuracy", "macro_f1", "micro_f1", "auroc", "average_precision", "precision", "recall", "f1"})
_ESTIMATES = {
    "out-of-fold": "each row predicted by a probe that never saw it",
    "validation": "the validation rows, predicted by a probe of the training rows",
    "test": "the test rows, judged once",
}
_MEASURES = ("precision", "recall", "f1", "auroc", "average_precision")
#: Most classes in a confusion matrix, in the table, and pairs in the list.
_CONFUSED, _CLASSES, _PAIRS = 25, 500, 15
#: Most characters of a class name on an axis.
_NAME = 24


def evaluation_values(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values for the template evaluation.html.j2."""
    classes = sorted(evaluation["classes"], key=lambda of: -of["rows"])
    measures = [name for name in _MEASURES if any(_is_defined(of.get(name)) for of in classes)]
    confusion, calibration = evaluation.get("confusion"), evaluation.get("calibration")
    return {
        "estimate": _ESTIMATES.get(evaluation["estimate"], evaluation["estimate"]),
        "rows": evaluation["rows"],
        "metrics": [(title(name), interval(of, name)) for name, of in evaluation["metrics"].items()],
        "measures": [title(name) for name in measures],
        "classes": [
            (
                *(of["name"], of["rows"], percent(of["rows"] / max(1, evaluation["rows"]))),
                *(interval(of.get(name), name) for name in measures),
            )
            for of in classes[:_CLASSES]
        ],
        "more_classes": max(0, len(classes) - _CLASSES),
        "confusion": confusion and _confusion(evaluation["classes"], np.array(confusion, np.int64)),
        "calibration": calibration and _calibration(calibration),
    }


def title(name: str) -> str:
    """Returns the name of a metric, with its unit if it is shown in per cent."""
    words = name.replace("_", " ")
    return f"{words}\N{NO-BREAK SPACE}(%)" if name in SHARES else words


def number(value: float | None, name: str) -> str:
    """Returns a score as printed: `83.7` (per cent) or `0.512`."""
    if value is None or not np.isfinite(value):
        return "none"
    return f"{100 * value:.1f}" if name in SHARES else f"{value:.3f}"


def interval(of: Mapping[str, float | None] | None, name: str) -> str:
    """Returns a value with the ends of its interval."""
    if of is None or not _is_defined(of):
        return "none"
    return f"{number(of['value'], name)} ({number(of['low'], name)} to {number(of['high'], name)})"


def _is_defined(of: Mapping[str, float | None] | None) -> bool:
    return of is not None and of["value"] is not None


def _confusion(classes: Sequence[Mapping[str, Any]], counts: NDArray[np.int64]) -> dict[str, Any]:
    """Returns the matrix of the classes that are confused most, and the pairs confused most often."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    names = [of["name"] for of in classes]
    errors = wrong.sum(axis=0) + wrong.sum(axis=1)
    shown = np.sort(np.argsort(-errors, kind="stable")[:_CONFUSED])
    pairs = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
    found = [(int(pair // len(names)), int(pair % len(names))) for pair in pairs]
    rows = np.maximum(counts.sum(axis=1), 1)
    return {
        "figure": _confusion_figure([names[place] for place in shown], counts[np.ix_(shown, shown)], rows[shown]),
        "size": (9 + 1.6 * len(shown), 14 + 3.2 * len(shown)),
        "n_shown": len(shown),
        "n_classes": len(names),
        "pairs": [
            (names[true], names[guess], int(wrong[true, guess]), percent(wrong[true, guess] / rows[true]))
            for true, guess in found
            if wrong[true, guess]
        ],
    }


def _confusion_figure(names: Sequence[str], counts: NDArray[np.int64], rows: NDArray[np.int64]) -> Figure:
    """Returns a heat map: true classes down, predicted classes across, shaded by share of the true class."""
    shares = counts / rows[:, None]
    hovered = [
        [
            f"true: {plain(true)}<br>predicted: {plain(guess)}<br>{count:,} rows, {percent(share)} of the class"
            for guess, count, share in zip(names, of_true, of_shares, strict=True)
        ]
        for true, of_true, of_shares in zip(names, counts.tolist(), shares.tolist(), strict=True)
    ]
    words = [[f"{count:,}" if count else "" for count in row] for row in counts.tolist()]
    trace = heat_map(shares.round(4).tolist(), words, hovered, (0, 1))
    down, across = (names_axis(names, title=of, most=_NAME) for of in ("true", "predicted"))
    axes = {"xaxis": {**across, "tickangle": -40}, "yaxis": {**down, "range": down["range"][::-1]}}
    return {"data": [trace], "layout": {**axes, "showlegend": False}}


def _calibration(calibration: Mapping[str, Any]) -> dict[str, Any]:
    bins = [of for of in calibration["bins"] if of["rows"]]
    points = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "of these predictions",
        "x": [of["mean_probability"] for of in bins],
        "y": [of["share_correct"] for of in bins],
        "customdata": [of["rows"] for of in bins],
        "hovertemplate": "said %{x:.3f}, correct %{y:.3f}, %{customdata:,} rows<extra></extra>",
        "marker": {"color": COLOURS[0], "size": 9},
        "line": {"color": COLOURS[0]},
    }
    ideal = {
        "type": "scatter",
        "mode": "lines",
        "name": "ideal",
        "x": [0, 1],
        "y": [0, 1],
        "hoverinfo": "skip",
        "line": {"color": "#7F7F7F", "dash": "dash"},
    }
    counts = {
        "type": "bar",
        "name": "rows",
        "x": [(of["low"] + of["high"]) / 2 for of in bins],
        "y": [of["rows"] for of in bins],
        "width": [of["high"] - of["low"] for of in bins],
        "yaxis": "y2",
        "marker": {"color": "#999999", "opacity": 0.35},
        "hovertemplate": "%{y:,} rows<extra></extra>",
    }
    axes = {
        "xaxis": {"title": {"text": "probability of the predicted class"}, "range": [0, 1]},
        "yaxis": {"title": {"text": "share that is correct"}, "range": [0, 1]},
        "yaxis2": {
            "title": {"text": "rows"},
            "overlaying": "y",
            "side": "right",
            "showgrid": False,
            "tickmode": "auto",
            "automargin": True,
        },
        "legend": ABOVE,
    }
    return {
        "brier": number(calibration.get("brier"), "brier"),
        "expected_error": number(calibration.get("expected_error"), "expected_error"),
        "figure": {"data": [counts, ideal, points], "layout": {**axes, "showlegend": True}},
        "rows": [
            (
                f"{of['low']:.2f} to {of['high']:.2f}",
                of["rows"],
                f"{of['mean_probability']:.3f}",
                f"{of['share_correct']:.3f}",
            )
            for of in bins
        ],
    }
