"""Poolers that are fitted, as candidates of a sweep beside the static ones."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import embedkit
from embedkit.study.train_pooler import _Training
from tests.conftest import write_rows
from tests.tiny_models import CORPUS

pytestmark = pytest.mark.usefixtures("pictures_in_words")


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


@pytest.mark.parametrize("pooler", ["attention", "idf"])
def test_a_pooler_that_wins_is_fitted_and_used_by_the_commands_as_they_are(
    embedkit_cli, bert, rows, tmp_path, monkeypatch, pooler
):
    monkeypatch.chdir(tmp_path)
    write_rows(Path("rows.jsonl"), rows)
    # Layer 0's CLS is the same for all texts; a word is seen in the states of the tokens there.
    common = ("--label", "told", "-m", bert, "--layers", "0", "--pool", "cls", "--folds", "3", "--seed", "4")
    ran = embedkit_cli("sweep", "rows.jsonl", *common, "--pooler", pooler, "-o", "out", "-q")
    assert ran.code == 0, ran.err
    summary = json.loads(Path("out/summary.json").read_text(encoding="utf-8"))
    assert summary["winner"]["name"] == f"layer 0 {pooler}"
    predictions = pq.read_table("out/predictions.parquet").to_pandas()
    agree = (predictions["label"] == predictions["predicted"]).mean()
    assert agree == pytest.approx(summary["winner"]["accuracy"], abs=0.02)
    commands = {name: shlex.split(line)[1:] for name, line in summary["commands"].items()}
    assert embedkit_cli(*commands["fit"], "-q").code == 0
    assert embedkit_cli(*commands["encode"], "-o", "of-sweep.npy", "-q").code == 0
    again = [word.replace("out/winner.safetensors", f"{pooler}.safetensors") for word in commands["encode"]]
    again += ["--layers", "0"] if pooler == "idf" else []
    assert embedkit_cli(*again, "-o", "of-fit.npy", "-q").code == 0
    ours, theirs = (embedkit.read(name).vectors for name in ("of-sweep.npy", "of-fit.npy"))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    predict = [word.replace("NEW.csv", "rows.jsonl") for word in commands["predict"]]
    assert embedkit_cli(*predict, "-o", "new.parquet", "-q").code == 0
    scored = pq.read_table("new.parquet").to_pandas()
    np.testing.assert_allclose(scored[["score_False", "score_True"]].sum(axis=1), 1, atol=1e-5)
    # The rows are those of its training: it is no worse than on rows that it has not seen.
    assert (scored["predicted"] == [row["told"] for row in rows]).mean() >= agree - 0.05


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


def test_a_sweep_that_is_stopped_while_a_pooler_trains_says_how_it_continues(
    embedkit_cli, bert, rows, tmp_path, monkeypatch
):
    path = write_rows(tmp_path / "rows.jsonl", rows)
    command = ["sweep", path, "--label", "told", "-m", bert, "--pool", "mean", "--layers=-1", "--folds", "3"]
    command += ["--pooler", "attention", "-o", tmp_path / "out", "-q"]
    one_epoch = _Training.one_epoch

    def stopped(training):
        training.stop.set()
        return one_epoch(training)

    with monkeypatch.context() as patch:
        patch.setattr(_Training, "one_epoch", stopped)
        ran = embedkit_cli(*command)
    assert ran.code == 75
    assert "--on-exists resume" in ran.err
    assert embedkit_cli(*command, "--on-exists", "resume").code == 0


def test_poolers_that_cannot_be_fitted_are_left_out_by_name(embedkit_cli, bert, rows, tmp_path):
    """Each class is in one group: no row for early stopping has a class of the training rows."""
    alone = [{**row, "patient": f"p{row['told']}{number % 2}"} for number, row in enumerate(rows)]
    alone = [{**row, "told": row["patient"]} for row in alone]
    path = write_rows(tmp_path / "rows.jsonl", alone)
    ran = embedkit_cli(
        *("sweep", path, "--label", "told", "--group", "patient", "-m", bert, "--pool", "mean", "--layers=-1"),
        *("--folds", "3", "--pooler", "attention,pca:4,pca:64", "-o", tmp_path / "out"),
    )
    assert ran.code == 0, ran.err
    summary = json.loads((tmp_path / "out/summary.json").read_text(encoding="utf-8"))
    assert "layer 3 attention is left out: no validation row has a class that training rows have" in ran.err
    assert [sentence.partition(" is left out: ")[0] for sentence in summary["warnings"]] == [
        "layer 3 pca:64",
        "layer 3 attention",
    ]
    assert all(f"note: {sentence}\n" in ran.err for sentence in summary["warnings"])
    names = {row["name"] for row in pq.read_table(tmp_path / "out/results.parquet").to_pylist()}
    assert names >= {"layer 3 mean", "layer 3 pca:4"}
    assert not names & {"layer 3 attention", "layer 3 pca:64"}
