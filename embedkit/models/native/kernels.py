"""Calls the compiled kernels: everything between the matrix products of a layer.

They are built once for this processor and cached; see compile_kernels.py. Without a compiler, torch's operations
compute the same one by one.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from embedkit.models.native import check_kernels
from embedkit.models.native.attention import SelfAttention, Texts
from embedkit.models.native.compile_kernels import find_compiler, library, passes
from embedkit.models.native.layer import LayerWeights, Norms
from embedkit.models.native.linear import Form, Products, Rows
from embedkit.models.native.norm import Norm, RmsNorm
from embedkit.models.native.packed_products import WeightsStruct
from embedkit.models.native.relative import DistanceTable
from embedkit.models.native.thread_pool import run_shares

#: The notices where there are none.
NO_COMPILER, REFUSED = (
    f"{why}: fp32 takes a quarter longer, int8 nearly twice as long"
    for why in (
        "there is no C++ compiler (c++, g++ or clang++) to build embedkit's kernels",
        "embedkit's kernels cannot be built by this C++ compiler, or give wrong numbers (please report it)",
    )
)
#: In the order of the source's `Activation`.
_KINDS = ("gelu", "gelu_tanh", "relu", "silu")
#: The byte of a zero.
_ZERO = 128

_Address, _Count = ctypes.c_void_p, ctypes.c_int64
_Pointer = ctypes.POINTER
#: Numbers that are worth a thread: its start takes 0.03 ms, and an activation of so many 0.1 ms.
_FEWEST_NUMBERS = 1 << 18
#: Rows of which one linear layer multiplies all before the next one does, so that it is read but once.
_BLOCK_ROWS = 512
#: Bytes of weights that stay in the second cache, and rows that are multiplied at once: few beside such weights,
#: so that results stay there too, and more where they share what is read from the third cache.
_CACHED_WEIGHTS = 1 << 20
_FEW_ROWS, _MANY_ROWS = 32, 96
#: The same of fp32 by tiles, whose weights are in the third cache: each is read while 8 pairs of tiles pass.
_SPLIT_ROWS = 256


class _Products(ctypes.Structure):
    _fields_ = (("values", _Address), ("scale", _Address), ("bias", _Address), ("n", _Count), ("width", _Count))


class _Rows(ctypes.Structure):
    _fields_ = (("values", _Address), ("inputs", _Address), ("scale", _Address), ("form", _Count))


class _Norm(ctypes.Structure):
    _fields_ = (("weight", _Address), ("bias", _Address), ("eps", ctypes.c_float), ("rms", ctypes.c_int32))


class _Norms(ctypes.Structure):
    _fields_ = (("inner", _Pointer(_Norm)), ("after", _Pointer(_Norm)), ("following", _Pointer(_Norm)))


class _Rest(ctypes.Structure):
    _fields_ = (
        *(("multiply", _Address), ("form", _Count), ("workspace", _Count)),
        *(("out", WeightsStruct), ("up", WeightsStruct), ("down", WeightsStruct)),
        *(("attention_norms", _Norms), ("ffn_norms", _Norms)),
        *(("activation", ctypes.c_int32), ("gated", ctypes.c_int32), ("block", _Count), ("at_once", _Count)),
    )


class _Texts(ctypes.Structure):
    _fields_ = (("count", _Count), ("lengths", _Address))


class _Distances(ctypes.Structure):
    _fields_ = (("bias", _Address), ("keys", _Address), ("queries", _Address), ("stride", _Count))


class _Attention(ctypes.Structure):
    _fields_ = (
        *((name, _Count) for name in ("heads", "key_heads", "head_dim", "reach", "causal")),
        *(("query_norm", _Pointer(_Norm)), ("key_norm", _Pointer(_Norm))),
        *(("cosine", _Address), ("sine", _Address), ("distances", _Distances)),
    )


_ATTEND = (
    *(_Pointer(_Products), _Pointer(_Texts), _Pointer(_Attention), _Pointer(_Rows), _Address),
    *(_Count, _Count),
)
#: The functions of each source with their argument types; the structs are those of the sources. The last two
#: numbers are the rows, or the share of the work.
_FUNCTIONS: dict[str, dict[str, tuple[Any, ...]]] = {
    "kernels.cpp": {
        "normalise": (_Address, _Pointer(_Norm), _Count, _Pointer(_Rows), _Count, _Count),
        "activate": (_Pointer(_Products), ctypes.c_int, ctypes.c_int, _Pointer(_Rows), _Count, _Count),
        "join": (_Pointer(_Products), _Address, _Pointer(_Norms), _Pointer(_Rows), _Count, _Count),
        "finish_layer": (
            *(_Pointer(_Rest), _Pointer(_Rows), _Address, _Address, _Pointer(_Rows), _Address),
            *(_Count, _Count),
        ),
    },
    "attention.cpp": {"attend": _ATTEND},
}


class Bf16Attention:
    """The functions of the library built from bf16_attention.cpp."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.workspace, self.attend = library.embedkit_bf16_attend_workspace, library.embedkit_bf16_attend
        self.workspace.argtypes, self.workspace.restype = (_Count, _Count, _Count), _Count
        self.attend.argtypes, self.attend.restype = _ATTEND, None
        library.embedkit_bf16_attend_is_fast.restype = _Count
        #: Whether it is faster here than attention in fp32.
        self.is_fast = bool(library.embedkit_bf16_attend_is_fast())


