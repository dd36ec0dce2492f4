"""Vectors of a text's windows to one vector of the text.

A text that is longer than the model can take is read in windows, each with its special tokens. Whatever the
pooling is, it is carried out in each window, and the windows' vectors are combined: a CLS vector of such a text is
the average of its windows' CLS vectors, unless `first` is asked for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def combine(
    vectors: NDArray[np.float32], texts: NDArray[np.int64], weights: NDArray[np.int64], how: str
) -> NDArray[np.float32]:
    """One vector a text.

    Args:
        vectors: float32 [W, D], of the windows.
        texts: int64 [W], the text that each is of, ascending.
        weights: int64 [W], tokens that each adds to those before it: what two windows share counts once.
        how: `mean` = sum(weight x vector) / sum(weight); `max` = largest value of each dimension; `first` = the
            first window's.

    Returns:
        float32 [texts that have a window, D]; a text of one window keeps its vector, bit for bit.
    """
    opens = np.flatnonzero(np.diff(texts, prepend=-1))
    if len(opens) == len(texts) or how == "first":
        return vectors[opens]
    if how == "max":
        return np.maximum.reduceat(vectors, opens, axis=0)
    # A text without tokens of its own but with a prompt has one window, which adds nothing: its weight is 1.
    own = np.maximum(weights, 1).astype(np.float64)[:, None]
    sums = np.add.reduceat(vectors * own, opens, axis=0)
    combined: NDArray[np.float32] = (sums / np.add.reduceat(own, opens)).astype(np.float32)
    alone = np.diff(opens, append=len(texts)) == 1
    combined[alone] = vectors[opens[alone]]
    return combined
