"""Training on made-up states: planted signals are found, random labels give chance, one seed gives one result."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score, r2_score, roc_auc_score

from embedkit.config import LabelConfig
from embedkit.config.fit_config import FitConfig
from embedkit.errors import InputError, ModelError, Stopped
from embedkit.pooling.trained import PoolerShape, make_pooler
from embedkit.study import hidden_states
from embedkit.study.hidden_states import States
from embedkit.study.labels import Labels
from embedkit.study.splits import Split, split_rows
from embedkit.study.train_pooler import fit_pooler
from embedkit.study.unsupervised import fit_rotation

N_LAYERS, SIZE = 2, 6
SHAPES = [
    PoolerShape("attention", N_LAYERS, SIZE, width=12),
    PoolerShape("attention-tanh", N_LAYERS, SIZE, width=12),
    PoolerShape("multihead-attention", N_LAYERS, SIZE, heads=2),
    PoolerShape("weighted-layers", N_LAYERS, SIZE, of_tokens="mean"),
    PoolerShape("lstm", N_LAYERS, SIZE, width=8, of_tokens="mean"),
    PoolerShape("mean", N_LAYERS, SIZE, width=5, of_tokens="mean"),
]


def made_up(of_tokens, *, rows=240, seed=3):
    """States of texts, and a number for each: one token (or layer) in each has it, marked by another dimension."""
    random = np.random.default_rng(seed)
    values = random.integers(0, 3, rows)
    if not of_tokens:
        states = random.normal(size=(rows, N_LAYERS, SIZE)).astype(np.float32)
        states[:, 1, 2] += 6 * values
        found = list(states.reshape(rows, -1))
    else:
        found = []
        for value in values:
            states = random.normal(size=(random.integers(2, 9), N_LAYERS * SIZE)).astype(np.float32)
            token = random.integers(len(states))
            states[token, 0] += 6
            states[token, 3] = 4 * value
            found.append(states)
    return States(found, n_layers=N_LAYERS, of_tokens=of_tokens), values


def labels_of(values, *, task="classification"):
    rows = np.arange(len(values))
    if task == "regression":
        return Labels(task, rows, 100 + 10 * values.astype(np.float64), (), None)
    return Labels(task, rows, values, ("a", "b", "c"), None)


def fitted(shape, values, states, *, task="classification", on_epoch=None, **settings):
    labels = labels_of(values, task=task)
    settings = {
        "epochs": 25,
        "lr": 0.01,
        "batch_size": 16,
        "patience": 25,
        "validation": 0.2,
        "test": 0.2,
    } | settings
    config = FitConfig(shape.kind, "x.safetensors", LabelConfig("label", seed=settings.pop("seed", 0)), **settings)
    split = split_rows(labels, None, validation=config.validation, test=config.test, seed=config.labels.seed)
    device = torch.device("cpu")
    return fit_pooler(
        shape, states, labels, split, config, device, on_epoch or (lambda _: None), threading.Event()
    )


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.kind)
def test_a_planted_signal_is_found_on_test_rows(shape):
    states, values = made_up(of_tokens=not shape.of_tokens)
    found = fitted(shape, values, states)
    assert found.scores["test"]["accuracy"] >= 0.8  # chance is 0.33
    # The head takes the scaling into itself: its scores of the vectors are those of the network.
    split = split_rows(labels_of(values), None, validation=0.2, test=0.2, seed=0)
    scores = found.head.scores(states.pooled(found.pooler, split.test, torch.device("cpu")).numpy())
    assert scores.sum(axis=1) == pytest.approx(np.ones(len(scores)), abs=1e-6)
    assert (scores.argmax(axis=1) == values[split.test]).mean() == found.scores["test"]["accuracy"]


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def softmax(values, axis):
    odds = np.exp(values - values.max(axis=axis, keepdims=True))
    return odds / odds.sum(axis=axis, keepdims=True)


def attention_tanh_by_hand(weights, states):
    """Linear, tanh, linear, softmax over the tokens [T, L D]."""
    hidden = np.tanh(states @ weights["score.0.weight"].T + weights["score.0.bias"])
    return softmax(hidden @ weights["score.2.weight"][0] + weights["score.2.bias"], 0) @ states


def lstm_by_hand(weights, states):
    """Computes the equations of an LSTM over the layers [L D], with its gates in torch's order."""
    hidden = cell = np.zeros(8)
    for layer in states.reshape(N_LAYERS, SIZE):
        gates = weights["lstm.weight_ih_l0"] @ layer + weights["lstm.bias_ih_l0"]
        gates = gates + weights["lstm.weight_hh_l0"] @ hidden + weights["lstm.bias_hh_l0"]
        opened, kept, new, shown = np.split(gates, 4)
        cell = sigmoid(kept) * cell + sigmoid(opened) * np.tanh(new)
        hidden = sigmoid(shown) * np.tanh(cell)
    return hidden