class Kernels:
    """The functions of the libraries built from kernels.cpp and attention.cpp.

    All tensors are contiguous and on the CPU. Resulting rows are written in `form` too. A thread that torch
    has given several cores divides the work among them.
    """

    def __init__(self, libraries: Mapping[str, ctypes.CDLL]) -> None:
        #: What computes attention instead, of queries, keys and values rounded to bf16; None for fp32.
        self.bf16_attention: Bf16Attention | None = None
        rows, attention = libraries["kernels.cpp"], libraries["attention.cpp"]
        rows.embedkit_lanes.restype = attention.embedkit_attend_workspace.restype = _Count
        attention.embedkit_attend_workspace.argtypes = (_Count, _Count)
        self._workspace = attention.embedkit_attend_workspace
        rows.embedkit_finish_layer_workspace.argtypes = (_Pointer(_Rest),)
        rows.embedkit_finish_layer_workspace.restype = _Count
        self._finish_workspace = rows.embedkit_finish_layer_workspace
        self._functions = {}
        for source, functions in _FUNCTIONS.items():
            for name, arguments in functions.items():
                function = getattr(libraries[source], f"embedkit_{name}")
                function.argtypes, function.restype = arguments, None
                self._functions[name] = function
        #: Numbers in a vector register.
        self.lanes: int = rows.embedkit_lanes()

    def fit(self, *widths: int) -> bool:
        """Checks that rows of these widths are whole vector registers."""
        return all(width % self.lanes == 0 for width in widths)

    def rows(self, states: Tensor, *, form: Form) -> Rows:
        """Returns states float32 [T, K] as the input of a linear layer."""
        return self.normed(states, None, form=form)

    def normed(self, states: Tensor, norm: Norm | None, *, form: Form) -> Rows:
        """Returns states float32 [T, K], normalised if there is a norm, as the input of a linear layer."""
        rows = _rows(states if norm is None else torch.empty_like(states), form)
        if rows.inputs is not None or norm is not None:
            struct, width = _norm_pointer(norm), states.shape[1]
            self._run_rows("normalise", states.shape, _at(states), struct, width, _rows_struct(rows))
        return rows

    def attend(
        self,
        products: Products,
        texts: Texts,
        attention: SelfAttention,
        *,
        form: Form,
        distances: tuple[DistanceTable | None, DistanceTable | None] | None = None,
    ) -> Rows:
        """Computes attention within each of some packed texts.

        Args:
            products: [T, (heads + 2 key heads) * width]: scaled queries, keys and values.
            texts: their tokens, the first of T; the rows after those give zeros.
            attention: the heads, and what they attend to.
            form: see the class.
            distances: what queries, and keys, are multiplied by; see DisentangledAttention.
        """
        n_heads, n_key_heads = attention.n_heads, attention.n_key_heads
        head_width = products.values.shape[1] // (n_heads + 2 * n_key_heads)
        shape = (products.values.shape[0], n_heads * head_width)
        n_tokens, n_shares = texts.n_tokens, _n_shares(shape)
        rows = _rows(products.values.new_empty(shape), form)
        rows.states[n_tokens:] = 0
        lengths = torch.tensor(texts.lengths)
        of_texts = _Texts(len(lengths), _at(lengths))
        longest = int(lengths.max())
        # Kept in a variable: the struct holds their addresses alone.
        tables = [
            None if table is None else table.reaching(longest)
            for table in (attention.bias, *(distances or (None, None)))
        ]
        angles = (None, None) if attention.rotation is None else texts.rotations[attention.rotation]
        rules = _Attention(
            *(n_heads, n_key_heads, head_width, attention.rules.reach[0], attention.rules.causal),
            *(_norm_pointer(attention.query_norm), _norm_pointer(attention.key_norm)),
            *(*map(_at, angles), _distances_struct(tables)),
        )
        function = self._functions["attend"]
        if self.bf16_attention is None or distances is not None:
            n_values = self._workspace(longest, head_width)
        else:
            function = self.bf16_attention.attend
            n_values = self.bf16_attention.workspace(longest, head_width, products.values.shape[1])
        # Explicit: torch's default is another while a thread loads a model in 16 bits.
        workspaces = torch.empty(n_shares, n_values, dtype=torch.float32)
        of_products, of_rows = _products_struct(products), _rows_struct(rows)

        def work(share: int) -> None:
            function(of_products, of_texts, rules, of_rows, _at(workspaces[share]), share, n_shares)

        run_shares(work, n_shares)
        if n_shares > 1:
            rows = self.rows(rows.states, form=form)
        if rows.inputs is not None:
            rows.inputs[n_tokens:] = _ZERO if form == Form.BYTES else 0
        if rows.steps is not None:
            rows.steps[n_tokens:] = 0
        return rows

    def activate(self, products: Products, activation: str, *, gated: bool, form: Form) -> Rows:
        """Applies an activation, a name of layer.ACTIVATIONS.

        Args:
            products: [T, I]; with a gate [T, 2 I], the gate first.
            activation: the name.
            gated: whether the activation is that of the gate, by which the other half is multiplied.
            form: see the class.

        Returns:
            [T, I].
        """
        n_rows, width = products.values.shape
        states = products.values.new_empty(n_rows, width // 2) if gated else products.values
        rows = _rows(states, form)
        kind, products_struct = _KINDS.index(activation), _products_struct(products)
        self._run_rows("activate", states.shape, products_struct, kind, gated, _rows_struct(rows))
        return rows

    def join(
        self, products: Products, residual: Tensor, norms: Norms, following: Norm | None, *, form: Form
    ) -> tuple[Tensor, Rows]:
        """Adds the residual to an output, with the norms around that; overwrites `products`.

        Args:
            products: [T, D].
            residual: the same shape.
            norms: those around attention or the feed-forward network; the one before it is not applied.
            following: the norm of the input of what follows; None if there is none.
            form: see the class.

        Returns:
            The sum, and the input of what follows.
        """
        states = products.values
        rows = _rows(states if following is None else torch.empty_like(states), form)
        around = _norms_struct(norms, following)
        self._run_rows("join", states.shape, _products_struct(products), _at(residual), around, _rows_struct(rows))
        return states, rows

    def finish_layer(
        self, layer: LayerWeights, context: Rows, states: Tensor, following: Norm | None, *, form: Form
    ) -> tuple[Tensor, Rows] | None:
        """Computes a layer from its attention on, in blocks of rows that stay in the second cache.

        Args:
            layer: the layer.
            context: the result of its attention, [T, heads * width].
            states: its input, [T, D].
            following: the norm of the input of what follows; None if there is none.
            form: see the class; that of the result.

        Returns:
            The layer's output and the input of what follows; None where the layer's parts have to be called one
            by one: its weights are not packed for this, or there are too few rows for the threads.
        """
        packed = [linear.packed for linear in (layer.attention_out, layer.up, layer.down)]
        linears = [linear for linear in packed if linear is not None]
        n_rows, n_shares = len(states), torch.get_num_threads()
        if len(linears) < len(packed) or n_rows < n_shares * _MANY_ROWS:
            return None
        structs = [weights.struct(bias) for weights, bias in linears]
        products, largest = linears[0][0].products, max(weights.words.nbytes for weights, _ in linears)
        if products.instructions == "AMX-BF16" and context.form == Form.FLOATS:
            at_once = _SPLIT_ROWS
        else:
            at_once = _FEW_ROWS if largest <= _CACHED_WEIGHTS else _MANY_ROWS
        block = at_once if context.form == Form.FLOATS else min(n_rows, _BLOCK_ROWS)
        # Of wide inputs, fewer rows are multiplied at once: the widest do not need the most.
        n_words = max(products.workspace(at_once, struct.inputs) for struct in structs)
        rest = _Rest(
            *(products.address, context.form, n_words, *structs),
            _norms_struct(layer.attention_norms, layer.ffn_norms.before),
            _norms_struct(layer.ffn_norms, following),
            *(_KINDS.index(layer.activation), layer.gated, block, at_once),
        )
        workspaces = torch.empty(n_shares, self._finish_workspace(rest), dtype=torch.float32)
        joined = torch.empty_like(states)
        rows = _rows(joined if following is None else torch.empty_like(states), form)
        of_context, of_rows = _rows_struct(context), _rows_struct(rows)

        def work(share: int) -> None:
            first, last = (n_rows * number // n_shares for number in (share, share + 1))
            self._functions["finish_layer"](
                *(rest, of_context, _at(states), _at(joined), of_rows, _at(workspaces[share])),
                *(first, last),
            )

        run_shares(work, n_shares)
        return joined, rows

    def _run_rows(self, name: str, shape: Sequence[int], *arguments: Any) -> None:
        """Calls a function for all rows of a result of this shape."""
        n_shares = _n_shares(shape)

        def work(share: int) -> None:
            first, last = (shape[0] * number // n_shares for number in (share, share + 1))
            self._functions[name](*arguments, first, last)

        run_shares(work, n_shares)


@functools.cache
def load_kernels() -> Kernels | None:
    """Loads the kernels for this processor, built if necessary; None if that is impossible."""
    # The cached libraries may be corrupt: rebuild them once.
    return _load(rebuild=False) or _load(rebuild=True)


@functools.cache
def kernels_for(dtype: str) -> Kernels | None:
    """Loads the kernels for models in this number format: int8 and bf16 attend in bf16 where that is fast."""
    kernels = load_kernels()
    # Asked first: elsewhere nothing needs to be compiled.
    if kernels is None or dtype == "fp32" or not torch.cpu._is_avx512_bf16_supported():  # noqa: SLF001 - no public name
        return kernels
    for rebuild in (False, True):
        path = library("bf16_attention.cpp", rebuild=rebuild)
        if path is None:
            return kernels
        try:
            attention = Bf16Attention(ctypes.CDLL(str(path)))
        except (OSError, AttributeError):
            continue
        if not attention.is_fast:
            return kernels
        rounding = copy(kernels)
        rounding.bf16_attention = attention
        check = functools.partial(check_kernels.attends_nearly, rounding, kernels)
        if passes(check, check_kernels.__file__, [path]):
            return rounding
    return kernels


def why_no_kernels() -> str | None:
    """Returns the notice that says why there are no kernels; None if there are."""
    if load_kernels() is not None:
        return None
    return NO_COMPILER if find_compiler() is None else REFUSED


def _load(*, rebuild: bool) -> Kernels | None:
    """Loads the libraries; None if one is none, or if they give wrong numbers."""
    found = {source: library(source, rebuild=rebuild) for source in _FUNCTIONS}
    paths = {source: path for source, path in found.items() if path is not None}
    try:
        kernels = Kernels({source: ctypes.CDLL(str(path)) for source, path in paths.items()})
    except (OSError, AttributeError, KeyError):
        return None
    check = functools.partial(check_kernels.are_correct, kernels)
    return kernels if passes(check, check_kernels.__file__, paths.values()) else None


def _rows(states: Tensor, form: Form) -> Rows:
    if form == Form.FLOATS:
        return Rows(states)
    if form == Form.BF16:
        return Rows(states, torch.empty(states.shape, dtype=torch.bfloat16))
    steps = torch.empty(len(states), dtype=torch.float32)
    return Rows(states, torch.empty(states.shape, dtype=torch.uint8), steps)


def _products_struct(products: Products) -> _Products:
    return _Products(_at(products.values), _at(products.steps), _at(products.bias), *products.values.shape)


def _rows_struct(rows: Rows) -> _Rows:
    return _Rows(_at(rows.states), _at(rows.inputs), _at(rows.steps), rows.form)


def _norm_pointer(norm: Norm | None) -> Any:
    if norm is None:
        return None
    rms = isinstance(norm, RmsNorm)
    return ctypes.pointer(_Norm(_at(norm.weight), None if rms else _at(norm.bias), norm.eps, rms))


def _norms_struct(norms: Norms, following: Norm | None) -> _Norms:
    return _Norms(*map(_norm_pointer, (norms.inner, norms.after, following)))


def _n_shares(shape: Sequence[int]) -> int:
    """Returns the number of threads that are worth it for a result of this shape."""
    cores = torch.get_num_threads()
    return 1 if cores == 1 else max(1, min(cores, shape[0] * shape[1] // _FEWEST_NUMBERS))


def _distances_struct(tables: Sequence[Tensor | None]) -> _Distances:
    """Returns the addresses of distance 0 in the tables of a bias, and of keys and queries."""
    found = [table for table in tables if table is not None]
    if not found:
        return _Distances(None, None, None, 0)
    middle = (found[0].shape[-1] - 1) // 2
    return _Distances(
        *(None if table is None else table[..., middle:].data_ptr() for table in tables), found[0].stride(-2)
    )


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
