"""Folds of a cross-validation, and splits into training, validation and test rows; groups stay whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.errors import InputError
from embedkit.study.labels import TEST, TRAIN, VALIDATION, Labels
from embedkit.study.near_duplicates import connected_components

#: The number in `Folds.of_row` of the user's test rows, and of the training rows of a fixed split.
HELD_OUT, TRAINED_ON = -1, 1
#: scikit-learn takes 24 s for the folds of 60,000 groups, and `_dealt` 1.5 s.
_MOST_GROUPS = 20_000
#: Of a hint.
_OR_LEAVE_OUT = ", or leave out --dedupe"


@dataclass(frozen=True, slots=True)
class Folds:
    """A division of N rows into folds, each tested by a probe trained on the others."""

    #: [N] the fold that tests each row, from 0; HELD_OUT for the user's test rows, which no fold sees. Of a fixed
    #: split, validation rows are fold 0, and training rows TRAINED_ON: folds from `count` on are never tested.
    of_row: NDArray[np.int64]
    count: int  # 1 for a fixed split

    @property
    def is_test(self) -> NDArray[np.bool_]:
        """True for the user's test rows, [N]."""
        return np.asarray(self.of_row == HELD_OUT)

    def tested(self, held: Sequence[int]) -> NDArray[np.int64]:
        """Returns the rows of these folds, in the folds' order."""
        return np.concatenate([np.flatnonzero(self.of_row == fold) for fold in held])

    def trained(self, held: Sequence[int] = ()) -> NDArray[np.int64]:
        """Returns the rows that are in none of these folds, and are no test rows of the user."""
        return np.flatnonzero(~np.isin(self.of_row, [*held, HELD_OUT]))

    @property
    def test_share(self) -> float:
        """n_test / n_train of a fold: 1 / (count - 1), or of the fixed split."""
        if self.count == 1:
            return float((self.of_row == 0).sum() / (self.of_row == TRAINED_ON).sum())
        return 1 / (self.count - 1)


