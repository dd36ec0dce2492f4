"""The poolings: hidden states of a text's tokens to one vector.

Each takes `hidden_states` [B, T, D] of any float dtype and a `mask` bool [B, T] that is true where a
token takes part (None: all do), and gives float32 [B, D]. The mask may have its gaps anywhere: pads
stand on the left in some models, and special tokens may be left out on request. Sums and comparisons
are made in float32, whatever the model computes in. A text of which no token takes part has no vector:
its row is NaN, which nobody can mistake for one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Pooling: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]


def first(hidden_states: Tensor, mask: Tensor | None) -> Tensor:
    """The first token that takes part: `cls` where [CLS] or <s> opens the text. [B, T, D] -> [B, D]."""
    if mask is None:
        return hidden_states[:, 0].float()
    # argmax of equal maxima is the first of them.
    return _at(hidden_states, mask.int().argmax(dim=1), mask)


def last(hidden_states: Tensor, mask: Tensor | None) -> Tensor:
    """The last token that takes part; in a causal model the only one that has seen the whole text."""
    if mask is None:
        return hidden_states[:, -1].float()
    return _at(hidden_states, mask.shape[1] - 1 - mask.int().flip(1).argmax(dim=1), mask)


def mean(hidden_states: Tensor, mask: Tensor | None) -> Tensor:
    """Average over the tokens that take part: sum(h) / n. [B, T, D] -> [B, D]."""
    if mask is None:
        return hidden_states.mean(dim=1, dtype=torch.float32)
    weights = mask.float()
    return _weighted_sum(hidden_states, weights) / weights.sum(dim=1, keepdim=True)


def mean_sqrt_len(hidden_states: Tensor, mask: Tensor | None) -> Tensor:
    """sum(h) / sqrt(n): keeps some of the length (sentence-transformers' pooling of that name)."""
    if mask is None:
        return hidden_states.sum(dim=1, dtype=torch.float32) / math.sqrt(hidden_states.shape[1])
    weights = mask.float()
    return _weighted_sum(hidden_states, weights) / torch.sqrt(weights.sum(dim=1, keepdim=True))


def weightedmean(hidden_states: Tensor, mask: Tensor | None, *, skipped: int = 0) -> Tensor:
    """Average with weights 1, 2, ..., n by place among the tokens that take part.

    Later tokens of a causal model have seen more (SGPT, Muennighoff 2022, arXiv 2202.08904, eq. 2). Where
    the first `skipped` tokens of each text take no part, weights go on from there: skipped + 1, skipped + 2, ...
    """
    if mask is None:
        mask = torch.ones(hidden_states.shape[:2], dtype=torch.bool, device=hidden_states.device)
    weights = (mask.cumsum(dim=1) + skipped).float() * mask
    return _weighted_sum(hidden_states, weights) / weights.sum(dim=1, keepdim=True)


def maximum(hidden_states: Tensor, mask: Tensor | None) -> Tensor:
    """Largest value of each dimension over the tokens that take part; the others count as -inf."""
    if mask is None:
        return hidden_states.amax(dim=1).float()
    states = hidden_states.float().masked_fill(~mask.unsqueeze(-1), -torch.inf)
    return _nan_where_empty(states.amax(dim=1), mask)


def minimum(hidden_states: Tensor, mask: Tensor | None) -> Tensor:
    """Smallest value of each dimension over the tokens that take part; the others count as +inf."""
    if mask is None:
        return hidden_states.amin(dim=1).float()
    states = hidden_states.float().masked_fill(~mask.unsqueeze(-1), torch.inf)
    return _nan_where_empty(states.amin(dim=1), mask)


def _at(hidden_states: Tensor, position: Tensor, mask: Tensor) -> Tensor:
    texts = torch.arange(len(position), device=position.device)
    return _nan_where_empty(hidden_states[texts, position].float(), mask)


def _weighted_sum(hidden_states: Tensor, weights: Tensor) -> Tensor:
    """Sum over tokens of weights float32 [B, T] times hidden states: float32 [B, D]."""
    # A state that takes no part is replaced, not multiplied by zero: 0 x inf would be NaN.
    states = hidden_states.float().masked_fill((weights == 0).unsqueeze(-1), 0.0)
    return torch.einsum("bt,btd->bd", weights, states)


def _nan_where_empty(vectors: Tensor, mask: Tensor) -> Tensor:
    return vectors.masked_fill(~mask.any(dim=1, keepdim=True), torch.nan)


#: Poolings of token states, by the names that `--pool` takes.
POOLINGS: dict[str, Pooling] = {
    "cls": first,
    "mean": mean,
    "max": maximum,
    "min": minimum,
    "mean_sqrt_len": mean_sqrt_len,
    "weightedmean": weightedmean,
    "lasttoken": last,
}
