"""Similarity of vectors: cosines of pairs, and of whole spaces linear CKA and shared neighbours. Pure NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Rows that are multiplied at a time.
_BLOCK = 1024
#: Random rows whose neighbours are compared.
_QUERIES = 1000


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns [n] the cosine of each pair of rows of two [n, D]; 1 if both vectors are zero."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    products = np.einsum("nd,nd->n", x, y)
    found = np.where(x.any(axis=1) | y.any(axis=1), 0.0, 1.0)
    np.divide(products, lengths, out=found, where=lengths > 0)
    return found


def linear_cka(x: NDArray[np.float32], y: NDArray[np.float32]) -> float | None:
    """Returns the linear centred kernel alignment of two vectors for each of n rows, from 0 to 1.

    Kornblith et al., "Similarity of neural network representations revisited" (ICML 2019), section 3: for centred
    X and Y, ||Y'X||² / (||X'X|| ||Y'Y||) in Frobenius norms, by D x D products, or by blocks of the n x n products
    of rows where that is less work. It does not change with rotations and with the scale of a space.

    Args:
        x: [n, D1]
        y: [n, D2]

    Returns:
        The alignment; None for fewer than two rows, and if all vectors of one side are equal.
    """
    if len(x) < 2:
        return None
    widths = x.shape[1], y.shape[1]
    if len(x) * sum(widths) < widths[0] ** 2 + widths[1] ** 2 + widths[0] * widths[1]:
        across, within_x, within_y = _by_rows(x, y)
    else:
        across, within_x, within_y = _by_dimensions(x, y)
    if not within_x > 0 or not within_y > 0:
        return None
    return float(np.clip(across / np.sqrt(within_x * within_y), 0, 1))


def _by_dimensions(x: NDArray[np.float32], y: NDArray[np.float32]) -> tuple[float, float, float]:
    """Returns ||Y'X||², ||X'X||² and ||Y'Y||² of the centred [n, D1] and [n, D2]."""
    centres = x.mean(axis=0, dtype=np.float64), y.mean(axis=0, dtype=np.float64)
    across = np.zeros((y.shape[1], x.shape[1]))
    within = [np.zeros((of.shape[1], of.shape[1])) for of in (x, y)]
    for start in range(0, len(x), _BLOCK):
        one, other = (of[start : start + _BLOCK] - centre for of, centre in zip((x, y), centres, strict=True))
        across += other.T @ one
        within[0] += one.T @ one
        within[1] += other.T @ other
    return float((across**2).sum()), float((within[0] ** 2).sum()), float((within[1] ** 2).sum())


def _by_rows(x: NDArray[np.float32], y: NDArray[np.float32]) -> tuple[float, float, float]:
    """Returns the same as `_by_dimensions`: ||Y'X||² is the sum of the products of the entries of XX' and YY'."""
    centred = [of - of.mean(axis=0, dtype=np.float64) for of in (x, y)]
    sums = np.zeros(3)
    for start in range(0, len(x), _BLOCK):
        one, other = (of[start : start + _BLOCK] @ of.T for of in centred)
        sums += (one * other).sum(), (one**2).sum(), (other**2).sum()
    return float(sums[0]), float(sums[1]), float(sums[2])


def neighbour_overlap(x: NDArray[np.float32], y: NDArray[np.float32], *, k: int, seed: int) -> float | None:
    """Returns the mean share of the k nearest rows by cosine that are the same in two spaces, from 0 to 1.

    Args:
        x: [n, D1]
        y: [n, D2]
        k: neighbours, fewer where there are fewer other rows.
        seed: chooses the rows whose neighbours are compared, at most 1,000.

    Returns:
        The share; None for fewer than two rows.
    """
    k = min(k, len(x) - 1)
    if k < 1:
        return None
    queries = np.random.default_rng(seed).permutation(len(x))[:_QUERIES]
    one, other = (_nearest(unit(of), queries, k) for of in (x, y))
    return float((one[:, :, None] == other[:, None, :]).sum() / (k * len(queries)))


def _nearest(units: NDArray[np.float32], queries: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """Returns [Q, k] the rows nearest to each query, in no order."""
    found = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), _BLOCK):
        rows = queries[start : start + _BLOCK]
        products = units[rows] @ units.T
        products[np.arange(len(rows)), rows] = -np.inf
        found[start : start + _BLOCK] = np.argpartition(-products, k - 1, axis=1)[:, :k]
    return found


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the vectors [..., D] scaled to length 1; zeros stay zeros."""
    norms: NDArray[np.float32] = np.sqrt(np.einsum("...d,...d->...", vectors, vectors))[..., None]
    norms[norms == 0] = 1
    return vectors / norms
