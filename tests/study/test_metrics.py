from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn import metrics

from embedkit.study.metrics import FUNCTIONS, METRICS, count_classes, rankings, score

ORACLES = {
    ("classification", "accuracy"): lambda s, y: metrics.accuracy_score(y, s.argmax(1)),
    ("classification", "macro_f1"): lambda s, y: metrics.f1_score(y, s.argmax(1), average="macro"),
    ("classification", "auroc"): lambda s, y: np.mean([metrics.roc_auc_score(y == k, s[:, k]) for k in range(4)]),
    ("classification", "average_precision"): lambda s, y: metrics.average_precision_score(np.eye(4)[y], s),
    ("multilabel", "macro_f1"): lambda s, y: metrics.f1_score(y, s > 0, average="macro"),
    ("multilabel", "micro_f1"): lambda s, y: metrics.f1_score(y, s > 0, average="micro"),
    ("multilabel", "auroc"): lambda s, y: metrics.roc_auc_score(y, s),
    ("multilabel", "average_precision"): lambda s, y: metrics.average_precision_score(y, s),
    ("ordinal", "qwk"): lambda s, y: metrics.cohen_kappa_score(
        y, np.floor(s[:, 0].astype(float) + 0.5).astype(int), weights="quadratic"
    ),
    ("ordinal", "spearman"): lambda s, y: spearmanr(y, s[:, 0]).statistic,
    ("ordinal", "accuracy"): lambda s, y: metrics.accuracy_score(
        y, np.floor(s[:, 0].astype(float) + 0.5).astype(int)
    ),
    ("regression", "r2"): lambda s, y: metrics.r2_score(y, s[:, 0]),
    ("regression", "spearman"): lambda s, y: spearmanr(y, s[:, 0]).statistic,
}


def predictions(task, random, rows=60):
    numbers = random.integers(0, 4, rows)
    scores = np.round(random.normal(size=(rows, 4)) + np.eye(4)[numbers], 1).astype(np.float32)  # with ties
    if task == "classification":
        return scores, numbers
    if task == "multilabel":
        return scores, random.random((rows, 4)) < 0.3
    if task == "ordinal":
        return np.clip(scores[:, :1] + numbers[:, None] / 2, 0, 3), numbers
    return scores[:, :1], random.normal(size=rows) + scores[:, 0]


@pytest.mark.parametrize(("task", "name"), ORACLES)
def test_a_metric_is_scikit_learns_and_a_weight_is_a_row_that_occurs_so_often(task, name):
    assert set(ORACLES) == {(task, name) for task, names in METRICS.items() for name in names}
    random = np.random.default_rng(0)
    scores, truth = predictions(task, random)
    assert score(task, name, scores, truth) == pytest.approx(ORACLES[task, name](scores, truth))
    weights = random.integers(0, 4, (5, len(truth))).astype(np.float64)
    found = FUNCTIONS[task][name](scores, truth, weights)
    for weight, value in zip(weights, found, strict=True):
        rows = np.repeat(np.arange(len(truth)), weight.astype(int))
        assert value == pytest.approx(ORACLES[task, name](scores[rows], truth[rows]))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), rows=st.integers(2, 30), levels=st.integers(1, 5))
def test_per_class_measures_are_scikit_learns(seed, rows, levels):
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, rows)
    scores = random.integers(0, levels, (rows, 3)).astype(np.float32)
    ones = np.ones((1, rows))
    areas, precisions = rankings(scores, truth, ones)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = metrics.precision_recall_fscore_support(
            truth, scores.argmax(1), labels=range(3), zero_division=np.nan
        )
    counts = count_classes(scores, truth, ones)
    for ours, theirs in zip((counts.precision, counts.recall, counts.f1), expected[:3], strict=True):
        np.testing.assert_allclose(ours[:, 0], theirs)
    for number in range(3):
        positive = truth == number
        if positive.all() or not positive.any():
            assert np.isnan([areas[number, 0], precisions[number, 0]]).all()
            continue
        assert areas[number, 0] == pytest.approx(metrics.roc_auc_score(positive, scores[:, number]))
        assert precisions[number, 0] == pytest.approx(metrics.average_precision_score(positive, scores[:, number]))


@pytest.mark.parametrize(
    ("task", "name", "truth"),
    [
        ("classification", "auroc", np.zeros(5, np.int64)),
        ("classification", "average_precision", np.zeros(5, np.int64)),
        ("multilabel", "macro_f1", np.zeros((5, 2), np.bool_)),
        ("multilabel", "micro_f1", np.zeros((5, 2), np.bool_)),
        ("ordinal", "qwk", np.full(5, 2)),
        ("ordinal", "spearman", np.full(5, 2)),
        # A mean of equal values is not always the value: R² was -1e31.
        ("regression", "r2", np.full(5, 0.1)),
        ("regression", "r2", 3 + 1e-6 * np.arange(5)),
        ("regression", "spearman", np.full(5, 0.1)),
    ],
)
def test_a_metric_of_labels_that_do_not_vary_is_undefined(task, name, truth):
    columns = 2 if task in {"classification", "multilabel"} else 1
    scores = np.random.default_rng(0).normal(size=(5, columns)).astype(np.float32)
    assert np.isnan(score(task, name, scores, truth))
