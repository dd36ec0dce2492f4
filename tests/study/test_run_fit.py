"""`embedkit fit`, and `encode` with its pooler: compared with plain transformers, one text at a time."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import stat
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import embedkit
from embedkit.cli import run
from embedkit.errors import InputError, Stopped
from embedkit.pooling.select import choose
from embedkit.storage.atomic import temporary_name
from embedkit.storage.filesystem import write_file
from tests import tiny_models
from tests.conftest import NOTES, last_counts
from tests.oracle import Oracle

KINDS = {
    "attention": (),
    "attention-tanh": ("--layers", "1,3", "--hidden-size", "16"),
    "multihead-attention": ("--heads", "2", "--layers", "-2:", "--layer-agg", "mean"),
    "weighted-layers": ("--layer-start", "0"),
    "lstm": ("--layer-pool", "cls", "--hidden-size", "12"),
    "mean": ("--project", "7", "--exclude-special"),
    "cls": (),
    "pca:5": ("--layers", "1,2"),
    "whiten:4": ("--layer-pool", "cls"),
}
LABELLED = [kind for kind in KINDS if ":" not in kind]
SHORT = ("--epochs", "2", "--batch-size", "8", "--validation", "0.2", "--test", "0.2")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """72 rows: a word in each text says which of three classes it is; a few have no text or no label."""
    choice = random.Random(7)
    folder = tmp_path_factory.mktemp("rows")
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "label", "size", "patient"])
        for row in range(72):
            name, word = choice.choice([("cat", "cat"), ("dog", "dog"), ("x/y", "bird")])
            text = " ".join([*choice.choices(["the", "did", "see", "it"], k=choice.randrange(1, 20)), word])
            writer.writerow(
                [f"r{row}", "" if row == 5 else text, "" if row == 9 else name, len(text) / 10, row % 20]
            )
    return folder / "rows.csv"


@pytest.fixture
def fit(embedkit_cli, bert, table, tmp_path):
    """`embedkit fit ROWS ... -o p.safetensors`; the path and the result of the command."""

    def ran(kind, *arguments, name="p.safetensors", code=0, left=frozenset()):
        path = tmp_path / name
        labelled = ("--label", "label", *SHORT) if kind in LABELLED else ()
        asked = last_counts("fit", table, "-m", bert, "--pooler", kind, *labelled, *arguments, "-o", path)
        result = embedkit_cli("fit", *asked)
        assert result.code == code, result.err
        assert {path.name for path in tmp_path.glob(".*")} <= left, "states are left behind"
        return SimpleNamespace(path=path, result=result)

    return ran


def texts_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]


def recipe_of(path):
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return json.loads(header["__metadata__"]["embedkit"])


# Trained poolers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_encode_gives_what_the_pooler_makes_of_plain_transformers_states(kind, fit, encode, table, bert, tmp_path):
    made = fit(kind, *KINDS[kind])
    assert encode(table, "--pool", made.path, "-o", tmp_path / "out.parquet", "-q").code == 0
    out = embedkit.read(tmp_path / "out.parquet")
    recipe = recipe_of(made.path)
    names, poolers = choose((str(made.path),))
    module = poolers[names[0]].pooler("cpu")
    oracle = Oracle(bert, max_length=64)
    texts = [text for text in texts_of(table) if text]
    assert out.vectors.shape == (71, recipe["dims"])
    for text, vector in zip(texts[:20], out.vectors[:20], strict=True):
        states = oracle.states(text)
        given = np.stack([states.layers[layer] for layer in recipe["input"]["layers"]])
        if recipe["input"]["layer_agg"] == "mean":
            given = given.mean(0, keepdims=True)
        mask = ~states.special if recipe["input"]["exclude_special"] else np.ones(given.shape[1], bool)
        found = module(
            torch.from_numpy(given).float()[:, None], torch.from_numpy(mask)[None], torch.zeros(1, len(mask))
        )
        assert np.abs(found[0].numpy() - vector).max() <= 1e-5
    label = f"fit_{kind.partition(':')[0].replace('-', '_')}"
    assert out.recipe["pool"] == [label]
    assert out.recipe["poolers"][label]["sha256"] == poolers[names[0]].identity["sha256"]
    assert out.recipe["layers"] == recipe["input"]["layers"]


@pytest.mark.parametrize("kind", ["attention", "pca:3"])
def test_the_same_seed_gives_the_same_bytes(kind, fit):
    one, again = fit(kind), fit(kind, name="again.safetensors")
    assert one.path.read_bytes() == again.path.read_bytes()


def test_a_learnable_label_is_learned_and_the_file_has_the_scores(fit):
    made = fit(
        "attention", "--layers", "0", "--epochs", "40", "--lr", "0.01", "--group", "patient", "--patience", "40"
    )
    recipe = recipe_of(made.path)
    assert recipe["scores"]["validation"]["accuracy"] >= 0.8
    assert recipe["scores"]["test"].keys() == {"accuracy", "macro_f1"}
    assert recipe["classes"] == ["cat", "dog", "x/y"]
    assert recipe["label"] == "label"
    assert recipe["group"] == "patient"
    rows = recipe["rows"]
    assert rows["train"] + rows["validation"] + rows["test"] == 70
    assert (rows["input"], recipe["left_out"]) == (72, {"no text": 1, "missing label": 1})
    assert "72 rows; left out: 1 no text, 1 missing label" in made.result.err
    assert set(recipe["versions"]) >= {"embedkit", "torch", "transformers", "scikit-learn"}
    assert "epoch 1: loss" in made.result.err
    assert "use it with: embedkit encode INPUT --pool" in made.result.err


def test_rare_classes_and_many_small_ones_are_fitted_and_what_is_left_out_is_told(embedkit_cli, bert, tmp_path):
    texts = [f"the {word} did see it {number}" for number in range(5) for word in ("cat", "dog")]
    rows = [(text, f"c{number // 5}") for number, text in enumerate(texts * 25)]  # 50 classes of five rows
    rows += [("", "c1"), ("it", ""), ("the lone cat", "rare")]
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    command = ("fit", tmp_path / "rows.csv", "-m", bert, "--pooler", "mean", "--label", "label", *SHORT)
    ran = embedkit_cli(*command, "-o", tmp_path / "p.safetensors")
    assert ran.code == 0, ran.err
    recipe = recipe_of(tmp_path / "p.safetensors")
    assert recipe["left_out"] == {"no text": 1, "missing label": 1}
    assert "rare" in recipe["classes"]
    # Ten texts, 25 times each: the guard tells of them, and --dedupe keeps each in one part.
    assert recipe["near_duplicates"]["texts"] == 250
    assert "pairs of near-duplicate texts are in two of training, validation and test rows" in ran.err
    ran = embedkit_cli(*command, "--dedupe", "--exclude-rare", "2", "-o", tmp_path / "d.safetensors")
    assert ran.code == 0, ran.err
    recipe = recipe_of(tmp_path / "d.safetensors")
    assert recipe["near_duplicates"]["pairs_across_parts"] == 0
    assert recipe["left_out"] == {"no text": 1, "missing label": 1, "rare class": 1}
    assert "near-duplicate" not in ran.err


def test_the_users_own_test_file_is_judged_and_not_trained_on(embedkit_cli, bert, table, tmp_path):
    lines = table.read_text(encoding="utf-8").splitlines()
    (tmp_path / "test.csv").write_text("\n".join([lines[0], *lines[60:]]) + "\n", encoding="utf-8")
    (tmp_path / "in.csv").write_text("\n".join(lines[:60]) + "\n", encoding="utf-8")
    command = ("fit", tmp_path / "in.csv", "-m", bert, "--pooler", "mean", "--label", "label", *SHORT[:4])
    out = ("-o", tmp_path / "p.safetensors")
    ran = embedkit_cli(*command, "--test", tmp_path / "test.csv", *out)
    assert ran.code == 0, ran.err
    assert recipe_of(out[1])["rows"]["test"] == 13
    ran = embedkit_cli(*command, "--test", tmp_path / "in.csv", *out, "--overwrite")
    assert (ran.code, "is also part of the input" in ran.err) == (2, True)
    ran = embedkit_cli(*command, "--group", "label", *out, "--overwrite")
    assert (ran.code, "both name the column 'label'" in ran.err) == (2, True)


@pytest.fixture(scope="module")
def fitted(bert, table, one_thread, tmp_path_factory):
    """Returns a pooler with a head, fitted once."""
    path = tmp_path_factory.mktemp("fitted") / "p.safetensors"
    labelled = ("--label", "label", *SHORT)
    assert (
        run(["fit", str(table), "-m", str(bert), "--pooler", "attention", *labelled, "-o", str(path), "-q"]) == 0
    )
    return path


@pytest.mark.parametrize("form", ["parquet", "npy", "jsonl", "arrow"])
def test_the_head_adds_its_scores_in_every_format(form, fitted, encode, table, tmp_path):
    out = tmp_path / "out"
    ran = encode(table, "--pool", fitted, "--with-head", "--keep", "size", "--output-format", form, "-o", out)
    assert ran.code == 0, ran.err
    rows = embedkit.read(out).table.to_pylist()
    weights = load_file(fitted)
    vectors = iter(embedkit.read(out).vectors)
    assert len(rows) == (71 if form == "npy" else 72)
    for row in rows:
        scores = [row[f"score_{name}"] for name in ("cat", "dog", "x/y")]
        if row["status"] == "empty":
            assert scores == [None] * 3
            assert row["predicted"] is None
            continue
        logits = weights["head.weight"].astype(np.float64) @ next(vectors) + weights["head.bias"]
        odds = np.exp(logits - logits.max())
        assert scores == pytest.approx(odds / odds.sum(), abs=1e-6)
        assert row["predicted"] == ("cat", "dog", "x/y")[int(np.argmax(scores))]
    if form == "parquet":
        types = {field.name: str(field.type) for field in embedkit.read(out).table.schema}
        assert (types["score_cat"], types["predicted"]) == ("float", "string")
    if form == "parquet":
        assert encode(table, "--pool", fitted, "--on-exists", "resume", "-o", out, "--keep", "size").code == 5


def test_numbers_are_predicted(fit, encode, table, tmp_path):
    made = fit("mean", "--label", "size", "--layers", "0", "--epochs", "60", "--lr", "0.01", "--patience", "60")
    assert recipe_of(made.path)["task"] == "regression"
    ran = encode(table, "--pool", made.path, "--with-head", "--keep", "size", "-o", tmp_path / "out.jsonl", "-q")
    assert ran.code == 0, ran.err
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    pairs = np.array([(float(row["size"]), row["prediction"]) for row in rows if row["prediction"] is not None])
    assert len(pairs) == 71
    assert np.corrcoef(pairs.T)[0, 1] > 0.7


def test_verify_computes_the_rows_of_a_fitted_pooler_again(fit, encode, embedkit_cli, table, tmp_path):
    made = fit("attention-tanh", "--exclude-special")
    out = tmp_path / "out"
    assert encode(table, "--pool", f"mean,{made.path}", "-o", out, "-q").code == 0
    assert "\npass: " in embedkit_cli("verify", out, "--resample", "9").out
    made.path.unlink()
    assert embedkit_cli("verify", out, "--resample", "9").code == 4


# What is refused -------------------------------------------------------------------------------------


def test_another_model_other_layers_and_wrong_options_are_refused(fit, fitted, encode, table, tmp_path):
    out = ("-o", tmp_path / "out", "-q")
    other = tiny_models.make("roberta", tmp_path / "roberta").folder
    cases = {
        4: [("--pool", fitted, "-m", other)],
        2: [
            ("--pool", fitted, "--layers", "1"),
            ("--pool", fitted, "--layer-agg", "mean"),
            ("--pool", fitted, "--exclude-special"),
            ("--pool", f"idf:{fitted}"),
            ("--pool", "mean", "--with-head"),
            ("--pool", f"mean,{fitted}", "--with-head"),
        ],
    }
    for code, commands in cases.items():
        for command in commands:
            ran = encode(table, *command, *out)
            assert ran.code == code, (command, ran.err)
            assert ran.err.startswith("error: ")
    assert not (tmp_path / "out").exists()
    assert encode(table, "--pool", fit("pca:2", name="pca.safetensors").path, "--with-head", *out).code == 2
    beside = encode(table, "--pool", f"mean,{fitted},{tmp_path / 'pca.safetensors'}", "-o", tmp_path / "three")
    assert beside.code == 0, beside.err
    assert embedkit.read(tmp_path / "three").vectors.shape == (71, 32 + 32 + 2)


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (("--pooler", "attention"), 2, "is trained on labels"),
        (("--pooler", "attention", "--label", "nothing"), 3, "nothing"),
        (("--pooler", "attention", "--label", "id"), 3, "nearly every row has its own"),
        (("--pooler", "attention", "--label", "label", "--task", "regression"), 2, "not finite numbers"),
        (("--pooler", "pca"), 2, "does not say how many"),
        (("--pooler", "pca:0"), 2, "cannot be"),
        (("--pooler", "pca:99"), 3, "vary in"),
        (("--pooler", "pca:3", "--label", "label"), 2, "needs no labels"),
        (("--pooler", "max", "--label", "label"), 2, "cannot be 'max'"),
        (("--pooler", "cls", "--label", "label", "--heads", "2"), 2, "--heads is not for"),
        (("--pooler", "multihead-attention", "--label", "label", "--heads", "5"), 2, "does not divide"),
        (("--pooler", "lstm", "--label", "label", "--layer-start", "9"), 2, "out of range"),
        (("--pooler", "lstm", "--label", "label", "--layer-agg", "mean"), 2, "weighs the layers itself"),
        (("--pooler", "mean", "--label", "label", "--test", "0.6"), 2, "--test cannot be"),
        (("--pooler", "mean", "--label", "label", "--lr", "0"), 2, "--lr cannot be"),
        (("--pooler", "mean", "--label", "label", "--layer-agg", "separate"), 2, "separate"),
        (("--pooler", "mean", "--label", "label", "--on-long", "chunk"), 2, "several windows"),
    ],
)
def test_what_cannot_be_fitted_is_refused_without_a_label_in_the_error(
    arguments, code, what, embedkit_cli, table, bert, tmp_path
):
    ran = embedkit_cli("fit", table, "-m", bert, *arguments, "-o", tmp_path / "p.safetensors", "-q")
    assert ran.code == code, ran.err
    assert what in ran.err
    assert not any(word in ran.err for word in ("dog", "x/y", "bird"))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept_without_overwrite(fit):
    made = fit("pca:2")
    before = made.path.read_bytes()
    assert "exists already" in fit("pca:3", code=5).result.err
    assert made.path.read_bytes() == before
    fit("pca:3", "--overwrite")
    assert made.path.read_bytes() != before


@pytest.mark.parametrize("kind", ["mean", "pca:2", "idf"])
def test_a_fitted_file_brings_its_model(fit, embedkit_cli, bert, table, tmp_path, kind):
    """By the name that was typed: a relative path stays one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(bert.parent)
        path = fit(kind, "-m", bert.name).path
        pool = f"idf:{path}" if kind == "idf" else str(path)
        ran = embedkit_cli("encode", table, "--pool", pool, "-o", tmp_path / "without.npy")
        assert ran.code == 0, ran.err
        assert f"note: --model is {bert.name}, on which the pooler was fitted" in ran.err
        ours = embedkit.Encoder(pool=pool)
        assert f"--model is {bert.name}, on which the pooler was fitted" in ours.notices
    assert str(bert.parent) not in json.dumps(recipe_of(path))
    elsewhere = embedkit_cli("encode", table, "--pool", pool, "-o", tmp_path / "elsewhere.npy")
    assert elsewhere.code == 4
    assert f"{path} was fitted on the model in the folder '{bert.name}'" in elsewhere.err
    assert "hint: name the model's folder with -m" in elsewhere.err
    named = embedkit_cli("encode", table, "-m", bert, "--pool", pool, "-o", tmp_path / "with.npy")
    assert (named.code, "on which the pooler" in named.err) == (0, False)
    np.testing.assert_array_equal(
        *(embedkit.read(tmp_path / f"{name}.npy").vectors for name in ("without", "with"))
    )


