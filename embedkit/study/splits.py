"""Folds of a cross-validation, and splits into training, validation and test rows; groups stay whole."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.errors import InputError
from embedkit.study.labels import Labels
from embedkit.study.near_duplicates import connected_components


@dataclass(frozen=True, slots=True)
class Folds:
    """A division of N rows into folds, each tested by a probe trained on the others."""

    #: [N] the fold that tests each row, from 0; -1 for the user's test rows, which no fold sees. In a fixed split
    #: validation rows are 0, and training rows 1: a fold from `count` on is never tested.
    of_row: NDArray[np.int64]
    count: int  # 1 for a fixed split

    def training(self, fold: int) -> NDArray[np.bool_]:
        """Returns bool [N], the rows on which the probe that `fold` tests is trained."""
        return np.asarray((self.of_row != fold) & (self.of_row >= 0))

    @property
    def test_share(self) -> float:
        """n_test / n_train of a fold: 1 / (count - 1), or of the fixed split."""
        if self.count == 1:
            return float((self.of_row == 0).sum() / self.training(0).sum())
        return 1 / (self.count - 1)


@dataclass(frozen=True, slots=True)
class Split:
    """Disjoint parts of `Labels.rows`, as ascending positions."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]  # decide when training stops
    test: NDArray[np.int64]  # for the final score only; may be empty


def make_folds(labels: Labels, groups: NDArray[np.int64] | None, *, count: int, seed: int) -> Folds:
    """Divides N rows into folds with about equal shares of every class; groups [N] stay in one fold.

    Raises:
        InputError: there are fewer rows or groups than folds, or no class has as many rows.
    """
    from sklearn import model_selection

    size = len(labels.targets) if groups is None else len(np.unique(groups))
    _check_enough("rows" if groups is None else "groups", size, count)
    is_classification = labels.task == "classification"
    if is_classification:
        largest = int(np.bincount(labels.targets.astype(np.int64)).max())
        _check_enough("rows in the largest class", largest, count)
    prefix = "Stratified" if is_classification else ""
    name = f"{prefix}{'' if groups is None else 'Group'}KFold"
    splitter: Any = getattr(model_selection, name)(count, shuffle=True, random_state=seed)
    of_row = np.zeros(len(labels.targets), np.int64)
    with warnings.catch_warnings():
        # The results show the scores of such classes.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for fold, (_, tested) in enumerate(splitter.split(np.zeros((len(of_row), 1)), labels.targets, groups)):
            of_row[tested] = fold
    return Folds(of_row, count)


def merge_groupings(*groupings: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns group numbers [N] of the finest grouping that keeps together what any of these, [N] each, does."""
    rows = len(groupings[0])
    # A graph of the rows and one node for each group.
    nodes, n_nodes = [], rows
    for grouping in groupings:
        names, members = np.unique(grouping, return_inverse=True)
        nodes.append(members + n_nodes)
        n_nodes += len(names)
    starts = np.tile(np.arange(rows), len(groupings))
    component = connected_components(starts, np.concatenate(nodes), n_nodes)
    return np.asarray(np.unique(component[:rows], return_inverse=True)[1], np.int64)


def split_rows(labels: Labels, *, validation: float, test: float, seed: int) -> Split:
    """Splits labelled rows, with about equal shares of every class in each part unless there are groups.

    `validation` and `test` are shares of all rows.

    Raises:
        InputError: there are too few rows or groups, or a class is too small to be in every part.
    """
    every = np.arange(len(labels.rows))
    try:
        rest, tested = _split_in_two(labels, every, test, seed) if test else (every, every[:0])
        train, validated = _split_in_two(labels, rest, validation / (1 - test), seed)
    except ValueError:
        # Not chained: scikit-learn's message may hold labels.
        raise InputError(
            f"{len(every)} rows cannot be split into training, validation and test rows",
            hint="a class needs 3 rows or more, and groups at least 3; or change --validation and --test",
        ) from None
    return Split(train, validated, tested)


def _split_in_two(
    labels: Labels, rows: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit, StratifiedShuffleSplit

    options: dict[str, Any] = {"n_splits": 1, "test_size": share, "random_state": seed}
    targets = labels.targets[rows]
    if labels.groups is not None:
        splits = GroupShuffleSplit(**options).split(rows, targets, labels.groups[rows])
    elif labels.task == "classification":
        splits = StratifiedShuffleSplit(**options).split(rows, targets)
    else:
        splits = ShuffleSplit(**options).split(rows)
    larger, smaller = next(iter(splits))
    return np.sort(rows[larger]), np.sort(rows[smaller])


def _check_enough(what: str, size: int, count: int) -> None:
    if size < count:
        raise InputError(
            f"there are {size} {what}, fewer than the {count} folds",
            hint=f"use --folds {max(size, 3)}" if size >= 3 else "label more rows",
        )
