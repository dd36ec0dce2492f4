from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from embedkit.study.metrics import BY_NAME, METRICS
from embedkit.study.probe import PROBES, RidgeProbe, cross_validate, cross_validate_all
from embedkit.study.splits import Folds

CLASSES = METRICS["classification"]


def data(rows, dims, *, signal, classes=3, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, rows)
    vectors = random.normal(size=(rows, dims))
    vectors[:, :classes] += signal * np.eye(classes)[labels]
    # Dimensions of other sizes and places, as encoders have; and one that never varies.
    vectors = vectors * random.uniform(0.01, 30, dims) + random.normal(0, 10, dims)
    vectors[:, -1] = 0.3
    folds = Folds(random.permutation(rows) % 4, 4)
    return vectors.astype(np.float32), np.eye(classes)[labels], folds


@pytest.mark.parametrize(("rows", "dims"), [(200, 24), (40, 120)], ids=["by dimensions", "by rows"])
def test_ridge_by_sums_over_folds_is_ridge_on_vectors_standardised_by_the_training_rows(rows, dims):
    vectors, targets, folds = data(rows, dims, signal=1.0)
    probe = RidgeProbe(vectors, targets, folds)
    for held in [(1,), (0, 3)]:
        trained = ~np.isin(folds.of_row, held)
        tested = np.concatenate([np.flatnonzero(folds.of_row == fold) for fold in held])
        scaler = StandardScaler().fit(vectors[trained].astype(np.float64))
        for strength, found in zip(probe.penalties, probe.predictions(held), strict=True):
            ridge = Ridge(alpha=strength * trained.sum())
            ridge.fit(scaler.transform(vectors[trained]), targets[trained])
            np.testing.assert_allclose(found, ridge.predict(scaler.transform(vectors[tested])), atol=2e-3)


@pytest.mark.parametrize("probe", PROBES)
def test_shuffled_labels_give_chance_and_a_signal_gives_more(probe):
    chance, found = (
        cross_validate(*data(300, 60, signal=signal), ("accuracy", "auroc"), probe) for signal in (0.0, 2.0)
    )
    # 300 rows of three classes: the standard error of chance is sqrt(1/3 * 2/3 / 300) = 0.027; three of them
    assert abs(np.mean(chance.by_metric["accuracy"]) - 1 / 3) < 0.082
    assert abs(np.mean(chance.by_metric["auroc"]) - 0.5) < 0.06
    assert np.mean(found.by_metric["accuracy"]) > 0.6


def test_memorised_training_rows_do_not_raise_the_score():
    """Each row has a dimension of its own: training can memorise its rows, and test rows have no signal."""
    vectors, targets, folds = data(120, 4, signal=0.0)
    vectors = np.concatenate([vectors, np.eye(120, dtype=np.float32)], axis=1)
    scores = cross_validate(vectors, targets, folds, ("accuracy",), "ridge").by_metric["accuracy"]
    assert abs(np.mean(scores) - 1 / 3) < 0.13  # three standard errors of 120 rows


def test_what_is_chosen_for_a_fold_does_not_depend_on_it():
    vectors, targets, folds = data(200, 20, signal=1.0)
    before = cross_validate(vectors, targets, folds, CLASSES, "ridge")
    of_fold = folds.of_row == 2
    spoilt = targets.copy()
    spoilt[of_fold] = np.roll(spoilt[of_fold], 1, axis=1)
    after = cross_validate(vectors, spoilt, folds, CLASSES, "ridge")
    assert after.inner[2] == before.inner[2]
    assert after.inner[1] != before.inner[1]
    assert after.by_metric["accuracy"][2] < before.by_metric["accuracy"][2]


def test_a_value_is_predicted_and_many_candidates_come_in_order():
    vectors, targets, folds = data(150, 10, signal=3.0)
    value = targets[:, :1] * 2 + 5
    found = list(
        cross_validate_all([lambda: vectors, lambda: vectors[:, 3:]], value, folds, METRICS["regression"], "ridge")
    )
    assert np.mean(found[0].by_metric["r2"]) > 0.5 > np.mean(found[1].by_metric["r2"])
    assert np.mean(found[0].by_metric["spearman"]) > 0.6


def test_the_metrics_are_scikit_learns():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 60)
    scores = np.round(random.normal(size=(3, 60, 4)) + np.eye(4)[labels], 1).astype(np.float32)  # with ties
    targets = np.eye(4)[labels]
    for of, accuracy, f1, auroc in zip(scores, *(BY_NAME[name](scores, targets) for name in CLASSES), strict=True):
        assert accuracy == pytest.approx(metrics.accuracy_score(labels, of.argmax(axis=1)))
        assert f1 == pytest.approx(metrics.f1_score(labels, of.argmax(axis=1), average="macro"))
        areas = [metrics.roc_auc_score(labels == number, of[:, number]) for number in range(4)]
        assert auroc == pytest.approx(np.mean(areas))
    values = random.normal(size=(60, 1))
    from scipy.stats import spearmanr

    for of, r2, rho in zip(
        scores, *(BY_NAME[n](scores[:, :, :1], values) for n in ("r2", "spearman")), strict=True
    ):
        assert r2 == pytest.approx(metrics.r2_score(values[:, 0], of[:, 0]))
        assert rho == pytest.approx(spearmanr(values[:, 0], of[:, 0]).statistic)


@pytest.mark.parametrize("noise", [1e-6, 1e-4, 1e-2])
def test_a_fold_of_outliers_leaves_nearly_constant_dimensions_and_the_probe_is_still_solved(noise):
    """Rounding in the sums over all rows is more than what varies among the rows of a training."""
    vectors, targets, folds = data(60, 16, signal=1.0)
    vectors = 3 + noise * vectors
    vectors[folds.of_row == 0] += 100 * np.random.default_rng(1).normal(size=(1, 16)).astype(np.float32)
    scores = cross_validate(vectors, targets, folds, ("accuracy",), "ridge")
    assert np.isfinite(scores.by_metric["accuracy"]).all()


@pytest.mark.parametrize("probe", PROBES)
def test_a_class_of_one_row_leaves_one_class_to_train_on_and_that_one_is_predicted(probe):
    vectors, _, folds = data(40, 8, signal=1.0)
    targets = np.eye(2)[(np.arange(40) == 0).astype(int)]
    scores = cross_validate(vectors, targets, folds, ("accuracy",), probe)
    alone = folds.of_row == folds.of_row[0]
    assert scores.by_metric["accuracy"][folds.of_row[0]] == pytest.approx(1 - 1 / alone.sum())