@dataclass(frozen=True, slots=True)
class Split:
    """Disjoint parts of `Labels.rows`, as ascending positions."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]  # decide when training stops
    test: NDArray[np.int64]  # for the final score only; may be empty


def make_folds(labels: Labels, groups: NDArray[np.int64] | None, *, count: int, seed: int) -> Folds:
    """Divides N rows into folds with about equal shares of every class; groups [N] stay in one fold.

    The user's own test rows are in no fold, and validation rows of the user's make a fixed split. Values of a
    regression are not stratified. A class of fewer rows than folds is missing in some.

    Raises:
        InputError: there are fewer rows or groups than folds.
    """
    of_row = np.full(len(labels.rows), HELD_OUT, np.int64)
    if labels.split is not None and (labels.split == VALIDATION).any():
        of_row[labels.split == VALIDATION] = 0
        of_row[labels.split == TRAIN] = TRAINED_ON
        return Folds(of_row, 1)
    rows = np.arange(len(labels.rows)) if labels.split is None else np.flatnonzero(labels.split == TRAIN)
    own_groups = None if groups is None else groups[rows]
    size, what, is_deduplicated = _units(labels, rows, own_groups)
    if size < count:
        raise InputError(
            f"there are {size} {what}, fewer than the {count} folds",
            hint=f"use --folds {max(size, 3)}"
            if size >= 3
            else f"label more rows{_OR_LEAVE_OUT * is_deduplicated}",
        )
    of_row[rows] = _stratified(labels, rows, own_groups, count, seed)
    return Folds(of_row, count)


def _stratified(
    labels: Labels, rows: NDArray[np.int64], groups: NDArray[np.int64] | None, count: int, seed: int
) -> NDArray[np.int64]:
    """Returns int64 [n], the folds of some rows: of scikit-learn, or dealt where that has no method or is slow."""
    import warnings

    from sklearn import model_selection

    targets = labels.targets[rows]
    is_stratified = labels.task in {"classification", "ordinal"}
    has_method = labels.task != "multilabel" and not (is_stratified and np.bincount(targets).max() < count)
    if has_method and (groups is None or len(np.unique(groups)) <= _MOST_GROUPS):
        name = f"{'Stratified' * is_stratified}{'' if groups is None else 'Group'}KFold"
        splitter: Any = getattr(model_selection, name)(count, shuffle=True, random_state=seed)
        of_row = np.zeros(len(rows), np.int64)
        with warnings.catch_warnings():
            # The results show the scores of such classes.
            warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
            for fold, (_, tested) in enumerate(splitter.split(np.zeros((len(rows), 1)), targets, groups)):
                of_row[tested] = fold
        if len(np.unique(of_row)) == count:
            return of_row
    return _dealt(labels, rows, groups, [1 / count] * count, seed)


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


def split_rows(
    labels: Labels, groups: NDArray[np.int64] | None, *, validation: float, test: float, seed: int
) -> Split:
    """Splits labelled rows, with about equal shares of every class in each part; groups [N] stay in one part.

    `validation` and `test` are shares of all rows. The user's own test and validation rows stay what they are; if
    there are none for validation, a share of the training rows is taken.

    Raises:
        InputError: there are too few rows or groups.
    """
    split = np.zeros(len(labels.rows), np.int64) if labels.split is None else labels.split.astype(np.int64)
    shares = [1 - validation - test, validation, test] if labels.split is None else [1 - validation, validation]
    if not (split == VALIDATION).any():
        rows = np.flatnonzero(split == TRAIN)
        parts = len([share for share in shares if share])
        own_groups = None if groups is None else groups[rows]
        size, what, is_deduplicated = _units(labels, rows, own_groups)
        if size < parts:
            raise InputError(
                f"{size} {what} cannot be split into {parts} parts for training, validation and test",
                hint=f"label more rows{_OR_LEAVE_OUT if is_deduplicated else ', or group them by another column'}",
            )
        split[rows] = _dealt(labels, rows, own_groups, shares[:parts], seed)
        _share_a_class(labels, own_groups, rows, split)
    train, validated, tested = (np.flatnonzero(split == part) for part in (TRAIN, VALIDATION, TEST))
    return Split(train, validated, tested)


def _share_a_class(
    labels: Labels, groups: NDArray[np.int64] | None, rows: NDArray[np.int64], split: NDArray[np.int64]
) -> None:
    """Chooses other validation rows if none has a class of the training rows: where each group has one class.

    They are those of the smallest group with a class that another group has as well, if there is one.

    Args:
        labels: of all rows.
        groups: [n], of `rows`.
        rows: the n rows that are split.
        split: of all rows, changed in place.
    """
    targets, part = labels.targets, split[rows]
    if labels.task != "classification":
        return
    train, validation = rows[part == TRAIN], rows[part == VALIDATION]
    if np.isin(targets[validation], targets[train]).any():
        return
    of_both = rows[part != TEST]
    units = np.arange(len(of_both)) if groups is None else np.unique(groups[part != TEST], return_inverse=True)[1]
    counts = _class_counts(labels, of_both, units)
    is_shared = np.bincount(counts.indices, minlength=len(labels.classes)) > 1
    sizes = np.where(counts @ is_shared.astype(np.int64) > 0, np.bincount(units), len(rows) + 1)
    if is_shared.any():
        split[of_both] = np.where(units == sizes.argmin(), VALIDATION, TRAIN)


def _units(labels: Labels, rows: NDArray[np.int64], groups: NDArray[np.int64] | None) -> tuple[int, str, bool]:
    """Returns the number of rows, or of groups that stay whole, their word, and True if `--dedupe` made some."""
    if groups is None:
        return len(rows), "rows", False
    size = len(np.unique(groups))
    if labels.groups is None:
        return size, "groups of near-duplicate texts, which --dedupe keeps together", True
    if size < len(np.unique(labels.groups[rows])):
        return size, "groups, since --dedupe keeps groups with near-duplicate texts together", True
    return size, "groups", False


def _dealt(
    labels: Labels, rows: NDArray[np.int64], groups: NDArray[np.int64] | None, shares: list[float], seed: int
) -> NDArray[np.int64]:
    """Deals some rows, or whole groups of them, into parts with these shares of the rows and of every class.

    Iterative stratification (Sechidis, Tsoumakas & Vlahavas, "On the stratification of multi-label data", 2011):
    the class with the fewest rows left is dealt first, each time to the part that lacks most of its rows, in whole
    numbers, and among equal ones to the part that lacks most rows of all classes.
    Groups are dealt as if they were rows of many labels, those with most rows of the class first.

    Returns:
        int64 [n], a part for each of `rows`; no part is empty.
    """
    unit = np.arange(len(rows)) if groups is None else np.unique(groups, return_inverse=True)[1]
    counts = _class_counts(labels, rows, unit)
    sizes = np.bincount(unit)
    by_class = counts.tocsc()
    lacking = np.outer(shares, np.asarray(counts.sum(axis=0)).ravel())  # [parts, K]
    room = np.array(shares) * len(rows)
    part = np.full(len(sizes), -1)
    random = np.random.default_rng(seed).permutation(len(sizes))  # decides between equal units
    left = lacking.sum(axis=0)

    def deal(chosen: int, missing: NDArray[np.float64]) -> None:
        # Less than half a row is nobody's: with two rows of each class, all would be training rows.
        best = max(range(len(shares)), key=lambda to: (math.floor(missing[to] + 0.5 + 1e-6), float(room[to])))
        of_unit = slice(*counts.indptr[chosen : chosen + 2])
        lacking[best, counts.indices[of_unit]] -= counts.data[of_unit]
        left[counts.indices[of_unit]] -= counts.data[of_unit]
        room[best] -= sizes[chosen]
        part[chosen] = best

    while (left > 0.5).any():
        rarest = int(np.where(left > 0.5, left, np.inf).argmin())
        of_class = slice(*by_class.indptr[rarest : rarest + 2])
        units, held = by_class.indices[of_class], by_class.data[of_class]
        for chosen in units[np.lexsort((random[units], -held))]:
            if part[chosen] < 0:
                deal(chosen, lacking[:, rarest])
    for chosen in np.lexsort((random, -sizes)):
        if part[chosen] < 0:  # without a class
            deal(chosen, room)
    for empty in np.setdiff1d(np.arange(len(shares)), part):
        most = np.bincount(part).argmax()
        part[min(np.flatnonzero(part == most), key=lambda chosen: sizes[chosen])] = empty
    return part[unit]


def _class_counts(labels: Labels, rows: NDArray[np.int64], unit: NDArray[np.int64]) -> Any:
    """Returns a sparse int64 [units, K], the rows of each class in each unit; K = 0 for values."""
    from scipy.sparse import csr_array

    targets = labels.targets[rows]
    if not labels.classes:
        at, classes = np.zeros((2, 0), np.int64)
    elif targets.ndim == 2:
        at, classes = targets.nonzero()
    else:
        at, classes = np.arange(len(rows)), targets
    shape = (unit.max() + 1, len(labels.classes))
    counts = csr_array((np.ones(len(at), np.int64), (unit[at], classes)), shape=shape)
    counts.sum_duplicates()
    return counts
