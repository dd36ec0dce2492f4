"""Calls the compiled matrix products of bytes of int8_products.cpp.

Their sums are exact, so they equal those of any other library and of any other processor, to the bit.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from embedkit.models.native.compile_kernels import library
from embedkit.models.native.thread_pool import run_shares

_Address, _Count = ctypes.c_void_p, ctypes.c_int64
#: Products that are worth a thread: a thread's start takes 0.03 ms, and these 0.1 ms.
_FEWEST_PRODUCTS = 4 << 20


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """Weights in the layout of this processor's instructions."""

    products: Int8Products  # what multiplies
    words: Tensor  # int32
    scale: Tensor  # float32 [N], the value of a step of each output
    n_inputs: int

    def multiply(self, rows: Tensor) -> Tensor:
        """Multiplies rows uint8 [T, K]; see Int8Products.multiply."""
        return self.products.multiply(rows, self)

    def struct(self, bias: Tensor | None = None) -> WeightsStruct:
        """Returns their addresses for a compiled function, with those of the layer's bias, float32 [N]."""
        addresses = (self.words.data_ptr(), self.scale.data_ptr(), None if bias is None else bias.data_ptr())
        return WeightsStruct(*addresses, self.n_inputs, len(self.scale))


class WeightsStruct(ctypes.Structure):
    """`Weights` of structs.h."""

    _fields_ = (
        *(("packed", _Address), ("scale", _Address), ("bias", _Address)),
        *(("inputs", _Count), ("outputs", _Count)),
    )


class Int8Products:
    """The functions of a library built from `int8_products.cpp`. All tensors are on the CPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        for name in ("packed", "workspace"):
            function = getattr(library, f"embedkit_int8_{name}")
            function.argtypes, function.restype = (_Count, _Count), _Count
        library.embedkit_int8_instructions.restype = ctypes.c_char_p
        library.embedkit_int8_pack.argtypes = (_Address, _Count, _Count, _Address)
        library.embedkit_int8_pack.restype = library.embedkit_int8_multiply.restype = None
        library.embedkit_int8_multiply.argtypes = (
            *(_Address, _Count, ctypes.POINTER(WeightsStruct), _Count, _Count),
            *(_Address, _Address),
        )
        self._library = library
        #: The instructions that multiply, such as AVX2.
        self.instructions: str = library.embedkit_int8_instructions().decode()
        #: The address of the function that multiplies, `Multiply` of structs.h.
        self.address = ctypes.cast(library.embedkit_int8_multiply, _Address).value

    def pack(self, weight: Tensor, scale: Tensor) -> PackedWeights:
        """Packs weights int8 [N, K] from -127 to 127, with the scale of each output, float32 [N]."""
        words = torch.empty(self._library.embedkit_int8_packed(*weight.shape), dtype=torch.int32)
        weight, scale = weight.contiguous(), scale.contiguous()
        self._library.embedkit_int8_pack(weight.data_ptr(), *weight.shape, words.data_ptr())
        return PackedWeights(self, words, scale, weight.shape[1])

    def workspace(self, n_rows: int, n_inputs: int) -> int:
        """Returns the size of the workspace to multiply so many rows, in words of 32 bits."""
        return int(self._library.embedkit_int8_workspace(n_rows, n_inputs))

    def multiply(self, rows: Tensor, weights: PackedWeights) -> Tensor:
        """Multiplies rows uint8 [T, K], 128 for 0, on as many cores as torch would use in this thread.

        Returns:
            float32 [T, N]: the exact sums of products, rounded to float32, times the scale of their output.
        """
        rows = rows.contiguous()
        n_rows, n_outputs = len(rows), len(weights.scale)
        products = torch.empty(n_rows, n_outputs, dtype=torch.float32)
        enough = n_rows * n_outputs * weights.n_inputs // _FEWEST_PRODUCTS
        n_threads = max(1, min(torch.get_num_threads(), enough))
        struct = weights.struct()

        def multiply_share(share: int) -> None:
            workspace = torch.empty(self.workspace(n_rows, weights.n_inputs), dtype=torch.int32)
            self._library.embedkit_int8_multiply(
                *(rows.data_ptr(), n_rows, struct, share, n_threads),
                *(products.data_ptr(), workspace.data_ptr()),
            )

        run_shares(multiply_share, n_threads)
        return products


@functools.cache
def load_int8_products() -> Int8Products | None:
    """Loads the products for this processor, built if necessary; None if that is impossible."""
    # The cached library may be corrupt: rebuild it once.
    return _load(library("int8_products.cpp")) or _load(library("int8_products.cpp", rebuild=True))


def _load(path: Path | None) -> Int8Products | None:
    """Loads a library; None if it is no library, or gives wrong numbers."""
    if path is None:
        return None
    try:
        products = Int8Products(ctypes.CDLL(str(path)))
    except (OSError, AttributeError):
        return None
    return products if _are_exact(products) else None


def _are_exact(products: Int8Products) -> bool:
    """Compares products with integer arithmetic, the largest ones among them: a compiler may have faults too."""
    random = torch.Generator().manual_seed(0)
    for n_inputs in (1573, 1600):
        rows = torch.randint(1, 256, (11, n_inputs), generator=random, dtype=torch.uint8)
        weight = torch.randint(-127, 128, (61, n_inputs), generator=random, dtype=torch.int8)
        rows[-1], weight[-1] = 255, 127
        packed = products.pack(weight, torch.ones(len(weight)))
        exact = (rows.double() - 128) @ weight.double().T
        if not torch.equal(products.multiply(rows, packed), exact.float()):
            return False
    return True
