from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from benchmarks.noise import of_noise, own_interval_says_beats, says_beats
from embedkit.errors import InputError
from embedkit.study.candidates import Candidate
from embedkit.study.cross_validation import ProbeScores, check_defined, cross_validate, cross_validate_all
from embedkit.study.final_probe import Predictions, constant_out_of_fold, out_of_fold
from embedkit.study.metrics import METRICS
from embedkit.study.splits import Folds
from embedkit.study.verdict import corrected_interval, decide, judge_on_test_rows
from tests.study.data import classified, labels_of, of_task

LAST, OTHER = Candidate((3,), "concat", ("mean",)), Candidate((1,), "concat", ("mean",))


def test_the_interval_is_nadeau_and_bengios():
    found = corrected_interval([0.70, 0.72, 0.74, 0.69, 0.75], test_share=0.25)
    # mean 0.72; s² = (0.02² + 0 + 0.02² + 0.03² + 0.03²) / 4 = 0.00065; (1/5 + 1/4) s² = 0.0002925
    assert found.mean == pytest.approx(0.72)
    assert found.half == pytest.approx(2.7764451 * 0.0002925**0.5, rel=1e-6)  # t of 4 degrees, two-sided 95 %


def test_of_folds_taken_for_independent_it_is_scipys():
    scores = np.random.default_rng(0).normal(0.7, 0.02, 8)
    low, high = stats.t.interval(0.95, 7, loc=scores.mean(), scale=stats.sem(scores))
    found = corrected_interval(scores.tolist(), test_share=0.0)
    assert (found.low, found.high) == pytest.approx((low, high))
    # The correction for folds that share their training rows makes it wider: sqrt(1 + 8/7).
    corrected = corrected_interval(scores.tolist(), test_share=1 / 7)
    assert corrected.half / found.half == pytest.approx((15 / 7) ** 0.5)


