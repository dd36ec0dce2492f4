"""A sweep from the command line, on a tiny model and on labels that depend on the states of one of its layers."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

import embedkit
from embedkit.cli import run as command_line
from embedkit.cli.options import run_config
from embedkit.config import LabelConfig
from embedkit.errors import Stopped
from embedkit.study.candidates import PooledVectors, all_candidates
from embedkit.study.run_sweep import sweep
from embedkit.study.sweep_config import SweepConfig
from tests.conftest import NOTES, last_counts, write_rows
from tests.oracle import Oracle, pool
from tests.tiny_models import CORPUS

FILES = {
    *("vectors", "costs.json", "results.parquet", "summary.json", "summary.txt", "heatmap.png", "heatmap.svg"),
    *("evaluation.json", "predictions.parquet", "winner.safetensors"),
}
MEASURED = {"costs.json", "results.parquet", "summary.json"}  # they hold seconds
PLANTED = 2  # of layers 0 to 3


@dataclass(frozen=True)
class Swept:
    """A finished sweep.

    Attributes:
        rows: of the input.
        input: its file.
        arguments: of the command, but the output.
        folder: the output.
    """

    rows: list[dict]
    input: Path
    arguments: list[str]
    folder: Path
    stdout: str

    @property
    def summary(self) -> dict:
        return json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def swept(bert, one_thread, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    random = np.random.default_rng(0)
    words = " ".join(CORPUS).split()
    texts = [" ".join(random.choice(words, random.integers(4, 16))) for _ in range(160)]
    oracle = Oracle(bert, max_length=64)
    direction = random.normal(size=32)
    values = [direction @ pool("mean", oracle.states(text).layers[PLANTED]) for text in texts]
    rows = [
        {
            "id": f"r{number}",
            "text": text,
            "value": value,
            "kind": f"KIND{int(value > np.median(values))}",
            "shuffled": f"s{random.integers(2)}",
            "patient": f"PATIENT{number // 4}",
        }
        for number, (text, value) in enumerate(zip(texts, values, strict=True))
    ]
    rows += [{**rows[0], "id": "empty", "text": " "}, {**rows[0], "id": "unlabelled", "value": None}]
    path = write_rows(folder / "in put.jsonl", rows)
    arguments = [
        *("sweep", str(path), "--label", "value", "--group", "patient", "-m", str(bert), "--exclude-special"),
        *("--shard-rows", "50", "--seed", "3", "--batch-tokens", "512"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *what, file=None, **_: file or lines.append(" ".join(what)))
        assert command_line([*arguments, "-o", str(folder / "out")]) == 0
    return Swept(rows, path, arguments, folder / "out", "\n".join(lines))


def test_the_layer_in_which_the_signal_was_planted_wins(swept):
    summary = swept.summary
    assert summary["winner"]["options"] == {"layers": str(PLANTED), "pool": "mean"}
    assert summary["winner"]["r2"] > 0.95
    assert summary["nested"]["r2"]["mean"] > 0.95
    assert summary["sentence"].startswith(f"layer {PLANTED} mean beats last-layer CLS by ")
    assert summary["rows"] == {"input": 162, "without_vector": 1, "without_label": 1, "judged": 160}
    assert summary["task"] == "regression"
    assert {path.name for path in swept.folder.iterdir()} == FILES
    text = (swept.folder / "summary.txt").read_text(encoding="utf-8")
    assert summary["sentence"] in text
    assert text in swept.stdout + "\n"


def test_results_have_a_row_a_candidate_with_its_folds_and_differences(swept):
    table = pq.read_table(swept.folder / "results.parquet").to_pylist()
    *candidates, constant = table
    poolings = ["cls", "mean", "max", "min", "mean_sqrt_len", "lasttoken"]
    assert len(candidates) == len(all_candidates(range(4), poolings))
    assert (constant["name"], constant["layers"], constant["is_baseline"]) == ("mean of the labels", [], True)
    assert constant["r2"] <= 0
    winner = next(row for row in table if row["is_winner"])
    baseline = next(row for row in table if row["is_baseline"] and row["pool"] == "cls")
    assert (winner["layers"], winner["dims"], winner["distinguishable"]) == ([PLANTED], 32, False)
    assert baseline["layers"] == [3]
    assert baseline["distinguishable"]
    assert winner["r2"] == pytest.approx(np.mean(winner["r2_folds"]))
    assert winner["versus_last_layer_cls"] == pytest.approx(winner["r2"] - baseline["r2"])
    assert winner["r2_low"] < winner["r2"] < winner["r2_high"]


def test_the_printed_command_makes_the_winners_vectors(swept, tmp_path):
    command = swept.summary["command"]
    assert shlex.quote(str(swept.input)) in command
    assert command in swept.stdout
    assert command_line([*shlex.split(command)[1:], "-o", str(tmp_path / "out.npy"), "-q"]) == 0
    vectors = PooledVectors(swept.folder / "vectors")
    winner = next(of for of in all_candidates(vectors.layers, vectors.poolings) if of.name == "layer 2 mean")
    rows = np.flatnonzero(vectors.has_vector)
    ours = vectors.of(winner, np.arange(len(rows)))
    np.testing.assert_allclose(embedkit.read(tmp_path / "out.npy").vectors, ours, rtol=0, atol=1e-5)


def test_the_commands_can_be_pasted_with_odd_names_and_options(
    embedkit_cli, bert, tmp_path, monkeypatch, pictures_in_words
):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(5)
    words = [word for word in " ".join(CORPUS).split() if word.isalpha()]
    rows = [(f"k{n}", " ".join(random.choice(words, 4 + n % 9)), "AB"[n % 2]) for n in range(40)]
    lines = ["key;the text;what;note", *(f"{key};{text.title()};{kind};x" for key, text, kind in rows)]
    Path("-it's $1 `x`.data").write_text("\n".join(lines), encoding="utf-8")
    ran = embedkit_cli(
        *("sweep", "--label", "what", "-m", bert, "-o", "a sweep", "--layers=-2:", "--pool", "mean,max", "-q"),
        *("--format", "csv", "--delimiter", ";", "--text-column", "the text", "--id-column", "key"),
        *('--prompt=-it\'s "so": ', "--max-length", "18", "--lowercase", "yes", "--exclude-special"),
        *("--", "-it's $1 `x`.data"),
    )
    assert ran.code == 0, ran.err
    summary = json.loads(Path("a sweep/summary.json").read_text(encoding="utf-8"))
    assert all(command in ran.out for command in summary["commands"].values())
    assert embedkit_cli(*shlex.split(summary["commands"]["encode"])[1:], "-o", "again.npy", "-q").code == 0
    winner, made = summary["winner"], embedkit.read("again.npy")
    vectors = PooledVectors(Path("a sweep/vectors"))
    candidate = next(of for of in all_candidates(vectors.layers, vectors.poolings) if of.name == winner["name"])
    ours = vectors.of(candidate, np.arange(len(rows)))
    np.testing.assert_allclose(made.vectors, ours, rtol=0, atol=1e-5)
    assert made.ids == [key for key, _, _ in rows]
    # New rows, in another form: the file of the probe says how texts become tokens.
    write_rows(
        Path("NEW.jsonl"),
        [{"key": key, "the text": text.upper(), "text": "another"} for key, text, _ in rows[:7]],
    )
    predict = [word.replace("NEW.csv", "NEW.jsonl") for word in shlex.split(summary["commands"]["predict"])]
    assert embedkit_cli(*predict[1:], "-o", "new.parquet", "-q").code == 0
    head = load_file("a sweep/winner.safetensors")
    logits = ours[:7] @ head["head.weight"].T + head["head.bias"]
    odds = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scored = pq.read_table("new.parquet")
    np.testing.assert_allclose(np.stack([scored[f"score_{of}"] for of in "AB"], axis=1), odds, atol=1e-5)
    assert scored["id"].to_pylist() == [key for key, _, _ in rows[:7]]


def test_predictions_are_of_folds_that_the_probe_has_not_seen_and_give_the_measures(swept):
    found = pq.read_table(swept.folder / "predictions.parquet").to_pandas()
    evaluation = json.loads((swept.folder / "evaluation.json").read_text(encoding="utf-8"))
    by_id = {row["id"]: row for row in swept.rows}
    assert sorted(found["id"]) == sorted(row["id"] for row in swept.rows[:160])
    assert found["label"].tolist() == [by_id[name]["value"] for name in found["id"]]
    # Rows of a patient are in one fold, and so is none of a probe's training rows.
    assert found.groupby(found["id"].map(lambda name: by_id[name]["patient"]))["fold"].nunique().max() == 1
    assert found["fold"].nunique() == swept.summary["folds"]
    residual = ((found["label"] - found["prediction"]) ** 2).sum()
    r2 = 1 - residual / ((found["label"] - found["label"].mean()) ** 2).sum()
    assert (evaluation["estimate"], evaluation["rows"]) == ("out-of-fold", 160)
    assert evaluation["metrics"]["r2"]["value"] == pytest.approx(r2, abs=1e-5)
    assert {"embedkit", "python", "torch", "transformers", "scikit-learn"} <= swept.summary["versions"].keys()


@pytest.mark.parametrize(
    "name",
    [
        "layer 1 mean+max+min",
        "layers 0-3 joined max",
        "mean of layers 0-3 cls",
        "mean of layers 0-3 mean_sqrt_len",
    ],
)
def test_a_candidate_is_what_encode_makes_by_its_options(swept, bert, name):
    vectors = PooledVectors(swept.folder / "vectors")
    candidate = next(of for of in all_candidates(vectors.layers, vectors.poolings) if of.name == name)
    rows = np.array([0, 3, 49, 50, 99, 140])  # over the bounds of shards
    expected = embedkit.Encoder(str(bert), exclude_special=True, **candidate.options).encode(
        [swept.rows[row]["text"] for row in rows]
    )
    np.testing.assert_allclose(vectors.of(candidate, rows), expected, rtol=0, atol=1e-5)


def test_no_text_label_or_group_is_in_the_folder(swept):
    for path in swept.folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [word for word in (b"PATIENT", b"KIND", b"metoprolol") if word in content], path


def test_a_stopped_sweep_continues_from_its_shards_and_ends_with_the_same_bytes(swept, tmp_path, bert, request):
    class StopsAfterAShard:
        def __init__(self):
            self.stop = threading.Event()

        def notice(self, sentence): ...
        def started(self, start): ...
        def tokenized(self, shard, tokens): ...
        def batch(self, *counts): ...

        def shard_done(self, rows):
            self.stop.set()

    folder = tmp_path / "out"
    watcher = StopsAfterAShard()
    run = run_config(
        [str(swept.input)],
        output=str(folder / "vectors"),
        output_format="arrow",
        layers="all",
        layer_agg="separate",
        normalize=False,
        model=str(bert),
        exclude_special=True,
        shard_rows=50,
        batch_tokens="512",
    )
    config = SweepConfig((run,), folder, LabelConfig("value", group="patient", seed=3))
    with pytest.raises(Stopped):
        sweep(config, watcher, watcher.stop, command=lambda *_: "", on_candidate=lambda *_: None)
    committed = {path: path.stat().st_mtime_ns for path in (folder / "vectors/embeddings").iterdir()}
    assert 1 <= len(committed) < 4
    assert command_line([*swept.arguments, "-o", str(folder), "--on-exists", "resume", "-q"]) == 0
    assert committed.items() <= {path: path.stat().st_mtime_ns for path in committed}.items()
    for name in FILES - {"vectors", *MEASURED}:
        theirs = (swept.folder / name).read_bytes().replace(bytes(swept.folder), bytes(folder))
        assert (folder / name).read_bytes() == theirs, name
    tables = [pq.read_table(of / "results.parquet").drop("seconds_per_1000_rows") for of in (folder, swept.folder)]
    assert tables[0].equals(tables[1])
    # Another label needs no other vectors.
    request.getfixturevalue("pictures_in_words")
    again = [word if word != "value" else "kind" for word in swept.arguments]
    assert command_line([*again, "-o", str(folder), "--on-exists", "resume", "-q"]) == 0
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert (summary["task"], summary["classes"], summary["winner"]["layers"]) == ("classification", 2, [PLANTED])
    assert committed.items() <= {path: path.stat().st_mtime_ns for path in committed}.items()


def test_shuffled_labels_beat_nothing_and_a_warning_names_copies_in_several_folds(
    swept, embedkit_cli, tmp_path, bert, pictures_in_words
):
    rows = [{**row, "id": f"{row['id']}{copy}"} for copy in "ab" for row in swept.rows[:100]]
    path = write_rows(tmp_path / "copies.jsonl", rows)
    common = ("sweep", path, "--label", "shuffled", "-m", bert, "-o", tmp_path / "out", "--pool", "cls,mean")
    leaking = embedkit_cli(*common)
    assert leaking.code == 0, leaking.err
    near = json.loads((tmp_path / "out/summary.json").read_text(encoding="utf-8"))
    assert near["near_duplicates"]["texts"] == 200
    assert near["near_duplicates"]["pairs_across_folds"] > 50
    assert "--dedupe keeps near-duplicates in one fold" in leaking.err
    apart = embedkit_cli(*common, "--dedupe", "--on-exists", "resume")
    far = json.loads((tmp_path / "out/summary.json").read_text(encoding="utf-8"))
    assert far["near_duplicates"] == {"texts": 200, "pairs_across_folds": 0}
    assert "--dedupe keeps" not in apart.err
    # The copy of a text gives its label away. Without it, 100 coins: 0.5 and three standard errors of 0.05.
    assert near["nested"]["accuracy"]["mean"] > 0.75
    assert abs(far["nested"]["accuracy"]["mean"] - 0.5) < 0.15


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--label", "nowhere"), 3, "nowhere"),
        (("--label", "kind", "--metric", "r2"), 2, "--metric cannot be 'r2'"),
        (("--label", "value", "--probe", "logistic"), 2, "--probe logistic is for classes"),
        (("--label", "kind", "--pool", "cls,none"), 2, "cannot be part of a list"),
        (("--label", "kind", "--pool", "pooler"), 2, "cannot compare 'pooler'"),
        (("--label", "kind", "--folds", "2"), 2, "--folds cannot be 2"),
        (("--label", "kind", "--group", "shuffled"), 3, "2 groups, fewer than the 5 folds"),
    ],
)
def test_invalid_options_and_labels_are_refused_before_a_model_runs(
    swept, embedkit_cli, bert, tmp_path, options, code, message
):
    ran = embedkit_cli("sweep", swept.input, "-m", bert, "-o", tmp_path / "out", *options)
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
    assert not (tmp_path / "out/vectors").exists()


def test_a_folder_of_other_files_is_left_alone(swept, embedkit_cli, bert, tmp_path):
    (tmp_path / "mine.txt").touch()
    common = ("sweep", swept.input, "-m", bert, "--label", "kind", "-o")
    assert embedkit_cli(*common, tmp_path, "--on-exists", "overwrite").code == 5
    ran = embedkit_cli(*common, swept.folder)
    assert (ran.code, "holds another sweep" in ran.err) == (5, True)
    assert embedkit_cli("sweep", "-", "-m", bert, "--label", "kind", "-o", tmp_path / "out").code == 2


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def again(swept, embedkit_cli, tmp_path, pictures_in_words):
    """Returns a function that runs the finished sweep's command into a copy of it, a word replaced by another."""
    shutil.copytree(swept.folder, tmp_path / "out")

    def again(*options, **replaced):
        words = [replaced.get(word, word) for word in swept.arguments]
        return embedkit_cli(*last_counts("sweep", *words, "-o", tmp_path / "out", *options))

    return again


