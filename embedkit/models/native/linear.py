"""Linear layers [T, K] → [T, N], in fp32, bf16 and int8.

Weights are packed once for oneDNN's kernels or for embedkit's own. Each row of the output depends on its own row
of the input alone.
"""

from __future__ import annotations

import itertools
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from embedkit.models.native.packed_products import (
    PackedWeights,
    load_bf16_products,
    load_fp32_products,
    load_int8_products,
)

#: Rows that go through a chain of layers together: 512 of 1,536 values are 3 MiB, and stay in the caches.
ROWS = 512
#: Rows are padded to a multiple of this: oneDNN prepares itself for each new number of rows, and that takes as
#: long as multiplying them.
GRAIN = 16
#: Bytes of activations are unsigned: signed ones are shifted by this, which the products subtract again, exactly.
_ZERO = 128
#: Lower bound of a row's largest value, so that rows of zeros have a scale too.
_LEAST = 1e-36


class Form(IntEnum):
    """The numbers that products take, as in vectors.h."""

    FLOATS = 0
    BYTES = 1
    BF16 = 2


@dataclass(frozen=True, slots=True)
class Rows:
    """The input of a linear layer: T rows of K numbers."""

    states: Tensor  # float32 [T, K]
    #: The same in the form of the products: uint8 [T, K] with 128 for 0, or bfloat16 [T, K]; None for floats.
    inputs: Tensor | None = None
    steps: Tensor | None = None  # float32 [T], the value of a step in each row of bytes

    @property
    def form(self) -> Form:
        """What products can take of these rows."""
        if self.inputs is None:
            return Form.FLOATS
        return Form.BF16 if self.steps is None else Form.BYTES

    def split(self, size: int) -> list[Rows]:
        """Divides them into blocks of up to `size` rows."""
        blocks = [
            itertools.repeat(None) if of_rows is None else torch.split(of_rows, size)
            for of_rows in (self.inputs, self.steps)
        ]
        return list(map(Rows, torch.split(self.states, size), *blocks))

    @classmethod
    def cat(cls, blocks: Sequence[Rows]) -> Rows:
        """Concatenates blocks of one form."""
        if len(blocks) == 1:
            return blocks[0]
        states = torch.cat([block.states for block in blocks])
        inputs = [block.inputs for block in blocks if block.inputs is not None]
        steps = [block.steps for block in blocks if block.steps is not None]
        return cls(states, torch.cat(inputs) if inputs else None, torch.cat(steps) if steps else None)


@dataclass(frozen=True, slots=True)
class Products:
    """The output of a linear layer: row t is values[t] * steps[t] + bias."""

    values: Tensor  # float32 [T, N]; overwritten by the kernel that takes them
    steps: Tensor | None = None  # float32 [T]; None if the values are scaled and have the bias already
    bias: Tensor | None = None  # float32 [N]; None likewise

    def scaled(self) -> Tensor:
        """Returns the rows, float32 [T, N], in the memory of `values`."""
        if self.steps is None or self.bias is None:
            return self.values
        return self.values.mul_(self.steps[:, None]).add_(self.bias)


class Linear(ABC):
    """A linear layer."""

    #: What `products` takes.
    form: ClassVar[Form] = Form.FLOATS
    #: Its weights for a compiled function that continues from its products, with the bias unless the products have
    #: it; None if it has none.
    packed: tuple[PackedWeights, Tensor | None] | None = None

    @abstractmethod
    def __call__(self, rows: Tensor) -> Tensor:
        """Returns weight times rows plus bias: [T, K] → [T, N]."""

    def products(self, rows: Rows) -> Products:
        """Returns the same for a kernel that continues from there."""
        return Products(self(rows.states))


def has_onednn() -> bool:
    """Checks whether this torch has oneDNN's kernels for this processor."""
    built_in = bool(torch._C._has_mkldnn)  # noqa: SLF001 - what torch.backends.mkldnn.is_available() gives
    return built_in and platform.machine() in {"x86_64", "AMD64"}


def int8_instructions() -> str | None:
    """Returns what multiplies bytes here, such as AVX2; None if int8 is impossible."""
    products = load_int8_products()
    if products is not None:
        return products.instructions
    return "AVX-512 VNNI" if onednn_multiplies_bytes() else None


def bf16_instructions() -> str | None:
    """Returns what multiplies bf16 on this CPU, such as AMX-BF16; None where transformers runs bf16."""
    # Asked first: elsewhere nothing needs to be compiled.
    if not torch.cpu._is_avx512_bf16_supported():  # noqa: SLF001 - torch has no public name for it
        return None
    products = load_bf16_products()
    return None if products is None else products.instructions


def fp32_linear(weight: Tensor, bias: Tensor) -> Linear:
    """Copies weight and bias into a layer of embedkit's own products; without a compiler, of torch's."""
    if load_fp32_products() is not None:
        return Fp32Linear(weight, bias)
    return OneDnnLinear(weight, bias) if has_onednn() else TorchLinear(weight.clone(), bias.clone())


