"""The poolings of `tokens.py` for texts that lie end to end: one call for all texts, whatever their lengths.

A batch of 64k tokens has some hundred lengths: pooled a length at a time, a GPU would wait for hundreds of small
calls. Here each text is a segment, and tokens that take no part are segments of their own between them, whose
result is dropped. No sum is scattered, so the order of additions is fixed; none waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Arrays: TypeAlias = dict[str, NDArray[Any]]


def segment_arrays(
    starts: NDArray[np.int64], stops: NDArray[np.int64], n_tokens: int, *, weights_from: int | None
) -> Arrays:
    """What Segments needs, in numpy, so that it can be made before the device is asked for anything.

    Args:
        starts: int64 [n], the first token of each text that takes part; ascending.
        stops: int64 [n], the end of those that do; none beyond the next start.
        n_tokens: T of the batch.
        weights_from: the weight before the first under `weightedmean`; None where it is not wanted.
    """
    borders = np.concatenate([[0], np.stack([starts, stops], axis=1).ravel(), [n_tokens]])
    counts = stops - starts
    arrays: Arrays = {
        "segment_lengths": np.diff(borders),
        # An empty text has a place to read from all the same: what is read there is replaced by NaN.
        "segment_first": np.minimum(starts, n_tokens - 1),
        "segment_last": np.maximum(stops - 1, 0),
        "segment_counts": counts.astype(np.float32)[:, None],
        "segment_empty": (counts == 0)[:, None],
    }
    if weights_from is not None:
        weights = np.zeros(n_tokens, np.float32)
        place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        weights[np.repeat(starts, counts) + place] = place + 1 + weights_from
        arrays["segment_weights"] = weights[:, None]
        # 1 + 2 + ... + n, and n times where they begin.
        arrays["segment_weight"] = (counts * (counts + 1) / 2 + counts * weights_from).astype(np.float32)[:, None]
    return arrays


class Segments:
    """The texts of a packed batch, as segments of its tokens.

    Args:
        arrays: what `segment_arrays` gave, on the device of the states.
    """

    def __init__(self, arrays: Mapping[str, Tensor]) -> None:
        self._of = arrays

    def pool(self, name: str, hidden_states: Tensor) -> Tensor:
        """States [T, D] of any float dtype to float32 [n, D], by a pooling of `tokens.py`; NaN for empty texts."""
        match name:
            case "cls":
                pooled = hidden_states.index_select(0, self._of["segment_first"]).float()
            case "lasttoken":
                pooled = hidden_states.index_select(0, self._of["segment_last"]).float()
            case "mean":
                pooled = self._reduce(hidden_states, "sum") / self._of["segment_counts"]
            case "mean_sqrt_len":
                pooled = self._reduce(hidden_states, "sum") / self._of["segment_counts"].sqrt()
            case "weightedmean":
                weighted = hidden_states.float() * self._of["segment_weights"]
                pooled = self._reduce(weighted, "sum") / self._of["segment_weight"]
            case _:
                pooled = self._reduce(hidden_states, name)
        return pooled.masked_fill(self._of["segment_empty"], torch.nan)

    def _reduce(self, hidden_states: Tensor, how: str) -> Tensor:
        # Unsafe: its checks would wait for the device; the lengths cover all tokens by their making.
        reduced = torch.segment_reduce(
            hidden_states.float(), how, lengths=self._of["segment_lengths"], unsafe=True
        )
        # What takes part lies between what does not: every second one is a text.
        return reduced[1::2]
