"""One encoder layer over packed texts, with torch's operations or compiled kernels between the matrix products."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from embedkit.models.native.linear import ROWS, Linear, Rows
from embedkit.types import LengthGroup

if TYPE_CHECKING:
    from embedkit.models.native.kernels import Kernels

#: Attention scores held at once: 8 MiB, which stay in the caches.
_SCORES = 2 << 20
#: Longer texts go through torch's own attention, whose memory does not grow with the square of the length.
_LONGEST = 1024

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}


@dataclass(frozen=True, slots=True)
class Norm:
    """A layer norm: [..., D] → the same. Torch computes mean and variance in fp32, whatever the states' dtype."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, states: Tensor) -> Tensor:
        """Scales each row to mean 0 and variance 1, then applies weight and bias."""
        return functional.layer_norm(states, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Attention and feed-forward network of one layer, each followed by its residual and its norm."""

    qkv: Linear  # queries, keys and values in one: [T, D] → [T, 3 D]
    attention_out: Linear
    attention_norm: Norm
    up: Linear
    activation: str  # a name of ACTIVATIONS
    down: Linear
    output_norm: Norm
    n_heads: int


def torch_layer(
    layer: LayerWeights, states: Tensor, groups: Sequence[LengthGroup], biases: Mapping[int, Tensor]
) -> Tensor:
    """Computes the next layer's states with torch's operations.

    Args:
        layer: its queries are scaled by 1 / sqrt(head_dim).
        states: [T, D] of packed texts.
        groups: the lengths of those texts.
        biases: for each length, what is added to the scores: [heads, length, length]; empty if nothing is.

    Returns:
        [T, D].
    """
    activation = ACTIVATIONS[layer.activation]
    context = attend(layer.qkv(states), groups, layer.n_heads, biases)
    # In blocks of rows, so that what is between the linear layers stays in the caches.
    blocks = []
    for of_context, of_states in zip(torch.split(context, ROWS), torch.split(states, ROWS), strict=True):
        attended = layer.attention_norm(layer.attention_out(of_context).add_(of_states))
        blocks.append(layer.output_norm(layer.down(activation(layer.up(attended))).add_(attended)))
    return torch.cat(blocks)


def fused_layer(
    layer: LayerWeights, kernels: Kernels, rows: Rows, lengths: Tensor, biases: Sequence[Tensor]
) -> Rows:
    """Computes the same with compiled kernels, in fewer passes over memory.

    Args:
        layer: see `torch_layer`.
        kernels: the compiled ones.
        rows: [T, D] of packed texts; quantised if the linear layers take bytes.
        lengths: int64 [n], tokens of each text.
        biases: for each text, what is added to the scores: [heads, length, length]; empty if nothing is.
    """
    quantise = rows.bytes is not None
    context = kernels.attend(layer.qkv.products(rows), lengths, biases, layer.n_heads, quantise=quantise)
    attended = kernels.residual_norm(
        layer.attention_out.products(context), rows.states, layer.attention_norm, quantise=quantise
    )
    inner = kernels.activate(layer.up.products(attended), layer.activation, quantise=quantise)
    return kernels.residual_norm(layer.down.products(inner), attended.states, layer.output_norm, quantise=quantise)


def attend(qkv: Tensor, groups: Sequence[LengthGroup], n_heads: int, biases: Mapping[int, Tensor]) -> Tensor:
    """Computes attention within each text.

    Args:
        qkv: [T, 3 D]: scaled queries, keys, values.
        groups: the texts; they cover the T tokens in order.
        n_heads: heads that D is made of.
        biases: see `torch_layer`.

    Returns:
        [T, D].
    """
    tokens, width = qkv.shape[0], qkv.shape[1] // 3
    context = qkv.new_empty(tokens, width)
    for group in groups:
        length = group.length
        at_once = max(1, _SCORES // (n_heads * length * length))
        for first in range(0, group.count, at_once):
            count = min(at_once, group.count - first)
            rows = slice(group.start + first * length, group.start + (first + count) * length)
            # [3, count, heads, length, head_dim]; for a single text the next line copies nothing.
            parts = qkv[rows].view(count, length, 3, n_heads, -1).permute(2, 0, 3, 1, 4)
            query, key, value = parts.reshape(3, count * n_heads, length, -1).unbind()
            if length > _LONGEST:
                bias = biases.get(length)
                seen = functional.scaled_dot_product_attention(
                    query[None], key[None], value[None], attn_mask=None if bias is None else bias[None], scale=1.0
                )[0].contiguous()
            else:
                scores = torch.bmm(query, key.transpose(1, 2))
                if biases:
                    scores.view(count, n_heads, length, length).add_(biases[length])
                seen = torch.bmm(torch.softmax(scores, dim=-1), value)
            context[rows].view(count, length, n_heads, -1).copy_(
                seen.view(count, n_heads, length, -1).transpose(1, 2)
            )
    return context