def onednn_multiplies_bytes() -> bool:
    """Checks whether oneDNN multiplies bytes by AVX-512 VNNI; without it, its int8 is slower than its fp32."""
    return has_onednn() and torch.cpu._is_vnni_supported()  # noqa: SLF001 - torch has no public name for it


@dataclass(frozen=True, slots=True)
class TorchLinear(Linear):
    """Torch's linear layer, on any device and in any float dtype."""

    weight: Tensor
    bias: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """Returns weight times rows plus bias, summed in fp32; see `device.disable_reduced_precision`."""
        return functional.linear(rows, self.weight, self.bias)


class Fp32Linear(Linear):
    """Has weights in fp32, packed for embedkit's own products.

    A row's result depends on that row alone, to the bit.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Packs weight and bias.

        Raises:
            ValueError: the products cannot be built here.
        """
        products = load_fp32_products()
        if products is None:
            raise ValueError("there are no products of fp32 here")
        self._weights = products.pack_fp32(weight, bias)
        self.packed = (self._weights, None)

    def __call__(self, rows: Tensor) -> Tensor:
        """Returns weight times rows plus bias."""
        return self._weights.multiply(rows)


class OneDnnLinear(Linear):
    """Has the weight in oneDNN's own layout, so that no call has to convert it.

    The last bits of a row's result depend on how many rows there are.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)  # noqa: SLF001 - its only name
        self._bias = bias.clone()

    def __call__(self, rows: Tensor) -> Tensor:
        """Returns weight times rows plus bias."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001 - its only name
            rows, self._packed, self._bias, "none", [], ""
        )
        return product


class Int8Linear(Linear):
    """Has weights in int8, scaled for each output, and quantises each row of activations by its own scale.

    Sums of products of bytes are exact, whatever their order, so a row's result depends on that row alone, to the
    bit. What is not finite stays so, since its scale is not.
    """

    form = Form.BYTES

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        scale = weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        quantised = (weight / scale[:, None]).round_().to(torch.int8)
        self._bias = bias.clone()
        products = load_int8_products()
        if products is None:
            self._multiply = _by_onednn(quantised, scale)
        else:
            weights = products.pack_bytes(quantised, scale)
            self._multiply, self.packed = weights.multiply, (weights, self._bias)

    def __call__(self, rows: Tensor) -> Tensor:
        """Returns weight times rows plus bias."""
        if len(rows) <= ROWS:
            return self._of_block(rows)
        return torch.cat([self._of_block(block) for block in torch.split(rows, ROWS)])

    def products(self, rows: Rows) -> Products:
        """Returns raw products of the rows' bytes, for a kernel that scales them and adds the bias.

        Raises:
            ValueError: the rows have no bytes.
        """
        if rows.inputs is None or rows.steps is None:
            raise ValueError("an int8 layer takes quantised rows")
        return Products(self._multiply(rows.inputs), rows.steps, self._bias)

    def _of_block(self, rows: Tensor) -> Tensor:
        largest = rows.abs().amax(dim=1, keepdim=True).clamp_min_(_LEAST)
        signed = torch.mul(rows, 127 / largest).round_().to(torch.int8)
        product = self._multiply(signed.view(torch.uint8).bitwise_xor_(_ZERO))
        return product.mul_(largest / 127).add_(self._bias)


class Bf16Linear(Linear):
    """Has weights in bf16, and rounds activations to it; products are summed in fp32.

    A row's result depends on that row alone, to the bit.
    """

    form = Form.BF16

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Packs weight and bias.

        Raises:
            ValueError: nothing multiplies them here; see `bf16_instructions`.
        """
        products = load_bf16_products()
        if products is None:
            raise ValueError("nothing multiplies bf16 here")
        self._weights = products.pack_bf16(weight, bias)
        self.packed = (self._weights, None)

    def __call__(self, rows: Tensor) -> Tensor:
        """Returns weight times rows plus bias."""
        return self._weights.multiply(rows.to(torch.bfloat16))

    def products(self, rows: Rows) -> Products:
        """Returns the same of the rows in bf16.

        Raises:
            ValueError: the rows are not in bf16.
        """
        if rows.inputs is None or rows.form != Form.BF16:
            raise ValueError("this layer takes rows in bf16")
        return Products(self._weights.multiply(rows.inputs))


def _by_onednn(weight: Tensor, scale: Tensor) -> Callable[[Tensor], Tensor]:
    """Packs weights for oneDNN.

    Args:
        weight: int8 [N, K].
        scale: float32 [N], the value of a step of each output.

    Returns:
        A function of rows uint8 [T, K], 128 for 0, that returns float32 [T, N], the same bits as embedkit's own.

    Raises:
        ValueError: it does not multiply bytes here; see `int8_instructions`.
    """
    if not onednn_multiplies_bytes():
        raise ValueError("nothing multiplies bytes here")
    packed = torch.ops.onednn.qlinear_prepack(weight, [ROWS, weight.shape[1]])
    zeros = torch.zeros(len(weight), dtype=torch.int64)

    def multiply(rows: Tensor) -> Tensor:
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(rows, 1.0, _ZERO, packed, scale, zeros, None),
            *(1.0, 0, torch.float32, "none", [], "none"),
        )
        return product

    return multiply