@pytest.mark.parametrize(("shape", "by_hand"), [(SHAPES[1], attention_tanh_by_hand), (SHAPES[4], lstm_by_hand)])
def test_predictions_are_those_of_the_equations_written_out(shape, by_hand):
    states, values = made_up(of_tokens=not shape.of_tokens, rows=60)
    found = fitted(shape, values, states, epochs=2)
    weights = {name: tensor.double().numpy() for name, tensor in found.pooler.state_dict().items()}
    rows = [row.astype(np.float64) for row in states._rows]
    vectors = np.stack([by_hand(weights, row) for row in rows])
    expected = softmax(vectors @ found.head.weight.T.astype(np.float64) + found.head.bias, 1)
    predicted = found.predictions(states, np.arange(60), 3, torch.device("cpu"))
    assert predicted == pytest.approx(expected, abs=1e-5)


def test_shuffled_labels_give_chance():
    states, values = made_up(of_tokens=True)
    shuffled = np.random.default_rng(5).permutation(values)
    found = fitted(SHAPES[0], shuffled, states)
    # 48 test rows of three classes: chance 0.33, a standard deviation of 0.068; four of them are 0.27.
    assert abs(found.scores["test"]["accuracy"] - 1 / 3) <= 0.27


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[5]], ids=lambda shape: shape.kind)
def test_values_are_predicted_in_their_own_unit(shape):
    states, values = made_up(of_tokens=not shape.of_tokens)
    found = fitted(shape, values, states, task="regression", epochs=40)
    assert found.scores["test"]["r2"] >= 0.6
    assert found.head.columns == {"prediction": "float32"}
    split = split_rows(labels_of(values, task="regression"), None, validation=0.2, test=0.2, seed=0)
    cells = found.head.cells(states.pooled(found.pooler, split.test, torch.device("cpu")).numpy())
    error = np.abs(np.array(cells["prediction"]) - (100 + 10 * values[split.test])).mean()
    assert error == pytest.approx(found.scores["test"]["mean_absolute_error"], rel=1e-4)


