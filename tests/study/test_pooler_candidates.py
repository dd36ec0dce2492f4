"""Poolers as candidates of a sweep: what they find, what they must not see, and their states."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.metrics import accuracy_score, f1_score, r2_score

from embedkit.config import InputConfig, LabelConfig, ModelConfig, OutputConfig, PoolingConfig, RunConfig
from embedkit.errors import Stopped, UsageError
from embedkit.pooling.pooler_files import pooler_bytes
from embedkit.pooling.select import choose
from embedkit.study import pooler_candidates as module
from embedkit.study.cross_validation import cross_validate
from embedkit.study.hidden_states import States
from embedkit.study.labelled_rows import LabelledRows
from embedkit.study.labels import TEST, TRAIN, Labels
from embedkit.study.pooler_candidates import (
    PoolerCandidate,
    check_poolers,
    final_pooler,
    fold_vectors,
    pooler_candidates,
    pooler_scores,
    token_states,
    vector_states,
)
from embedkit.study.splits import Folds
from tests.oracle import Oracle

CPU = torch.device("cpu")
ATTENTION = PoolerCandidate((3,), "concat", ("attention",))
WEIGHTED = PoolerCandidate((1, 2), "concat", ("weighted-layers",), layer_pool="mean")
ROWS, FOLDS = 150, Folds(np.arange(150) % 3, 3)


def made_up(*, of_tokens, seed=3):
    """States in which one token (or layer) tells the number 0, 1 or 2 of a text, marked by another dimension."""
    random = np.random.default_rng(seed)
    values = random.integers(0, 3, ROWS)
    if not of_tokens:
        vectors = random.normal(size=(ROWS, 2, 6)).astype(np.float32)
        vectors[:, 1, 2] += 6 * values
        return vector_states(vectors.reshape(ROWS, -1), 2), values
    rows, ids = [], []
    for value in values:
        states = random.normal(size=(random.integers(2, 9), 6)).astype(np.float32)
        token = random.integers(len(states))
        states[token, 0] += 6
        states[token, 3] = 4 * value
        rows.append(states)
        ids.append(random.integers(5, 40, len(states)).astype(np.int32))
    return States(rows, n_layers=1, of_tokens=True, token_ids=ids), values


def scores(candidate, states, targets, folds=FOLDS, *, task="classification", metrics=("accuracy", "macro_f1")):
    classes = ("a", "b", "c") if task in {"classification", "multilabel"} else ()
    labels = Labels(task, np.arange(ROWS), targets, classes, None)
    return pooler_scores(
        candidate, states, labels, folds, metrics, groups=None, seed=0, device=CPU, stop=threading.Event()
    )


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Training of ten epochs at a rate for made-up states."""
    fast = partial(module.FitConfig, epochs=10, lr=0.02, batch_size=16, patience=10)
    monkeypatch.setattr(module, "FitConfig", fast)


@pytest.mark.parametrize("candidate", [ATTENTION, WEIGHTED], ids=lambda candidate: candidate.kind)
def test_a_signal_is_found_and_shuffled_labels_give_chance(candidate):
    states, values = made_up(of_tokens=candidate.needs_tokens)
    found = scores(candidate, states, values)
    chosen = found.predictions.argmax(axis=1)
    assert accuracy_score(values, chosen) >= 0.7
    for metric, oracle in (("accuracy", accuracy_score), ("macro_f1", partial(f1_score, average="macro"))):
        by_fold = [oracle(values[FOLDS.of_row == fold], chosen[FOLDS.of_row == fold]) for fold in range(3)]
        assert found.scores.by_metric[metric] == pytest.approx(by_fold)
    assert np.mean(found.scores.inner) >= 0.48  # trained on 42 rows
    shuffled = scores(candidate, states, np.random.default_rng(1).permutation(values)).scores
    # 150 rows of three classes: chance is 0.33, a standard deviation of the mean 0.038; four of them are 0.15.
    assert abs(np.mean(shuffled.by_metric["accuracy"]) - 1 / 3) <= 0.15
    assert abs(np.mean(shuffled.inner) - 1 / 3) <= 0.15