@pytest.mark.parametrize("way", ["resume", "overwrite"])
@pytest.mark.parametrize(
    ("options", "replaced", "code"),
    [((), {"value": "vallue"}, 3), (("-m", "nowhere/at-all", "--offline"), {}, 4), (("--layers", "7"), {}, 2)],
)
def test_a_failed_sweep_leaves_the_finished_one_as_it_was(again, tmp_path, way, options, replaced, code):
    before = tree(tmp_path)
    ran = again("--on-exists", way, *options, **replaced)
    assert ran.code == code, ran.err
    assert tree(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_resuming_with_other_vectors_is_refused_and_a_finished_sweep_is_recognised(again, tmp_path):
    before = tree(tmp_path)
    other = again("--on-exists", "resume", "--layers", "0,1")
    assert (other.code, "cannot resume" in other.err) == (5, True), other.err
    assert tree(tmp_path) == before
    same = again("--on-exists", "resume")
    assert (same.code, "is finished already" in same.err) == (0, True), same.err
    assert tree(tmp_path) == before


def test_an_overwritten_sweep_stays_until_the_new_one_is_finished(again, swept, tmp_path, monkeypatch):
    before = tree(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(
            "embedkit.study.run_sweep.write_files", lambda *_, **__: (_ for _ in ()).throw(Stopped("", hint=""))
        )
        assert again("--on-exists", "overwrite", "--seed", "4").code == 75
    assert before.items() <= tree(tmp_path).items()
    assert again("--on-exists", "resume", "--seed", "4").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    summary = json.loads((tmp_path / "out/summary.json").read_text(encoding="utf-8"))
    assert summary["seed"] == 4


def test_results_of_two_sweeps_are_not_mixed(again, embedkit_cli, tmp_path):
    table = pq.read_table(tmp_path / "out/results.parquet")
    pq.write_table(table.slice(0, 5), tmp_path / "out/results.parquet")
    ran = embedkit_cli("report", tmp_path / "out", "-o", tmp_path / "page.html")
    assert (ran.code, "are not of one sweep" in ran.err) == (5, True), ran.err
    assert again("--on-exists", "resume").code == 0
    assert embedkit_cli("report", tmp_path / "out", "-o", tmp_path / "page.html").code == 0


def test_missing_libraries_are_reported_with_the_command_that_installs_them(
    swept, embedkit_cli, tmp_path, monkeypatch
):
    monkeypatch.setattr("embedkit.study.run_sweep.find_spec", lambda name: None)
    ran = embedkit_cli("sweep", swept.input, "--label", "kind", "-o", tmp_path / "out")
    assert ran.code == 2
    assert "hint: pip install scikit-learn matplotlib" in ran.err


def test_an_input_whose_name_is_not_utf_8_is_in_the_command_as_it_is(
    embedkit_cli, bert, tmp_path, pictures_in_words
):
    notes = tmp_path / os.fsdecode(b"caf\xe9.csv")
    shutil.copy(NOTES, notes)
    ran = embedkit_cli(
        *("sweep", notes, "-m", bert, "--label", "label", "--layers=-1", "--pool=mean", "-o", tmp_path / "out")
    )
    assert ran.code == 0, ran.err
    assert b"caf\xe9.csv" in (tmp_path / "out/summary.txt").read_bytes()
    json.loads((tmp_path / "out/summary.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_texts_of_one_length_but_one_and_odd_labels_are_swept(
    embedkit_cli, bert, tmp_path, pictures_in_words, task
):
    """The last token of all texts but one is the same, as of long notes that are cut; labels are near 1e300."""
    random = np.random.default_rng(0)
    words = " ".join(CORPUS).split()
    lengths = [3, *[40] * 29]
    rows = [
        {
            "text": " ".join(random.choice(words, length)),
            "label": float(random.normal() * 1e300) if task == "regression" else f"c{number % 2}",
        }
        for number, length in enumerate(lengths)
    ]
    path = write_rows(tmp_path / "cut.jsonl", rows)
    ran = embedkit_cli(
        *("sweep", path, "--label", "label", "--task", task, "-m", bert, "-o", tmp_path / "out"),
        *("--max-length", "16", "--pool", "cls,mean,lasttoken"),
    )
    assert ran.code == 0, ran.err
    assert "nan " not in ran.out
    summary = json.loads((tmp_path / "out/summary.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert np.isfinite(list(summary["nested"][summary["metric"]].values())).all()


def test_a_metric_that_some_folds_cannot_have_is_told_and_one_that_none_can_is_refused(
    embedkit_cli, bert, tmp_path, pictures_in_words
):
    rows = [
        {"text": f"{CORPUS[number % 5]} {number}", "label": number < 2, "value": number} for number in range(20)
    ]
    path = write_rows(tmp_path / "rare.jsonl", rows)
    common = ("sweep", path, "-m", bert, "--layers=-1", "--pool", "mean")
    ran = embedkit_cli(*common, "--label", "label", "--metric", "auroc", "-o", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert "auroc is undefined in 3 of 5 folds" in ran.err
    assert "nan" not in ran.out
    summary = json.loads((tmp_path / "out/summary.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert summary["undefined_folds"] == {"auroc": 3, "average_precision": 3}
    three = write_rows(tmp_path / "three.jsonl", rows[:3])
    refused = embedkit_cli(
        *("sweep", three, "-m", bert, "--label", "value", "--task", "regression", "--folds", "3"),
        *("-o", tmp_path / "three"),
    )
    assert (refused.code, "error: r2 is undefined in every fold" in refused.err) == (3, True), refused.err
    assert not (tmp_path / "three/vectors").exists()
