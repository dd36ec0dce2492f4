"""The section of a sweep: every score once, the marks, and errors for unfinished sweeps."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedkit.report import ReportConfig, write_report
from embedkit.report.sweeps import heat_figure, read_sweep
from tests.report.test_page import Reader

pytest.importorskip("plotly", reason="in the dev extra")

POOLS = ("cls", "mean", "max", "cls,mean")
LINES = {
    **{f"layer {layer}": ([layer], "concat") for layer in range(7)},
    "layers 3-6 joined": ([3, 4, 5, 6], "concat"),
    "mean of layers 3-6": ([3, 4, 5, 6], "mean"),
}


def candidate(line, layers, agg, pool, score):
    """A row of results.parquet, as `embedkit sweep` writes it."""
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


def write_sweep(folder):
    """A sweep's folder; the best is layer 5's mean."""
    rows = [
        candidate(
            line, layers, agg, pool, 0.9 if (layers, pool) == ([5], "mean") else 0.5 + number / 100 + place / 1000
        )
        for number, (line, (layers, agg)) in enumerate(LINES.items())
        for place, pool in enumerate(POOLS)
    ]
    rows[0]["accuracy"] = float("nan")  # a fold of one class has no score
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "results.parquet")
    summary = {
        "version": 1,
        "label": "<b>section</b>",
        "task": "classification",
        "folds": 5,
        "rows": {"input": 5000, "judged": 4990},
        "model": {"name": "minilm", "fingerprint": "0" * 64},
        "metric": "accuracy",
        "sentence": "layer 5 mean beats last-layer CLS by 3.1 ± 0.8 points of accuracy",
        "nested": {"accuracy": {"mean": 0.89, "low": 0.87, "high": 0.91}},
        "command": "embedkit encode notes.csv --layers 5 --pool mean",
    }
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return rows


def test_every_score_is_in_its_cell_with_its_interval_and_the_marks(tmp_path):
    rows = write_sweep(tmp_path / "sweep")
    found = read_sweep(tmp_path / "sweep")
    assert found.metrics == ("accuracy", "macro_f1")
    figure = heat_figure(found.rows, "accuracy")
    heat = figure["data"][0]
    lines, pools = figure["layout"]["yaxis"]["ticktext"], figure["layout"]["xaxis"]["ticktext"]
    assert pools == ["cls", "mean", "max", "cls+mean"]
    assert lines == list(LINES)
    for place, row in enumerate(rows):
        line, pool = divmod(place, len(POOLS))
        shown = f"{100 * row['accuracy']:.1f} ±2.0" if place else ""
        assert heat["text"][line][pool] == (f"<b>{shown}</b>" if row["is_winner"] else shown)
        assert heat["z"][line][pool] == (row["accuracy"] if place else None)
    assert heat["customdata"][5][1] == "layer 5 mean<br>accuracy (%) 90.0 (88.0 to 92.0)<br>384 dimensions"
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
    assert "accuracy (%) 89.0 (87.0 to 91.0)" in reader.text
    assert "embedkit encode notes.csv --layers 5 --pool mean" in reader.text
    assert "<b>section</b>" in reader.text
    assert "layer 5 mean 384 90.0 (88.0 to 92.0) 85.0 (83.0 to 87.0) best" in " ".join(reader.text.split())
    assert "layer 0 cls 384 none (48.0 to 52.0)" in reader.text
    assert reader.data["sweep-1-heat"]["data"][0]["type"] == "heatmap"


@pytest.mark.parametrize(
    ("missing", "message"), [("summary.json", "not finished"), ("results.parquet", "is missing")]
)
def test_an_incomplete_sweep_is_refused(missing, message, tmp_path, embedkit_cli):
    write_sweep(tmp_path / "sweep")
    (tmp_path / "sweep" / missing).unlink()
    result = embedkit_cli("report", tmp_path / "sweep", "-o", tmp_path / "page.html")
    assert result.code == 5
    assert message in result.told[0]
    assert not (tmp_path / "page.html").exists()
