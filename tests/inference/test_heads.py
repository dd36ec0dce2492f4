"""Probes and heads on new rows, compared with plain transformers, numpy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

import embedkit
from embedkit.pooling.heads import PredictionHead
from embedkit.pooling.pooler_files import probe_bytes
from tests.conftest import NOTES
from tests.oracle import Oracle, pool

TASKS = {
    "classification": ("cat", "dog", "n/a"),
    "multilabel": ("fever", "pain"),
    "ordinal": ("1", "2", "5"),
    "regression": (),
}
LAYERS, POOLINGS = (1, 3), ("max", "mean")


def oracle_scores(task, weight, bias, vectors):
    logits = vectors @ weight.T.astype(np.float64) + bias
    if task == "classification":
        return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if task == "multilabel":
        return 1 / (1 + np.exp(-logits))
    return np.minimum(np.maximum(logits, 0), 2) if task == "ordinal" else logits


def make_head(task, dims, classes=None):
    random = np.random.default_rng(3)
    names = TASKS[task] if classes is None else classes
    outputs = len(names) if task in {"classification", "multilabel"} else 1
    weight = random.normal(0, 0.3, (outputs, dims)).astype(np.float32)
    return PredictionHead(weight, random.normal(0, 1, outputs).astype(np.float32), tuple(names), task)


@pytest.fixture(scope="module")
def vectors_of_oracle(bert, notes):
    """[N, 4 x 32] by hand: max of layers 1 and 3, then mean of layers 1 and 3, of texts cut at 24 tokens."""
    oracle = Oracle(bert, max_length=24)
    states = [oracle.states(text).layers for text in notes.texts if text.strip()]
    return np.array([np.concatenate([pool(p, of[layer]) for p in POOLINGS for layer in LAYERS]) for of in states])


@pytest.fixture(scope="module")
def recipe(bert):
    return embedkit.Encoder(str(bert), pool="mean", max_length=24).recipe


@pytest.fixture
def probe(recipe, tmp_path):
    """Writes a probe's file, and returns its path and its head."""

    def made(task="classification", classes=None, change=(), name="probe.safetensors", **where):
        where = {"layers": LAYERS, "layer_agg": "concat", "poolings": POOLINGS} | where
        head = make_head(task, 32 * len(where["layers"]) * len(where["poolings"]), classes)
        content = probe_bytes(head, {**recipe, **dict(change)}, **where, facts={"label": "animal"})
        (tmp_path / name).write_bytes(content)
        return tmp_path / name, head

    return made


@pytest.mark.parametrize("task", TASKS)
def test_a_probe_scores_new_rows_by_the_layers_poolings_and_length_of_its_file(
    task, probe, encode, vectors_of_oracle, tmp_path
):
    path, head = probe(task)
    ran = encode(NOTES, "--pool", path, "--with-head", "-o", tmp_path / "out.parquet")
    assert ran.code == 0, ran.err
    table = pq.read_table(tmp_path / "out.parquet")
    table = table.filter(table["embedding"].is_valid())
    expected = oracle_scores(task, head.weight, head.bias, vectors_of_oracle)
    assert np.abs(np.array(table["embedding"].to_pylist()) - vectors_of_oracle).max() < 1e-5
    columns = ["prediction"] if task in {"ordinal", "regression"} else [f"score_{name}" for name in TASKS[task]]
    found = np.array([table[name].to_pylist() for name in columns]).T
    assert np.abs(found - expected).max() < 1e-5
    match task:
        case "classification":
            assert table["predicted"].to_pylist() == [TASKS[task][row.argmax()] for row in expected]
        case "multilabel":
            names = np.array(TASKS[task])
            assert table["predicted"].to_pylist() == [names[row >= 0.5].tolist() for row in expected]
        case "ordinal":
            nearest = np.abs(expected - np.arange(3)).argmin(axis=1)
            assert table["predicted"].to_pylist() == [TASKS[task][place] for place in nearest]
        case "regression":
            assert "predicted" not in table.column_names


SHORT = {"text": {"lowercase": True, "prompt": "", "max_length": 24, "on_long": "truncate"}}


@pytest.mark.parametrize(
    ("recorded", "options", "told"),
    [
        ({}, (), "as in FILE: --layers 1,3 --pool max,mean --max-length 24 --lowercase yes"),
        ({"prompt": "note: "}, (), "--prompt 'note: '"),
        (
            {"on_long": "chunk", "stride": 3, "chunk_pool": "max"},
            (),
            "--on-long chunk --stride 3 --chunk-pool max",
        ),
        ({"on_long": "error"}, (), None),
        ({}, ("--max-length", "24", "--lowercase", "yes", "--prompt", ""), None),
        ({}, ("--max-length", "12"), "--max-length 12, and FILE was fitted with --max-length 24"),
        ({}, ("--on-long", "chunk"), "--on-long chunk, and FILE was fitted with --on-long truncate"),
        ({"on_long": "chunk", "stride": 3}, ("--on-long", "truncate"), "--on-long truncate, and FILE was fitted"),
        ({}, ("--lowercase", "no"), "--lowercase no, and FILE was fitted with --lowercase yes"),
        ({}, ("--prompt", "x: "), "--prompt 'x: ', and FILE was fitted with no prompt"),
        ({"prompt": "y: "}, ("--prompt", ""), "no prompt, and FILE was fitted with --prompt 'y: '"),
    ],
)
def test_options_on_texts_are_those_of_the_file_unless_given_and_both_are_told(
    recorded, options, told, probe, encode, bert, notes, tmp_path
):
    text = SHORT["text"] | recorded
    path, _ = probe(change={"text": text})
    ran = encode(NOTES, "--pool", path, "--limit", 8, *options, "-o", tmp_path / "out.npy", "--offline")
    assert ran.code == 0, ran.err
    differing = [line for line in ran.err.splitlines() if " was fitted with " in line]
    assert len(differing) == (told is not None and " was fitted" in told)
    assert (told or "as in FILE").replace("FILE", str(path)) in ran.err
    given = dict(zip(options[::2], options[1::2], strict=True))
    named = {option.removeprefix("--").replace("-", "_"): value for option, value in given.items()}
    wanted = {name: value for name, value in text.items() if name not in {"stride", "chunk_pool"}} | named
    if wanted["on_long"] == "chunk":
        wanted |= {name: text[name] for name in ("stride", "chunk_pool") if name in text}
    wanted |= {"max_length": int(wanted["max_length"]), "on_long": wanted["on_long"].replace("error", "truncate")}
    wanted["lowercase"] = {True: "yes"}.get(wanted["lowercase"], wanted["lowercase"])
    by_hand = embedkit.Encoder(str(bert), layers=LAYERS, pool=list(POOLINGS), **wanted)
    vectors = by_hand.encode(notes.texts[:8])
    assert np.array_equal(embedkit.read(tmp_path / "out.npy").vectors, vectors[~np.isnan(vectors[:, 0])])


@pytest.mark.parametrize("options", [("--lowercase", "no"), ("--prompt", "x: ")])
def test_a_head_does_not_score_texts_in_another_casing_or_with_another_prompt(options, probe, encode, tmp_path):
    path, _ = probe(change=SHORT)
    ran = encode(NOTES, "--pool", path, "--with-head", *options, "-o", tmp_path / "out.npy")
    assert ran.code == 2
    assert f"the head in {path} was trained with" in ran.err
    assert f"hint: leave out {options[0]}" in ran.err
    assert not (tmp_path / "out.npy").exists()
