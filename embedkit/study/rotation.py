"""PCA and whitening of pooled vectors, in one pass over them and without labels."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from embedkit.errors import InputError


def fit_rotation(
    blocks: Iterable[NDArray[np.float64]], dims: int | None, *, whiten: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """The directions in which vectors vary most, by the eigenvectors of their covariance.

    Whitening divides each by its standard deviation (Su et al. 2021, arXiv 2103.15316).

    Args:
        blocks: float64 [n, D] each, all the vectors.
        dims: directions kept; None = every one in which they vary.
        whiten: give every direction variance 1.

    Returns:
        float32 [D] the mean; float32 [D, dims] the rotation, for (v - mean) @ rotation; and the share of the
        variance that is kept.

    Raises:
        InputError: the vectors do not vary in so many directions.
    """
    n_rows, shift, total, products = 0, None, None, None
    for block in blocks:
        # About the first block's mean: sums of squares far from zero would cancel.
        shift = block.mean(axis=0) if shift is None else shift
        moved = block - shift
        n_rows += len(block)
        total = moved.sum(axis=0) + (0 if total is None else total)
        products = moved.T @ moved + (0 if products is None else products)
    if shift is None or total is None or products is None or n_rows < 2:
        raise InputError(f"{n_rows} rows with a text are too few", hint="give at least two")
    off = total / n_rows
    covariance = (products - n_rows * np.outer(off, off)) / (n_rows - 1)
    variances, directions = np.linalg.eigh(covariance)
    variances, directions = variances[::-1], directions[:, ::-1]
    found = min(n_rows - 1, int((variances > variances[0] * 1e-10).sum()))
    if (dims or 1) > found:
        raise InputError(
            f"the vectors of {n_rows} rows vary in {found} directions, and {dims} are asked for",
            hint=f"ask for at most {found}, or give more rows",
        )
    kept = dims or found
    # A direction and its opposite are as good: the largest entry is made positive, so that all machines agree.
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0, keepdims=True), axis=0)
    rotation = (directions * np.sign(largest))[:, :kept]
    if whiten:
        rotation = rotation / np.sqrt(variances[:kept])
    share = float(variances[:kept].sum() / np.maximum(variances, 0).sum())
    return (shift + off).astype(np.float32), rotation.astype(np.float32), share
