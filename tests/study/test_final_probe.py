from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.linear_model import Ridge
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from embedkit.study.final_probe import constant_out_of_fold, fit_final, out_of_fold
from embedkit.study.metrics import METRICS, score
from embedkit.study.probe import PROBES, RidgeProbe
from embedkit.study.splits import Folds
from tests.study.data import classified, labels_of, of_task

TASKS = ("classification", "multilabel", "ordinal", "regression")


def ridge(vectors, targets, trained, penalty):
    """scikit-learn's ridge on vectors standardised by the training rows, as a function of vectors."""
    scaler = StandardScaler().fit(vectors[trained].astype(np.float64))
    model = Ridge(alpha=penalty * len(trained)).fit(scaler.transform(vectors[trained]), targets[trained])
    return lambda of: model.predict(scaler.transform(of))


def best_penalty(vectors, targets, numbers, trained, folds):
    """The penalty with the best mean accuracy over the folds among `trained`, and its predictions there."""
    found = []
    for penalty in RidgeProbe.penalties:
        predicted = np.zeros((len(numbers), targets.shape[1]))
        for fold in np.unique(folds[trained]):
            judged = trained[folds[trained] == fold]
            predicted[judged] = ridge(vectors, targets, np.setdiff1d(trained, judged), penalty)(vectors[judged])
        correct = [
            np.mean(
                predicted[trained].argmax(1)[folds[trained] == fold] == numbers[trained][folds[trained] == fold]
            )
            for fold in np.unique(folds[trained])
        ]
        found.append((np.mean(correct), penalty, predicted[trained]))
    return max(found, key=lambda of: of[0])[1:]


def best_scale(scores, numbers):
    """Returns the scale of scores with the least log loss, a share of each row counting for all classes."""
    share = 1 / (len(scores) + 2)

    def loss(log_scale):
        probabilities = softmax(np.exp(log_scale) * scores, axis=1)
        return (1 - share) * log_loss(numbers, probabilities) - share * np.log(probabilities).mean()

    return np.exp(minimize_scalar(loss, bounds=(-4, 6), method="bounded").x)


def test_a_row_is_predicted_by_a_probe_whose_penalty_and_scale_other_folds_choose():
    vectors, labels, folds = classified(160, 12, signal=1.5)
    targets, every = np.eye(3)[labels.targets], np.arange(160)
    found = out_of_fold(vectors, labels, folds, ("accuracy",), "ridge").scores
    for fold in range(folds.count):
        trained = every[folds.of_row != fold]
        penalty, scores = best_penalty(vectors, targets, labels.targets, trained, folds.of_row)
        scale = best_scale(scores, labels.targets[trained])
        judged = folds.of_row == fold
        expected = softmax(scale * ridge(vectors, targets, trained, penalty)(vectors[judged]), axis=1)
        np.testing.assert_allclose(found[judged], expected, atol=2e-3)