def test_a_fold_decides_nothing_about_the_pooler_that_predicts_it():
    states, values = made_up(of_tokens=True)
    in_fold = FOLDS.of_row == 0
    found = scores(ATTENTION, states, values)
    other = scores(ATTENTION, states, np.where(in_fold, (values + 1) % 3, values))
    assert np.array_equal(found.predictions[in_fold], other.predictions[in_fold])
    assert not np.array_equal(found.predictions[~in_fold], other.predictions[~in_fold])


def test_each_fold_and_each_pair_of_neighbours_takes_one_training(monkeypatch):
    from embedkit.study import train_pooler

    fits, fit = [], train_pooler.fit_pooler
    monkeypatch.setattr(train_pooler, "fit_pooler", lambda *of: fits.append(of) or fit(*of))
    states, values = made_up(of_tokens=False)
    folds = Folds(np.arange(ROWS) % 5, 5)
    found = scores(WEIGHTED, states, values, folds)
    held = [sorted(set(range(5)) - set(folds.of_row[of[2].rows].tolist())) for of in fits]
    assert sorted(map(tuple, held)) == sorted(
        [*[(fold,) for fold in range(5)], (0, 1), (1, 2), (2, 3), (3, 4), (0, 4)]
    )
    assert len(found.scores.inner) == 5


def test_the_users_test_rows_are_never_seen_and_validation_rows_are_scored_once():
    states, values = made_up(of_tokens=False)
    part = np.arange(ROWS) % 5
    folds = Folds(np.select([part == 0, part == 1], [-1, 0], -2), 1)
    found = scores(WEIGHTED, states, values, folds)
    assert np.isnan(found.predictions).all(axis=1).tolist() == (part != 1).tolist()
    chosen = found.predictions[part == 1].argmax(axis=1)
    assert found.scores.by_metric["accuracy"] == (pytest.approx(accuracy_score(values[part == 1], chosen)),)
    other = scores(WEIGHTED, states, np.where(part == 0, 2 - values, values), folds)
    assert np.array_equal(found.predictions, other.predictions, equal_nan=True)


def test_values_are_predicted_in_their_unit_and_several_labels_as_probabilities():
    states, values = made_up(of_tokens=False)
    numbers = 1e300 * (1 + values / 10)
    found = scores(WEIGHTED, states, numbers, task="regression", metrics=("r2",))
    assert r2_score(numbers / 1e300, found.predictions[:, 0] / 1e300) >= 0.5
    sets = np.stack([values == 0, values >= 1, values == 2], axis=1)
    found = scores(WEIGHTED, states, sets, task="multilabel", metrics=("macro_f1",))
    assert f1_score(sets, found.predictions >= 0.5, average="macro") >= 0.7
    assert np.mean(found.scores.by_metric["macro_f1"]) >= 0.7


def test_a_signal_ends_the_training():
    states, values = made_up(of_tokens=False)
    stop = threading.Event()
    stop.set()
    labels = Labels("classification", np.arange(ROWS), values, ("a", "b", "c"), None)
    with pytest.raises(Stopped):
        pooler_scores(WEIGHTED, states, labels, FOLDS, ("accuracy",), groups=None, seed=0, device=CPU, stop=stop)


# Poolers without labels ------------------------------------------------------------------------------


def test_idf_counts_the_texts_outside_of_the_held_out_folds_as_scikit_learn_would():
    states, _ = made_up(of_tokens=True)
    vectors = fold_vectors(PoolerCandidate((3,), "concat", ("idf",)), states, FOLDS)([1])
    presence = np.zeros((ROWS, 40))
    for row, ids in enumerate(states.token_ids):
        presence[row, ids] = 1
    idf = TfidfTransformer(smooth_idf=True).fit(presence[FOLDS.of_row != 1]).idf_
    for row, ids in enumerate(states.token_ids):
        of_row = states.take(np.array([row]))
        tokens, _, _ = of_row._tokens(np.array([0]))
        weights = idf[ids][:, None]
        expected = (weights * tokens[0, 0].numpy()).sum(axis=0) / weights.sum()
        assert vectors[row] == pytest.approx(expected, abs=1e-5)


