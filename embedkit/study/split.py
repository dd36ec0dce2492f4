"""Rows to train on, to stop by, and to judge by: by scikit-learn's shuffled splits, groups kept whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.errors import InputError
from embedkit.study.labels import Labels


@dataclass(frozen=True, slots=True)
class Split:
    """Places in `Labels.rows`: int64 arrays, each ascending, that share none.

    Attributes:
        train: rows that weights are fitted to.
        validation: rows that decide when to stop.
        test: rows that decide nothing; may be empty.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def split_rows(labels: Labels, *, validation: float, test: float, seed: int) -> Split:
    """Split labelled rows, with about the same share of every class on each side.

    With groups, their rows stay together, and shares of classes are left to chance.

    Args:
        labels: of the rows.
        validation: share of all rows that decide when to stop.
        test: share of all rows that decide nothing.
        seed: decides which.

    Raises:
        InputError: there are too few rows or groups, or a class is too small to be on each side.
    """
    every = np.arange(len(labels.rows))
    try:
        rest, tested = _two(labels, every, test, seed) if test else (every, every[:0])
        train, stopped = _two(labels, rest, validation / (1 - test), seed)
    except ValueError:
        # scikit-learn's sentence would do, but for the labels that it may tell.
        raise InputError(
            f"{len(every)} rows cannot be split into rows to train on, to stop by and to judge by",
            hint="a class needs 3 rows or more, and groups must be several; or change --validation and --test",
        ) from None
    return Split(train, stopped, tested)


def _two(
    labels: Labels, places: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit, StratifiedShuffleSplit

    options: dict[str, Any] = {"n_splits": 1, "test_size": share, "random_state": seed}
    targets = labels.targets[places]
    if labels.groups is not None:
        found = GroupShuffleSplit(**options).split(places, targets, labels.groups[places])
    elif labels.task == "classification":
        found = StratifiedShuffleSplit(**options).split(places, targets)
    else:
        found = ShuffleSplit(**options).split(places)
    kept, taken = next(iter(found))
    return np.sort(places[kept]), np.sort(places[taken])
