"""Calls the compiled matrix products of fp32_products.cpp, bf16_products.cpp and int8_products.cpp.

Products of bytes are exact, so they equal those of any other library and of any other processor, to the bit. The
others are summed in fp32, in the order of the inputs. Those of bf16 are for processors with AMX or AVX512-BF16
alone.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from embedkit.models.native.compile_kernels import library, passes
from embedkit.models.native.thread_pool import run_shares
from embedkit.models.native.weight_memory import empty_words
from embedkit.models.native.workspace import workspace

_Address, _Count = ctypes.c_void_p, ctypes.c_int64
#: Products that are worth a thread: a thread's start takes 0.03 ms, and these, of bytes, 0.1 ms.
_FEWEST_PRODUCTS = 4 << 20
Dtype = Literal["fp32", "bf16", "int8"]


class WeightsStruct(ctypes.Structure):
    """`Weights` of structs.h."""

    _fields_ = (
        *(("packed", _Address), ("scale", _Address), ("bias", _Address)),
        *(("inputs", _Count), ("outputs", _Count)),
    )


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """Weights in the layout of this processor's instructions."""

    products: PackedProducts  # what multiplies
    words: Tensor  # int32
    scale: Tensor | None  # float32 [N], the value of a step of each output; None unless these are bytes
    n_outputs: int
    n_inputs: int

    def multiply(self, rows: Tensor) -> Tensor:
        """Multiplies rows [T, K]; see PackedProducts.multiply."""
        return self.products.multiply(rows, self)

    def struct(self, bias: Tensor | None = None) -> WeightsStruct:
        """Returns their addresses for a compiled function, with those of a bias that it adds, float32 [N]."""
        addresses = (None if of is None else of.data_ptr() for of in (self.words, self.scale, bias))
        return WeightsStruct(*addresses, self.n_inputs, self.n_outputs)


class PackedProducts:
    """The functions of the library built from one of the three sources. All tensors are on the CPU."""

    def __init__(self, dtype: Dtype, library: ctypes.CDLL) -> None:
        self._workspace, self._packed, self._pack, self._multiply, instructions = (
            getattr(library, f"embedkit_{dtype}_{name}")
            for name in ("workspace", "packed", "pack", "multiply", "instructions")
        )
        for function in (self._workspace, self._packed):
            function.argtypes, function.restype = (_Count, _Count), _Count
        before = () if dtype == "int8" else (_Address,)
        self._pack.argtypes, self._pack.restype = (_Address, *before, _Count, _Count, _Address), None
        self._multiply.argtypes, self._multiply.restype = (
            (
                *(_Address, _Count, ctypes.POINTER(WeightsStruct), _Count, _Count),
                *(_Address, _Address),
            ),
            None,
        )
        instructions.restype = ctypes.c_char_p
        #: The instructions that multiply, such as AVX2.
        self.instructions: str = instructions().decode()
        #: The address of the function that multiplies, `Multiply` of structs.h.
        self.address = ctypes.cast(self._multiply, _Address).value
        #: That of `Rest.sum`; None if there is none.
        self.sum_address: int | None = None
        if dtype != "fp32":
            sums = getattr(library, f"embedkit_{dtype}_sums")
            sums.restype = _Address
            self.sum_address = sums()

    def pack_bytes(self, weight: Tensor, scale: Tensor) -> PackedWeights:
        """Packs weights int8 [N, K] from -127 to 127, with the scale of each output, float32 [N]."""
        return self._packed_weights(weight, scale.contiguous())

    def pack_bf16(self, weight: Tensor, bias: Tensor) -> PackedWeights:
        """Packs weights float32 [N, K], rounded to bf16, with a bias float32 [N] that the products have."""
        bias = bias.contiguous()
        return self._packed_weights(weight.to(torch.bfloat16), None, bias.data_ptr())

    def pack_fp32(self, weight: Tensor, bias: Tensor) -> PackedWeights:
        """Packs weights float32 [N, K] with a bias float32 [N] that the products have."""
        bias = bias.contiguous()
        return self._packed_weights(weight, None, bias.data_ptr())

    def workspace(self, n_rows: int, n_inputs: int) -> int:
        """Returns the size of the workspace to multiply so many rows, in words of 32 bits."""
        return int(self._workspace(n_rows, n_inputs))

    def multiply(self, rows: Tensor, weights: PackedWeights) -> Tensor:
        """Multiplies rows [T, K], on as many cores as torch would use in this thread.

        Args:
            rows: uint8 with 128 for 0, bfloat16 or float32.
            weights: [N, K].

        Returns:
            float32 [T, N]: of bytes, the exact sums, rounded to float32, times the scale of their output; else the
            sums with the bias.
        """
        rows = rows.contiguous()
        n_rows, n_outputs = len(rows), weights.n_outputs
        products = torch.empty(n_rows, n_outputs, dtype=torch.float32)
        enough = n_rows * n_outputs * weights.n_inputs // _FEWEST_PRODUCTS
        n_threads = max(1, min(torch.get_num_threads(), enough))
        struct, n_words = weights.struct(), self.workspace(n_rows, weights.n_inputs)

        def multiply_share(share: int) -> None:
            self._multiply(
                *(rows.data_ptr(), n_rows, struct, share, n_threads),
                *(products.data_ptr(), workspace(n_words).data_ptr()),
            )

        run_shares(multiply_share, n_threads)
        return products

    def _packed_weights(self, weight: Tensor, scale: Tensor | None, *start: int) -> PackedWeights:
        weight, (n_outputs, n_inputs) = weight.contiguous(), weight.shape
        words = empty_words(int(self._packed(n_outputs, n_inputs)))
        self._pack(weight.data_ptr(), *start, n_outputs, n_inputs, words.data_ptr())
        return PackedWeights(self, words, scale, n_outputs, n_inputs)