def decided(*scores, dims=(8, 4), rows=40):
    """Returns the verdict of LAST, the baseline, and OTHER, by scores of four folds each."""
    labels = labels_of("classification", np.arange(rows) % 2, 2)
    found = [ProbeScores({"accuracy": tuple(of)}, tuple(of)) for of in scores]
    folds = Folds(np.arange(rows) // 2 % 4, 4)
    return decide([LAST, OTHER][: len(found)], found, dims[: len(found)], [LAST], labels, folds)


def test_ties_go_to_the_baseline_and_its_row_says_so():
    verdict = decided([0.7, 0.8, 0.9, 0.8], [0.8, 0.7, 0.8, 0.9])
    assert verdict.winner.candidate == LAST
    assert verdict.sentence.startswith("layer 3 mean, a baseline, beats majority class by ")


def test_a_lone_candidate_is_not_better_than_others():
    verdict = decided([0.7, 0.8, 0.9, 0.8])
    assert verdict.sentence.endswith("it is the only candidate")
    constant = verdict.rows[-1]
    assert (constant.candidate.name, constant.baseline) == ("majority class", "majority class")
    assert constant.intervals["accuracy"].mean == pytest.approx(0.5)


def test_a_difference_in_which_the_baseline_is_better_is_not_beating_it():
    # In each fold the other folds choose OTHER, which is worse there.
    verdict = decide(
        [LAST, OTHER],
        [
            ProbeScores({"accuracy": (0.8, 0.81, 0.79, 0.8)}, (0.1,) * 4),
            ProbeScores({"accuracy": (0.6,) * 4}, (0.9,) * 4),
        ],
        [8, 4],
        [LAST],
        labels_of("classification", np.arange(40) % 2, 2),
        Folds(np.arange(40) // 2 % 4, 4),
    )
    assert verdict.nested_versus["last-layer mean"].mean == pytest.approx(-0.2)
    assert verdict.rows[1].versus_winner.mean == pytest.approx(-0.2)
    assert verdict.rows[1].distinguishable


def test_undefined_folds_are_left_out_of_means_and_differences():
    verdict = decided([0.7, np.nan, 0.9, 0.8], [0.5, np.nan, 0.6, 0.55])
    assert verdict.winner.intervals["accuracy"].mean == pytest.approx(0.8)
    expected = corrected_interval([0.2, 0.3, 0.25], test_share=1 / 3)
    assert verdict.winner.candidate == LAST
    assert (-verdict.rows[1].versus_winner.high, -verdict.rows[1].versus_winner.low) == pytest.approx(
        (expected.low, expected.high)
    )
    assert verdict.undefined == {"accuracy": 1}
    alone = corrected_interval([0.7, np.nan], test_share=1)
    assert (alone.mean, np.isnan(alone.half), alone.contains_zero) == (0.7, True, True)
    assert verdict.value(alone) == "70.0"
    assert verdict.value(corrected_interval([np.nan], test_share=1)) == "undefined"


def test_a_metric_without_a_defined_fold_is_refused_and_one_without_some_is_told():
    of_row = np.arange(12) % 3
    rare = labels_of("classification", (of_row == 0) & (np.arange(12) < 6), 2)
    rare = labels_of("classification", rare.targets.astype(np.int64), 2)
    told = check_defined(rare, Folds(of_row, 3), METRICS["classification"])
    assert [sentence.split(",")[0] for sentence in told] == [
        f"{name} is undefined in 2 of 3 folds" for name in ("auroc", "average_precision")
    ]
    three = labels_of("regression", [1.0, 2.0, 3.0])
    with pytest.raises(InputError, match="r2 is undefined in every fold"):
        check_defined(three, Folds(np.arange(3), 3), ("r2", "spearman"))
    tested = Folds(np.where(np.arange(12) < 3, -1, of_row), 3)
    with pytest.raises(InputError, match="auroc is undefined on the test rows"):
        check_defined(labels_of("classification", np.maximum(np.arange(12) - 2, 0) % 2, 2), tested, ("auroc",))


def test_of_pure_noise_the_headline_hardly_ever_says_beats_where_the_winners_own_interval_often_does():
    verdicts = [of_noise(seed, rows=40, layers=3) for seed in range(40)]
    # At most 5 % of 40 sweeps; of a binomial of 40 and 0.05, 95 % are 4 or less.
    assert sum(map(says_beats, verdicts)) <= 4 < sum(map(own_interval_says_beats, verdicts))
    covered = sum(of.nested["accuracy"].low <= 0.5 <= of.nested["accuracy"].high for of in verdicts)
    assert covered >= 35  # of a binomial of 40 and 0.95, 98 % are 35 or more


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_on_test_rows_the_winner_is_judged_once_and_their_labels_choose_nothing(task):
    vectors, labels, folds = classified(240, 12, signal=2.0)
    labels = of_task(task, labels.targets, np.random.default_rng(0))
    tested = np.arange(240) >= 160
    folds = Folds(np.where(tested, -1, folds.of_row), 4)
    spoilt = labels.targets.copy()
    spoilt[tested] = np.random.default_rng(1).permutation(spoilt[tested])
    noise = np.random.default_rng(0).normal(size=vectors.shape).astype(np.float32)
    candidates, found = {LAST: noise, OTHER: vectors}, []
    for of in (labels, labels_of(task, spoilt, len(labels.classes))):
        scores = list(
            cross_validate_all([lambda v=v: v for v in candidates.values()], of, folds, METRICS[task], "ridge")
        )
        verdict = decide(list(candidates), scores, [12, 12], [LAST], of, folds)
        winner, baseline = (out_of_fold(v, of, folds, METRICS[task], "ridge") for v in (vectors, noise))
        found.append(judge_on_test_rows(verdict, of, folds, winner, {"last-layer mean": baseline}))
    right, wrong = found
    assert (wrong.rows, wrong.nested, wrong.nested_versus) == (right.rows, right.nested, right.nested_versus)
    assert right.sentence.startswith("layer 1 mean beats last-layer mean by ")
    assert " on the test rows; " in right.sentence
    assert right.test_versus["last-layer mean"].low > 0
    # Shuffled labels of the test rows give chance there, and not beyond it.
    assert " beats " not in wrong.sentence
    constant = "majority class" if task == "classification" else "mean of the labels"
    assert set(right.test_versus) == {"last-layer mean", constant}


def test_the_score_on_test_rows_is_that_of_their_predictions():
    labels = labels_of("classification", np.tile((0, 1), 30), 2)
    fold = np.where(np.arange(60) < 40, np.arange(60) // 2 % 4, -1)
    right = np.arange(60) % 5 != 0  # 16 of the 20 test rows
    scores = np.eye(2, dtype=np.float32)[np.where(right, labels.targets, 1 - labels.targets)]
    verdict = decided([0.7, 0.8, 0.9, 0.8], rows=60)
    folds = Folds(fold, 4)
    judged = judge_on_test_rows(verdict, labels, folds, Predictions(scores, fold), {})
    assert judged.test["accuracy"].mean == pytest.approx(0.8)
    constant = constant_out_of_fold(labels, folds)
    expected = 0.8 - np.mean(constant.scores[40:].argmax(axis=1) == labels.targets[40:])
    assert judged.test_versus["majority class"].mean == pytest.approx(expected)


def test_of_a_fixed_split_without_test_rows_nothing_is_said_to_be_beaten():
    vectors, labels, _ = classified(200, 12, signal=2.0)
    folds = Folds(np.repeat((1, 0), 100), 1)
    noise = np.random.default_rng(0).normal(size=vectors.shape).astype(np.float32)
    scores = [cross_validate(of, labels, folds, ("accuracy",), "ridge") for of in (noise, vectors)]
    verdict = decide([LAST, OTHER], scores, [12, 12], [LAST], labels, folds)
    assert verdict.winner.candidate == OTHER
    assert verdict.sentence.startswith(
        "layer 1 mean has the best score on the validation rows, which have chosen it"
    )
    assert verdict.nested == {}
    assert verdict.rows[0].versus_winner.high < 0
    own = verdict.winner.intervals["accuracy"]
    assert own.low < own.mean < own.high
