"""The poolings: hidden states of a text's tokens to one vector.

A pooling is written once, by operations on the tokens of some texts. These have two implementations: `Rectangle`
for texts of one length or padded to it, and `Segments` for packed texts of any lengths. Both sum and compare in
float32, whatever the model computes in. A text without tokens has no vector: its row is NaN.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from operator import methodcaller
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedkit.types import ranges

Arrays: TypeAlias = dict[str, NDArray[Any]]
Inputs: TypeAlias = Mapping[str, Tensor]


class TextTokens(ABC):
    """The hidden states of the tokens of B texts that take part in the pooling. All results are float32."""

    @abstractmethod
    def first(self) -> Tensor:
        """Returns the first token's state of each text: [B, D]."""

    @abstractmethod
    def last(self) -> Tensor:
        """Returns the last token's state of each text: [B, D]."""

    @abstractmethod
    def maximum(self) -> Tensor:
        """Returns the largest value of each dimension: [B, D]."""

    @abstractmethod
    def minimum(self) -> Tensor:
        """Returns the smallest value of each dimension: [B, D]."""

    @abstractmethod
    def total(self) -> Tensor:
        """Returns the sum of the states: [B, D]."""

    @abstractmethod
    def count(self) -> Tensor:
        """Returns the number of tokens: [B, 1], or [1, 1] if it is the same for all."""

    def sqrt_count(self) -> Tensor:
        """Returns the square root of `count`."""
        return self.count().sqrt()

    @abstractmethod
    def total_by_rank(self) -> tuple[Tensor, Tensor]:
        """Weights the tokens by their position; see `weightedmean`.

        Returns:
            The weighted sum of the states, [B, D], and the sum of the weights, [B, 1].
        """

    @abstractmethod
    def nan_where_empty(self, vectors: Tensor) -> Tensor:
        """Replaces the vectors [B, D] of texts without tokens by NaN."""


Pooling: TypeAlias = Callable[[TextTokens], Tensor]


def mean(tokens: TextTokens) -> Tensor:
    """Averages the tokens: sum(h) / n."""
    return tokens.total() / tokens.count()


def mean_sqrt_len(tokens: TextTokens) -> Tensor:
    """Computes sum(h) / sqrt(n), which keeps some of the length; sentence-transformers' pooling of that name."""
    return tokens.total() / tokens.sqrt_count()


def weightedmean(tokens: TextTokens) -> Tensor:
    """Averages the tokens with weights 1, 2, ..., n by position.

    Later tokens of a causal model have seen more (SGPT, Muennighoff 2022, arXiv 2202.08904, eq. 2). After a
    skipped prompt of k tokens the weights are k + 1, k + 2, ...
    """
    total, weight = tokens.total_by_rank()
    return total / weight


#: By the names that `--pool` takes. To add a pooling: a function of TextTokens, a line here, its name in
#: config/poolings.py, and its arithmetic in tests/pooling/test_functions.py.
POOLINGS: dict[str, Pooling] = {
    "cls": methodcaller("first"),
    "mean": mean,
    "max": methodcaller("maximum"),
    "min": methodcaller("minimum"),
    "mean_sqrt_len": mean_sqrt_len,
    "weightedmean": weightedmean,
    "lasttoken": methodcaller("last"),
}


def pool(name: str, tokens: TextTokens) -> Tensor:
    """Pools texts by one of POOLINGS: float32 [B, D], NaN for texts without tokens."""
    return tokens.nan_where_empty(POOLINGS[name](tokens))


