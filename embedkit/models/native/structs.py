"""The structs of structs.h, and what fills them: addresses of tensors, which the caller keeps."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from embedkit.models.native.linear import Form, Products, Rows
from embedkit.models.native.norm import Norm, RmsNorm
from embedkit.models.native.packed_products import WeightsStruct

if TYPE_CHECKING:
    from embedkit.models.native.layer import Norms

Address, Count = ctypes.c_void_p, ctypes.c_int64
Pointer = ctypes.POINTER


class ProductsStruct(ctypes.Structure):
    """`Products`."""

    _fields_ = (("values", Address), ("scale", Address), ("bias", Address), ("n", Count), ("width", Count))


class RowsStruct(ctypes.Structure):
    """`Rows`."""

    _fields_ = (("values", Address), ("inputs", Address), ("scale", Address), ("form", Count))


class NormStruct(ctypes.Structure):
    """`Norm`."""

    _fields_ = (("weight", Address), ("bias", Address), ("eps", ctypes.c_float), ("rms", ctypes.c_int32))


class NormsStruct(ctypes.Structure):
    """`Norms`."""

    _fields_ = tuple((name, Pointer(NormStruct)) for name in ("inner", "after", "following"))


class RestStruct(ctypes.Structure):
    """`Rest`."""

    _fields_ = (
        *(("multiply", Address), ("sum", Address), ("form", Count), ("workspace", Count)),
        *(("out", WeightsStruct), ("up", WeightsStruct), ("down", WeightsStruct)),
        *(("attention_norms", NormsStruct), ("ffn_norms", NormsStruct)),
        *(("activation", ctypes.c_int32), ("gated", ctypes.c_int32), ("block", Count), ("at_once", Count)),
    )


class TextsStruct(ctypes.Structure):
    """`Texts`."""

    _fields_ = (("count", Count), ("lengths", Address))


class DistancesStruct(ctypes.Structure):
    """`Distances`."""

    _fields_ = (("bias", Address), ("keys", Address), ("queries", Address), ("stride", Count))


class AttentionStruct(ctypes.Structure):
    """`Attention`."""

    _fields_ = (
        *((name, Count) for name in ("heads", "key_heads", "head_dim", "reach", "causal")),
        *(("query_norm", Pointer(NormStruct)), ("key_norm", Pointer(NormStruct))),
        *(("cosine", Address), ("sine", Address), ("distances", DistancesStruct)),
    )


class EmbeddingStruct(ctypes.Structure):
    """`Embedding`."""

    _fields_ = (
        *((name, Address) for name in ("words", "types", "positions")),
        *(("norm", Pointer(NormStruct)), ("width", Count), ("scale", ctypes.c_float)),
    )


class LayerStruct(ctypes.Structure):
    """`Layer`."""

    _fields_ = (
        *(("qkv", WeightsStruct), ("attend", Address), ("attention", AttentionStruct), ("rest", RestStruct)),
        ("form", Count),
    )


class PartStruct(ctypes.Structure):
    """`Part`."""

    _fields_ = (
        *(
            ("n", Count),
            ("at_once", Count),
            ("texts", Pointer(TextsStruct)),
            ("inputs", RowsStruct),
            ("normed", Address),
        ),
        *(("context", RowsStruct), ("projected", Address), ("workspace", Address)),
    )


def empty_rows(states: Tensor, form: Form) -> Rows:
    """Returns these states [T, K] with room for them in their form."""
    n_rows, width = states.shape
    return Rows(states, *empty_inputs(n_rows, width, form))


def empty_inputs(n_rows: int, width: int, form: Form) -> tuple[Tensor | None, Tensor | None]:
    """Returns room for rows in their form, and for the steps of bytes; None for what the form has not."""
    if form == Form.FLOATS:
        return None, None
    if form == Form.BF16:
        return torch.empty(n_rows, width, dtype=torch.bfloat16), None
    return torch.empty(n_rows, width, dtype=torch.uint8), torch.empty(n_rows, dtype=torch.float32)


def products_struct(products: Products) -> ProductsStruct:
    """Returns the addresses of products."""
    return ProductsStruct(
        *(address(products.values), address(products.steps), address(products.bias)), *products.values.shape
    )


def rows_struct(rows: Rows) -> RowsStruct:
    """Returns the addresses of rows."""
    return RowsStruct(address(rows.states), address(rows.inputs), address(rows.steps), rows.form)


def norm_pointer(norm: Norm | None) -> Any:
    """Returns a pointer to the addresses of a norm; None for none."""
    if norm is None:
        return None
    rms = isinstance(norm, RmsNorm)
    return ctypes.pointer(NormStruct(address(norm.weight), None if rms else address(norm.bias), norm.eps, rms))


def norms_struct(norms: Norms, following: Norm | None) -> NormsStruct:
    """Returns the addresses of the norms after an output, and of the one before what follows."""
    return NormsStruct(*map(norm_pointer, (norms.inner, norms.after, following)))


def distances_struct(tables: Sequence[Tensor | None]) -> DistancesStruct:
    """Returns the addresses of distance 0 in the tables of a bias, and of keys and queries."""
    found = [table for table in tables if table is not None]
    if not found:
        return DistancesStruct(None, None, None, 0)
    middle = (found[0].shape[-1] - 1) // 2
    return DistancesStruct(
        *(None if table is None else table[..., middle:].data_ptr() for table in tables), found[0].stride(-2)
    )


def address(tensor: Tensor | None) -> int | None:
    """Returns the address of a tensor's first number; None for none."""
    return None if tensor is None else tensor.data_ptr()
