from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkit.errors import InputError
from embedkit.study.labels import TEST, TRAIN, VALIDATION, Labels
from embedkit.study.splits import HELD_OUT, TRAINED_ON, make_folds, merge_groupings, split_rows


def labels_of(targets, task="classification", *, groups=None, split=None):
    """Labels whose classes are called by their numbers."""
    targets = np.asarray(targets)
    n_classes = targets.shape[1] if targets.ndim == 2 else int(targets.max()) + 1
    classes = () if task == "regression" else tuple(map(str, range(n_classes)))
    return Labels(task, np.arange(len(targets)), targets, classes, groups, split)


@st.composite
def labelled(draw):
    """Labels of 40 rows of any task, and groups or None."""
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    task = draw(st.sampled_from(["classification", "multilabel", "ordinal", "regression"]))
    n_classes = draw(st.integers(2, 30))
    targets = {
        "multilabel": random.random((40, n_classes)) < draw(st.sampled_from([0.02, 0.3])),
        "regression": random.normal(size=40),
    }.get(task, random.zipf(1.5, 40).clip(max=n_classes) - 1)
    groups = random.integers(0, draw(st.integers(1, 60)), 40) if draw(st.booleans()) else None
    return labels_of(targets, task), groups


# Folds -----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(labelled(), st.sampled_from([3, 5]), st.integers(0, 3))
def test_folds_share_out_all_rows_and_never_divide_a_group(labels_and_groups, count, seed):
    labels, groups = labels_and_groups
    units = np.arange(40) if groups is None else groups
    if len(np.unique(units)) < count:
        with pytest.raises(InputError, match=f"groups.*, fewer than the {count} folds"):
            make_folds(labels, groups, count=count, seed=seed)
        return
    folds = make_folds(labels, groups, count=count, seed=seed)
    assert set(folds.of_row.tolist()) == set(range(count))
    assert len(np.unique(np.stack([units, folds.of_row]), axis=1)[0]) == len(np.unique(units))
    assert (make_folds(labels, groups, count=count, seed=seed).of_row == folds.of_row).all()


