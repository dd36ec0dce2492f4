"""One encoder layer of BERT's kind, over texts that lie end to end.

Knows nothing of token ids or of which layers are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from embedkit.models.native.linear import ROWS, Dense
from embedkit.models.native.thread_pool import Part
from embedkit.types import LengthGroup

#: Attention scores held at once: 8 MiB, which stay in the caches.
_SCORES = 2 << 20
#: Longer texts than this go through torch's own attention, whose memory does not grow with the square.
_LONGEST = 1024

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}


@dataclass(frozen=True, slots=True)
class Norm:
    """A layer norm: [..., D] → the same. Torch takes mean and variance in fp32, whatever the states are in."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, states: Tensor) -> Tensor:
        """Each row to mean 0 and variance 1, then scaled and shifted."""
        return functional.layer_norm(states, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class Layer:
    """Attention and feed-forward network of one layer, each with its residual and its norm behind it.

    Attributes:
        qkv: queries (already scaled by 1 / sqrt(head_dim)), keys and values in one: [T, D] → [T, 3 D].
        out: of the attention.
        norm: behind the attention.
        up, activation, down: the feed-forward network.
        last_norm: behind it.
        n_heads: of the attention.
    """

    qkv: Dense
    out: Dense
    norm: Norm
    up: Dense
    activation: Callable[[Tensor], Tensor]
    down: Dense
    last_norm: Norm
    n_heads: int

    def __call__(self, states: Tensor, runs: Sequence[LengthGroup], biases: Mapping[int, Tensor]) -> Tensor:
        """The next layer's states.

        Args:
            states: [T, D] of texts laid end to end.
            runs: those texts.
            biases: for each length, what is added to the scores: [heads, length, length]; empty = nothing.
        """
        context = attend(self.qkv(states), runs, self.n_heads, biases)
        # In blocks of rows, so that what is between the layers stays in the caches.
        return torch.cat(
            [
                self._behind(of_context, of_states)
                for of_context, of_states in zip(
                    torch.split(context, ROWS), torch.split(states, ROWS), strict=True
                )
            ]
        )

    def _behind(self, context: Tensor, states: Tensor) -> Tensor:
        attended = self.norm(self.out(context).add_(states))
        return self.last_norm(self.down(self.activation(self.up(attended))).add_(attended))


def through(layers: Sequence[Layer], biases: Mapping[int, Tensor], states: Tensor, part: Part) -> Tensor:
    """States [T, D] of a part's texts behind the last of these layers; see Layer."""
    for layer in layers:
        states = layer(states, part.runs, biases)
    return states


def attend(qkv: Tensor, runs: Sequence[LengthGroup], n_heads: int, biases: Mapping[int, Tensor]) -> Tensor:
    """Attention of each text to itself.

    Args:
        qkv: [T, 3 D]: scaled queries, keys, values.
        runs: the texts; they cover the T tokens in order.
        n_heads: that D is made of.
        biases: see Layer.

    Returns:
        [T, D].
    """
    tokens, width = qkv.shape[0], qkv.shape[1] // 3
    context = qkv.new_empty(tokens, width)
    for run in runs:
        length = run.length
        at_once = max(1, _SCORES // (n_heads * length * length))
        for first in range(0, run.count, at_once):
            count = min(at_once, run.count - first)
            place = slice(run.start + first * length, run.start + (first + count) * length)
            # [3, count, heads, length, head_dim]; of one text alone the next line copies nothing.
            parts = qkv[place].view(count, length, 3, n_heads, -1).permute(2, 0, 3, 1, 4)
            query, key, value = parts.reshape(3, count * n_heads, length, -1).unbind()
            if length > _LONGEST:
                seen = _without_scores(query, key, value, biases.get(length))
            else:
                scores = torch.bmm(query, key.transpose(1, 2))
                if biases:
                    scores.view(count, n_heads, length, length).add_(biases[length])
                seen = torch.bmm(torch.softmax(scores, dim=-1), value)
            context[place].view(count, length, n_heads, -1).copy_(
                seen.view(count, n_heads, length, -1).transpose(1, 2)
            )
    return context


def _without_scores(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Torch's attention for one text: [heads, length, head_dim] each."""
    mask = None if bias is None else bias[None]
    attended = functional.scaled_dot_product_attention(
        query[None], key[None], value[None], attn_mask=mask, scale=1.0
    )
    return attended[0].contiguous()