class Rectangle(TextTokens):
    """Texts of one length, or padded to it.

    Args:
        hidden_states: [B, T, D] of any float dtype.
        mask: bool [B, T], true for tokens that take part, with gaps anywhere; None if all do.
        skipped: tokens of a prompt before those that take part.
    """

    def __init__(self, hidden_states: Tensor, mask: Tensor | None = None, skipped: int = 0) -> None:
        self._states, self._mask, self._skipped = hidden_states, mask, skipped

    def first(self) -> Tensor:
        if self._mask is None:
            return self._states[:, 0].to(torch.float32, copy=True)
        # argmax of equal maxima is the first of them.
        return self._at(self._mask.int().argmax(dim=1))

    def last(self) -> Tensor:
        if self._mask is None:
            return self._states[:, -1].to(torch.float32, copy=True)
        return self._at(self._mask.shape[1] - 1 - self._mask.int().flip(1).argmax(dim=1))

    def maximum(self) -> Tensor:
        if self._mask is None:
            return self._states.amax(dim=1).float()
        return self._filled(self._mask, -torch.inf).amax(dim=1)

    def minimum(self) -> Tensor:
        if self._mask is None:
            return self._states.amin(dim=1).float()
        return self._filled(self._mask, torch.inf).amin(dim=1)

    def total(self) -> Tensor:
        if self._mask is None:
            return self._states.sum(dim=1, dtype=torch.float32)
        return self._weighted(self._mask.float())

    def count(self) -> Tensor:
        if self._mask is None:
            return self._states.new_full((1, 1), self._states.shape[1], dtype=torch.float32)
        return self._mask.float().sum(dim=1, keepdim=True)

    def sqrt_count(self) -> Tensor:
        if self._mask is None:
            # torch's float32 square root is not correctly rounded for 19, 34, ...
            return self._states.new_full((1, 1), math.sqrt(self._states.shape[1]), dtype=torch.float32)
        return super().sqrt_count()

    def total_by_rank(self) -> tuple[Tensor, Tensor]:
        mask = self._mask
        if mask is None:
            mask = torch.ones(self._states.shape[:2], dtype=torch.bool, device=self._states.device)
        weights = (mask.cumsum(dim=1) + self._skipped).float() * mask
        return self._weighted(weights), weights.sum(dim=1, keepdim=True)

    def nan_where_empty(self, vectors: Tensor) -> Tensor:
        if self._mask is None:
            return vectors
        return vectors.masked_fill(~self._mask.any(dim=1, keepdim=True), torch.nan)

    def _at(self, position: Tensor) -> Tensor:
        texts = torch.arange(len(position), device=position.device)
        return self._states[texts, position].float()

    def _filled(self, mask: Tensor, value: float) -> Tensor:
        return self._states.float().masked_fill(~mask.unsqueeze(-1), value)

    def _weighted(self, weights: Tensor) -> Tensor:
        # Replaced by zero, not multiplied by it: 0 x inf would be NaN.
        return torch.einsum("bt,btd->bd", weights, self._filled(weights != 0, 0.0))


class Segments(TextTokens):
    """Packed texts, pooled in one call, whatever their lengths.

    A batch of 64k tokens has some hundred lengths: pooled a length at a time, a GPU would run hundreds of small
    kernels. Here each text is a segment, and so are the tokens between two texts that take no part. The order of
    additions is fixed, and nothing waits for the device.

    Args:
        arrays: the result of `segment_arrays`, on the device of the states.
        hidden_states: [T, D] of any float dtype.
    """

    def __init__(self, arrays: Inputs, hidden_states: Tensor) -> None:
        self._of, self._states = arrays, hidden_states

    def first(self) -> Tensor:
        return self._states.index_select(0, self._of["segment_first"]).float()

    def last(self) -> Tensor:
        return self._states.index_select(0, self._of["segment_last"]).float()

    def maximum(self) -> Tensor:
        return self._reduced(self._states, "max")

    def minimum(self) -> Tensor:
        return self._reduced(self._states, "min")

    def total(self) -> Tensor:
        return self._reduced(self._states, "sum")

    def count(self) -> Tensor:
        return self._of["segment_counts"]

    def total_by_rank(self) -> tuple[Tensor, Tensor]:
        weighted = self._states.float() * self._of["segment_weights"]
        return self._reduced(weighted, "sum"), self._of["segment_weight"]

    def nan_where_empty(self, vectors: Tensor) -> Tensor:
        return vectors.masked_fill(self._of["segment_empty"], torch.nan)

    def _reduced(self, states: Tensor, how: str) -> Tensor:
        # Unsafe: its checks would wait for the device, and the lengths cover all tokens by construction.
        reduced = torch.segment_reduce(states.float(), how, lengths=self._of["segment_lengths"], unsafe=True)
        # Every second segment is a text.
        return reduced[1::2]


def segment_arrays(
    starts: NDArray[np.int64], stops: NDArray[np.int64], n_tokens: int, *, skipped: int | None
) -> Arrays:
    """Makes the arrays of Segments, in numpy, before the device is used.

    Args:
        starts: int64 [B], the first token of each text that takes part; ascending.
        stops: int64 [B], the end of those that do, at most the next start.
        n_tokens: T of the batch.
        skipped: tokens of a prompt before those that take part; None if no pooling weights by position.
    """
    borders = np.concatenate([[0], np.stack([starts, stops], axis=1).ravel(), [n_tokens]])
    counts = stops - starts
    arrays: Arrays = {
        "segment_lengths": np.diff(borders),
        # An empty text needs a valid index too: the result is replaced by NaN.
        "segment_first": np.minimum(starts, n_tokens - 1),
        "segment_last": np.maximum(stops - 1, 0),
        "segment_counts": counts.astype(np.float32)[:, None],
        "segment_empty": (counts == 0)[:, None],
    }
    if skipped is not None:
        weights = np.zeros(n_tokens, np.float32)
        weights[ranges(starts, counts)] = ranges(np.full_like(starts, skipped + 1), counts)
        arrays["segment_weights"] = weights[:, None]
        # 1 + 2 + ... + n, and n times what was skipped.
        arrays["segment_weight"] = (counts * (counts + 1) / 2 + counts * skipped).astype(np.float32)[:, None]
    return arrays