def test_the_final_probe_is_trained_on_all_rows_but_test_rows_and_its_folded_weights_predict_alone():
    vectors, labels, folds = classified(200, 12, signal=1.5)
    of_row = np.where(np.arange(200) < 160, folds.of_row, -1)
    final = fit_final(vectors, labels, Folds(of_row, 4), ("accuracy",), "ridge")
    targets, trained = np.eye(3)[labels.targets], np.arange(160)
    penalty, scores = best_penalty(vectors, targets, labels.targets, trained, of_row)
    scale = best_scale(scores, labels.targets[trained])
    expected = softmax(scale * ridge(vectors, targets, trained, penalty)(vectors), axis=1)
    assert final.penalty == penalty
    np.testing.assert_allclose(final.predict(vectors), expected, atol=2e-3)
    logits = vectors.astype(np.float64) @ final.head.weight.T + final.head.bias
    np.testing.assert_allclose(softmax(logits, axis=1), final.predict(vectors), atol=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_labels_of_test_rows_change_nothing_but_the_test_score(task):
    vectors, labels, folds = classified(150, 10, signal=1.5)
    labels = of_task(task, labels.targets, np.random.default_rng(0))
    tested = np.arange(150) >= 110
    folds = Folds(np.where(tested, -1, folds.of_row), 4)
    spoilt = labels.targets.copy()
    spoilt[tested] = spoilt[tested][::-1]
    metrics = METRICS[task]
    before, after = (
        out_of_fold(vectors, of, folds, metrics, "ridge")
        for of in (labels, labels_of(task, spoilt, len(labels.classes)))
    )
    assert before.judged.tolist() == np.flatnonzero(tested).tolist()
    np.testing.assert_array_equal(after.scores, before.scores)


def test_of_a_fixed_split_training_rows_are_not_predicted():
    vectors, labels, _ = classified(120, 10, signal=1.5)
    found = out_of_fold(vectors, labels, Folds(np.repeat((1, 0), 60), 1), ("accuracy",), "ridge")
    assert found.judged.tolist() == list(range(60, 120))


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("rare", [0.5, 0.15])
def test_probabilities_are_calibrated(probe, rare):
    """The mean probability of a class is its share, and predictions of 0.6 to 0.8 are right in about 0.7."""
    random = np.random.default_rng(0)
    numbers = (random.random(1500) < rare).astype(np.int64)
    vectors = (random.normal(size=(1500, 8)) + 0.5 * numbers[:, None]).astype(np.float32)
    labels, folds = labels_of("classification", numbers, 2), Folds(random.permutation(1500) % 4, 4)
    found = out_of_fold(vectors, labels, folds, ("accuracy",), probe).scores
    assert found.sum(axis=1) == pytest.approx(1)
    assert found[:, 1].mean() == pytest.approx(rare, abs=0.04)
    middle = (found.max(axis=1) > 0.6) & (found.max(axis=1) < 0.8)
    assert np.mean(found[middle].argmax(axis=1) == numbers[middle]) == pytest.approx(0.7, abs=0.08)


@pytest.mark.parametrize("task", TASKS)
def test_without_a_signal_nothing_is_predicted_but_the_shares_and_means(task):
    vectors, labels, folds = classified(300, 10, signal=0.0)
    labels = of_task(task, labels.targets, np.random.default_rng(0))
    found = out_of_fold(vectors, labels, folds, METRICS[task], "ridge").scores.astype(np.float64)
    constant = constant_out_of_fold(labels, folds).scores
    if task in {"classification", "multilabel"}:
        # Without information the least log loss is that of the classes' shares.
        assert np.abs(found - constant).mean() < 0.15
        return
    # A correlation of 300 rows has a standard error of 0.058.
    assert abs(np.corrcoef(found[:, 0], labels.targets)[0, 1]) < 0.18


@pytest.mark.parametrize("scale", [1.0, 1e300])
def test_values_are_predicted_in_the_labels_unit(scale):
    vectors, labels, folds = classified(120, 8, signal=6.0)
    values = labels_of("regression", scale * (3 + (labels.targets == 0)))
    predictions = out_of_fold(vectors, values, folds, ("r2",), "ridge")
    error = predictions.scores[:, 0] / scale - values.targets / scale
    assert np.abs(error).mean() < 0.2
    final = fit_final(vectors, values, folds, ("r2",), "ridge").predict(vectors)[:, 0] / scale
    assert np.abs(final - values.targets / scale).mean() < 0.2


def test_a_class_whose_rows_are_all_test_rows_is_never_predicted():
    vectors, labels, folds = classified(120, 8, signal=2.0)
    folds = Folds(np.where(labels.targets == 1, -1, folds.of_row), 4)
    final = fit_final(vectors, labels, folds, ("accuracy",), "ridge")
    assert final.head.classes == ("0", "2")
    found = out_of_fold(vectors, labels, folds, ("accuracy",), "ridge")
    assert (found.scores[found.judged, 1] == 0).all()
    assert score("classification", "accuracy", found.scores[found.judged], labels.targets[found.judged]) == 0
