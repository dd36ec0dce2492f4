"""Poolers that are fitted, as candidates of a sweep beside the static ones."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import embedkit
from tests.study.test_run_sweep import write_rows
from tests.tiny_models import CORPUS


@pytest.fixture
def rows():
    random = np.random.default_rng(2)
    words = [word for word in " ".join(CORPUS).split() if word.isalpha()]
    texts = [" ".join(random.choice(words, random.integers(6, 14))) for _ in range(90)]
    told = [f"{text} {' '.join(words[:1] * 6)}" if number % 3 else text for number, text in enumerate(texts)]
    return [
        {"id": f"r{number}", "text": text, "told": str(number % 3 > 0), "coin": str(random.integers(2))}
        for number, text in enumerate(told)
    ]


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch):
    for picture in ("heat_map", "cost_chart"):
        monkeypatch.setattr(f"embedkit.study.sweep_files.{picture}", lambda *_: {"png": b"", "svg": b""})


def test_shuffled_labels_give_chance_and_no_state_is_left(embedkit_cli, bert, rows, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", rows)
    kinds = "attention,weighted-layers,idf,pca:4"
    ran = embedkit_cli(
        *("sweep", path, "--label", "coin", "-m", bert, "--pool", "mean", "--layers=-2:", "--folds", "3"),
        *("--pooler", kinds, "--pooler", "mean", "-o", tmp_path / "out", "-q"),
    )
    assert ran.code == 0, ran.err
    assert not [name for name in (tmp_path / "out").iterdir() if name.name.startswith(".")]
    found = pq.read_table(tmp_path / "out/results.parquet").to_pylist()
    fitted = {row["pool"]: row for row in found if row["pool"] in kinds.split(",")}
    assert fitted.keys() == set(kinds.split(","))
    names = {"layer 3 attention", "layers 2-3 weighted-layers", "layer 3 idf", "layer 3 mean trained"}
    assert names <= {row["name"] for row in found}
    assert fitted["pca:4"]["dims"] == 4
    # 90 coins: 0.5 and three standard errors of 0.053.
    assert all(abs(row["accuracy"] - 0.5) < 0.16 for row in fitted.values())


def test_a_pooler_that_wins_is_fitted_and_used_by_the_commands_as_they_are(
    embedkit_cli, bert, rows, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_rows(Path("rows.jsonl"), rows)
    # Layer 0's CLS is the same for all texts; a word is seen in the states of the tokens there.
    common = ("--label", "told", "-m", bert, "--layers", "0", "--pool", "cls", "--folds", "3", "--seed", "4")
    ran = embedkit_cli("sweep", "rows.jsonl", *common, "--pooler", "attention", "-o", "out", "-q")
    assert ran.code == 0, ran.err
    summary = json.loads(Path("out/summary.json").read_text(encoding="utf-8"))
    assert summary["winner"]["name"] == "layer 0 attention"
    assert summary["winner"]["accuracy"] > 0.9
    predictions = pq.read_table("out/predictions.parquet").to_pandas()
    agree = (predictions["label"] == predictions["predicted"]).mean()
    assert agree == pytest.approx(summary["winner"]["accuracy"], abs=0.02)
    for name in ("fit", "encode"):
        command = shlex.split(summary["commands"][name])
        assert embedkit_cli(*command[1:], "-q", *(("-o", "again.npy") if name == "encode" else ())).code == 0
    assert embedkit.read("again.npy").vectors.shape == (90, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pooler", "attn"), "--pooler cannot be 'attn'"),
        (("--pooler", "own.safetensors"), "a fitted pooler may have been trained on these labels"),
        (("--pooler", "attention", "--on-long", "chunk"), "--on-long chunk makes several windows"),
        (("--pooler", "lstm", "--pool", "max"), "--pooler lstm takes the mean or cls of each layer"),
    ],
)
def test_poolers_that_cannot_be_compared_are_refused_before_the_model_runs(
    embedkit_cli, bert, rows, tmp_path, options, message
):
    path = write_rows(tmp_path / "rows.jsonl", rows)
    ran = embedkit_cli("sweep", path, "--label", "told", "-m", bert, "-o", tmp_path / "out", *options)
    assert (ran.code, message in ran.err) == (2, True), ran.err
    assert not (tmp_path / "out").exists()
