"""What the device's matrix products alone allow: the same shapes, the same tokens, nothing in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from benchmarks.gpu.ours import wait

#: A measurement repeats a product until it has taken about so long.
_SECONDS = 0.05


@dataclass(frozen=True)
class Shape:
    """Of an encoder: its widths and its depth."""

    hidden: int
    inner: int
    heads: int
    layers: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
        return cls(*(config[name] for name in names))

    @property
    def products(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the linear layers of one layer."""
        return {
            "qkv": (self.hidden, 3 * self.hidden),
            "out": (self.hidden, self.hidden),
            "up": (self.hidden, self.inner),
            "down": (self.inner, self.hidden),
        }

    def linear_flop(self, name: str) -> int:
        """Operations of one product for a token: a multiplication and an addition a weight."""
        inputs, outputs = self.products[name]
        return 2 * inputs * outputs

    def attention_flop(self, length: float) -> float:
        """Operations of one layer's attention for a token that sees `length` tokens: scores, and their sums."""
        return 4 * length * self.hidden

    def flop(self, length: float) -> float:
        """Returns the operations for a token: of BERT-base, 170 million, and 37,000 for each token it sees."""
        return self.layers * (sum(map(self.linear_flop, self.products)) + self.attention_flop(length))


class Limit:
    """The matrix products of one layer, on so many tokens.

    Args:
        shape: of the model.
        tokens: in a batch.
        length: of a text, for the attention.
        dtype: that the model runs in.
        device: where.
    """

    def __init__(self, shape: Shape, tokens: int, length: int, dtype: torch.dtype, device: str) -> None:
        self.shape, self.length, self.device = shape, length, device
        self.tokens = max(1, tokens // length) * length
        self.rates: dict[str, list[float]] = {}
        self._works = {name: self._product(*widths, dtype) for name, widths in shape.products.items()}
        self._works["attention"] = self._attention(dtype)

    def timed(self) -> float:
        """Times each product; the seconds are those of a whole forward pass of nothing else.

        What a product reaches is noted in `rates`, in operations a second.
        """
        whole = 0.0
        for name, work in self._works.items():
            flop = self.tokens * (
                self.shape.attention_flop(self.length) if name == "attention" else self.shape.linear_flop(name)
            )
            taken = self._seconds(work)
            self.rates.setdefault(name, []).append(flop / taken)
            whole += taken
        return whole * self.shape.layers

    def _seconds(self, work: Callable[[], object]) -> float:
        times, repeats = 0.0, 1
        while times < _SECONDS:
            wait(self.device)
            began = time.perf_counter()
            for _ in range(repeats):
                work()
            wait(self.device)
            times = time.perf_counter() - began
            once, repeats = times / repeats, repeats * 4
        return once

    def _product(self, inputs: int, outputs: int, dtype: torch.dtype) -> Callable[[], object]:
        rows = torch.randn(self.tokens, inputs, device=self.device, dtype=dtype)
        # As a linear layer keeps it; random, since zeros are multiplied faster.
        weight = torch.randn(outputs, inputs, device=self.device, dtype=dtype).t()
        out = torch.empty(self.tokens, outputs, device=self.device, dtype=dtype)
        return lambda: torch.mm(rows, weight, out=out)

    def _attention(self, dtype: torch.dtype) -> Callable[[], object]:
        heads = self.shape.heads
        shape = (self.tokens // self.length, heads, self.length, self.shape.hidden // heads)
        query, key, value = (torch.randn(shape, device=self.device, dtype=dtype) for _ in range(3))
        return lambda: functional.scaled_dot_product_attention(query, key, value)
