"""Calls the compiled kernels: everything between the matrix products of a layer.

They are built once for this processor and cached; see compile_kernels.py. Without a compiler, torch's operations
compute the same one by one.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any, TypeAlias

import torch
from torch import Tensor

from embedkit.models.native import check_kernels
from embedkit.models.native.attention import SelfAttention, Texts
from embedkit.models.native.compile_kernels import find_compiler, library, passes
from embedkit.models.native.layer import LayerWeights, Norms
from embedkit.models.native.linear import Form, Products, Rows
from embedkit.models.native.norm import Norm
from embedkit.models.native.relative import DistanceTable
from embedkit.models.native.structs import (
    Address,
    AttentionStruct,
    Count,
    EmbeddingStruct,
    NormsStruct,
    NormStruct,
    PartStruct,
    Pointer,
    ProductsStruct,
    RestStruct,
    RowsStruct,
    TextsStruct,
    address,
    distances_struct,
    empty_rows,
    norm_pointer,
    norms_struct,
    products_struct,
    rows_struct,
)
from embedkit.models.native.thread_pool import run_shares
from embedkit.models.native.workspace import workspace

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

#: Numbers that are worth a thread: its start takes 0.03 ms, and an activation of so many 0.1 ms.
_FEWEST_NUMBERS = 1 << 18
#: Rows of which one linear layer multiplies all before the next one does, so that it is read but once.
_BLOCK_ROWS = 512
#: Bytes of weights that stay in the second cache, and rows that are multiplied at once: few beside such weights,
#: so that results stay there too, and more where they share what is read from the third cache.
_CACHED_WEIGHTS = 1 << 20
_FEW_ROWS, _MANY_ROWS = 32, 96
#: The same of bytes and bf16 by tiles.
_FEW_TILE_ROWS, _MANY_TILE_ROWS = 64, 256
#: The same of fp32 by tiles, whose weights are in the third cache: each is read while 8 pairs of tiles pass.
_SPLIT_ROWS = 256


#: What queries, and keys, are multiplied by; see DisentangledAttention.
Distances: TypeAlias = tuple[DistanceTable | None, DistanceTable | None]
_ATTEND = (
    *(Pointer(ProductsStruct), Pointer(TextsStruct), Pointer(AttentionStruct), Pointer(RowsStruct), Address),
    *(Count, Count),
)
#: The sources of Kernels.
_SOURCES = ("kernels.cpp", "attention.cpp")
#: The functions of the first with their argument types; the structs are those of the sources. The last two numbers
#: are the rows.
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "normalise": (Address, Pointer(NormStruct), Count, Pointer(RowsStruct), Count, Count),
    "activate": (Pointer(ProductsStruct), ctypes.c_int, ctypes.c_int, Pointer(RowsStruct), Count, Count),
    "join": (Pointer(ProductsStruct), Address, Pointer(NormsStruct), Pointer(RowsStruct), Count, Count),
    "finish_layer": (
        *(Pointer(RestStruct), Pointer(RowsStruct), Address, Address, Pointer(RowsStruct), Address),
        *(Count, Count),
    ),
    "embed": (Pointer(EmbeddingStruct), Address, Address, Address, Address, Count, Count),
}


class AttentionWay:
    """The functions of a library that compute attention."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self._workspace = getattr(library, f"{name}_workspace")
        self.attend = getattr(library, name)
        self._workspace.argtypes, self._workspace.restype = (Count, Count, Count), Count
        self.attend.argtypes, self.attend.restype = _ATTEND, None
        #: The address of the function, `Attend` of structs.h.
        self.address = ctypes.cast(self.attend, Address).value

    def workspace(self, longest: int, head_width: int, width: int) -> int:
        """Returns the size of the workspace in words.

        Args:
            longest: most tokens of a text.
            head_width: numbers of a head.
            width: numbers of a row of queries, keys and values.
        """
        return int(self._workspace(longest, head_width, width))