# States on disk --------------------------------------------------------------------------------------


def test_too_little_disk_space_is_reported_before_anything_is_computed(fit, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr("embedkit.study.encode_states.run", lambda *_: pytest.fail("was encoded"))
    err = fit("attention", code=5).result.err
    assert "GB on disk" in err


def test_a_stopped_fit_continues_from_its_states(fit, embedkit_cli, bert, table, tmp_path, monkeypatch):
    from embedkit.study import train_pooler

    def stopped(*_, **__):
        raise Stopped("stopped", hint="again")

    path = tmp_path / "p.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(train_pooler, "fit_pooler", stopped)
        command = ("fit", table, "-m", bert, "--pooler", "attention", "--label", "label", *SHORT, "-o", path)
        assert embedkit_cli(*command).code == 75
    folder = tmp_path / ".p.safetensors.states"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    shards = {shard: shard.stat().st_mtime_ns for shard in folder.rglob("*.arrow")}
    assert shards
    with monkeypatch.context() as patch:
        patch.setattr(
            "embedkit.inference.pipeline.embed", lambda *_, **__: pytest.fail("was computed again"), raising=False
        )
        fit("attention")
    fit("attention", "--layers", "1", "--overwrite")  # other states in its place are no hindrance
    assert recipe_of(path)["input"]["layers"] == [1]


@pytest.mark.parametrize("later", ["fit", "folder", "file.parquet", "write_file", "other machine"])
def test_a_later_run_removes_the_states_of_a_killed_fit_and_neither_kept_ones_nor_those_in_use(
    later, fit, encode, table, tmp_path
):
    for name in ("killed", "running", "kept"):
        (tmp_path / f".{name}.safetensors.states").mkdir()
        (tmp_path / f".{name}.safetensors.states/part.arrow").touch()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = temporary_name("killed.safetensors.states").replace(f"-{os.getpid()}.", f"-{gone.pid}.")
    alive = temporary_name("running.safetensors.states")
    for name in (dead, alive):
        (tmp_path / name).touch()
    if later == "other machine":  # whose processes are unknown
        (tmp_path / dead).rename(tmp_path / f".killed.safetensors.states.01234567-{gone.pid}.tmp")
    there = {path.name for path in tmp_path.glob(".*")}
    if later == "fit":
        err = fit("mean", left=there - {dead, ".killed.safetensors.states"}).result.err
        assert f"{tmp_path / '.kept.safetensors.states'} holds states that an interrupted fit computed" in err
        assert ".running.safetensors.states" not in err
    elif later in {"folder", "file.parquet"}:
        assert encode(table, "-o", tmp_path / later, "--limit", 2).code == 0
    else:
        write_file(tmp_path, "other.html", b"")
    left = {path.name for path in tmp_path.glob(".*")}
    removed = {dead, ".killed.safetensors.states"} if later != "other machine" else set()
    assert left == there - removed


def test_states_stay_after_a_disk_error_and_the_same_command_continues(fit, embedkit_cli, bert, table, tmp_path):
    command = ("fit", table, "-m", bert, "--pooler", "mean", "--label", "label", *SHORT, "-o")
    path = tmp_path / "p.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        from embedkit.study import run_fit as module

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        patch.setattr(module, "pooler_bytes", full)
        assert embedkit_cli(*command, path).code == 5
    assert list((tmp_path / ".p.safetensors.states/commits").iterdir())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "embedkit.inference.pipeline.embed", lambda *_, **__: pytest.fail("was computed again"), raising=False
        )
        assert embedkit_cli(*command, path).code == 0
    assert not (tmp_path / ".p.safetensors.states").exists()