@pytest.mark.parametrize("sizes", [[50, 30, 20], [5] * 200, [3] * 40, [1] * 15 + [2] * 10, [60, *[1] * 20]])
def test_each_class_is_spread_over_as_many_folds_as_it_has_rows(sizes):
    targets = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    folds = make_folds(labels_of(targets), None, count=5, seed=0).of_row
    table = np.zeros((len(sizes), 5), int)
    np.add.at(table, (targets, folds), 1)
    assert (np.ptp(table, axis=1) <= 1).all()
    # At most one row of each class more than in another fold; scikit-learn promises no more.
    assert np.ptp(table.sum(axis=0)) <= max(1, sum(size % 5 > 0 for size in sizes) // 4)


def test_frequent_classes_have_the_folds_of_scikit_learn():
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    random = np.random.default_rng(0)
    targets, groups = random.integers(0, 3, 200), random.integers(0, 50, 200)
    for theirs, ours in ((StratifiedKFold, None), (StratifiedGroupKFold, groups)):
        folds = make_folds(labels_of(targets), ours, count=5, seed=3).of_row
        splits = theirs(5, shuffle=True, random_state=3).split(targets, targets, ours)
        for fold, (_, tested) in enumerate(splits):
            assert (np.flatnonzero(folds == fold) == tested).all()


def test_labels_of_many_rows_are_shared_out_more_evenly_than_by_chance():
    random = np.random.default_rng(0)
    targets = random.random((500, 12)) < random.uniform(0.01, 0.4, 12)
    targets[:, 0] &= targets[:, 1]

    def unevenness(folds):
        return np.std([targets[folds == fold].mean(axis=0) for fold in range(5)], axis=0).mean()

    ours = unevenness(make_folds(labels_of(targets, "multilabel"), None, count=5, seed=0).of_row)
    by_chance = [unevenness(random.permutation(np.arange(500) % 5)) for _ in range(50)]
    assert ours < 0.4 * min(by_chance)
    assert np.ptp(np.bincount(make_folds(labels_of(targets, "multilabel"), None, count=5, seed=0).of_row)) <= 10


def test_the_seed_decides_the_folds():
    labels = labels_of(np.repeat([0, 1, 2], [50, 30, 20]))
    one, again, other = (make_folds(labels, None, count=5, seed=seed).of_row for seed in (0, 0, 1))
    assert (one == again).all()
    assert (one != other).any()


def test_the_users_test_rows_are_in_no_fold_and_validation_rows_make_a_fixed_split():
    targets, split = np.arange(60) % 2, np.repeat([TRAIN, TEST], [40, 20]).astype(np.int8)
    folds = make_folds(labels_of(targets, split=split), None, count=5, seed=0)
    assert (folds.of_row[split == TEST] == HELD_OUT).all()
    assert np.bincount(folds.of_row[split == TRAIN]).tolist() == [8] * 5
    split[:8] = VALIDATION
    folds = make_folds(labels_of(targets, split=split), None, count=5, seed=0)
    assert folds.of_row.tolist() == [0] * 8 + [TRAINED_ON] * 32 + [HELD_OUT] * 20
    assert (folds.count, folds.test_share) == (1, 8 / 32)


def test_rows_linked_through_another_row_stay_together():
    # 0 and 1 share a patient, 1 and 2 a text, 3 is alone
    assert merge_groupings(np.array([7, 7, 8, 9]), np.array([1, 2, 2, 3])).tolist() == [0, 0, 0, 1]


# Training, validation and test -----------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(labelled(), st.sampled_from([0.0, 0.15, 0.3]), st.integers(0, 3))
def test_parts_share_out_all_rows_and_never_divide_a_group(labels_and_groups, test, seed):
    labels, groups = labels_and_groups
    units = np.arange(40) if groups is None else groups
    if len(np.unique(units)) < 2 + (test > 0):
        with pytest.raises(InputError, match="cannot be split into"):
            split_rows(labels, groups, validation=0.2, test=test, seed=seed)
        return
    split = split_rows(labels, groups, validation=0.2, test=test, seed=seed)
    parts = [split.train, split.validation, split.test]
    assert sorted(np.concatenate(parts).tolist()) == list(range(40))
    assert [len(part) > 0 for part in parts] == [True, True, test > 0]
    members = [set(units[part].tolist()) for part in parts]
    assert not members[0] & members[1] | members[0] & members[2] | members[1] & members[2]
    if groups is None:
        assert abs(len(split.validation) - 8) <= 4


@pytest.mark.parametrize("sizes", [[100, 60, 40], [5] * 200, [1, 2, 3, 194]])
def test_every_class_has_its_share_of_each_part_and_a_rare_one_is_trained_on(sizes):
    targets = np.repeat(np.arange(len(sizes)), sizes)
    split = split_rows(labels_of(targets), None, validation=0.2, test=0.2, seed=1)
    for part, share in ((split.train, 0.6), (split.validation, 0.2), (split.test, 0.2)):
        counts = np.bincount(targets[part], minlength=len(sizes))
        assert np.abs(counts - share * np.array(sizes)).max() <= 1
    assert set(targets[split.train].tolist()) == set(range(len(sizes)))


def test_parts_have_their_shares_where_every_class_has_two_rows():
    labels = labels_of(np.repeat(np.arange(100), 2))
    split = split_rows(labels, None, validation=0.15, test=0.15, seed=0)
    trained = labels.targets[split.train]
    for part in (split.validation, split.test):
        assert 20 <= len(part) <= 40  # 30 of 200
        assert np.isin(labels.targets[part], trained).all()


def test_the_users_parts_stay_and_validation_rows_are_taken_from_the_training_rows():
    targets, split = np.arange(100) % 2, np.repeat([TRAIN, TEST], [80, 20]).astype(np.int8)
    found = split_rows(labels_of(targets, split=split), None, validation=0.25, test=0.15, seed=0)
    assert found.test.tolist() == list(range(80, 100))
    assert (len(found.train), len(found.validation)) == (60, 20)
    split[:10] = VALIDATION
    found = split_rows(labels_of(targets, split=split), None, validation=0.25, test=0.15, seed=0)
    assert (found.validation.tolist(), len(found.train)) == (list(range(10)), 70)


def test_validation_rows_have_a_class_of_the_training_rows_where_groups_allow_it():
    """Four groups of one class each: the two of class 0 share it, and the smaller one is for validation."""
    targets = np.repeat([0, 0, 1, 2], [6, 4, 3, 2])
    groups = np.repeat(np.arange(4), [6, 4, 3, 2])
    labels = Labels("classification", np.arange(15), targets, ("0", "1", "2"), None)
    for seed in range(5):
        split = split_rows(labels, groups, validation=0.15, test=0.0, seed=seed)
        assert set(targets[split.validation]) <= {0}, seed
        assert split.validation.tolist() == list(range(6, 10))
        assert sorted([*split.train, *split.validation]) == list(range(15))


@pytest.mark.parametrize("own", [None, np.arange(6)])
def test_too_few_groups_of_near_duplicates_are_told_with_the_option_that_made_them(own):
    labels = Labels("classification", np.arange(6), np.array([0, 1] * 3), ("0", "1"), own)
    for split in (
        lambda: make_folds(labels, np.zeros(6, np.int64), count=3, seed=0),
        lambda: split_rows(labels, np.zeros(6, np.int64), validation=0.2, test=0.2, seed=0),
    ):
        with pytest.raises(InputError, match=r"--dedupe keeps .*leave out --dedupe"):
            split()
