from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkit.errors import InputError
from embedkit.study.labels import Labels
from embedkit.study.splits import make_folds, merge_groupings


def labels_of(targets, task="classification"):
    targets = np.asarray(targets)
    return Labels(task, np.arange(len(targets)), targets, tuple(map(str, np.unique(targets))), None)


groupings = st.integers(0, 12).map(lambda top: st.lists(st.integers(0, top), min_size=40, max_size=40))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=40, max_size=40),
    st.lists(st.integers(0, 30), min_size=40, max_size=40),
    st.integers(0, 3),
    st.sampled_from(["classification", "regression"]),
)
def test_neither_groups_nor_clusters_are_ever_in_two_folds(patients, clusters, seed, task):
    patients, clusters = np.array(patients), np.array(clusters)
    both = merge_groupings(patients, clusters)
    targets = np.arange(40) % 2 if task == "classification" else np.linspace(0, 1, 40)
    if len(np.unique(both)) < 3:
        with pytest.raises(InputError, match="groups, fewer than the 3 folds"):
            make_folds(labels_of(targets, task), both, count=3, seed=seed)
        return
    folds = make_folds(labels_of(targets, task), both, count=3, seed=seed).of_row
    for grouping in (patients, clusters):
        for member in np.unique(grouping):
            assert len(np.unique(folds[grouping == member])) == 1


def test_rows_linked_through_another_row_stay_together():
    # 0 and 1 share a patient, 1 and 2 a text, 3 is alone
    assert merge_groupings(np.array([7, 7, 8, 9]), np.array([1, 2, 2, 3])).tolist() == [0, 0, 0, 1]


def test_each_fold_has_its_share_of_every_class_and_the_seed_decides_which():
    labels = labels_of(np.repeat([0, 1, 2], [50, 30, 20]))
    found = [make_folds(labels, None, count=5, seed=seed).of_row for seed in (0, 0, 1)]
    for fold in range(5):
        assert np.bincount(labels.targets[found[0] == fold]).tolist() == [10, 6, 4]
    assert (found[0] == found[1]).all()
    assert (found[0] != found[2]).any()