@pytest.mark.parametrize(
    ("fault", "code", "what"),
    [
        (InputError("the training failed", hint="none"), 3, "error: the training failed\n"),
        (ValueError("of torch"), 1, "internal error of embedkit: ValueError"),
        (OSError(5, "Input/output error"), 5, "error: Input/output error\n"),
    ],
)
@pytest.mark.parametrize("removal", [PermissionError(13, "Permission denied"), RuntimeError("of a file system")])
def test_a_failed_removal_of_the_states_does_not_hide_why_the_fit_failed(
    fault, code, what, removal, embedkit_cli, bert, table, tmp_path, monkeypatch
):
    def failing(error):
        def fail(*_, **__):
            raise error

        return fail

    monkeypatch.setattr("embedkit.study.train_pooler.fit_pooler", failing(fault))
    monkeypatch.setattr("embedkit.study.encode_states.remove_tree", failing(removal))
    command = ("fit", table, "-m", bert, "--pooler", "mean", "--label", "label", *SHORT)
    ran = embedkit_cli(*command, "-o", tmp_path / "p.safetensors")
    assert ran.code == code
    assert what in ran.err
    folder = tmp_path / ".p.safetensors.states"
    kept = f"{folder} keeps the computed states" if code == 5 else f"{folder} holds states computed from the texts"
    assert kept in ran.err


