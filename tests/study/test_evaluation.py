from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn import metrics
from sklearn.calibration import calibration_curve

from embedkit.study.evaluation import evaluate, sampled_metrics
from embedkit.study.final_probe import Predictions, out_of_fold
from embedkit.study.metrics import METRICS
from tests.study.data import classified, labels_of, of_task


def predicted(rows, n_classes, seed=0, groups=None):
    """Labels, and probabilities that know something of them, with ties."""
    random = np.random.default_rng(seed)
    numbers = random.integers(0, n_classes, rows)
    raw = np.exp(np.round(random.normal(size=(rows, n_classes)) + 1.5 * np.eye(n_classes)[numbers], 1))
    scores = (raw / raw.sum(axis=1, keepdims=True)).astype(np.float32)
    labels = labels_of("classification", numbers, n_classes, groups)
    return labels, Predictions(scores, np.zeros(rows, np.int64))


def values(measures, name):
    return [of["value"] if isinstance(of, dict) else of for of in (entry[name] for entry in measures)]


@pytest.mark.parametrize("n_classes", [2, 4])
def test_the_evaluation_of_classes_is_scikit_learns(n_classes):
    labels, predictions = predicted(200, n_classes)
    truth, scores = labels.targets, predictions.scores.astype(np.float64)
    found = json.loads(json.dumps(evaluate(labels, predictions), allow_nan=False))
    decided = scores.argmax(axis=1)
    expected = metrics.precision_recall_fscore_support(truth, decided)
    for name, theirs in zip(("precision", "recall", "f1", "rows"), expected, strict=True):
        assert values(found["classes"], name) == pytest.approx(theirs)
    one_hot = np.eye(n_classes)[truth]
    assert values(found["classes"], "auroc") == pytest.approx(metrics.roc_auc_score(one_hot, scores, average=None))
    assert values(found["classes"], "average_precision") == pytest.approx(
        metrics.average_precision_score(one_hot, scores, average=None)
    )
    assert found["confusion"] == metrics.confusion_matrix(truth, decided).tolist()
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(metrics.accuracy_score(truth, decided))
    assert found["metrics"]["macro_f1"]["value"] == pytest.approx(np.mean(values(found["classes"], "f1")))
    assert (found["task"], found["estimate"], found["rows"]) == ("classification", "out-of-fold", 200)
    calibration = found["calibration"]
    brier = np.square(scores - one_hot).sum(axis=1).mean()
    if n_classes == 2:
        brier = metrics.brier_score_loss(truth, scores[:, 1])
    assert calibration["brier"] == pytest.approx(brier)
    confidence, correct = scores.max(axis=1), decided == truth
    shares, means = calibration_curve(correct, confidence, n_bins=10)
    assert values(calibration["bins"], "share_correct") == pytest.approx(shares)
    assert values(calibration["bins"], "mean_probability") == pytest.approx(means)
    rows = np.array(values(calibration["bins"], "rows"))
    assert rows.sum() == 200
    assert calibration["expected_error"] == pytest.approx(rows @ np.abs(shares - means) / 200)


def test_intervals_are_scipys_percentile_bootstrap():
    labels, predictions = predicted(300, 3)
    found = evaluate(labels, predictions)["metrics"]["accuracy"]
    correct = predictions.scores.argmax(axis=1) == labels.targets
    expected = bootstrap((correct,), np.mean, method="percentile", random_state=1).confidence_interval
    # Monte Carlo estimates of quantiles of a distribution whose standard deviation is about 0.027.
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=0.008)


def test_intervals_hold_the_measure_even_of_many_classes_of_few_rows():
    """Samples without some of the rows of a class, and with others twice, have a higher average precision."""
    labels, predictions = predicted(200, 50)
    for name, of in evaluate(labels, predictions)["metrics"].items():
        assert of["low"] < of["value"] < of["high"] <= 1, name


@pytest.mark.parametrize("task", ["classification", "multilabel", "ordinal"])
def test_intervals_of_shares_are_shares(task):
    """Of classes of two rows, the samples' mean is far from the measure: the shift leads below 0."""
    random, numbers = np.random.default_rng(0), np.repeat(np.arange(15), 2)
    labels = labels_of(task, np.eye(15, dtype=bool)[numbers] if task == "multilabel" else numbers, 15)
    scores = random.random((30, 1 if task == "ordinal" else 15)).astype(np.float32) * (
        40 if task == "ordinal" else 1
    )
    found = evaluate(labels, Predictions(scores, np.zeros(30, np.int64)))
    shares = [of for entry in found["classes"] for name, of in entry.items() if name not in {"name", "rows"}]
    shares += [of for name, of in found["metrics"].items() if name not in {"qwk", "spearman"}]
    ends = [end for of in shares if of["low"] is not None for end in (of["low"], of["high"])]
    assert min(ends) >= 0
    assert max(ends) <= 1


