"""A sweep of several models: the same rows and folds for all, and what each candidate costs."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedkit.study.sweep_charts import pareto_front
from embedkit.study.sweep_models import model_names
from tests.conftest import write_rows
from tests.tiny_models import CORPUS, make

pytestmark = pytest.mark.usefixtures("pictures_in_words")

N = 60
#: BERT's tokenizer removes these characters, GPT-2's does not.
NULL_IN_BERT = "\x01\x02"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a BERT and a GPT-2 with the same base name."""
    folder = tmp_path_factory.mktemp("models")
    return [make(kind, folder / kind / "model").folder for kind in ("bert", "gpt2")]


@pytest.fixture(scope="module")
def rows():
    random = np.random.default_rng(1)
    words = " ".join(CORPUS).split()
    texts = [" ".join(random.choice(words, random.integers(4, 16))) for _ in range(N)] + [NULL_IN_BERT]
    return [
        {"id": f"r{number}", "text": text, "kind": f"KIND{len(text) % 2}"} for number, text in enumerate(texts)
    ]


@pytest.fixture
def sweep(embedkit_cli, rows, tmp_path):
    """Returns a function that sweeps into `out`."""
    path = write_rows(tmp_path / "rows.jsonl", rows)

    def sweep(*options, out="out"):
        common = ("--label", "kind", "--pool", "mean,max", "--layers", "-2:", "--exclude-special", "-q")
        ran = embedkit_cli("sweep", path, *common, "-o", tmp_path / out, *options)
        assert ran.code == 0, ran.err
        summary = json.loads((tmp_path / out / "summary.json").read_text(encoding="utf-8"))
        results = pq.read_table(tmp_path / out / "results.parquet").to_pylist()
        return ran, summary, [row for row in results if row["layers"]]  # without the constant prediction

    return sweep


def stored(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("embeddings/*")}


def test_a_model_is_added_to_a_finished_sweep_and_judged_on_the_rows_that_both_have(sweep, models, rows, tmp_path):
    sweep("-m", models[0])
    before = stored(tmp_path / "out/vectors")
    ran, summary, results = sweep("-m", models[0], "-m", models[1], "--on-exists", "resume")
    assert stored(tmp_path / "out/vectors") == before
    assert [of["name"] for of in summary["models"]] == ["bert-model", "gpt2-model"]
    assert [of["vectors"] for of in summary["models"]] == ["vectors", "vectors-gpt2-model"]
    assert [of["without_vector"] for of in summary["models"]] == [1, 0]
    assert summary["rows"] == {"input": N + 1, "without_vector": 1, "without_label": 0, "judged": N}
    assert "1 have no vector in every model" in ran.out
    assert {"bytes", "s/1,000", "gpt2-model"} <= set(ran.out.split())
    assert len({row["name"] for row in results}) == len(results)
    assert all(row["name"].startswith(f"{row['model']} layer") or " mean of " in row["name"] for row in results)
    assert [row["bytes_per_vector"] for row in results] == [4 * row["dims"] for row in results]
    assert all(row["seconds_per_1000_rows"] > 0 for row in results)
    # The oracle: a sweep of each model alone, on these rows.
    write_rows(tmp_path / "rows.jsonl", rows[:N])
    for model, name in zip(models, ("bert-model", "gpt2-model"), strict=True):
        _, _, alone = sweep("-m", model, out=name)
        ours = [row["accuracy_folds"] for row in results if row["model"] == name]
        assert ours == [row["accuracy_folds"] for row in alone]
        assert {row["model"] for row in alone} == {""}


def test_the_order_of_models_and_a_moved_folder_do_not_matter_to_a_resume(sweep, models, tmp_path):
    both = [(tmp_path / f"copy{number}") / "model" for number in (0, 1)]
    for source, copy in zip(models, both, strict=True):
        shutil.copytree(source, copy)
    _, first, _ = sweep("-m", both[0], "-m", both[1])
    assert [of["vectors"] for of in first["models"]] == ["vectors-copy0-model", "vectors-copy1-model"]
    before = [stored(tmp_path / "out" / of["vectors"]) for of in first["models"]]
    moved = both[1].rename(tmp_path / "moved")
    _, second, _ = sweep("-m", moved, "-m", both[0], "--on-exists", "resume")
    assert [of["vectors"] for of in second["models"]] == ["vectors-copy1-model", "vectors-copy0-model"]
    assert [stored(tmp_path / "out" / of["vectors"]) for of in first["models"]] == before
    assert {of["name"]: of["seconds_per_1000_rows"] for of in second["models"]} == {
        "moved": first["models"][1]["seconds_per_1000_rows"],
        "model": first["models"][0]["seconds_per_1000_rows"],
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-m", "a", "-m", "a"), "-m names 'a' twice"),
        (("-m", "a", "-m", "b", "--revision", "main"), "--revision is of one model, and -m names 2"),
    ],
)
def test_models_that_cannot_be_compared_are_refused(embedkit_cli, tmp_path, options, message):
    ran = embedkit_cli("sweep", "a.csv", "--label", "kind", "-o", tmp_path / "out", *options)
    assert (ran.code, message in ran.err) == (2, True), ran.err


def test_the_same_model_under_two_names_is_refused(embedkit_cli, models, rows, tmp_path):
    (tmp_path / "link").symlink_to(models[0])
    path = write_rows(tmp_path / "rows.jsonl", rows)
    ran = embedkit_cli(
        *("sweep", path, "--label", "kind", "-m", models[0], "-m", tmp_path / "link", "-o", tmp_path / "out")
    )
    assert (ran.code, "are the same model" in ran.err) == (2, True), ran.err


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        (["minilm"], ["minilm"]),
        (["minilm", "BAAI/bge-small-en-v1.5"], ["minilm", "bge-small-en-v1.5"]),
        (["x/model", "y/model", "z/other"], ["x-model", "y-model", "other"]),
        (["a/x/model", "b/x/model"], ["a-x-model", "b-x-model"]),
        (["model", "x/model"], ["model", "x-model"]),
        (["a-b/c", "a/b-c", "c"], ["a-b-c", "b-c", "c"]),
    ],
)
def test_names_of_models_are_the_last_parts_that_tell_them_apart(typed, names):
    assert model_names(typed) == names


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(st.lists(st.tuples(st.none() | st.integers(1, 5), st.integers(0, 5)), max_size=12))
def test_the_pareto_front_has_one_of_each_best_score_at_a_cost(points):
    costs, scores = [cost for cost, _ in points], [float(score) for _, score in points]
    front = pareto_front(costs, scores)
    # A point is on it if each other one costs more or scores less; of equal points one stands for all.
    known = [(cost, score) for cost, score in zip(costs, scores, strict=True) if cost is not None]
    best = {
        (cost, score)
        for cost, score in known
        if not any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in known)
    }
    assert sorted(best) == [(costs[place], scores[place]) for place in front]
