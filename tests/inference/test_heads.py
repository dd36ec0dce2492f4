"""Probes and heads on new rows, compared with plain transformers, numpy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.utils.validation import check_is_fitted

import embedkit
from embedkit.pooling.heads import PredictionHead
from embedkit.pooling.pooler_files import pooler_bytes, probe_bytes, read_pooler
from tests.conftest import NOTES
from tests.oracle import Oracle, pool
from tests.previous_outputs import FOLDER

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


def test_poolers_of_different_texts_go_together_only_where_the_user_decides(recipe, encode, tmp_path):
    paths = [tmp_path / f"{length}.safetensors" for length in (24, 30)]
    shape = {"n_layers": 1, "hidden_size": 32, "width": 0, "heads": 0, "of_tokens": "mean"}
    states = {"layers": [3], "layer_agg": "concat", "exclude_special": False}
    for path, length in zip(paths, (24, 30), strict=True):
        text = {"max_length": length, "on_long": "truncate", "prompt": "", "lowercase": True}
        content = {"kind": "mean", "shape": shape, "input": states, "model": recipe["model"], "text": text}
        path.write_bytes(pooler_bytes(content, {}))
    both = (NOTES, "--pool", ",".join(map(str, paths)), "-o", tmp_path / "out.npy")
    ran = encode(*both)
    assert (ran.code, "one pooler was fitted with --max-length 24, and another with" in ran.err) == (2, True)
    assert encode(*both, "--max-length", "20").code == 0


@pytest.mark.parametrize("options", [("--lowercase", "no"), ("--prompt", "x: ")])
def test_a_head_does_not_score_texts_in_another_casing_or_with_another_prompt(options, probe, encode, tmp_path):
    path, _ = probe(change=SHORT)
    ran = encode(NOTES, "--pool", path, "--with-head", *options, "-o", tmp_path / "out.npy")
    assert ran.code == 2
    assert f"the head in {path} was trained with" in ran.err
    assert f"hint: leave out {options[0]}" in ran.err
    assert not (tmp_path / "out.npy").exists()


# Reading the predictions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "name"),
    [
        *((task, name) for task in TASKS for name in ("parquet", "out.jsonl")),
        *(("multilabel", name) for name in ("out.parquet", "out.npy", "out.arrow", "npy", "arrow", "jsonl")),
    ],
)
def test_predictions_are_read_from_every_format(task, name, probe, encode, notes, tmp_path, models_loaded_once):
    path, head = probe(task)
    options = () if "." in name else ("--output-format", name, "--shard-rows", 30)
    # A kept column that looks like one of the head.
    table = tmp_path / "notes.csv"
    rows = [{"id": row["id"], "score_x": row["id"], "text": row["text"]} for row in notes.rows]
    pa_csv.write_csv(pa.Table.from_pylist(rows), table)
    keep = () if name == "out.jsonl" else ("--keep", "score_x")
    ran = encode(table, "--pool", path, "--with-head", *keep, *options, "-o", tmp_path / name)
    assert ran.code == 0, ran.err
    out = embedkit.read(tmp_path / name)
    if task in {"ordinal", "regression"}:
        with pytest.raises(embedkit.EmbedkitError, match="predicts values"):
            _ = out.probabilities
        values = out.table.filter(pa.array(out.has_vector))["prediction"].to_numpy()
        assert np.array_equal(values.astype(np.float32), head.scores(out.vectors)[:, 0])
    else:
        assert out.classes == TASKS[task]
        assert out.probabilities.dtype == np.float32
        assert np.array_equal(out.probabilities, head.predict_proba(out.vectors))
    expected = head.labels(head.scores(out.vectors))
    assert out.predicted == (pytest.approx(expected, abs=1e-6) if task == "regression" else expected)
    assert len(out.predicted) == len(out.vectors) == len(out.ids) == len(notes.ids)


def test_an_output_of_an_earlier_version_is_read_with_its_head():
    out, head = embedkit.read(FOLDER / "scored.parquet"), embedkit.read_head(FOLDER / "attention.safetensors")
    assert out.classes == head.classes == ("knee", "lung")
    assert np.abs(out.probabilities - head.predict_proba(out.vectors)).max() < 1e-6
    assert out.predicted == head.predict(out.vectors).tolist()


def test_an_output_without_a_head_says_so(probe, encode, tmp_path):
    path, _ = probe()
    for name, options in {"a.jsonl": (), "a.parquet": (), "b.parquet": ("--pool", "mean")}.items():
        assert encode(NOTES, "--pool", path, *options, "-o", tmp_path / name).code == 0
        with pytest.raises(embedkit.EmbedkitError, match="no predictions of a head") as refused:
            _ = embedkit.read(tmp_path / name).predicted
        assert "--with-head" in refused.value.hint


def test_kept_columns_that_would_be_taken_for_those_of_the_head_are_refused(probe, encode, tmp_path):
    path, _ = probe()
    table = tmp_path / "t.csv"
    table.write_text("id,text,score_x,predicted\n1,pain,a,b\n")
    for kept, name in (("score_x", "out.jsonl"), ("predicted", "out.parquet")):
        ran = encode(table, "--pool", path, "--with-head", "--keep", kept, "-o", tmp_path / name)
        assert (ran.code, f"--keep {kept}" in ran.err) == (2, True)


# From Python, and in scikit-learn ---------------------------------------------------------------------


@pytest.mark.parametrize(("task", "classes"), [*TASKS.items(), ("classification", ("b", "a"))])
def test_scikit_learn_predicts_as_the_head_does(task, classes, probe):
    path, _ = probe(task, classes, layers=(3,), poolings=("mean",))
    head = embedkit.read_head(path)
    assert head.recipe["label"] == "animal"
    vectors = np.random.default_rng(1).normal(0, 3, (50, 32)).astype(np.float32)
    pipeline = head.to_sklearn()
    check_is_fitted(pipeline)
    if task in {"ordinal", "regression"}:
        top = len(head.classes) - 1 if task == "ordinal" else np.inf
        values = pipeline.predict(vectors)
        assert (
            np.abs(np.clip(values, 0 if top < np.inf else -np.inf, top) - head.scores(vectors)[:, 0]).max() < 1e-5
        )
    else:
        assert np.abs(pipeline.predict_proba(vectors) - head.predict_proba(vectors)).max() < 1e-6
        assert np.array_equal(pipeline.predict(vectors), head.predict(vectors))
        assert pipeline.classes_.tolist() == list(head.classes)
    again = clone(pipeline)
    with pytest.raises(NotFittedError):
        check_is_fitted(again)
    targets = head.predict(vectors)
    assert again.fit(vectors, targets).score(vectors, targets) > 0.8


def test_a_fitted_head_agrees_with_scikit_learns_own_logistic_regression(recipe, tmp_path):
    """The other way round: weights that scikit-learn fitted, in our file, give its probabilities."""
    random = np.random.default_rng(0)
    vectors, targets = random.normal(size=(90, 8)), np.array(["x", "y", "z"] * 30)
    for names in (("x", "y", "z"), ("x", "y")):
        kept = np.isin(targets, names)
        model = LogisticRegression().fit(vectors[kept], targets[kept])
        weight, bias = model.coef_, model.intercept_
        if len(names) == 2:  # scikit-learn holds the difference of the two logits
            weight, bias = np.vstack([0 * weight, weight]), np.append(0, bias)
        head = PredictionHead(weight.astype(np.float32), bias.astype(np.float32), names, "classification")
        where = {"layers": [3], "layer_agg": "concat", "poolings": ["mean"], "facts": {}}
        (tmp_path / "p.safetensors").write_bytes(probe_bytes(head, recipe, **where))
        read = embedkit.read_head(tmp_path / "p.safetensors")
        assert np.abs(read.predict_proba(vectors) - model.predict_proba(vectors)).max() < 1e-6
        assert np.array_equal(read.predict(vectors), model.predict(vectors))


def test_extreme_logits_give_probabilities_without_a_warning(recwarn):
    for task in ("classification", "multilabel"):
        head = PredictionHead(np.array([[1e4], [-1e4]], np.float32), np.zeros(2, np.float32), ("a", "b"), task)
        assert head.predict_proba([[1.0], [-1.0]]).tolist() == [[1, 0], [0, 1]]
    assert not recwarn.list


def test_what_is_no_head_or_no_vectors_of_it_is_refused(probe, tmp_path):
    _, head = probe()
    assert (
        repr(head)
        == f"<PredictionHead: classification, {len(head.classes)} classes, of vectors of 128 dimensions>"
    )
    for wrong in (np.zeros((2, 5)), np.zeros(128), [[0.0]]):
        with pytest.raises(embedkit.EmbedkitError, match="vectors"):
            head.predict_proba(wrong)
    with pytest.raises(embedkit.EmbedkitError, match="no probabilities"):
        make_head("regression", 3).predict_proba(np.zeros((1, 3)))
    with pytest.raises(embedkit.EmbedkitError, match="cannot read"):
        embedkit.read_head(tmp_path / "nowhere.safetensors")
    with pytest.raises(embedkit.EmbedkitError, match="path cannot be"):
        embedkit.read_head(b"x")


ODD = ("", " ", "a", "A", "score_a", "predicted", "n/a", "a,b", 'say "so"', "line\nfeed", "Grüße", "\0", "id", "☃")


@pytest.mark.parametrize("classes", [ODD, tuple(f"class {number}" for number in range(500))], ids=["odd", "500"])
@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "out.npy"])
def test_any_and_many_names_of_classes_are_columns(classes, name, probe, encode, tmp_path, models_loaded_once):
    path, head = probe("classification", classes)
    assert embedkit.read_head(path).classes == classes
    ran = encode(NOTES, "--limit", 20, "--pool", path, "--with-head", "-o", tmp_path / name)
    assert ran.code == 0, ran.err
    out = embedkit.read(tmp_path / name)
    assert out.classes == classes
    assert np.array_equal(out.probabilities, head.predict_proba(out.vectors))
    assert out.predicted == head.predict(out.vectors).tolist()


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ["a", "a", "b"]},
        {"classes": []},
        {"task": "clustering"},
        {"dims": 5},
        {"pool": []},
        {"pool": ["pooler"]},
        {"pool": [["mean"]]},
        {"pool": "mean"},
        {"text": {"max_length": "24"}},
        {"text": [1]},
        {"input": {"layers": [1]}},
    ],
    ids=str,
)
def test_damaged_files_of_probes_are_refused_in_one_line(change, probe, encode, tmp_path):
    path, _ = probe()
    file = read_pooler(str(path))
    path.write_bytes(pooler_bytes({**file.recipe, **change}, file.tensors))
    ran = encode(NOTES, "--pool", path, "--with-head", "-o", tmp_path / "out.npy")
    assert (ran.code, len(ran.told)) == (4, 2), ran.err
    assert ran.told[0].startswith("error: ")


def test_a_name_of_a_class_that_is_no_utf_8_is_refused(probe):
    path, _ = probe("classification", ("0123456", "b"))
    path.write_bytes(path.read_bytes().replace(b"0123456", rb"\\ud800"))
    with pytest.raises(embedkit.EmbedkitError, match="recipe is incomplete"):
        embedkit.read_head(path)


def test_a_probe_stands_alone_and_keeps_its_layers(probe, encode, tmp_path):
    path, _ = probe()
    out = ("-o", tmp_path / "out.npy")
    for options, message in {
        ("--pool", f"{path},mean"): "takes the vectors of its own poolings",
        ("--pool", path, "--layers", "2"): "needs --layers 1,3",
        ("--pool", path, "--layer-agg", "mean"): "needs --layer-agg concat",
    }.items():
        ran = encode(NOTES, *options, *out)
        assert (ran.code, message in ran.err) == (2, True), ran.err


def test_verify_and_resume_work_with_a_probe(probe, encode, embedkit_cli, tmp_path):
    path, _ = probe()
    run = (NOTES, "--pool", path, "--with-head", "--shard-rows", 20, "-o", tmp_path / "out")
    assert encode(*run).code == 0
    assert embedkit_cli("verify", tmp_path / "out", "--resample", 5).code == 0
    assert encode(*run, "--on-exists", "resume").code == 0
    probe("classification", ("x", "y", "z"))  # another head under the same name
    ran = encode(*run, "--on-exists", "resume")
    assert (ran.code, "error:" in ran.err) == (5, True)


@pytest.mark.usefixtures("quick_workers")
def test_windows_are_scored_one_by_one_and_plan_counts_the_columns(probe, encode, embedkit_cli, bert, tmp_path):
    path, head = probe("multilabel")
    windows = ("--pool", path, "--with-head", "--on-long", "chunk", "--level", "chunk")
    ran = encode(NOTES, *windows, "--workers", "2", "-o", tmp_path / "out.parquet")
    assert ran.code == 0, ran.err
    out = embedkit.read(tmp_path / "out.parquet")
    assert len(out.vectors) > len(set(out.ids))
    assert np.array_equal(out.probabilities, head.predict_proba(out.vectors))
    assert embedkit_cli("plan", NOTES, "-m", bert, *windows).code == 0


def test_a_model_in_another_dtype_than_the_file_records_is_told(probe, encode, tmp_path):
    path, _ = probe(change={"dtype": "bf16"})
    ran = encode(NOTES, "--limit", 2, "--pool", path, "-o", tmp_path / "out.npy")
    assert f"{path} was fitted on states in bf16, and the model computes in fp32" in ran.err


@pytest.mark.parametrize("task", TASKS)
def test_an_encoder_predicts_texts_with_the_head_of_its_file(task, probe, bert):
    path, head = probe(task)
    encoder = embedkit.Encoder(str(bert), pool=path, normalize=True, truncate_dim=5)
    texts = ["", "pain", None, "cough and fever since three days " * 9]
    states = [Oracle(bert, max_length=24).states(texts[place]).layers for place in (1, 3)]
    vectors = np.array(
        [np.concatenate([pool(p, of[layer]) for p in POOLINGS for layer in LAYERS]) for of in states]
    )
    expected = oracle_scores(task, head.weight, head.bias, vectors)
    predicted = encoder.predict(texts)
    assert predicted[0] is predicted[2] is None
    if task == "regression":
        assert [predicted[1], predicted[3]] == pytest.approx(expected[:, 0].tolist(), abs=1e-5)
    else:
        assert [predicted[1], predicted[3]] == head.labels(expected)
    if head.task in {"ordinal", "regression"}:
        with pytest.raises(embedkit.EmbedkitError, match="no probabilities"):
            encoder.predict_proba(texts)
        return
    probabilities = encoder.predict_proba(texts)
    assert np.isnan(probabilities[[0, 2]]).all()
    assert np.abs(probabilities[[1, 3]] - expected).max() < 1e-5


def test_an_encoder_without_a_head_for_its_texts_does_not_predict(probe, bert):
    path, _ = probe()
    other = embedkit.Encoder(str(bert), pool=path, prompt="x: ")
    assert any("--prompt 'x: '" in notice for notice in other.notices)
    for encoder, message in ((embedkit.Encoder(str(bert)), "no head"), (other, "was trained with no prompt")):
        with pytest.raises(embedkit.EmbedkitError, match=message):
            encoder.predict(["pain"])
    changed = embedkit.Encoder(str(bert), pool=path)
    probe("classification", ("x", "y", "z"))
    with pytest.raises(embedkit.EmbedkitError, match="has changed"):
        changed.predict(["pain"])


def test_a_file_of_counts_with_a_head_is_for_its_layers_and_model(embedkit_cli, encode, bert, recipe, tmp_path):
    idf, out = tmp_path / "idf.safetensors", tmp_path / "out.npy"
    assert embedkit_cli("fit", NOTES, "--pooler", "idf", "-m", bert, "-o", idf).code == 0
    file, head = read_pooler(str(idf)), make_head("classification", 64)
    content = {
        **file.recipe,
        **{name: recipe[name] for name in ("model", "text")},
        "input": {"layers": [1, 3], "layer_agg": "concat", "exclude_special": False},
        "task": head.task,
        "classes": list(head.classes),
        "dims": 64,
    }
    tensors = {**file.tensors, "head.weight": head.weight, "head.bias": head.bias}
    idf.write_bytes(pooler_bytes(content, tensors))
    ran = encode(NOTES, "--pool", f"idf:{idf}", "--with-head", "-o", out)
    assert ran.code == 0, ran.err
    found = embedkit.read(out)
    assert found.recipe["layers"] == [1, 3]
    assert np.array_equal(found.probabilities, head.predict_proba(found.vectors))
    content["model"] = {"type": "bert", "files": {}}
    idf.write_bytes(pooler_bytes(content, tensors))
    ran = encode(NOTES, "--pool", f"idf:{idf}", "--with-head", "-o", tmp_path / "other.npy")
    assert (ran.code, "another model" in ran.err) == (4, True)