def test_states_that_are_gone_do_not_hide_why_the_fit_failed(embedkit_cli, bert, table, tmp_path, monkeypatch):
    def fail(*_, **__):
        shutil.rmtree(tmp_path / ".p.safetensors.states")
        raise InputError("the training failed", hint="none")

    monkeypatch.setattr("embedkit.study.train_pooler.fit_pooler", fail)
    command = ("fit", table, "-m", bert, "--pooler", "mean", "--label", "label", *SHORT)
    ran = embedkit_cli(*command, "-o", tmp_path / "p.safetensors")
    assert (ran.code, ran.told[-2:]) == (3, ["error: the training failed", "hint: none"])


def test_two_fits_into_one_file_at_a_time_are_refused(embedkit_cli, bert, table, tmp_path):
    alive = tmp_path / temporary_name("p.safetensors.states").replace(f"-{os.getpid()}.", f"-{os.getppid()}.")
    alive.touch()
    command = ("fit", table, "-m", bert, "--pooler", "mean", "--label", "label", *SHORT)
    ran = embedkit_cli(*command, "-o", tmp_path / "p.safetensors")
    assert (ran.code, "another fit into the same file is running" in ran.err) == (5, True), ran.err
    assert [path.name for path in tmp_path.glob(".*")] == [alive.name]


