"""The section of a sweep: every score once, the marks, and errors for unfinished sweeps."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedkit.report import ReportConfig, write_report
from embedkit.report.sweeps import heat_maps, read_sweep
from tests.report.test_page import Reader

pytest.importorskip("plotly", reason="in the dev extra")

POOLS = ("cls", "mean", "max", "cls,mean")
LINES = {
    **{f"layer {layer}": ([layer], "concat") for layer in range(7)},
    "layers 3-6 joined": ([3, 4, 5, 6], "concat"),
    "mean of layers 3-6": ([3, 4, 5, 6], "mean"),
}


def candidate(line, layers, agg, pool, score):
    """Returns a row of results.parquet, as `embedkit sweep` writes it."""
    metrics = {"accuracy": score, "macro_f1": score - 0.05, "versus_last_layer_cls": score - 0.5}
    ends = {
        f"{name}{end}": value + by
        for name, value in metrics.items()
        for end, by in (("_low", -0.02), ("_high", 0.02))
    }
    return {
        "name": f"{line} {pool.replace(',', '+')}",
        "layers": layers,
        "layer_agg": agg,
        "pool": pool,
        "dims": 384 * len(layers),
        **metrics,
        **ends,
        "accuracy_folds": [score, score],
        "is_baseline": layers == [6] and pool in {"cls", "mean"},
        "is_winner": (layers, pool) == ([5], "mean"),
        "distinguishable": score < 0.8,
    }


def write_sweep(folder, models=("",), evaluation=None):
    """Writes a sweep's folder; the best is layer 5's mean of the last model."""
    rows = []
    for at, model in enumerate(models):
        for number, (line, (layers, agg)) in enumerate(LINES.items()):
            for place, pool in enumerate(POOLS):
                is_best = (layers, pool, at) == ([5], "mean", len(models) - 1)
                row = candidate(line, layers, agg, pool, 0.9 if is_best else 0.5 + number / 100 + place / 1000)
                named = {"model": model, "name": f"{model} {row['name']}".lstrip(), "is_winner": is_best}
                rows.append(
                    {**row, **named, "bytes_per_vector": 4 * row["dims"], "seconds_per_1000_rows": 3.0 * at + 1}
                )
    rows[0]["accuracy"] = float("nan")  # a fold of one class has no score
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "results.parquet")
    if evaluation:
        (folder / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    written = [name for name in ("results.parquet", "evaluation.json") if (folder / name).exists()]
    summary = {
        "version": 1,
        "label": "<b>section</b>",
        "task": "classification",
        "folds": 5,
        "rows": {"input": 5000, "judged": 4990},
        "left_out": {"rare class": 4},
        "models": [
            {"name": model, "revision": "main", "fingerprint": "0" * 64, "seconds_per_1000_rows": 1.25}
            for model in models
        ],
        "metric": "accuracy",
        "sentence": "layer 5 mean beats last-layer CLS by 3.1 ± 0.8 points of accuracy",
        "nested": {"accuracy": {"mean": 0.89, "low": 0.87, "high": 0.91}},
        "command": "embedkit encode notes.csv --layers 5 --pool mean",
        "files": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in written},
    }
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return rows


def evaluated(names, seed=0):
    """Returns an evaluation.json of random predictions, three quarters of them right."""
    random = np.random.default_rng(seed)
    true = random.integers(len(names), size=600)
    guess = np.where(random.random(600) < 0.75, true, random.integers(len(names), size=600))
    confusion = np.zeros((len(names), len(names)), int)
    np.add.at(confusion, (true, guess), 1)
    share = float((true == guess).mean())
    measure = {"value": share, "low": share - 0.03, "high": share + 0.03}
    undefined = {"value": None, "low": None, "high": None}
    bins = [
        {"low": low, "high": low + 0.1, "mean_probability": low + 0.05, "share_correct": low, "rows": rows}
        for low, rows in ((0.5, 100), (0.7, 200), (0.9, 300))
    ]
    return {
        "task": "classification",
        "estimate": "out-of-fold",
        "rows": 600,
        "metrics": {"accuracy": measure, "macro_f1": undefined},
        "classes": [
            {
                "name": name,
                "rows": int(rows),
                "recall": measure,
                "auroc": undefined,
                "average_precision": undefined,
            }
            for name, rows in zip(names, confusion.sum(axis=1), strict=True)
        ],
        "confusion": confusion.tolist(),
        "calibration": {"brier": 0.3125, "expected_error": 0.05, "bins": bins},
    }


def test_every_score_is_in_its_cell_with_its_interval_and_the_marks(tmp_path):
    rows = write_sweep(tmp_path / "sweep")
    found = read_sweep(tmp_path / "sweep")
    assert found.metrics == ("accuracy", "macro_f1")
    [drawn] = heat_maps(found.rows, "accuracy")
    figure = drawn["figure"]
    heat = figure["data"][0]
    lines, pools = figure["layout"]["yaxis"]["ticktext"], figure["layout"]["xaxis"]["ticktext"]
    assert pools == ["cls", "mean", "max", "cls+mean"]
    assert lines == list(LINES)
    for place, row in enumerate(rows):
        line, pool = divmod(place, len(POOLS))
        shown = f"{100 * row['accuracy']:.1f} ±2.0" if place else ""
        assert heat["text"][line][pool] == (f"<b>{shown}</b>" if row["is_winner"] else shown)
        assert heat["z"][line][pool] == (row["accuracy"] if place else None)
    assert (
        heat["customdata"][5][1]
        == "layer 5 mean<br>accuracy\N{NO-BREAK SPACE}(%) 90.0 (88.0 to 92.0)<br>384 dimensions"
    )
    frames = {
        (shape["x0"] + 0.47, shape["y0"] + 0.45, shape["line"]["dash"]) for shape in figure["layout"]["shapes"]
    }
    assert {(round(x), round(y), dash) for x, y, dash in frames} == {
        (1, 5, "solid"),
        (0, 6, "dash"),
        (1, 6, "dash"),
    }
    figures = pytest.importorskip("plotly.graph_objects", reason="in the dev extra")
    figures.Figure(figure)


def test_the_section_has_the_verdict_and_all_scores(tmp_path):
    write_sweep(tmp_path / "sweep")
    write_report(ReportConfig((tmp_path / "sweep",), tmp_path / "page.html"))
    reader = Reader((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "layer 5 mean beats last-layer CLS by 3.1 ± 0.8 points of accuracy." in reader.text
    assert "accuracy (%) with the selection repeated inside each fold: 89.0 (87.0 to 91.0)." in reader.text
    assert "embedkit encode notes.csv --layers 5 --pool mean" in reader.text
    assert "<b>section</b>" in reader.text
    assert "layer 5 mean 384 90.0 (88.0 to 92.0) 85.0 (83.0 to 87.0) best" in " ".join(reader.text.split())
    assert "layer 0 cls 384 none (48.0 to 52.0)" in reader.text
    assert reader.data["sweep-1-heat"]["data"][0]["type"] == "heatmap"


@pytest.mark.parametrize("n_classes", [3, 40])
def test_the_predictions_of_the_best_are_shown_by_class(n_classes, tmp_path):
    names = [f"<i>class</i> {number}" for number in range(n_classes)]
    evaluation = evaluated(names)
    write_sweep(tmp_path / "sweep", evaluation=evaluation)
    write_report(ReportConfig((tmp_path / "sweep",), tmp_path / "page.html"))
    reader = Reader((tmp_path / "page.html").read_text(encoding="utf-8"))
    share = evaluation["metrics"]["accuracy"]["value"]
    shown = f"{100 * share:.1f} ({100 * share - 3:.1f} to {100 * share + 3:.1f})"
    assert (
        "600 rows: each row predicted by a probe that never saw it. Intervals are 95 %, by bootstrap. "
        f"accuracy (%) {shown}" in reader.text
    )
    assert "macro f1 (%) none" in reader.text
    assert "class rows share recall (%) <i>" in reader.text  # no column of undefined measures
    counts = np.array(evaluation["confusion"])
    largest = counts.sum(axis=1).argmax()
    assert (
        f"recall (%) {names[largest]} {counts[largest].sum()} {counts[largest].sum() / 6:.1f} % {shown}"
        in reader.text
    )
    # The classes in the matrix are those with most errors, in their order.
    wrong = counts * (1 - np.eye(n_classes, dtype=int))
    chosen = sorted(sorted(range(n_classes), key=lambda place: -(wrong[place].sum() + wrong[:, place].sum()))[:25])
    [heat] = reader.data["sweep-1-confusion"]["data"]
    assert [[int(cell or 0) for cell in row] for row in heat["text"]] == counts[np.ix_(chosen, chosen)].tolist()
    assert heat["z"][0][0] == pytest.approx(counts[chosen[0], chosen[0]] / counts[chosen[0]].sum(), abs=1e-4)
    true, guess = np.unravel_index(wrong.argmax(), wrong.shape)
    assert f"of the true class {names[true]} {names[guess]} {wrong.max()} " in reader.text
    assert "Brier score 0.312; expected calibration error 0.050." in reader.text
    points = reader.data["sweep-1-calibration"]["data"][-1]
    assert points["y"] == [0.5, 0.7, 0.9]
    assert points["customdata"] == [100, 200, 300]


def test_several_models_have_a_heat_map_each_and_are_drawn_against_their_costs(tmp_path):
    rows = write_sweep(tmp_path / "sweep", models=("small", "<b>large</b>"))
    write_report(ReportConfig((tmp_path / "sweep",), tmp_path / "page.html"))
    reader = Reader((tmp_path / "page.html").read_text(encoding="utf-8"))
    for place in (1, 2):
        heat = reader.data[f"sweep-1-heat-{place}"]
        assert heat["layout"]["yaxis"]["ticktext"] == list(LINES)
        assert [shape["line"]["dash"] for shape in heat["layout"]["shapes"]].count("solid") == place - 1
    assert "large</b> layer 5 mean" in reader.text
    for number, column in enumerate(("seconds_per_1000_rows", "bytes_per_vector"), 1):
        small, large = reader.data[f"sweep-1-cost-{number}"]["data"]
        assert [*small["x"], *large["x"]] == [row[column] for row in rows[1:]]  # the first has no score
        assert large["y"] == pytest.approx([100 * row["accuracy"] for row in rows if row["model"] != "small"])
        assert large["marker"]["symbol"].count("star") == 1
        assert "star" not in small["marker"]["symbol"]


def test_a_damaged_evaluation_is_told(tmp_path, embedkit_cli):
    write_sweep(tmp_path / "sweep", evaluation=evaluated("ab"))
    (tmp_path / "sweep" / "evaluation.json").write_text("{}")
    assert embedkit_cli("report", tmp_path / "sweep", "-o", tmp_path / "page.html").code == 5


@pytest.mark.parametrize("missing", ["summary.json", "results.parquet"])
def test_an_incomplete_sweep_is_refused(missing, tmp_path, embedkit_cli):
    write_sweep(tmp_path / "sweep")
    (tmp_path / "sweep" / missing).unlink()
    result = embedkit_cli("report", tmp_path / "sweep", "-o", tmp_path / "page.html")
    assert result.code == 5
    assert "not finished" in result.told[0]
    assert not (tmp_path / "page.html").exists()
