"""Vectors and labels with a planted signal, for the tests of probes and of their predictions."""

from __future__ import annotations

import numpy as np

from embedkit.study.labels import Labels
from embedkit.study.splits import Folds


def labels_of(task, targets, n_classes=0, groups=None):
    names = tuple(str(number) for number in range(n_classes))
    return Labels(
        task=task, rows=np.arange(len(targets)), targets=np.asarray(targets), classes=names, groups=groups
    )


def classified(rows, dims, *, signal, classes=3, seed=0):
    """Vectors with dimensions of other sizes and places, as encoders have, and one that never varies."""
    random = np.random.default_rng(seed)
    numbers = random.integers(0, classes, rows)
    vectors = random.normal(size=(rows, dims))
    vectors[:, :classes] += signal * np.eye(classes)[numbers]
    vectors = vectors * random.uniform(0.01, 30, dims) + random.normal(0, 10, dims)
    vectors[:, -1] = 0.3
    folds = Folds(random.permutation(rows) % 4, 4)
    return vectors.astype(np.float32), labels_of("classification", numbers, classes), folds


def of_task(task, numbers, random):
    """Labels of a task that depend on class numbers 0, 1, 2."""
    if task == "multilabel":
        return labels_of(task, np.stack([numbers == 0, numbers != 1], axis=1), 2)
    if task == "regression":
        return labels_of(task, numbers * 1000.0 + random.normal(size=len(numbers)))
    return labels_of(task, numbers, 3)