# IDF -------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(embedkit_cli, bert, tmp_path):
    def ran(*arguments):
        path = tmp_path / "idf.safetensors"
        result = embedkit_cli("fit", NOTES, "-m", bert, "--pooler", "idf", "-o", path, *arguments)
        assert result.code == 0, result.err
        return path

    return ran


def test_idf_counts_texts_and_weighs_tokens_as_scikit_learn_would(counted, encode, bert, tmp_path, monkeypatch):
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfTransformer
    from transformers import AutoTokenizer

    with monkeypatch.context() as patch:
        patch.setattr(
            "embedkit.models.transformers.load.load_model", lambda *_: pytest.fail("the weights were read")
        )
        path = counted("--prompt", "note: ")
    tokenizer = AutoTokenizer.from_pretrained(bert)
    texts = [text for text in texts_of(NOTES) if text.strip()]
    ids = [tokenizer("note: " + text, truncation=True, max_length=64)["input_ids"] for text in texts]
    presence = np.zeros((len(ids), len(tokenizer)))
    for row, of_text in enumerate(ids):
        presence[row, of_text] = 1
    assert load_file(path)["document_frequencies"].tolist() == presence.sum(axis=0).tolist()
    recipe = recipe_of(path)
    assert recipe["n_documents"] == len(texts)
    idf = TfidfTransformer(smooth_idf=True).fit(csr_matrix(presence)).idf_
    assert (
        encode(NOTES, "--pool", f"idf:{path}", "--prompt", "note: ", "-o", tmp_path / "o.parquet", "-q").code == 0
    )
    out = embedkit.read(tmp_path / "o.parquet")
    oracle = Oracle(bert, max_length=64)
    for text, of_text, vector in zip(texts, ids, out.vectors, strict=True):
        states, weights = oracle.states("note: " + text).layers[-1], idf[of_text][:, None]
        assert np.abs((weights * states).sum(0) / weights.sum() - vector).max() <= 1e-5
    assert out.recipe["pool"] == ["idf"]
    assert len(out.recipe["poolers"]["idf"]["sha256"]) == 64


def test_idf_of_another_vocabulary_or_casing_is_refused(counted, encode, tmp_path):
    path = counted()
    out = ("-o", tmp_path / "out", "-q")
    other = tiny_models.make("roberta", tmp_path / "roberta").folder
    assert "another tokenizer" in encode(NOTES, "--pool", f"idf:{path}", "-m", other, *out).err
    assert encode(NOTES, "--pool", f"idf:{path}", "--lowercase", "no", *out).code == 4
    assert "write --pool idf:" in encode(NOTES, "--pool", path, *out).err
    assert encode(NOTES, "--pool", f"idf:{path},mean", "--layers", "1,2", *out).code == 0
    assert embedkit.read(tmp_path / "out").vectors.shape == (66, 4 * 32)
