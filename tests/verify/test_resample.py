"""`embedkit verify --resample` passes what the model says, and fails what it does not."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import embedkit
from embedkit.pooling import functions
from embedkit.pooling.heads import PredictionHead
from embedkit.pooling.pooler_files import probe_bytes
from embedkit.pooling.postprocess import Int8Range
from embedkit.verify.compare import Comparison
from tests.conftest import NOTES
from tests.tiny_models import make

POOLS = ("cls", "mean", "max", "min", "mean_sqrt_len", "weightedmean", "lasttoken")


@pytest.fixture
def resample(embedkit_cli, bert):
    def ran(out, *arguments, rows=9):
        return embedkit_cli("verify", out, "--resample", rows, *arguments)

    return ran


def passed(ran) -> bool:
    assert ran.code in {0, 5}, ran.err
    assert ("\npass: " in ran.out) == (ran.code == 0)
    return ran.code == 0


# What is right passes -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "binary"])
def test_every_precision_and_dtype_is_computed_again_within_its_tolerance(
    encode, resample, tmp_path, precision, dtype
):
    out = tmp_path / "out"
    options = ("--pool", ",".join(POOLS), "--precision", precision, "--dtype", dtype, "--shard-rows", 20)
    assert encode(NOTES, "-o", out, *options).code == 0
    ran = resample(out, rows=66)
    assert passed(ran), ran.out
    assert "66 random rows" in ran.out


@pytest.mark.parametrize(
    "options",
    [
        ("--layers", "1,2", "--layer-agg", "separate", "--pool", "cls,mean"),
        ("--layers", "-2:", "--layer-agg", "mean", "--pool", "max", "--exclude-special"),
        ("--normalize", "--truncate-dim", "9", "--prompt", "query: ", "--max-length", "16"),
        ("--pool", "none", "--limit", "30"),
        ("--lowercase", "no", "--output-format", "npy"),
        ("--template", "{label}: {text}", "--output-format", "arrow"),
        ("--pool", "pooler", "--output-format", "jsonl"),
    ],
    ids=" ".join,
)
def test_whatever_was_asked_for_is_asked_again(encode, resample, tmp_path, options):
    out = tmp_path / "out"
    assert encode(NOTES, "-o", out, "--shard-rows", 20, *options).code == 0
    assert passed(resample(out))


@pytest.mark.parametrize("kind", ["roberta", "modernbert", "t5", "gpt2"])
def test_models_of_other_kinds_pass_on_plain_transformers_as_well(embedkit_cli, tmp_path, kind):
    model = make(kind, tmp_path / kind).folder
    assert embedkit_cli("encode", "-m", model, NOTES, "-o", tmp_path / "out").code == 0
    assert passed(embedkit_cli("verify", tmp_path / "out", "--resample", 5))


@pytest.mark.parametrize("form", ["parquet", "arrow", "npy"])
def test_a_single_file_tells_its_recipe_and_is_told_the_rest(encode, resample, bert, tmp_path, form):
    out = tmp_path / f"out.{form}"
    assert encode(NOTES, "-o", out).code == 0
    ran = resample(out, "-m", bert)
    assert (ran.code, "not recorded in a single file" in ran.err) == (3, True), ran.err
    ran = resample(out, "--input", NOTES)
    assert (ran.code, "name it with --model" in ran.err) == (4, True), ran.err
    assert passed(resample(out, "--input", NOTES, "-m", bert))


def test_json_lines_alone_do_not_tell_their_recipe(encode, resample, bert, tmp_path):
    assert encode(NOTES, "-o", tmp_path / "out.jsonl").code == 0
    ran = resample(tmp_path / "out.jsonl", "--input", NOTES, "-m", bert)
    assert (ran.code, "does not say how it was made" in ran.err) == (5, True), ran.err


@pytest.mark.parametrize("bad", ["null", "skip"])
@pytest.mark.parametrize("name", ["out", "out.parquet", "out.npy"])
def test_rows_keep_their_numbers_where_others_are_left_out(encode, resample, bert, tmp_path, bad, name):
    table = tmp_path / "notes.jsonl"
    lines = ['{"text": "pain"}', '{"text": 7}', '{"text": ""}', '{"text": "fever"}', "{", '{"text": "SOB"}'] * 4
    table.write_text("\n".join(lines) + "\n")
    assert encode(table, "-o", tmp_path / name, "--on-bad-row", bad, "--shard-rows", 5).code == 0
    assert passed(resample(tmp_path / name, "--input", table, "-m", bert, rows=12))


def with_head(bert, folder, task="classification"):
    """Writes a head on the mean of layers 1 and 3, and returns its path."""
    random = np.random.default_rng(5)
    classes = () if task == "regression" else ("angina", "fever", "pain")
    outputs = len(classes) if task in {"classification", "multilabel"} else 1
    weight, bias = (random.normal(0, 0.3, shape).astype(np.float32) for shape in ((outputs, 64), (outputs,)))
    head = PredictionHead(weight, bias, classes, task)
    recipe = embedkit.Encoder(str(bert), pool="mean").recipe
    content = probe_bytes(
        head, recipe, layers=(1, 3), layer_agg="concat", poolings=("mean",), facts={"label": "a"}
    )
    (folder / "probe.safetensors").write_bytes(content)
    return folder / "probe.safetensors"


@pytest.mark.parametrize("task", ["classification", "multilabel", "ordinal", "regression"])
@pytest.mark.parametrize("options", [("--output-format", "npy"), ("--dtype", "bf16", "--normalize")], ids=str)
def test_scores_of_a_head_are_computed_again(encode, resample, bert, tmp_path, task, options):
    out, path = tmp_path / "out", with_head(bert, tmp_path, task)
    assert encode(NOTES, "-o", out, "--pool", path, "--with-head", "--limit", 20, *options).code == 0
    ran = resample(out)
    assert passed(ran), ran.out
    assert f"{9 * (3 if task in {'classification', 'multilabel'} else 1)} scores of the head: max |Δ| " in ran.out


# What is wrong fails --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", "fp32"), ("float16", "bf16"), ("int8", "fp32"), ("binary", "fp32")]
)
def test_vectors_of_a_pooling_that_went_wrong_fail_by_their_rows(
    encode, resample, tmp_path, monkeypatch, precision, dtype
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setitem(functions.POOLINGS, "mean", functions.POOLINGS["cls"])
        assert encode(NOTES, "-o", out, "--pool", "mean", "--precision", precision, "--dtype", dtype).code == 0
    ran = resample(out)
    assert not passed(ran)
    rows = [line for line in ran.out.splitlines() if line.startswith("row ")]
    assert rows
    assert f"{len(rows)} of 9 rows" in ran.err
    assert "hint: " in ran.err


def test_one_value_that_is_a_ten_thousandth_off_fails(encode, resample, tmp_path, monkeypatch):
    from embedkit.inference import pipeline

    right = pipeline.finish

    def wrong(vectors, **options):
        done = right(vectors, **options)
        done[:, 5] += 1e-4
        return done

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "finish", wrong)
        assert encode(NOTES, "-o", tmp_path / "out", "--normalize", "--limit", 10).code == 0
    assert not passed(resample(tmp_path / "out"))


@pytest.mark.parametrize(
    ("task", "column", "wrong"),
    [
        ("classification", "score_fever", lambda value: value + 1e-3),
        ("multilabel", "score_pain", lambda value: value - 1e-3),
        ("regression", "prediction", lambda value: value * 1.01),
        ("ordinal", "predicted", lambda value: "pain" if value == "fever" else "fever"),
        ("classification", "predicted", lambda value: "pain" if value == "fever" else "fever"),
    ],
)
def test_a_changed_score_or_prediction_fails_by_its_row(
    encode, resample, bert, tmp_path, monkeypatch, task, column, wrong
):
    right = PredictionHead.cells

    def changed(head, vectors):
        cells = right(head, vectors)
        cells[column][7] = wrong(cells[column][7])
        return cells

    with monkeypatch.context() as patch:
        patch.setattr(PredictionHead, "cells", changed)
        path = with_head(bert, tmp_path, task)
        assert encode(NOTES, "-o", tmp_path / "out", "--pool", path, "--with-head", "--limit", 12).code == 0
    ran = resample(tmp_path / "out", rows=12)
    assert not passed(ran)
    found = [line.split(":")[0] for line in ran.out.splitlines() if line.startswith("row ")]
    assert found[0].endswith(f", {column}")
    assert len({name.split(",")[0] for name in found}) == 1
    assert "differs from what the model computes in 1 of 12 rows" in ran.err


def test_the_seed_decides_which_rows_over_all_shards(encode, bert, tmp_path):
    from embedkit.verify.provenance import provenance_of
    from embedkit.verify.sample import choose

    out = tmp_path / "out"
    assert encode(NOTES, "-o", out, "--shard-rows", 10).code == 0
    chosen = [[one.row for one in choose(out, provenance_of(out), 12, seed)] for seed in (0, 0, 1, 2, 3)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert all(len(set(rows)) == 12 and rows == sorted(rows) for rows in chosen)
    assert {row // 10 for rows in chosen for row in rows} == set(range(7))


# What cannot be compared is refused -----------------------------------------------------------------


@pytest.fixture
def moved(encode, tmp_path):
    """Returns an output whose input and model may be changed."""
    (tmp_path / "notes.csv").write_bytes(NOTES.read_bytes())
    assert encode(tmp_path / "notes.csv", "-o", tmp_path / "out", "--limit", 20).code == 0
    return tmp_path


def test_an_input_that_has_changed_or_gone_is_refused(moved, resample):
    table = moved / "notes.csv"
    table.write_bytes(NOTES.read_bytes() + b"9,x,y\n")
    ran = resample(moved / "out")
    assert (ran.code, "bytes and had" in ran.err) == (3, True), ran.err
    table.write_bytes(NOTES.read_bytes().replace(b"pain", b"ache"))
    assert "the content of" in resample(moved / "out").err
    table.unlink()
    assert resample(moved / "out").code == 3
    assert passed(resample(moved / "out", "--input", NOTES))


def test_another_model_is_refused_by_the_file_that_differs(moved, resample):
    other = make("bert", moved / "other", seed=1).folder
    ran = resample(moved / "out", "-m", other)
    assert (ran.code, "model.files.model.safetensors was" in ran.err) == (4, True), ran.err


def test_a_recipe_of_another_version_is_refused_by_the_field(moved, resample, monkeypatch):
    from embedkit.inference import build

    recipe_of = build.recipe_of
    monkeypatch.setattr(build, "recipe_of", lambda *of, **facts: {**recipe_of(*of, **facts), "version": 99})
    ran = resample(moved / "out")
    assert (ran.code, "version would be 99" in ran.err) == (5, True), ran.err


def test_a_damaged_output_is_told_before_anything_is_computed(moved, resample):
    (moved / "out/commits/00000.json").unlink()
    ran = resample(moved / "out")
    assert (ran.code, "computed again" in ran.out) == (5, False)


def test_what_is_for_resample_is_refused_without_it(embedkit_cli, tmp_path):
    assert embedkit_cli("verify", tmp_path, "--model", "minilm").code == 2
    assert embedkit_cli("verify", tmp_path, "--resample", 0).code == 2


def test_no_text_is_in_what_is_said(encode, resample, tmp_path, monkeypatch):
    table = tmp_path / "secret.jsonl"
    table.write_text("".join(json.dumps({"id": f"jane{n}", "text": f"secret {n}"}) + "\n" for n in range(5)))
    with monkeypatch.context() as patch:
        patch.setitem(functions.POOLINGS, "mean", functions.POOLINGS["cls"])
        assert encode(table, "-o", tmp_path / "out", "--pool", "mean").code == 0
    ran = resample(tmp_path / "out")
    shutil.copy(NOTES, table)
    again = resample(tmp_path / "out")
    told = (ran.out + ran.err + again.out + again.err).replace(str(tmp_path), "").replace("secret.jsonl", "")
    assert "secret" not in told
    assert "jane" not in told


# The arithmetic -------------------------------------------------------------------------------------


def compared(stored, again, precision="float32", dtype="fp32", ranges=None) -> Comparison:
    came = Comparison(dtype, precision)
    came.add(0, "embedding", np.float32([stored]), np.float32([again]), ranges)
    return came


def test_fp32_is_held_to_a_hundred_thousandth_of_the_largest_value():
    assert compared([100, 0.0009], [100, 0]).passed  # 100 x 1e-5 = 1e-3
    assert not compared([100, 0.0011], [100, 0]).passed
    assert compared([0.01, 9e-6], [0.01, 0]).passed  # a largest value below 1 counts as 1
    assert not compared([0.01, 2e-5], [0.01, 0]).passed


def test_a_step_of_the_precision_is_forgiven_and_two_are_not():
    ranges = Int8Range(np.float32([0, 0]), np.float32([255, 255]))  # a step is 1
    assert compared([3, 200], [4, 199], "int8", ranges=ranges).passed
    assert not compared([3, 200], [5, 200], "int8", ranges=ranges).passed
    assert compared([1 + 2**-10, 1], [1, 1], "float16").passed
    assert not compared([1 + 2**-9, 1], [1, 1], "float16").passed


def test_bits_may_differ_where_a_value_is_next_to_nothing():
    assert compared([1, 0], [0.5, 9e-6], "binary").passed
    assert not compared([1, 0], [0.5, 2e-5], "binary").passed


def test_fewer_bits_are_held_to_their_cosine():
    # cos([1, x], [1, 0]) = 1 / sqrt(1 + x²): 0.99920 at 0.04, 0.99875 at 0.05, 0.98995 at 0.1425
    assert compared([1, 0.04], [1, 0], dtype="bf16").passed
    assert not compared([1, 0.05], [1, 0], dtype="bf16").passed
    assert compared([1, 0.05], [1, 0], dtype="int8").passed
    assert not compared([1, 0.1425], [1, 0], dtype="int8").passed
