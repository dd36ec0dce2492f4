"""One layer over packed texts, with torch's operations or compiled kernels between the matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from embedkit.models.native.attention import Attention, Texts
from embedkit.models.native.linear import GRAIN, ROWS, Form, Linear, Rows
from embedkit.models.native.norm import Norm

if TYPE_CHECKING:
    from embedkit.models.native.kernels import Kernels

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}
#: Most rows for each core that go through the layers after attention together.
_MOST_ROWS = 2 * ROWS


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


def torch_layers(layers: Sequence[LayerWeights], states: Tensor, texts: Texts) -> Iterator[Tensor]:
    """Computes the states after each of some layers with torch's operations; see `fused_layers`."""
    for layer in layers:
        states = _torch_layer(layer, states, texts)
        yield states


def _torch_layer(layer: LayerWeights, states: Tensor, texts: Texts) -> Tensor:
    context = layer.attention(layer.qkv(_normed(states, layer.attention_norms)), texts)
    # In blocks of rows, so that what is between the linear layers stays in the caches.
    blocks = []
    for of_context, of_states in zip(torch.split(context, ROWS), torch.split(states, ROWS), strict=True):
        attended = _joined(layer.attention_out(of_context), of_states, layer.attention_norms)
        inner = activated(layer, layer.up(_normed(attended, layer.ffn_norms)))
        blocks.append(_joined(layer.down(inner), attended, layer.ffn_norms))
    return torch.cat(blocks)


def fused_layers(
    layers: Sequence[LayerWeights], kernels: Kernels, states: Tensor, texts: Texts
) -> Iterator[Tensor]:
    """Computes the states after each of some layers with compiled kernels, in fewer passes over memory.

    Args:
        layers: the weights; one layer or more.
        kernels: the compiled ones.
        states: [T, D] of packed texts, perhaps with rows of padding after them.
        texts: the texts.

    Yields:
        [T, D], valid for as long as they are kept.
    """
    rows = kernels.normed(states, layers[0].attention_norms.before, form=layers[0].qkv.form)
    size = _block_size(len(states))
    for layer, following in zip(layers, (*layers[1:], None), strict=True):
        context = layer.attention.fused(kernels, layer.qkv.products(rows), texts, form=layer.attention_out.form)
        norm = None if following is None else following.attention_norms.before
        form = Form.FLOATS if following is None else following.qkv.form
        finished = kernels.finish_layer(layer, context, states, norm, form=form)
        if finished is not None:
            states, rows = finished
            yield states
            continue
        blocks = []
        # As in `torch_layer`; most parts of a batch are one block.
        for of_context, of_states in zip(context.split(size), torch.split(states, size), strict=True):
            attended, inputs = kernels.join(
                *(layer.attention_out.products(of_context), of_states, layer.attention_norms),
                *(layer.ffn_norms.before,),
                form=layer.up.form,
            )
            inner = kernels.activate(
                layer.up.products(inputs), layer.activation, gated=layer.gated, form=layer.down.form
            )
            blocks.append(kernels.join(layer.down.products(inner), attended, layer.ffn_norms, norm, form=form))
        joined, inputs_of_blocks = zip(*blocks, strict=True)
        rows = Rows.cat(inputs_of_blocks)
        states = joined[0] if len(joined) == 1 else torch.cat(joined)
        yield states


def _block_size(n_rows: int) -> int:
    """Returns the rows of a block, of blocks of similar size."""
    most = _MOST_ROWS * torch.get_num_threads()
    size = math.ceil(n_rows / math.ceil(n_rows / most))
    return size + -size % GRAIN


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
