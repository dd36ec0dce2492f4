"""Which rows are tested together: folds by class, by group, and by what is nearly the same text."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.errors import InputError
from embedkit.study.labels import Labels


@dataclass(frozen=True, slots=True)
class Folds:
    """A division of N rows into folds, each of which is tested by a probe that was trained on the others.

    Attributes:
        of_row: int64 [N], the number of each row's fold, from 0.
        count: how many folds.
    """

    of_row: NDArray[np.int64]
    count: int

    @property
    def test_share(self) -> float:
        """n_test / n_train: of folds of one size, 1 / (count - 1)."""
        return 1 / (self.count - 1)


def make_folds(labels: Labels, groups: NDArray[np.int64] | None, *, count: int, seed: int) -> Folds:
    """Divide rows into folds, each with about the same share of every class; groups stay whole.

    Args:
        labels: of N rows.
        groups: int64 [N], rows of one number stay in one fold; None = every row for itself.
        count: how many folds.
        seed: decides what the labels leave open.

    Raises:
        InputError: there are fewer rows or groups than folds, or no class has as many rows.
    """
    from sklearn import model_selection as ways

    things = len(labels.targets) if groups is None else len(np.unique(groups))
    _refuse_few("rows" if groups is None else "groups", things, count)
    classifies = labels.task == "classification"
    if classifies:
        _refuse_few("rows in the largest class", int(np.bincount(labels.targets.astype(np.int64)).max()), count)
    way: Any
    if groups is None:
        way = (ways.StratifiedKFold if classifies else ways.KFold)(count, shuffle=True, random_state=seed)
    elif classifies:
        way = ways.StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    else:
        way = ways.GroupKFold(count, shuffle=True, random_state=seed)
    of_row = np.zeros(len(labels.targets), np.int64)
    with warnings.catch_warnings():
        # Said by whoever shows the result, and with the number of such classes.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for fold, (_, tested) in enumerate(way.split(np.zeros((len(of_row), 1)), labels.targets, groups)):
            of_row[tested] = fold
    return Folds(of_row, count)


def united(*groupings: NDArray[np.int64]) -> NDArray[np.int64]:
    """The finest grouping that keeps together what any of these keeps together.

    Args:
        groupings: int64 [N] each, rows of one number belong together.

    Returns:
        int64 [N], numbers of the groups by first appearance.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = len(groupings[0])
    ends, nodes = [], rows
    for grouping in groupings:
        names, members = np.unique(grouping, return_inverse=True)
        ends.append(members + nodes)
        nodes += len(names)
    starts = np.tile(np.arange(rows), len(groupings))
    edges = coo_array((np.ones(len(starts), np.bool_), (starts, np.concatenate(ends))), shape=(nodes, nodes))
    _, component = connected_components(edges, directed=False)
    return np.asarray(np.unique(component[:rows], return_inverse=True)[1], np.int64)


def _refuse_few(what: str, there: int, count: int) -> None:
    if there < count:
        raise InputError(
            f"there are {there} {what}, fewer than the {count} folds",
            hint=f"use --folds {max(there, 3)}" if there >= 3 else "label more rows",
        )