@functools.cache
def load_int8_products() -> PackedProducts | None:
    """Loads the products of bytes for this processor, built if necessary; None if that is impossible."""
    return _load("int8", _bytes_are_exact)


@functools.cache
def load_bf16_products() -> PackedProducts | None:
    """Loads the products of bf16, built if necessary; None where that is impossible or they would not be fast."""
    products = _load("bf16", _bf16_is_correct)
    return None if products is None or products.instructions == "plain C++" else products


@functools.cache
def load_fp32_products() -> PackedProducts | None:
    """Loads the products of fp32 for this processor, built if necessary; None if that is impossible."""
    return _load("fp32", _fp32_is_correct)


def _load(dtype: Dtype, is_correct: Callable[[PackedProducts], bool]) -> PackedProducts | None:
    """Loads a library; None if there is none, or if it gives wrong numbers."""
    # The cached library may be corrupt: rebuild it once.
    for rebuild in (False, True):
        path = library(f"{dtype}_products.cpp", rebuild=rebuild)
        if path is None:
            continue
        try:
            products = PackedProducts(dtype, ctypes.CDLL(str(path)))
        except (OSError, AttributeError):
            continue
        if passes(partial(is_correct, products), __file__, [path]):
            return products
    return None


# A compiler may have faults, too: the products of some numbers are compared with others' arithmetic, of more rows
# than are multiplied at once by tiles.


def _bytes_are_exact(products: PackedProducts) -> bool:
    """Checks sums, the largest ones among them."""
    random = torch.Generator().manual_seed(0)
    for n_inputs in (1573, 1600):
        rows = torch.randint(1, 256, (35, n_inputs), generator=random, dtype=torch.uint8)
        weight = torch.randint(-127, 128, (61, n_inputs), generator=random, dtype=torch.int8)
        rows[-1], weight[-1] = 255, 127
        packed = products.pack_bytes(weight, torch.ones(len(weight)))
        exact = (rows.double() - 128) @ weight.double().T
        if not torch.equal(products.multiply(rows, packed), exact.float()):
            return False
    return True


def _bf16_is_correct(products: PackedProducts) -> bool:
    return _sums_are_correct(products, products.pack_bf16, torch.bfloat16)


def _fp32_is_correct(products: PackedProducts) -> bool:
    return _sums_are_correct(products, products.pack_fp32, torch.float32)


def _sums_are_correct(
    products: PackedProducts, pack: Callable[[Tensor, Tensor], PackedWeights], dtype: torch.dtype
) -> bool:
    """Checks sums, of an odd number of inputs, too."""
    random = torch.Generator().manual_seed(0)
    for n_inputs in (445, 800):
        rows, weight = (torch.randn(n, n_inputs, generator=random).to(dtype) for n in (35, 61))
        bias = torch.randn(len(weight), generator=random)
        found = products.multiply(rows, pack(weight.float(), bias))
        exact = rows.double() @ weight.double().T + bias
        if not torch.allclose(found.double(), exact, rtol=0, atol=1e-4):
            return False
    return True