def test_pca_is_fitted_outside_of_the_held_out_folds_and_test_rows_as_scikit_learn_would():
    states, values = made_up(of_tokens=False)
    folds = Folds(np.where(np.arange(ROWS) < 10, -1, FOLDS.of_row), 3)
    candidate = PoolerCandidate((1, 2), "concat", ("pca:4",), layer_pool="mean")
    vectors = fold_vectors(candidate, states, folds)
    every = np.concatenate(list(states.blocks()))
    for held in ([0], [1, 2], []):
        kept = every[(folds.of_row >= 0) & ~np.isin(folds.of_row, held)]
        expected = PCA(4, svd_solver="full").fit(kept).transform(every)
        assert np.abs(np.abs(vectors(held)) - np.abs(expected)).max() <= 1e-4
    labels = Labels("classification", np.arange(ROWS), values, ("a", "b", "c"), None)
    found = cross_validate(vectors, labels, FOLDS, ("accuracy",), "ridge")
    assert np.mean(found.by_metric["accuracy"]) >= 0.6
    shuffled = replace(labels, targets=np.random.default_rng(0).permutation(values))
    chance = cross_validate(vectors, shuffled, FOLDS, ("accuracy",), "ridge")
    assert abs(np.mean(chance.by_metric["accuracy"]) - 1 / 3) <= 0.15  # as above