def test_the_seed_decides_every_weight():
    states, values = made_up(of_tokens=True, rows=60)
    before = torch.random.get_rng_state()
    runs = [fitted(SHAPES[0], values, states, epochs=2, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(before, torch.random.get_rng_state())
    one, again, other = (run.pooler.state_dict() for run in runs)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert np.array_equal(runs[0].head.weight, runs[1].head.weight)
    assert not torch.equal(one["score.0.weight"], other["score.0.weight"])


def test_training_stops_when_the_validation_loss_does_not_fall_and_keeps_the_best_epoch():
    states, values = made_up(of_tokens=False, rows=90)
    epochs = []
    found = fitted(
        SHAPES[5], np.random.default_rng(0).permutation(values), states, patience=2, on_epoch=epochs.append
    )
    losses = [epoch.validation_loss for epoch in epochs]
    assert found.epochs == len(epochs) < 25
    assert found.best_epoch == int(np.argmin(losses)) + 1 == found.epochs - 2
    assert [epoch.best for epoch in epochs] == [loss == min(losses[: n + 1]) for n, loss in enumerate(losses)]


def test_a_balanced_weight_lets_a_rare_class_count():
    states, values = made_up(of_tokens=False, rows=300)
    rare = np.where((values == 2) & (np.arange(300) % 8 > 0), 0, values)
    plain, balanced = (
        fitted(SHAPES[3], rare, states, epochs=6, lr=0.003, class_weight=how) for how in ("none", "balanced")
    )
    of = labels_of(rare)
    split = split_rows(of, None, validation=0.2, test=0.2, seed=0)
    chosen = [
        (run.head.scores(states.pooled(run.pooler, split.train, torch.device("cpu")).numpy()).argmax(1) == 2).sum()
        for run in (plain, balanced)
    ]
    assert chosen[1] > chosen[0]


def test_an_infinite_loss_and_a_signal_end_the_training():
    states, values = made_up(of_tokens=False, rows=60)
    with pytest.raises(ModelError, match="not finite in epoch"):
        fitted(SHAPES[3], values * 1e30, states, task="regression", lr=999.0, epochs=25)
    stop = threading.Event()
    stop.set()
    labels = labels_of(values)
    split = split_rows(labels, None, validation=0.2, test=0.2, seed=0)
    config = FitConfig("weighted-layers", "x.safetensors", LabelConfig("label"))
    with pytest.raises(Stopped):
        fit_pooler(SHAPES[3], states, labels, split, config, torch.device("cpu"), lambda _: None, stop)


def one_split(train, validation, test=()):
    return Split(*(np.array(rows, np.int64) for rows in (train, validation, test)))


def train_on(labels, states, split, *, device="cpu", **settings):
    settings = {"epochs": 25, "lr": 0.01, "batch_size": 16, "patience": 25} | settings
    config = FitConfig("mean", "x.safetensors", LabelConfig("label"), **settings)
    return fit_pooler(
        SHAPES[5], states, labels, split, config, torch.device(device), lambda _: None, threading.Event()
    )


@pytest.mark.parametrize("n_train", [2, 3, 33])
def test_no_batch_has_a_single_row(n_train):
    states, values = made_up(of_tokens=False, rows=60)
    found = train_on(labels_of(values), states, one_split(range(n_train), range(40, 60)), batch_size=2, epochs=2)
    assert found.epochs == 2
    with pytest.raises(InputError, match="1 rows are left to train on"):
        train_on(labels_of(values), states, one_split([0], range(40, 60)))


@pytest.mark.parametrize("unit", [1e-300, 1.0, 1e300])
def test_values_of_any_size_are_predicted_in_their_unit(unit):
    states, values = made_up(of_tokens=False)
    labels = Labels("regression", np.arange(240), (100 + 10 * values) / 120 * unit, (), None)
    found = train_on(labels, states, one_split(range(160), range(160, 200), range(200, 240)), epochs=40)
    assert found.scores["test"]["r2"] >= 0.6
    predicted = found.predictions(states, np.arange(200, 240), 1, torch.device("cpu"))[:, 0]
    # The same R² by scikit-learn, in a unit in which squares are finite.
    assert r2_score(labels.targets[200:] / unit, predicted / unit) == pytest.approx(
        found.scores["test"]["r2"], abs=1e-3
    )


def test_a_class_without_training_rows_is_no_class_of_the_head_and_its_rows_count_as_missed():
    states, values = made_up(of_tokens=False)
    train, rest = np.flatnonzero(values[:160] != 1), np.arange(160, 240)
    found = train_on(labels_of(values), states, one_split(train, rest, rest))
    assert found.head.classes == ("a", "c")
    predicted = found.predictions(states, rest, 3, torch.device("cpu"))
    assert not predicted[:, 1].any()
    assert predicted.sum(axis=1) == pytest.approx(np.ones(80), abs=1e-6)
    chosen = predicted.argmax(axis=1)
    assert found.scores["test"] == pytest.approx(
        {
            "accuracy": accuracy_score(values[rest], chosen),
            "macro_f1": f1_score(values[rest], chosen, average="macro"),
        }
    )
    assert found.scores["test"]["accuracy"] < (values[rest] != 1).mean() + 1e-9
    with pytest.raises(InputError, match="no validation row has a class"):
        train_on(labels_of(values), states, one_split(train, np.flatnonzero(values == 1)))


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_several_labels_a_row_are_learned_one_by_one(class_weight):
    states, values = made_up(of_tokens=False)
    sets = np.stack([values == 1, values >= 1, np.zeros(240, np.bool_)], axis=1)
    labels = Labels("multilabel", np.arange(240), sets, ("one", "more", "never"), None)
    split = one_split(range(160), range(160, 200), range(200, 240))
    found = train_on(labels, states, split, class_weight=class_weight)
    assert found.head.classes == ("one", "more")  # nothing can be learned of a label that no row has
    predicted = found.predictions(states, split.test, 3, torch.device("cpu"))
    assert roc_auc_score(sets[split.test][:, :2], predicted[:, :2]) >= 0.8
    expected = f1_score(sets[split.test], predicted >= 0.5, average="macro", zero_division=0)
    assert found.scores["test"]["macro_f1"] == pytest.approx(expected)


def test_ordinal_classes_are_learned_as_ranks():
    states, values = made_up(of_tokens=False)
    labels = Labels("ordinal", np.arange(240), values, ("0", "1", "2"), None)
    split = one_split(range(160), range(160, 200), range(200, 240))
    found = train_on(labels, states, split)
    ranks = found.predictions(states, split.test, 1, torch.device("cpu"))[:, 0]
    nearest = np.clip(np.floor(ranks + 0.5), 0, 2)
    kappa = cohen_kappa_score(values[split.test], nearest, weights="quadratic")
    assert found.scores["test"]["qwk"] == pytest.approx(kappa)
    assert kappa >= 0.6


# Splits ----------------------------------------------------------------------------------------------


def test_groups_stay_on_one_side_and_classes_keep_their_shares():
    random = np.random.default_rng(0)
    targets, groups = random.integers(0, 2, 200), random.integers(0, 40, 200)
    plain = Labels("classification", np.arange(200), targets, ("a", "b"), None)
    split = split_rows(plain, None, validation=0.2, test=0.2, seed=1)
    parts = (split.train, split.validation, split.test)
    assert sorted(np.concatenate(parts).tolist()) == list(range(200))
    assert [len(part) for part in parts] == [120, 40, 40]
    assert np.ptp([targets[part].mean() for part in parts]) <= 0.03
    grouped = Labels("classification", np.arange(200), targets, ("a", "b"), groups)
    split = split_rows(grouped, groups, validation=0.2, test=0.2, seed=1)
    members = [set(groups[part].tolist()) for part in (split.train, split.validation, split.test)]
    assert all(members)
    assert not members[0] & members[1] | members[0] & members[2] | members[1] & members[2]
    assert len(split_rows(plain, None, validation=0.2, test=0, seed=1).test) == 0


def test_too_few_rows_are_refused():
    labels = Labels("classification", np.arange(2), np.array([0, 1]), ("a", "b"), None)
    with pytest.raises(InputError, match="2 rows cannot be split"):
        split_rows(labels, None, validation=0.2, test=0.2, seed=0)


# PCA and whitening -----------------------------------------------------------------------------------


def correlated(rows, dims=8):
    random = np.random.default_rng(1)
    return random.normal(size=(rows, dims)) @ random.normal(size=(dims, dims)) + 50


def test_pca_is_scikit_learns_up_to_signs():
    vectors = correlated(500)
    found, oracle = fit_rotation(lambda: np.array_split(vectors, 7), 3, whiten=False), PCA(3).fit(vectors)
    made, expected = (vectors - found.center) @ found.rotation, oracle.transform(vectors)
    assert np.abs(np.abs(made) - np.abs(expected)).max() <= 1e-4
    assert found.variance_kept == pytest.approx(oracle.explained_variance_ratio_.sum())


@pytest.mark.parametrize("rows", [3, 8, 9, 40, 500])
def test_whitening_is_by_the_covariance_of_ledoit_and_wolf(rows):
    vectors = correlated(rows)
    found = fit_rotation(lambda: np.array_split(vectors, 2), None, whiten=True)
    oracle = LedoitWolf().fit(vectors)
    assert found.shrinkage == pytest.approx(oracle.shrinkage_)
    rotation = found.rotation.astype(np.float64)
    dims = min(rows - 1, 8)
    assert rotation.shape == (8, dims)
    # R' C R = 1: distances are Mahalanobis distances, with as few rows as with many.
    assert rotation.T @ oracle.covariance_ @ rotation == pytest.approx(np.eye(dims), abs=1e-4)
    between = vectors[0] - vectors[1]
    expected = between @ np.linalg.inv(oracle.covariance_) @ between
    assert np.linalg.norm(between @ rotation) ** 2 == pytest.approx(expected, rel=1e-3)


def test_more_directions_than_the_vectors_have_are_refused():
    vectors = correlated(5)
    for whiten in (False, True):
        with pytest.raises(InputError, match="5 rows vary in 4 directions, fewer than the 6 requested"):
            fit_rotation(lambda: [vectors], 6, whiten=whiten)
        with pytest.raises(InputError, match="too few"):
            fit_rotation(lambda: [vectors[:1]], 1, whiten=whiten)
        with pytest.raises(InputError, match="vary in 0 directions"):
            fit_rotation(lambda: [vectors[:1].repeat(3, axis=0)], None, whiten=whiten)


def test_rows_of_any_lengths_are_pooled_as_in_one_padded_batch(monkeypatch):
    random = np.random.default_rng(0)
    rows = [random.standard_normal((length, 12)).astype(np.float32) for length in (1, 9, 3, 30, 2, 17, 5)]
    states = States(rows, n_layers=1, of_tokens=True)
    pooler = make_pooler(PoolerShape("attention", 1, 12, 12, 0, ""))
    chosen, cpu = np.array([6, 3, 0, 2, 5, 1, 4]), torch.device("cpu")
    expected = states.pooled(pooler, chosen, cpu)
    monkeypatch.setattr(hidden_states, "_POOLED_AT_ONCE", 2)
    assert (states.pooled(pooler, chosen, cpu) - expected).abs().max() < 1e-6
