"""One layer over packed texts, with torch's operations or compiled kernels between the matrix products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from embedkit.models.native.attention import Attention, Texts
from embedkit.models.native.linear import ROWS, Linear, Products, Rows
from embedkit.models.native.norm import Norm

if TYPE_CHECKING:
    from embedkit.models.native.kernels import Kernels

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}


@dataclass(frozen=True, slots=True)
class Norms:
    """The norms around attention or the feed-forward network; None where there is none."""

    before: Norm | None  # of its input
    inner: Norm | None  # of its output, before the residual is added
    after: Norm | None  # of its output with the residual


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Attention and feed-forward network of one layer, each with its residual and its norms."""

    qkv: Linear  # queries, keys and values in one: [T, D] → [T, (heads + 2 key heads) * width]
    attention: Attention
    attention_out: Linear
    attention_norms: Norms
    up: Linear  # [T, D] → [T, I]; [T, 2 I] with a gate, which comes first
    activation: str  # a name of ACTIVATIONS
    gated: bool
    down: Linear
    ffn_norms: Norms


def torch_layer(layer: LayerWeights, states: Tensor, texts: Texts) -> Tensor:
    """Computes the next layer's states with torch's operations: [T, D] → [T, D]."""
    context = layer.attention(layer.qkv(_normed(states, layer.attention_norms)), texts)
    # In blocks of rows, so that what is between the linear layers stays in the caches.
    blocks = []
    for of_context, of_states in zip(torch.split(context, ROWS), torch.split(states, ROWS), strict=True):
        attended = _joined(layer.attention_out(of_context), of_states, layer.attention_norms)
        inner = activated(layer, layer.up(_normed(attended, layer.ffn_norms)))
        blocks.append(_joined(layer.down(inner), attended, layer.ffn_norms))
    return torch.cat(blocks)


def fused_layer(layer: LayerWeights, kernels: Kernels, rows: Rows, texts: Texts, *, quantise: bool) -> Rows:
    """Computes the same with compiled kernels, in fewer passes over memory.

    Args:
        layer: the weights.
        kernels: the compiled ones.
        rows: [T, D] of packed texts, perhaps with rows of padding after them.
        texts: the texts.
        quantise: whether the linear layers take bytes.
    """
    normed = _normed_rows(kernels, rows, layer.attention_norms, quantise=quantise)
    context = layer.attention.fused(kernels, layer.qkv.products(normed), texts, quantise=quantise)
    attended = _joined_rows(
        kernels, layer.attention_out.products(context), rows.states, layer.attention_norms, quantise=quantise
    )
    up = layer.up.products(_normed_rows(kernels, attended, layer.ffn_norms, quantise=quantise))
    if layer.gated:
        inner = kernels.rows(activated(layer, up.scaled()), quantise=quantise)
    else:
        inner = kernels.activate(up, layer.activation, quantise=quantise)
    return _joined_rows(kernels, layer.down.products(inner), attended.states, layer.ffn_norms, quantise=quantise)


def activated(layer: LayerWeights, up: Tensor) -> Tensor:
    """Applies the activation, to the gate if there is one: [T, I] or [T, 2 I] → [T, I]."""
    activation = ACTIVATIONS[layer.activation]
    if not layer.gated:
        return activation(up)
    gate, values = up.chunk(2, dim=-1)
    return activation(gate).mul_(values)


def _normed(states: Tensor, norms: Norms) -> Tensor:
    return states if norms.before is None else norms.before(states)


def _joined(update: Tensor, states: Tensor, norms: Norms) -> Tensor:
    """Adds the residual to an output, with the norms around that; overwrites `update`."""
    if norms.inner is not None:
        update = norms.inner(update)
    total = update.add_(states)
    return total if norms.after is None else norms.after(total)


def _normed_rows(kernels: Kernels, rows: Rows, norms: Norms, *, quantise: bool) -> Rows:
    return rows if norms.before is None else kernels.rows(norms.before(rows.states), quantise=quantise)


def _joined_rows(kernels: Kernels, products: Products, residual: Tensor, norms: Norms, *, quantise: bool) -> Rows:
    """See `_joined`. Only rows that a norm has made are quantised: others go through one first."""
    if norms.inner is None and norms.after is not None:
        return kernels.residual_norm(products, residual, norms.after, quantise=quantise)
    return Rows(_joined(products.scaled(), residual, norms))
