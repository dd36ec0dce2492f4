from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from embedkit.study.cross_validation import cross_validate, cross_validate_all
from embedkit.study.metrics import METRICS
from embedkit.study.probe import PROBES, LogisticProbe, RidgeProbe, standardised, target_columns
from embedkit.study.splits import Folds
from tests.study.data import classified, labels_of, of_task

CLASSES = METRICS["classification"]


def sklearn_ridge(vectors, targets, trained, tested, penalty):
    scaler = StandardScaler().fit(vectors[trained].astype(np.float64))
    ridge = Ridge(alpha=penalty * trained.sum()).fit(scaler.transform(vectors[trained]), targets[trained])
    return ridge.predict(scaler.transform(vectors[tested])).reshape(len(tested), -1)


@pytest.mark.parametrize(("rows", "dims"), [(200, 24), (40, 120)], ids=["by dimensions", "by rows"])
@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_ridge_by_sums_over_folds_is_ridge_on_vectors_standardised_by_the_training_rows(rows, dims, task):
    vectors, labels, folds = classified(rows, dims, signal=1.0)
    labels = standardised(of_task(task, labels.targets, np.random.default_rng(1)), folds)[0]
    targets = target_columns(labels, np.arange(rows))
    probe = RidgeProbe(vectors, labels, folds)
    for held in [(1,), (0, 3)]:
        trained = ~np.isin(folds.of_row, held)
        tested = np.concatenate([np.flatnonzero(folds.of_row == fold) for fold in held])
        for penalty, found in zip(probe.penalties, probe.predictions(held), strict=True):
            expected = sklearn_ridge(vectors, targets, trained, tested, penalty)
            np.testing.assert_allclose(found, expected - (task == "multilabel") / 2, atol=2e-4)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(6, 60),
    dims=st.integers(1, 40),
    odd=st.integers(1, 3),
    size=st.sampled_from([1e-3, 1.0, 37.7, 1e4]),
    jump=st.sampled_from([1e-4, 1.0, 1e5]),
)
def test_a_dimension_that_varies_in_the_held_out_rows_alone_decides_nothing(seed, rows, dims, odd, size, jump):
    """One text shorter than the others under `lasttoken`; long notes that are all cut but one."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(rows, dims)) * random.uniform(0.1, 10, dims)
    folds = Folds(np.arange(rows) % 3, 3)
    constant = random.random(dims) < 0.7
    vectors[:, constant] = random.normal(0, size, constant.sum())
    alone = np.flatnonzero(folds.of_row == 0)[:odd]
    vectors[np.ix_(alone, np.flatnonzero(constant))] += (
        jump * size * random.normal(size=(len(alone), constant.sum()))
    )
    vectors = vectors.astype(np.float32)
    values = standardised(labels_of("regression", random.normal(size=rows)), folds)[0]
    probe = RidgeProbe(vectors, values, folds)
    for held in [(0,), (0, 1), (1,)]:
        trained = ~np.isin(folds.of_row, held)
        tested = np.concatenate([np.flatnonzero(folds.of_row == fold) for fold in held])
        least = 1e-6 * np.abs(vectors[trained]).max(axis=0)  # as documented; less is constant
        spread = vectors[trained].std(axis=0, dtype=np.float64)
        assume(not np.any(np.isclose(spread, least, rtol=0.01, atol=0)))
        varies = spread > least
        left = vectors[:, varies] if varies.any() else np.zeros((rows, 1))
        for penalty, found in zip(probe.penalties, probe.predictions(held), strict=True):
            expected = sklearn_ridge(left, values.targets[:, None], trained, tested, penalty)
            scale = max(1.0, np.abs(expected).max())
            np.testing.assert_allclose(found / scale, expected / scale, atol=2e-3)


@pytest.mark.parametrize("probe", PROBES)
def test_texts_that_are_all_cut_but_one_or_two_are_scored(probe):
    """20 rows equal in every dimension but the one or two that are shorter, and one-word texts."""
    for odd in (1, 2):
        vectors = np.tile(np.random.default_rng(0).normal(size=32).astype(np.float32), (20, 1))
        vectors[:odd] += 1
        labels = labels_of("classification", np.arange(20) % 2, 2)
        scores = cross_validate(vectors, labels, Folds(np.arange(20) // 4, 5), CLASSES, probe)
        assert np.mean(scores.by_metric["accuracy"]) <= 0.6


def test_a_matrix_without_a_cholesky_decomposition_is_solved_all_the_same(monkeypatch):
    vectors, labels, folds = classified(60, 16, signal=1.0)
    by_cholesky = list(RidgeProbe(vectors, labels, folds).predictions((1,)))

    def fails(*_, **__):
        raise np.linalg.LinAlgError("not positive definite")

    monkeypatch.setattr("scipy.linalg.cho_factor", fails)
    for found, expected in zip(RidgeProbe(vectors, labels, folds).predictions((1,)), by_cholesky, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_logistic_regression_is_scikit_learns(task):
    vectors, labels, folds = classified(150, 8, signal=1.0)
    labels = of_task(task, labels.targets, None)
    trained, tested = folds.of_row != 2, folds.of_row == 2
    scaler = StandardScaler().fit(vectors[trained])
    fitted = [
        LogisticRegression(C=LogisticProbe.penalties[-1], tol=1e-6).fit(scaler.transform(vectors[trained]), y)
        for y in (labels.targets[trained].T if task == "multilabel" else [labels.targets[trained]])
    ]
    decided = [model.decision_function(scaler.transform(vectors[tested])) for model in fitted]
    found = list(LogisticProbe(vectors, labels, folds).predictions((2,)))[-1]
    np.testing.assert_allclose(found, np.stack(decided, 1) if task == "multilabel" else decided[0], atol=0.05)


@pytest.mark.parametrize(
    ("probe", "task", "chance"),
    [
        ("ridge", "classification", {"accuracy": 1 / 3, "auroc": 0.5, "average_precision": 1 / 3}),
        ("logistic", "classification", {"accuracy": 1 / 3, "auroc": 0.5, "average_precision": 1 / 3}),
        ("ridge", "multilabel", {"auroc": 0.5}),
        ("logistic", "multilabel", {"auroc": 0.5}),
        ("ridge", "ordinal", {"qwk": 0.0, "spearman": 0.0}),
        ("ridge", "regression", {"r2": 0.0, "spearman": 0.0}),
    ],
)
def test_shuffled_labels_give_chance_and_a_signal_gives_more(probe, task, chance):
    random = np.random.default_rng(0)
    found = {}
    for signal in (0.0, 3.0):
        vectors, labels, folds = classified(300, 30, signal=signal)
        scores = cross_validate(vectors, of_task(task, labels.targets, random), folds, METRICS[task], probe)
        found[signal] = {name: np.mean(of) for name, of in scores.by_metric.items()}
    for name, value in chance.items():
        # 300 rows: the standard error is 0.058 of a correlation, 0.027 of an accuracy, 0.034 of an AUROC.
        assert abs(found[0.0][name] - value) < 0.15, name
        assert found[3.0][name] > value + 0.25, name


def test_memorised_training_rows_do_not_raise_the_score():
    """Each row has a dimension of its own: training can memorise its rows, and test rows have no signal."""
    vectors, labels, folds = classified(120, 4, signal=0.0)
    vectors = np.concatenate([vectors, np.eye(120, dtype=np.float32)], axis=1)
    scores = cross_validate(vectors, labels, folds, ("accuracy",), "ridge").by_metric["accuracy"]
    assert abs(np.mean(scores) - 1 / 3) < 0.13  # three standard errors of 120 rows


def test_what_is_chosen_for_a_fold_does_not_depend_on_it():
    vectors, labels, folds = classified(200, 20, signal=1.0)
    before = cross_validate(vectors, labels, folds, CLASSES, "ridge")
    of_fold = folds.of_row == 2
    spoilt = labels.targets.copy()
    spoilt[of_fold] = (spoilt[of_fold] + 1) % 3
    after = cross_validate(vectors, labels_of("classification", spoilt, 3), folds, CLASSES, "ridge")
    assert after.inner[2] == before.inner[2]
    assert after.inner[1] != before.inner[1]
    assert after.by_metric["accuracy"][2] < before.by_metric["accuracy"][2]


def test_many_candidates_come_in_order():
    vectors, labels, folds = classified(150, 10, signal=3.0)
    value = labels_of("regression", (labels.targets == 0) * 2.0 + 5)
    makers = [lambda: vectors, lambda: vectors[:, 3:], lambda: lambda held: vectors]
    found = list(cross_validate_all(makers, value, folds, METRICS["regression"], "ridge"))
    assert np.mean(found[0].by_metric["r2"]) > 0.5 > np.mean(found[1].by_metric["r2"])
    assert np.mean(found[0].by_metric["spearman"]) > 0.6
    assert found[2] == found[0]


@pytest.mark.parametrize("scale", [1e300, 1e-300, 1.0])
def test_values_of_any_size_have_the_same_scores(scale):
    vectors, labels, folds = classified(100, 10, signal=3.0)
    values = labels.targets * 1.0 + np.random.default_rng(0).normal(0, 0.1, 100)
    scores = [
        cross_validate(vectors, labels_of("regression", of), folds, ("r2", "spearman"), "ridge")
        for of in (values, values * scale - 0.5 * scale)
    ]
    for name in ("r2", "spearman"):
        np.testing.assert_allclose(scores[1].by_metric[name], scores[0].by_metric[name], rtol=1e-4)


@pytest.mark.parametrize("noise", [1e-6, 1e-4, 1e-2])
def test_a_fold_of_outliers_leaves_nearly_constant_dimensions_and_the_probe_is_still_solved(noise):
    """Rounding in sums over all rows would be more than what varies among the rows of a training."""
    vectors, labels, folds = classified(60, 16, signal=1.0)
    vectors = 3 + noise * vectors
    vectors[folds.of_row == 0] += 100 * np.random.default_rng(1).normal(size=(1, 16)).astype(np.float32)
    scores = cross_validate(vectors, labels, folds, ("accuracy",), "ridge")
    assert np.isfinite(scores.by_metric["accuracy"]).all()


@pytest.mark.parametrize("probe", PROBES)
def test_a_class_of_one_row_leaves_one_class_to_train_on_and_that_one_is_predicted(probe):
    vectors, _, folds = classified(40, 8, signal=1.0)
    labels = labels_of("classification", (np.arange(40) == 0).astype(np.int64), 2)
    scores = cross_validate(vectors, labels, folds, ("accuracy",), probe)
    alone = folds.of_row == folds.of_row[0]
    assert scores.by_metric["accuracy"][folds.of_row[0]] == pytest.approx(1 - 1 / alone.sum())


def test_three_rows_are_scored():
    labels = labels_of("regression", [1.0, 2.0, 4.0])
    vectors = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    scores = cross_validate(vectors, labels, Folds(np.arange(3), 3), METRICS["regression"], "ridge")
    assert np.isnan([*scores.by_metric["r2"], *scores.by_metric["spearman"]]).all()


def test_of_a_fixed_split_training_rows_are_trained_on_and_validation_rows_choose_the_penalty():
    vectors, labels, _ = classified(200, 20, signal=1.0)
    of_row = np.repeat((1, 0, -1), (120, 40, 40))
    found = cross_validate(vectors, labels, Folds(of_row, 1), CLASSES, "ridge")
    targets = np.eye(3)[labels.targets]
    tested = np.arange(120, 160)
    correct = [
        np.mean(
            sklearn_ridge(vectors, targets, np.arange(200) < 120, tested, p).argmax(1) == labels.targets[tested]
        )
        for p in RidgeProbe.penalties
    ]
    assert found.by_metric["accuracy"] == (pytest.approx(max(correct)),)
    assert found.inner == found.by_metric["accuracy"]
    # The bootstrap's standard error of a share p of 40 rows: sqrt(p (1 - p) / 40).
    p = max(correct)
    assert np.std(found.resampled["accuracy"]) == pytest.approx((p * (1 - p) / 40) ** 0.5, rel=0.15)


def test_memory_does_not_grow_with_classes_times_rows_times_penalties():
    """3,000 rows of 1,000 classes: predictions for 5 penalties would take 60 MB, 0 and 1 for each class 24 MB."""
    random = np.random.default_rng(0)
    labels = labels_of("classification", random.integers(0, 1000, 3000), 1000)
    vectors = random.normal(size=(3000, 8)).astype(np.float32)
    tracemalloc.start()
    cross_validate(vectors, labels, Folds(np.arange(3000) % 3, 3), ("accuracy", "macro_f1"), "ridge")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Predictions of two folds for a penalty take 8 MB; so do 0 and 1 of a fold, and again while they are centred.
    assert peak < 40e6


def test_dimensions_of_any_size_are_constant_where_scikit_learn_says_so():
    """Dimensions of deviations from 1e-36 to 1e15, far from 0 or not, and constant ones of the same sizes."""
    random = np.random.default_rng(0)
    sizes = np.repeat(10.0 ** np.arange(-36, 16, 3), 3)
    vectors = random.normal(size=(90, len(sizes))) * sizes
    vectors[:, 1::3] += 1000 * sizes[1::3]
    vectors[:, 2::3] = 3 * sizes[2::3]
    vectors = vectors.astype(np.float32)
    _, labels, folds = classified(90, 4, signal=1.0)
    training = RidgeProbe(vectors, labels, folds).training([0])
    rows = np.concatenate([part.rows for part in training.parts])
    scaler = StandardScaler().fit(vectors[rows].astype(np.float64))
    constant = scaler.var_ <= 1e-24 * np.square(vectors[rows]).max(axis=0)
    assert constant.tolist() == [False, False, True] * (len(sizes) // 3)
    np.testing.assert_array_equal(training.scale == 0, constant)
    np.testing.assert_allclose(training.scale[~constant], 1 / scaler.scale_[~constant], rtol=1e-4)
    expected = scaler.transform(vectors[rows].astype(np.float64))
    np.testing.assert_allclose(training.standardised(), np.where(constant, 0, expected), rtol=1e-2, atol=1e-3)
