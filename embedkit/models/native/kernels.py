"""Calls the compiled kernels of kernels.cpp: everything between the matrix products of a layer.

They are built once for this processor and cached; see compile_kernels.py. Without a compiler, torch's operations
compute the same one by one.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from embedkit.models.native.attention import attend
from embedkit.models.native.compile_kernels import library
from embedkit.models.native.layer import ACTIVATIONS
from embedkit.models.native.linear import Products, Rows
from embedkit.models.native.norm import Norm
from embedkit.types import LengthGroup

#: The notice where they cannot be built.
NO_COMPILER = (
    "there is no C++ compiler (c++, g++ or clang++) to build embedkit's kernels: fp32 takes a quarter longer, "
    "int8 nearly twice as long"
)
#: In the order of the source's `Activation`.
_KINDS = ("gelu", "gelu_tanh", "relu", "silu")

_Address, _Count = ctypes.c_void_p, ctypes.c_int64


class _Products(ctypes.Structure):
    _fields_ = (("values", _Address), ("scale", _Address), ("bias", _Address), ("n", _Count), ("width", _Count))


class _Rows(ctypes.Structure):
    _fields_ = (("values", _Address), ("bytes", _Address), ("scale", _Address))


class _Norm(ctypes.Structure):
    _fields_ = (("weight", _Address), ("bias", _Address), ("eps", ctypes.c_float))


class _Texts(ctypes.Structure):
    _fields_ = (("count", _Count), ("lengths", _Address), ("biases", _Address))


_Pointer = ctypes.POINTER
#: Argument types; the structs are those of the source.
_ARGUMENTS = {
    "embedkit_quantise": (_Pointer(_Rows), _Count, _Count),
    "embedkit_activate": (_Pointer(_Products), ctypes.c_int, _Pointer(_Rows)),
    "embedkit_residual_norm": (_Pointer(_Products), _Address, _Pointer(_Norm), _Pointer(_Rows)),
    "embedkit_attend": (_Pointer(_Products), _Pointer(_Texts), _Count, _Count, _Pointer(_Rows), _Address),
}


class Kernels:
    """The functions of a library built from `kernels.cpp`. All tensors are contiguous and on the CPU.

    With `quantise`, the resulting rows have bytes too.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        library.embedkit_lanes.restype = library.embedkit_attend_workspace.restype = _Count
        library.embedkit_attend_workspace.argtypes = (_Count, _Count)
        for name, arguments in _ARGUMENTS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, None
        self._library = library
        #: Numbers in a vector register.
        self.lanes: int = library.embedkit_lanes()

    def fit(self, *widths: int) -> bool:
        """Checks that rows of these widths are whole vector registers."""
        return all(width % self.lanes == 0 for width in widths)

    def rows(self, states: Tensor, *, quantise: bool) -> Rows:
        """Returns states float32 [T, K] as the input of a linear layer."""
        rows = _rows(states, quantise=quantise)
        if quantise:
            self._library.embedkit_quantise(_rows_struct(rows), *states.shape)
        return rows

    def attend(
        self, products: Products, lengths: Tensor, biases: Sequence[Tensor], n_heads: int, *, quantise: bool
    ) -> Rows:
        """Computes attention within each of some packed texts.

        Args:
            products: [T, 3 D]: scaled queries, keys and values.
            lengths: int64 [n], tokens of each text; rows after the last text give zeros.
            biases: for each text, what is added to its scores, float32 [heads, length, length]; empty if nothing.
            n_heads: heads that D is made of.
            quantise: see the class.
        """
        n_tokens, width = products.values.shape[0], products.values.shape[1] // 3
        rows = _rows(products.values.new_empty(n_tokens, width), quantise=quantise)
        in_texts = int(lengths.sum())
        rows.states[in_texts:] = 0
        n_values = self._library.embedkit_attend_workspace(int(lengths.max()), width // n_heads)
        # Explicit: torch's default is another while a thread loads a model in 16 bits.
        workspace = torch.empty(n_values, dtype=torch.float32)
        # Kept in a variable: the struct holds its address alone.
        addresses = (_Address * len(biases))(*(bias.data_ptr() for bias in biases)) if biases else None
        texts = _Texts(len(lengths), _at(lengths), ctypes.cast(addresses, _Address) if addresses else None)
        self._library.embedkit_attend(
            _products_struct(products), texts, n_heads, width // n_heads, _rows_struct(rows), _at(workspace)
        )
        if rows.bytes is not None and rows.steps is not None:
            rows.bytes[in_texts:] = 128
            rows.steps[in_texts:] = 0
        return rows

    def activate(self, products: Products, activation: str, *, quantise: bool) -> Rows:
        """Applies an activation, a name of layer.ACTIVATIONS."""
        rows = _rows(products.values, quantise=quantise)
        self._library.embedkit_activate(_products_struct(products), _KINDS.index(activation), _rows_struct(rows))
        return rows

    def residual_norm(self, products: Products, residual: Tensor, norm: Norm, *, quantise: bool) -> Rows:
        """Normalises products + residual."""
        rows = _rows(products.values, quantise=quantise)
        self._library.embedkit_residual_norm(
            _products_struct(products),
            _at(residual),
            _Norm(_at(norm.weight), _at(norm.bias), norm.eps),
            _rows_struct(rows),
        )
        return rows


@functools.cache
def load_kernels() -> Kernels | None:
    """Loads the kernels for this processor, built if necessary; None if that is impossible."""
    # The cached library may be corrupt: rebuild it once.
    return _load(library("kernels.cpp")) or _load(library("kernels.cpp", rebuild=True))


def _load(path: Path | None) -> Kernels | None:
    """Loads a library; None if it is no library, or gives wrong numbers."""
    if path is None:
        return None
    try:
        kernels = Kernels(ctypes.CDLL(str(path)))
    except (OSError, AttributeError):
        return None
    return kernels if _are_correct(kernels) else None


def _are_correct(kernels: Kernels) -> bool:
    """Compares the kernels with torch in float64: a compiler may have faults too."""
    random = torch.Generator().manual_seed(0)
    n_heads, lengths = 4, torch.tensor([1, 5, 17])
    groups = [
        LengthGroup(int(stop - length), 1, int(length))
        for length, stop in zip(lengths, lengths.cumsum(0), strict=True)
    ]
    width = n_heads * kernels.lanes
    products = torch.randn(23, 3 * width, generator=random)
    rows, residual = products[:, :width].contiguous(), products[:, width : 2 * width].contiguous()
    norm = Norm(products[0, :width], products[1, :width], 1e-5)
    exact = Norm(products[0, :width].double(), products[1, :width].double(), norm.eps)
    expected = [attend(products.double(), groups, n_heads, {}), exact(rows.double() + residual.double())]
    expected += [function(rows.double()) for function in ACTIVATIONS.values()]
    context = kernels.attend(Products(products), lengths, [], n_heads, quantise=True)
    found = [context, kernels.residual_norm(Products(rows.clone()), residual, norm, quantise=True)]
    found += [kernels.activate(Products(rows.clone()), name, quantise=True) for name in ACTIVATIONS]
    return all(_is_close(of_kernel, of_torch) for of_kernel, of_torch in zip(found, expected, strict=True))


def _is_close(rows: Rows, expected: Tensor) -> bool:
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


def _products_struct(products: Products) -> _Products:
    return _Products(_at(products.values), _at(products.steps), _at(products.bias), *products.values.shape)


def _rows_struct(rows: Rows) -> _Rows:
    return _Rows(_at(rows.states), _at(rows.bytes), _at(rows.steps))


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
