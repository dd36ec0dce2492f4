"""Calls the compiled matrix products of bf16 of bf16_products.cpp, on processors with AVX512-BF16."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from embedkit.models.native.compile_kernels import library
from embedkit.models.native.thread_pool import run_shares

_Address, _Count = ctypes.c_void_p, ctypes.c_int64
#: Products that are worth a thread: a thread's start takes 0.03 ms, and these 0.1 ms.
_FEWEST_PRODUCTS = 8 << 20


@dataclass(frozen=True, slots=True)
class Bf16Weights:
    """Weights and bias of a linear layer in the layout of the products."""

    words: Tensor  # int32
    n_outputs: int
    n_inputs: int  # even: with one of zeros if need be


class Bf16Products:
    """The functions of a library built from `bf16_products.cpp`. All tensors are on the CPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        for name, n_counts in (("packed", 2), ("workspace", 2), ("panels", 1)):
            function = getattr(library, f"embedkit_bf16_{name}")
            function.argtypes, function.restype = (_Count,) * n_counts, _Count
        library.embedkit_bf16_instructions.restype = ctypes.c_char_p
        library.embedkit_bf16_pack.argtypes = (_Address, _Address, _Count, _Count, _Address)
        library.embedkit_bf16_pack.restype = library.embedkit_bf16_multiply.restype = None
        library.embedkit_bf16_multiply.argtypes = (
            *(_Address, _Count, _Count, _Address, _Count),
            *(_Count, _Count, _Address, _Address),
        )
        self._library = library
        #: The instructions that multiply: AVX512-BF16, or plain C++, which is slower than fp32.
        self.instructions: str = library.embedkit_bf16_instructions().decode()

    def pack(self, weight: Tensor, bias: Tensor) -> Bf16Weights:
        """Packs weights float32 [N, K], rounded to bf16, and a bias float32 [N]."""
        weight, bias = _even(weight.to(torch.bfloat16)), bias.contiguous()
        n_outputs, n_inputs = weight.shape
        words = torch.empty(self._library.embedkit_bf16_packed(n_outputs, n_inputs), dtype=torch.int32)
        self._library.embedkit_bf16_pack(weight.data_ptr(), bias.data_ptr(), *weight.shape, words.data_ptr())
        return Bf16Weights(words, n_outputs, n_inputs)

    def multiply(self, rows: Tensor, weights: Bf16Weights) -> Tensor:
        """Multiplies rows bfloat16 [T, K], on as many cores as torch would use in this thread.

        Returns:
            float32 [T, N]: the products, summed in fp32, and the bias.
        """
        rows = _even(rows)
        n_rows, n_outputs = len(rows), weights.n_outputs
        products = torch.empty(n_rows, n_outputs, dtype=torch.float32)
        n_panels = self._library.embedkit_bf16_panels(n_outputs)
        enough = n_rows * n_outputs * weights.n_inputs // _FEWEST_PRODUCTS
        n_threads = max(1, min(torch.get_num_threads(), n_panels, enough))

        def multiply_panels(share: int) -> None:
            first, last = (n_panels * number // n_threads for number in (share, share + 1))
            n_numbers = self._library.embedkit_bf16_workspace(n_rows, weights.n_inputs)
            workspace = torch.empty(n_numbers, dtype=torch.float32)
            self._library.embedkit_bf16_multiply(
                *(rows.data_ptr(), n_rows, weights.n_inputs, weights.words.data_ptr()),
                *(n_outputs, first, last, products.data_ptr(), workspace.data_ptr()),
            )

        run_shares(multiply_panels, n_threads)
        return products


def _even(rows: Tensor) -> Tensor:
    """Appends a column of zeros if the number of columns is odd."""
    return (functional.pad(rows, (0, 1)) if rows.shape[1] % 2 else rows).contiguous()


@functools.cache
def load_bf16_products() -> Bf16Products | None:
    """Loads the products, built if necessary; None where that is impossible or they would not be fast."""
    # The cached library may be corrupt: rebuild it once.
    found = _load(library("bf16_products.cpp")) or _load(library("bf16_products.cpp", rebuild=True))
    return found if found is not None and found.instructions == "AVX512-BF16" else None


def _load(path: Path | None) -> Bf16Products | None:
    """Loads a library; None if it is no library, or gives wrong numbers."""
    if path is None:
        return None
    try:
        products = Bf16Products(ctypes.CDLL(str(path)))
    except (OSError, AttributeError):
        return None
    return products if _are_correct(products) else None


def _are_correct(products: Bf16Products) -> bool:
    """Compares products with float64 arithmetic: a compiler may have faults too."""
    random = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(n, 446, generator=random).to(torch.bfloat16) for n in (11, 61))
    bias = torch.randn(len(weight), generator=random)
    found = products.multiply(rows, products.pack(weight.float(), bias))
    expected = rows.double() @ weight.double().T + bias
    return torch.allclose(found.double(), expected, rtol=0, atol=1e-4)
