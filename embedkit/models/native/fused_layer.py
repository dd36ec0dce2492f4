"""An encoder layer as matrix products, which are torch's, and compiled kernels for all that lies between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from embedkit.models.native.kernels import Kernels
from embedkit.models.native.layer import Norm
from embedkit.models.native.linear import Dense, Rows
from embedkit.models.native.thread_pool import Part

#: Rows are filled up to a multiple of this. oneDNN prepares itself for each number of rows that it meets, and that
#: takes as long as to multiply them.
GRAIN = 16


@dataclass(frozen=True, slots=True)
class FusedLayer:
    """What `Layer` computes, in fewer passes over memory.

    Attributes:
        kernels: compiled.
        qkv, out, norm, up, down, last_norm, n_heads: see Layer.
        activation: its name.
        int8: whether the linear layers take bytes.
    """

    kernels: Kernels
    qkv: Dense
    out: Dense
    norm: Norm
    up: Dense
    activation: str
    down: Dense
    last_norm: Norm
    n_heads: int
    int8: bool

    def __call__(self, rows: Rows, lengths: Tensor, near: Sequence[Tensor]) -> Rows:
        """The next layer's states.

        Args:
            rows: [T, D] of texts laid end to end.
            lengths: int64 [n], tokens of each text.
            near: of each text what is added to the scores: [heads, length, length]; empty = nothing.
        """
        kernels, int8 = self.kernels, self.int8
        context = kernels.attend(self.qkv.products(rows), lengths, near, self.n_heads, quantise=int8)
        attended = kernels.residual_norm(self.out.products(context), rows.states, self.norm, quantise=int8)
        inner = kernels.activate(self.up.products(attended), self.activation, quantise=int8)
        return kernels.residual_norm(self.down.products(inner), attended.states, self.last_norm, quantise=int8)


def through(layers: Sequence[FusedLayer], biases: Mapping[int, Tensor], states: Tensor, part: Part) -> Tensor:
    """States [T, D] of a part's texts behind the last of these layers; see layer.through."""
    lengths = [run.length for run in part.runs for _ in range(run.count)]
    near = [biases[length] for length in lengths] if biases else []
    n_tokens = len(states)
    padded = functional.pad(states, (0, 0, 0, -n_tokens % GRAIN))
    rows = layers[0].kernels.rows(padded, quantise=layers[0].int8)
    for layer in layers:
        rows = layer(rows, torch.tensor(lengths), near)
    return rows.states[:n_tokens]