class Bf16Attention(AttentionWay):
    """The functions of the library built from bf16_attention.cpp."""

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__(library, "embedkit_bf16_attend")
        library.embedkit_bf16_attend_is_fast.restype = Count
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
        of_rows, of_attention = (libraries[source] for source in _SOURCES)
        self._attention = AttentionWay(of_attention, "embedkit_attend")
        of_rows.embedkit_lanes.restype = of_rows.embedkit_finish_layer_workspace.restype = Count
        of_rows.embedkit_finish_layer_workspace.argtypes = (Pointer(RestStruct),)
        self.finish_workspace: Callable[[RestStruct], int] = of_rows.embedkit_finish_layer_workspace
        of_layers = (Address, Count, Pointer(PartStruct), Address, Address)
        of_rows.embedkit_run_layers.argtypes, of_rows.embedkit_run_layers.restype = of_layers, None
        #: Runs layers of a part of a batch; see CompiledLayers.
        self.run_layers: Callable[..., None] = of_rows.embedkit_run_layers
        self._functions = {}
        for name, arguments in _FUNCTIONS.items():
            function = getattr(of_rows, f"embedkit_{name}")
            function.argtypes, function.restype = arguments, None
            self._functions[name] = function
        #: Numbers in a vector register.
        self.lanes: int = of_rows.embedkit_lanes()

    def fit(self, *widths: int) -> bool:
        """Checks that rows of these widths are whole vector registers."""
        return all(width % self.lanes == 0 for width in widths)

    def rows(self, states: Tensor, *, form: Form) -> Rows:
        """Returns states float32 [T, K] as the input of a linear layer."""
        return self.normed(states, None, form=form)

    def normed(self, states: Tensor, norm: Norm | None, *, form: Form) -> Rows:
        """Returns states float32 [T, K], normalised if there is a norm, as the input of a linear layer."""
        rows = empty_rows(states if norm is None else torch.empty_like(states), form)
        if rows.inputs is not None or norm is not None:
            struct, width = norm_pointer(norm), states.shape[1]
            self._run_rows("normalise", states.shape, address(states), struct, width, rows_struct(rows))
        return rows

    def embed(
        self,
        embedding: EmbeddingStruct,
        ids: Tensor,
        types: Tensor | None,
        positions: Tensor,
        states: Tensor | None = None,
    ) -> Tensor:
        """Adds up the embeddings of tokens.

        Args:
            embedding: the tables.
            ids: int64 [T], rows of the words' table.
            types: the same of that of types; None if all are 0.
            positions: the same of that of positions, if there is one.
            states: float32 [T, D], which is overwritten and returned; by default a new tensor.

        Returns:
            float32 [T, D].
        """
        if states is None:
            states = torch.empty(len(ids), embedding.width, dtype=torch.float32)
        of_tokens = map(address, (ids, types, positions, states))
        self._run_rows("embed", states.shape, embedding, *of_tokens)
        return states

    def attend(
        self,
        products: Products,
        texts: Texts,
        attention: SelfAttention,
        *,
        form: Form,
        distances: Distances | None = None,
    ) -> Rows:
        """Computes attention within each of some packed texts.

        Args:
            products: [T, (heads + 2 key heads) * width]: scaled queries, keys and values.
            texts: their tokens, the first of T; the rows after those give zeros.
            attention: the heads, and what they attend to.
            form: see the class.
            distances: what queries, and keys, are multiplied by; see DisentangledAttention.
        """
        head_width = products.values.shape[1] // (attention.n_heads + 2 * attention.n_key_heads)
        shape = (products.values.shape[0], attention.n_heads * head_width)
        n_tokens, n_shares = texts.n_tokens, _n_shares(shape)
        rows = empty_rows(products.values.new_empty(shape), form)
        rows.states[n_tokens:] = 0
        lengths = torch.tensor(texts.lengths)
        of_texts = TextsStruct(len(lengths), address(lengths))
        rules = attention_struct(attention, head_width)
        kept = set_batch(rules, attention, texts, distances)
        way = self.attention_way(distances)
        n_values = way.workspace(texts.longest, head_width, products.values.shape[1])
        of_products, of_rows = products_struct(products), rows_struct(rows)

        def work(share: int) -> None:
            way.attend(of_products, of_texts, rules, of_rows, address(workspace(n_values)), share, n_shares)

        run_shares(work, n_shares)
        del kept
        if n_shares > 1:
            rows = self.rows(rows.states, form=form)
        if rows.inputs is not None:
            rows.inputs[n_tokens:] = _ZERO if form == Form.BYTES else 0
        if rows.steps is not None:
            rows.steps[n_tokens:] = 0
        return rows

    def attention_way(self, distances: Distances | None) -> AttentionWay:
        """Returns what computes attention; see `attend`."""
        return self._attention if self.bf16_attention is None or distances is not None else self.bf16_attention

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
        rows = empty_rows(states, form)
        kind, struct = _KINDS.index(activation), products_struct(products)
        self._run_rows("activate", states.shape, struct, kind, gated, rows_struct(rows))
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
        rows = empty_rows(states if following is None else torch.empty_like(states), form)
        around, of_rows = norms_struct(norms, following), rows_struct(rows)
        self._run_rows("join", states.shape, products_struct(products), address(residual), around, of_rows)
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
        n_rows, n_shares = len(states), torch.get_num_threads()
        rest = rest_struct(layer, following)
        if rest is None or n_rows < n_shares * _MANY_ROWS:
            return None
        n_values = self.finish_workspace(rest)
        joined = torch.empty_like(states)
        rows = empty_rows(joined if following is None else torch.empty_like(states), form)
        of_context, of_rows = rows_struct(context), rows_struct(rows)

        def work(share: int) -> None:
            first, last = (n_rows * number // n_shares for number in (share, share + 1))
            self._functions["finish_layer"](
                *(rest, of_context, address(states), address(joined), of_rows, address(workspace(n_values))),
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
    found = {source: library(source, rebuild=rebuild) for source in _SOURCES}
    paths = {source: path for source, path in found.items() if path is not None}
    try:
        kernels = Kernels({source: ctypes.CDLL(str(path)) for source, path in paths.items()})
    except (OSError, AttributeError, KeyError):
        return None
    check = functools.partial(check_kernels.are_correct, kernels)
    return kernels if passes(check, check_kernels.__file__, paths.values()) else None


def rest_struct(layer: LayerWeights, following: Norm | None) -> RestStruct | None:
    """Returns the addresses of a layer's parts after its attention; None if its weights are not packed for this.

    Args:
        layer: the layer.
        following: see Kernels.finish_layer.
    """
    packed = [linear.packed for linear in (layer.attention_out, layer.up, layer.down)]
    linears = [linear for linear in packed if linear is not None]
    if len(linears) < len(packed):
        return None
    structs = [weights.struct(bias) for weights, bias in linears]
    products, largest = linears[0][0].products, max(weights.words.nbytes for weights, _ in linears)
    form = layer.attention_out.form
    if products.instructions == "AMX-BF16" and form == Form.FLOATS:
        at_once = _SPLIT_ROWS
    else:
        few, many = (_FEW_ROWS, _MANY_ROWS) if products.sum_address is None else (_FEW_TILE_ROWS, _MANY_TILE_ROWS)
        at_once = few if largest <= _CACHED_WEIGHTS else many
    block = at_once if form == Form.FLOATS else _BLOCK_ROWS
    # Of wide inputs, fewer rows are multiplied at once: the widest do not need the most.
    n_words = max(products.workspace(at_once, struct.inputs) for struct in structs)
    return RestStruct(
        *(products.address, products.sum_address, form, n_words, *structs),
        norms_struct(layer.attention_norms, layer.ffn_norms.before),
        norms_struct(layer.ffn_norms, following),
        *(_KINDS.index(layer.activation), layer.gated, block, at_once),
    )


def attention_struct(attention: SelfAttention, head_width: int) -> AttentionStruct:
    """Returns the heads of a layer, of this width, and what they attend to; see `set_batch` for the rest."""
    rules = attention.rules
    return AttentionStruct(
        *(attention.n_heads, attention.n_key_heads, head_width, rules.reach[0], rules.causal),
        *(norm_pointer(attention.query_norm), norm_pointer(attention.key_norm)),
    )


def set_batch(
    struct: AttentionStruct, attention: SelfAttention, texts: Texts, distances: Distances | None
) -> Sequence[Tensor | None]:
    """Sets what depends on the texts: the rotation of their tokens, and numbers by distance.

    Returns:
        The tensors whose addresses were set, to be kept for as long as the struct is used.
    """
    angles = (None, None) if attention.rotation is None else texts.rotations[attention.rotation]
    struct.cosine, struct.sine = map(address, angles)
    by_distance = (attention.bias, *(distances or (None, None)))
    tables = [None if table is None else table.reaching(texts.longest) for table in by_distance]
    struct.distances = distances_struct(tables)
    return (*angles, *tables)


def _n_shares(shape: Sequence[int]) -> int:
    """Returns the number of threads that are worth it for a result of this shape."""
    cores = torch.get_num_threads()
    return 1 if cores == 1 else max(1, min(cores, shape[0] * shape[1] // _FEWEST_NUMBERS))
