"""Compiled kernels for what lies between the matrix products of a layer: built once for this processor, and kept.

Without a compiler, torch's operations do the same one by one; see building.py.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from embedkit.models.native.compile_kernels import library
from embedkit.models.native.layer import FUNCTIONS, Norm, attend
from embedkit.models.native.linear import Products, Rows
from embedkit.types import LengthGroup

#: What the user is told where they cannot be built.
NO_COMPILER = (
    "no C++ compiler is here (c++, g++ or clang++) to make embedkit's kernels with: fp32 takes a quarter longer, "
    "int8 nearly twice as long"
)
#: In the order of the source's `Activation`.
_ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")

_Address, _Count, _Number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_ARGUMENTS = {
    "embedkit_quantise": (_Address, _Count, _Count, _Address, _Address),
    "embedkit_activate": (*(_Address,) * 3, _Count, _Count, ctypes.c_int, _Address, _Address),
    "embedkit_residual_norm": (*(_Address,) * 6, _Number, _Count, _Count, *(_Address,) * 3),
    "embedkit_attend": (*(_Address,) * 3, _Count, *(_Address,) * 2, _Count, _Count, *(_Address,) * 4),
}


class Kernels:
    """The functions of `kernels.cpp`. All tensors are contiguous and on the CPU.

    `quantise` says whether the rows that come out are wanted in bytes, too.

    Args:
        library: built from `kernels.cpp`.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        library.embedkit_lanes.restype = library.embedkit_attend_room.restype = _Count
        library.embedkit_attend_room.argtypes = (_Count, _Count)
        for name, arguments in _ARGUMENTS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, None
        self._library = library
        #: Numbers that the processor works on at once.
        self.lanes: int = library.embedkit_lanes()

    def fit(self, hidden_size: int, intermediate_size: int) -> bool:
        """Whether they compute a model of these widths: rows have to be whole vectors of the processor."""
        return hidden_size % self.lanes == 0 and intermediate_size % self.lanes == 0

    def rows(self, states: Tensor, *, quantise: bool) -> Rows:
        """States float32 [T, K] as they go into a linear layer."""
        rows = _rows(states, quantise=quantise)
        if quantise:
            self._library.embedkit_quantise(_at(states), *states.shape, _at(rows.bytes), _at(rows.steps))
        return rows

    def attend(
        self, products: Products, lengths: Tensor, near: Sequence[Tensor], n_heads: int, *, quantise: bool
    ) -> Rows:
        """Attention of texts that lie end to end, each to itself.

        Args:
            products: [T, 3 D]: queries (scaled), keys, values.
            lengths: int64 [n], tokens of each text; behind them may be rows that are of none, and give zeros.
            near: of each text what is added to its scores, float32 [heads, length, length]; empty = nothing.
            n_heads: that D is made of.
            quantise: see above.
        """
        n_tokens, width = products.values.shape[0], products.values.shape[1] // 3
        rows = _rows(products.values.new_empty(n_tokens, width), quantise=quantise)
        in_texts = int(lengths.sum())
        rows.states[in_texts:] = 0
        n_numbers = self._library.embedkit_attend_room(int(lengths.max()), width // n_heads)
        # Named: torch's default is another while a thread loads a model in 16 bits, and the kernel writes fp32.
        room = torch.empty(n_numbers, dtype=torch.float32)
        addresses = (_Address * len(near))(*(bias.data_ptr() for bias in near)) if near else None
        self._library.embedkit_attend(
            *(_at(products.values), _at(products.steps), _at(products.bias)),
            *(len(lengths), _at(lengths), addresses, n_heads, width // n_heads),
            *(_at(rows.states), _at(room), _at(rows.bytes), _at(rows.steps)),
        )
        if rows.bytes is not None and rows.steps is not None:
            rows.bytes[in_texts:] = 128
            rows.steps[in_texts:] = 0
        return rows

    def activate(self, products: Products, activation: str, *, quantise: bool) -> Rows:
        """The activation of each number; `activation` is a name of layer.FUNCTIONS."""
        rows = _rows(products.values, quantise=quantise)
        self._library.embedkit_activate(
            *(_at(products.values), _at(products.steps), _at(products.bias), *products.values.shape),
            *(_ACTIVATIONS.index(activation), _at(rows.bytes), _at(rows.steps)),
        )
        return rows

    def residual_norm(self, products: Products, residual: Tensor, norm: Norm, *, quantise: bool) -> Rows:
        """The norm of products + residual."""
        rows = _rows(products.values, quantise=quantise)
        self._library.embedkit_residual_norm(
            *(_at(products.values), _at(products.steps), _at(products.bias), _at(residual)),
            *(_at(norm.weight), _at(norm.bias), norm.eps, *products.values.shape),
            *(_at(rows.states), _at(rows.bytes), _at(rows.steps)),
        )
        return rows


@functools.cache
def load_kernels() -> Kernels | None:
    """The kernels for this processor, built if they have not been; None where that cannot be done."""
    # A library that does not work may be the ruin of one.
    return _loaded(library()) or _loaded(library(anew=True))


def _loaded(path: Path | None) -> Kernels | None:
    """The kernels of a library; None where it is none, or gives wrong numbers."""
    if path is None:
        return None
    try:
        kernels = Kernels(ctypes.CDLL(str(path)))
    except (OSError, AttributeError):
        return None
    return kernels if _are_right(kernels) else None


def _are_right(kernels: Kernels) -> bool:
    """Whether they give what torch gives in float64: a compiler may be at fault, too."""
    made = torch.Generator().manual_seed(0)
    n_heads, lengths = 4, torch.tensor([1, 5, 17])
    runs = [
        LengthGroup(int(stop - length), 1, int(length))
        for length, stop in zip(lengths, lengths.cumsum(0), strict=True)
    ]
    width = n_heads * kernels.lanes
    products = torch.randn(23, 3 * width, generator=made)
    few, residual = products[:, :width].contiguous(), products[:, width : 2 * width].contiguous()
    norm = Norm(products[0, :width], products[1, :width], 1e-5)
    exact = Norm(norm.weight.double(), norm.bias.double(), norm.eps)
    expected = [attend(products.double(), runs, n_heads, {}), exact(few.double() + residual.double())]
    expected += [function(few.double()) for function in FUNCTIONS.values()]
    context = kernels.attend(Products(products), lengths, [], n_heads, quantise=True)
    found = [context, kernels.residual_norm(Products(few.clone()), residual, norm, quantise=True)]
    found += [kernels.activate(Products(few.clone()), name, quantise=True) for name in FUNCTIONS]
    return all(_is_near(rows, wanted) for rows, wanted in zip(found, expected, strict=True))


def _is_near(rows: Rows, expected: Tensor) -> bool:
    if rows.bytes is None or rows.steps is None:
        return False
    steps = rows.steps[:, None]
    quantised = ((rows.bytes.float() - 128) * steps - rows.states).abs() <= 0.51 * steps
    return bool(quantised.all()) and torch.allclose(rows.states.double(), expected, rtol=1e-5, atol=1e-5)


def _rows(states: Tensor, *, quantise: bool) -> Rows:
    if not quantise:
        return Rows(states)
    steps = torch.empty(len(states), dtype=torch.float32)
    return Rows(states, torch.empty(states.shape, dtype=torch.uint8), steps)


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
