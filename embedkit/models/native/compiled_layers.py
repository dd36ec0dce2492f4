"""Runs layers one after another in one call of compiled code, which holds Python's lock for none of them.

For layers whose weights are all packed, and a thread that has a core for itself or too little work to share;
layer.py runs any others.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from embedkit.models.native.attention import Texts
from embedkit.models.native.kernels import Kernels, attention_struct, rest_struct, set_batch
from embedkit.models.native.layer import LayerWeights
from embedkit.models.native.linear import Form
from embedkit.models.native.structs import (
    Count,
    LayerStruct,
    PartStruct,
    RowsStruct,
    TextsStruct,
    address,
    empty_inputs,
    rows_struct,
)
from embedkit.models.native.workspace import workspace

#: Numbers of a line of the caches, where what lies in the workspace begins.
_LINE = 16
#: Tokens of texts that attention takes together, so that their queries, keys and values stay in the second cache:
#: few beside weights of one or two bytes. Of fp32, whose weights are read again each time, many: with 192,
#: texts of 100 tokens take 8 % longer, and others as long.
_FEW_TOKENS, _MANY_TOKENS = 128, 512
#: Products of a layer that are worth several cores: sharing them, in a dozen calls, takes half a millisecond, and
#: so many products take a core 0.5 ms (MiniLM in int8 with AMX) to 5 ms (in fp32 with AVX2).
_FEWEST_PRODUCTS = 1 << 28


class CompiledLayers:
    """The layers of a model as an array of `Layer` of structs.h. Threads may share it."""

    def __init__(self, layers: Sequence[LayerWeights], kernels: Kernels) -> None:
        """Makes the array of one layer or more.

        Raises:
            ValueError: the weights of a layer are not packed.
        """
        self._layers = layers
        self._kernels = kernels
        self._structs = (LayerStruct * len(layers))()
        for struct, layer, following in zip(self._structs, layers, (*layers[1:], None), strict=True):
            rest = rest_struct(layer, None if following is None else following.attention_norms.before)
            if rest is None or layer.qkv.packed is None:
                raise ValueError("the weights of a layer are not packed")
            weights, bias = layer.qkv.packed
            heads, distances = layer.attention.heads, layer.attention.distances
            head_width = weights.n_outputs // (heads.n_heads + 2 * heads.n_key_heads)
            struct.qkv, struct.rest = weights.struct(bias), rest
            struct.attend = kernels.attention_way(distances).address
            struct.attention = attention_struct(heads, head_width)
            struct.form = Form.FLOATS if following is None else following.qkv.form
        #: Those whose attention needs more of the texts than their lengths.
        self._of_texts = [
            (number, layer.attention)
            for number, layer in enumerate(layers)
            if layer.attention.distances or layer.attention.heads.rotation or layer.attention.heads.bias
        ]
        # The layers of a model are of one shape.
        self._products, self._shape = weights.products, (weights.n_inputs, head_width, weights.n_outputs)
        self._ways = {kernels.attention_way(layer.attention.distances) for layer in layers}
        self._context_width = heads.n_heads * head_width
        of_layer = (struct.qkv, struct.rest.out, struct.rest.up, struct.rest.down)
        self._n_weights: int = sum(weights.inputs * weights.outputs for weights in of_layer)
        self._finish_workspace = max(kernels.finish_workspace(struct.rest) for struct in self._structs)

    def may_share(self, n_rows: int) -> bool:
        """Checks whether so many rows are enough for several cores, which this class does not use."""
        return n_rows * self._n_weights >= _FEWEST_PRODUCTS

    def run(
        self, states: Tensor, texts: Texts, stops: Sequence[int], *, in_place: bool = False
    ) -> Iterator[Tensor]:
        """Computes the states after some of the layers.

        Args:
            states: the input of a layer, [T, D] of packed texts.
            texts: the texts.
            stops: the number of that layer, from 0; then the numbers of layers before the states that are wanted.
            in_place: overwrite the states with the next ones that are wanted, instead of allocating memory for
                them: pages that the system has to clear take as long as a layer.

        Yields:
            [T, D], valid for as long as they are kept; in place, until the next ones are asked for.
        """
        first, n_rows, (width, head_width, of_qkv) = self._layers[stops[0]], len(states), self._shape
        structs, form = self._structs, first.qkv.form
        kept: list[Tensor | None] = []
        if self._of_texts:
            structs = type(structs).from_buffer_copy(structs)
            for number, attention in self._of_texts:
                kept += set_batch(structs[number].attention, attention.heads, texts, attention.distances)
        of_each, longest = texts.lengths, texts.longest
        lengths = (Count * len(of_each))(*of_each)
        at_once = max(longest, _MANY_TOKENS if form == Form.FLOATS else _FEW_TOKENS)
        n_words = max(
            *(self._products.workspace(at_once, width), self._finish_workspace),
            *(way.workspace(longest, head_width, of_qkv) for way in self._ways),
        )
        n_context = (n_rows if form == Form.FLOATS else at_once) * self._context_width
        sizes = [size + -size % _LINE for size in (n_words, at_once * of_qkv, n_context)]
        inputs = self._kernels.normed(states, first.attention_norms.before, form=form)
        context, steps = empty_inputs(n_rows, self._context_width, form)
        normed = torch.empty_like(states)
        of_texts = TextsStruct(len(lengths), ctypes.addressof(lengths))
        part = PartStruct(n_rows, at_once, ctypes.pointer(of_texts), rows_struct(inputs), address(normed))
        part.context = RowsStruct(None, address(context), address(steps), form)
        for begin, end in pairwise(stops):
            joined = states if in_place else torch.empty_like(states)
            # Here, since the generator may go on in another thread.
            parts = torch.split(workspace(sum(sizes)), sizes)
            part.workspace, part.projected, part.context.values = map(address, parts)
            at = ctypes.addressof(structs) + begin * ctypes.sizeof(LayerStruct)
            self._kernels.run_layers(at, end - begin, part, address(states), address(joined))
            states = joined
            yield states
        del kept
