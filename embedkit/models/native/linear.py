"""Linear layers [T, K] → [T, N], in fp32 and in int8.

The weights are laid out once for oneDNN's kernels, where torch has them. Each row of the output depends on
its own row of the input alone.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

#: Rows that go through a chain of layers together: 512 of 1,536 values are 3 MiB, and stay in the caches.
ROWS = 512
#: oneDNN takes unsigned activations; the signed ones go up by this, and it takes that off again, exactly.
_ZERO = 128
#: The largest number of a row is taken for this at least: rows of zeros have a scale, too.
_LEAST = 1e-36


@dataclass(frozen=True, slots=True)
class Rows:
    """What goes into a linear layer: T rows of K numbers.

    Attributes:
        states: float32 [T, K].
        bytes: the same quantised, uint8 [T, K], 128 = 0; None where no layer wants it.
        steps: float32 [T], what a step of each row of `bytes` is worth.
    """

    states: Tensor
    bytes: Tensor | None = None
    steps: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Products:
    """What a linear layer gives.

    Attributes:
        values: float32 [T, N]; used up by the kernel that takes them.
        steps: float32 [T]; row t of the values times steps[t], plus bias, is what is meant; None = the values are.
        bias: float32 [N]; None where the values have it.
    """

    values: Tensor
    steps: Tensor | None = None
    bias: Tensor | None = None


class Dense(Protocol):
    """A linear layer: fp32 [T, K] → fp32 [T, N]."""

    def __call__(self, rows: Tensor) -> Tensor:
        """Weight times rows plus bias."""

    def products(self, rows: Rows) -> Products:
        """The same for a kernel that goes on from there."""


def dense(weight: Tensor, bias: Tensor, dtype: str) -> Dense:
    """The fastest linear layer here.

    Args:
        weight: fp32 [N, K]; copied.
        bias: fp32 [N]; copied.
        dtype: fp32 or int8.
    """
    if dtype == "int8":
        return Int8Dense(weight, bias)
    return PackedDense(weight, bias) if has_onednn() else PlainDense(weight, bias)


def has_onednn() -> bool:
    """Whether this torch has oneDNN's kernels for this processor."""
    built_in = bool(torch._C._has_mkldnn)  # noqa: SLF001 - what torch.backends.mkldnn.is_available() gives
    return built_in and platform.machine() in {"x86_64", "AMD64"}


def has_int8_dot_products() -> bool:
    """Whether the processor multiplies bytes in one instruction (VNNI); without it int8 is slower than fp32."""
    return has_onednn() and torch.cpu._is_vnni_supported()  # noqa: SLF001 - torch has no public name for it


class PlainDense:
    """As torch has it."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._weight, self._bias = weight.clone(), bias.clone()

    def __call__(self, rows: Tensor) -> Tensor:
        """Weight times rows plus bias."""
        return functional.linear(rows, self._weight, self._bias)

    def products(self, rows: Rows) -> Products:
        """The same for a kernel that goes on from there."""
        return Products(self(rows.states))


class PackedDense:
    """With the weight in oneDNN's own layout, so that no call has to bring it into it."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)  # noqa: SLF001 - its only name
        self._bias = bias.clone()

    def __call__(self, rows: Tensor) -> Tensor:
        """Weight times rows plus bias."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001 - its only name
            rows, self._packed, self._bias, "none", [], ""
        )
        return product

    def products(self, rows: Rows) -> Products:
        """The same for a kernel that goes on from there."""
        return Products(self(rows.states))


class Int8Dense:
    """Weights in int8, scaled for each output; activations in int8, scaled for each row as it comes.

    Sums of products of bytes are exact, whatever their order. So a row's result depends on that row alone, to
    the bit. What is not finite stays so: its scale is.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._scale = weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        quantised = (weight / self._scale[:, None]).round_().to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(quantised, [ROWS, weight.shape[1]])
        self._zeros = torch.zeros(len(weight), dtype=torch.int64)
        self._bias = bias.clone()

    def __call__(self, rows: Tensor) -> Tensor:
        """Weight times rows plus bias."""
        if len(rows) <= ROWS:
            return self._of_block(rows)
        return torch.cat([self._of_block(block) for block in torch.split(rows, ROWS)])

    def products(self, rows: Rows) -> Products:
        """Raw products of the rows' bytes, for a kernel that scales them and adds the bias.

        Raises:
            ValueError: the rows have no bytes.
        """
        if rows.bytes is None:
            raise ValueError("an int8 layer takes rows that are quantised")
        return Products(self._multiplied(rows.bytes), rows.steps, self._bias)

    def _of_block(self, rows: Tensor) -> Tensor:
        largest = rows.abs().amax(dim=1, keepdim=True).clamp_min_(_LEAST)
        signed = torch.mul(rows, 127 / largest).round_().to(torch.int8)
        product = self._multiplied(signed.view(torch.uint8).bitwise_xor_(_ZERO))
        return product.mul_(largest / 127).add_(self._bias)

    def _multiplied(self, unsigned: Tensor) -> Tensor:
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(unsigned, 1.0, _ZERO, self._packed, self._scale, self._zeros, None),
            *(1.0, 0, torch.float32, "none", [], "none"),
        )
        return product
