"""Positions of tokens that lie end to end, as a model counts them for each text alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def after_pad(ids: NDArray[np.int64], position: NDArray[np.int64], pad_id: int) -> NDArray[np.int64]:
    """RoBERTa's positions: from `pad_id + 1`; pads in the text stay at the pad's position and are not counted.

    Args:
        ids: int64 [T], tokens of all texts.
        position: int64 [T], of the same tokens in their texts, from 0.
        pad_id: the padding's id.

    Returns:
        int64 [T].
    """
    content = (ids != pad_id).astype(np.int64)
    counted = np.cumsum(content)
    opens = np.maximum.accumulate(np.where(position == 0, np.arange(len(ids)), 0))
    before = (counted - content)[opens]
    positions: NDArray[np.int64] = (counted - before) * content + pad_id
    return positions