def test_the_pooler_of_a_package_gets_states_tokens_and_mask(tmp_path, monkeypatch):
    """This one takes the states of tokens with odd ids, and none where there is padding."""
    info = tmp_path / "odd_tokens-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-tokens\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[embedkit.poolers]\nodd = odd_tokens:Odd\n", encoding="utf-8")
    (tmp_path / "odd_tokens.py").write_text(
        "class Odd:\n"
        "    layers = '2'\n"
        "    def dims(self, n_layers, hidden_size):\n"
        "        return hidden_size\n"
        "    def __call__(self, hidden_states, mask, input_ids):\n"
        "        chosen = (mask & (input_ids % 2 == 1)).unsqueeze(-1)\n"
        "        return (hidden_states[-1] * chosen).sum(1)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    check_poolers(("odd", "idf"))
    (candidate,) = pooler_candidates(("odd",), range(4), ("mean",), 3)
    assert (candidate.layers, candidate.dims(6), candidate.fit_options) == ((2,), 6, {})
    states, _ = made_up(of_tokens=True)
    vectors = fold_vectors(candidate, states, FOLDS)([0])
    for row in range(0, ROWS, 10):
        odd = states.token_ids[row] % 2 == 1
        assert vectors[row] == pytest.approx(states._rows[row][odd].sum(axis=0), abs=1e-5)


# The pooler that won ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["attention", "weighted-layers", "idf", "pca:4"])
def test_the_pooler_that_won_is_a_file_of_fit_made_without_the_test_rows(name, tmp_path):
    kind = name.partition(":")[0]
    layer_pool = "" if kind in {"attention", "idf"} else "mean"
    candidate = PoolerCandidate((1, 2) if layer_pool else (3,), "concat", (name,), layer_pool=layer_pool)
    states, values = made_up(of_tokens=candidate.needs_tokens)
    folds = Folds(np.where(np.arange(ROWS) < 30, -1, FOLDS.of_row), 3)
    setup = SimpleNamespace(
        raw_tokenizer=SimpleNamespace(get_vocab=lambda: {f"t{number}": number for number in range(40)}),
        lowercase=True,
    )
    run_recipe = {"layers": [1, 2, 3], "layer_agg": "separate", "exclude_special": False, "dtype": "fp32"}

    def final(targets):
        split = np.where(folds.of_row < 0, TEST, TRAIN).astype(np.int8)
        labels = Labels("classification", np.arange(ROWS), targets, ("a", "b", "c"), None, split)
        return final_pooler(
            candidate,
            states,
            LabelledRows(labels, np.arange(ROWS), None, ()),
            folds,
            {**run_recipe, "model": {"type": "bert"}, "text": {}},
            config=LabelConfig("label"),
            setup=setup,
            device=CPU,
            stop=threading.Event(),
        )

    made, tested = final(values), folds.of_row < 0
    other = final(np.where(tested, 2 - values, values))
    assert all(np.array_equal(made.tensors[name], other.tensors[name]) for name in made.tensors)
    assert made.recipe["input"]["layers"] == list(candidate.layers)
    path = tmp_path / "winner.safetensors"
    path.write_bytes(pooler_bytes(made.recipe, made.tensors))
    chosen = choose((f"idf:{path}" if kind == "idf" else str(path),))[1].popitem()[1]
    vectors = states.pooled(chosen.pooler("cpu"), np.arange(ROWS), CPU).detach().numpy()
    if candidate.is_trained:
        assert np.isnan(made.test_predictions).all(axis=1).tolist() == (~tested).tolist()
        assert chosen.head().scores(vectors[:30]) == pytest.approx(made.test_predictions[:30], abs=1e-5)
        assert made.recipe["rows"]["test"] == 30
    else:
        assert vectors == pytest.approx(fold_vectors(candidate, states, folds)([]), abs=1e-5)


# Names and states ------------------------------------------------------------------------------------


def test_candidates_take_the_layers_of_fit_and_say_how_to_fit_them():
    names = ("attention", "weighted-layers", "pca:8", "cls", "idf")
    found = pooler_candidates(names, range(4), ("cls", "mean"), 3)
    assert [candidate.name for candidate in found] == [
        "layer 3 attention",
        "layers 1-3 weighted-layers",
        "layer 3 pca:8",
        "layer 3 cls trained",
        "layer 3 idf",
    ]
    assert [candidate.dims(32) for candidate in found] == [32, 32, 8, 32, 32]
    assert found[1].fit_options == {"pooler": "weighted-layers", "layers": "1,2,3", "layer_pool": "mean"}
    assert found[2].layer_vectors.poolings == ("mean",)
    with pytest.raises(UsageError, match="takes the cls of each layer"):
        pooler_candidates(("cls",), range(4), ("mean",), 3)


@pytest.mark.parametrize(
    ("name", "what"),
    [("atention", "cannot be 'atention'"), ("pca", "how many dimensions"), ("p.safetensors", "trained on these")],
)
def test_names_that_are_no_pooler_are_refused(name, what):
    with pytest.raises(UsageError, match=what):
        check_poolers((name,))


@pytest.mark.parametrize("exclude_special", [False, True])
def test_one_pass_gives_the_states_and_tokens_of_plain_transformers(exclude_special, bert, tmp_path, one_thread):
    texts = ["the cat did see it", "", "dog", "it did see the dog and the cat " * 20]
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts), encoding="utf-8")
    config = RunConfig(
        input=InputConfig((str(tmp_path / "rows.jsonl"),)),
        output=OutputConfig(str(tmp_path / "vectors"), "arrow"),
        model=ModelConfig(str(bert)),
        pooling=PoolingConfig(exclude_special=exclude_special),
    )
    candidates = [ATTENTION, PoolerCandidate((1,), "concat", ("idf",))]
    oracle = Oracle(bert, max_length=64)
    folder = tmp_path / ".poolers.states"
    with token_states(config, candidates, folder, mock.Mock(), threading.Event()) as tokens:
        assert folder.is_dir()
        assert tokens.layers == (1, 3)
        for candidate in candidates:
            states = tokens.of(candidate, np.array([0, 1, 2]))
            for place, text in enumerate(text for text in texts if text):
                alone = oracle.states(text)
                kept = ~alone.special if exclude_special else np.ones(len(alone.special), bool)
                found, mask, ids = states._tokens(np.array([place]))
                expected = alone.layers[candidate.layers[0]][kept]
                assert mask.all()
                assert np.abs(found[0, 0].numpy() - expected).max() <= 2e-3  # stored as float16
                encoded = oracle.tokenizer(text, truncation=True, max_length=64)["input_ids"]
                assert ids[0].tolist() == np.array(encoded)[kept].tolist()
    assert list(tmp_path.glob(".*")) == []