def test_with_groups_whole_groups_are_drawn_and_intervals_are_wider():
    """Ten copies of 40 rows: the interval is that of 40 rows and sqrt(10) wider than that of 400 rows."""
    labels, predictions = predicted(40, 2)
    rows = np.repeat(np.arange(40), 10)
    copies = Predictions(predictions.scores[rows], np.zeros(400, np.int64))
    widths = []
    for groups in (None, rows):
        of = evaluate(labels_of("classification", labels.targets[rows], 2, groups), copies)["metrics"]["accuracy"]
        widths.append(of["high"] - of["low"])
    assert widths[1] / widths[0] == pytest.approx(10**0.5, rel=0.2)


@pytest.mark.parametrize("task", ["multilabel", "ordinal", "regression"])
def test_other_tasks_are_evaluated_and_undefined_measures_are_null(task):
    vectors, labels, folds = classified(150, 8, signal=2.0)
    labels = of_task(task, labels.targets, np.random.default_rng(0))
    found = evaluate(labels, predictions := out_of_fold(vectors, labels, folds, METRICS[task], "ridge"))
    json.dumps(found, allow_nan=False)
    scores, truth = predictions.scores, labels.targets
    assert list(found["metrics"]) == list(METRICS[task])
    match task:
        case "multilabel":
            for name, theirs in zip(
                ("precision", "recall", "f1"),
                metrics.precision_recall_fscore_support(truth, scores > 0.5),
                strict=False,
            ):
                assert values(found["classes"], name) == pytest.approx(theirs)
            assert found["confusion"] is None
            assert found["calibration"]["brier"] == pytest.approx(np.square(scores - truth).mean(), rel=1e-5)
        case "ordinal":
            decided = np.floor(scores[:, 0] + 0.5).astype(int)
            assert found["confusion"] == metrics.confusion_matrix(truth, decided).tolist()
            assert found["classes"][0]["auroc"] == {"value": None, "low": None, "high": None}
            assert found["calibration"] is None
        case "regression":
            assert found["metrics"]["r2"]["value"] == pytest.approx(
                metrics.r2_score(truth, scores[:, 0]), abs=1e-4
            )
            assert (found["classes"], found["confusion"], found["calibration"]) == ([], None, None)


def test_a_class_that_is_never_predicted_or_has_no_row_has_no_precision_or_recall():
    labels = labels_of("classification", [0, 0, 1, 1], 3)
    scores = np.array([[0.9, 0.1, 0], [0.8, 0.2, 0], [0.6, 0.4, 0], [0.7, 0.3, 0]], np.float32)
    found = evaluate(labels, Predictions(scores, np.zeros(4, np.int64)))
    assert values(found["classes"], "precision") == [0.5, None, None]
    assert values(found["classes"], "recall") == [1, 0, None]
    assert values(found["classes"], "auroc") == [1, 1, None]


def test_only_test_rows_are_judged_where_there_are_any_and_samples_of_two_predictions_are_paired():
    labels, predictions = predicted(100, 3)
    fold = np.where(np.arange(100) < 60, 0, -1)
    tested = Predictions(predictions.scores, fold)
    found = evaluate(labels, tested)
    assert (found["estimate"], found["rows"]) == ("test", 40)
    expected = np.mean(predictions.scores.argmax(1)[60:] == labels.targets[60:])
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(expected)
    same = sampled_metrics(labels, tested, ("accuracy",))["accuracy"]
    spoilt = predictions.scores.copy()
    spoilt[:60] = 0
    np.testing.assert_array_equal(
        sampled_metrics(labels, Predictions(spoilt, fold), ("accuracy",))["accuracy"], same
    )


@pytest.mark.parametrize("task", ["classification", "multilabel", "ordinal", "regression"])
def test_shuffled_labels_give_chance(task):
    vectors, labels, folds = classified(300, 12, signal=0.0)
    labels = of_task(task, labels.targets, np.random.default_rng(0))
    found = evaluate(labels, out_of_fold(vectors, labels, folds, METRICS[task], "ridge"))["metrics"]
    name, chance = {"ordinal": ("qwk", 0), "regression": ("spearman", 0)}.get(task, ("auroc", 0.5))
    assert found[name]["low"] < chance + 0.06
    assert found[name]["value"] < chance + 0.15
