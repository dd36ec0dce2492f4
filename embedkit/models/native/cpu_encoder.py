"""Runs the layers on a CPU: parts of a batch in threads, with compiled kernels where there is a compiler."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from embedkit.models.base import Inputs, TakeLayer, TakePart
from embedkit.models.native.attention import Attention, Texts
from embedkit.models.native.compiled_layers import CompiledLayers
from embedkit.models.native.kernels import Kernels, kernels_for
from embedkit.models.native.layer import LayerWeights, fused_layers, torch_layers
from embedkit.models.native.linear import GRAIN, Bf16Linear, Int8Linear, Linear, fp32_linear
from embedkit.models.native.native_encoder import STARTS, NativeEncoder
from embedkit.models.native.rotation import Rotation
from embedkit.models.native.structs import EmbeddingStruct, address, norm_pointer
from embedkit.models.native.thread_pool import Part, ThreadPool
from embedkit.models.native.workspace import workspace
from embedkit.types import Batch

if TYPE_CHECKING:
    from embedkit.models.native.native_model import NativeModel

_LINEAR: dict[str, Callable[[Tensor, Tensor], Linear]] = {
    "fp32": fp32_linear,
    "bf16": Bf16Linear,
    "int8": Int8Linear,
}
#: Layers that are read at once.
_LAYERS_AT_ONCE = 4


class CpuEncoder(NativeEncoder):
    """A frozen encoder on the CPU; see NativeEncoder."""

    scales_queries = True

    @torch.inference_mode()
    def __init__(self, model: NativeModel, layers: tuple[int, ...], *, for_pooler: bool) -> None:
        kernels = kernels_for(model.dtype)
        config = model.config
        widths = (config.hidden_size, config.n_heads * config.head_width, config.intermediate_size)
        fits = kernels is not None and kernels.fit(*widths)
        self._kernels = kernels if fits else None
        # The names in plans: their last bits differ, or what they round, so a run keeps to one of them.
        self.backend = "fused" if fits else "lean"
        if self._kernels is not None and self._kernels.bf16_attention is not None:
            # Disentangled attention stays in fp32.
            rounds = any(of_layer.disentangled is None for of_layer in config.attention)
            self.backend = "fused-bf16-attention" if rounds else "fused"
        self._threads = ThreadPool()
        super().__init__(model, layers, for_pooler=for_pooler)
        self._compiled = None if self._kernels is None else _compiled(self._stack, self._kernels)
        self._embedding = None
        if self._kernels is not None and self._kernels.fit(config.embedding_size):
            tables = map(address, (self._words, self._types, self._positions))
            scale = 1.0 if self._embedding_scale is None else self._embedding_scale
            norm = None if self._projects_first else norm_pointer(self._norm)
            self._embedding = EmbeddingStruct(*tables, norm, config.embedding_size, scale)

    def _read_layers(self, attentions: Sequence[Attention]) -> list[LayerWeights]:
        """Reads some layers at once: no more, since each copies weights as they are in the file."""
        read: list[LayerWeights] = []
        while len(read) < len(attentions):
            numbers = range(len(read), min(len(read) + _LAYERS_AT_ONCE, len(attentions)))
            read += self._threads.map(self._read_layer, numbers, attentions[numbers.start : numbers.stop])
        return read

    def _forward(self, inputs: Inputs, batch: Batch, take: TakeLayer, wanted: frozenset[int]) -> Tensor | None:
        runs = [run for _, run in self._runs(inputs, batch, wanted, in_place=False)]
        states: list[Tensor] = []
        for number in sorted(wanted):
            states = self._threads.map(next, runs)
            take(number, _concatenated(states)[None])
        return None if self._pooler is None else self._pooler_output(_concatenated(states), inputs)

    @torch.inference_mode()
    def forward_parts(self, inputs: Inputs, batch: Batch, take_part: TakePart) -> None:
        """See LayerEncoder: each part goes through all layers in a thread of its own."""
        wanted = frozenset(self.layers)
        runs = [(take_part(part.texts), run) for part, run in self._runs(inputs, batch, wanted, in_place=True)]
        self._threads.map(partial(_take_layers, sorted(wanted)), *zip(*runs, strict=True))

    def _embed(self, inputs: Inputs, *, in_place: bool = False) -> Tensor:
        """Adds up the embeddings; in place, into memory that this thread's next part overwrites."""
        if self._kernels is None or self._embedding is None:
            return super()._embed(inputs)
        of_tokens = (inputs["input_ids"], inputs.get("token_type_ids"), inputs["position_ids"])
        shape = (len(of_tokens[0]), self._embedding.width)
        kept = workspace(math.prod(shape), "states").view(shape) if in_place else None
        states = self._kernels.embed(self._embedding, *of_tokens, kept)
        for step in (self._project, self._norm) if self._projects_first else (self._project,):
            states = states if step is None else step(states)
        return states

    def _runs(
        self, inputs: Inputs, batch: Batch, wanted: frozenset[int], *, in_place: bool
    ) -> list[tuple[Part, Iterator[Tensor]]]:
        """Returns the parts of a batch, and for each what computes its states of the layers wanted, in order.

        In place, one thread computes a part, and states are valid until the next ones are asked for.
        """
        rotations = self._angles(inputs)
        of_tokens = inputs.keys() - {STARTS}
        return [
            (
                part,
                self._layers(
                    {name: inputs[name][part.tokens] for name in of_tokens},
                    _texts(part, rotations),
                    wanted,
                    in_place=in_place,
                ),
            )
            for part in self._threads.parts(tuple(batch.length_groups()))
        ]

    def _layers(self, inputs: Inputs, texts: Texts, wanted: frozenset[int], *, in_place: bool) -> Iterator[Tensor]:
        """Computes the hidden states of some texts after each of the layers wanted: [T, D]."""
        states, first = self._embed(inputs, in_place=in_place), 0
        if 0 in wanted:
            yield states
        if self._convolution is not None and max(wanted) > 0:
            states, first = self._convolution(states, next(self._apply(states, texts, (0, 1))), texts), 1
            if 1 in wanted:
                yield self._finished(states, 1)
        stops = [first, *sorted(number for number in wanted if number > first)]
        for number, after_layer in zip(
            stops[1:], self._apply(states, texts, stops, in_place=in_place), strict=False
        ):
            yield self._finished(after_layer, number)

    def _apply(
        self, states: Tensor, texts: Texts, stops: Sequence[int], *, in_place: bool = False
    ) -> Iterator[Tensor]:
        """Computes the states after some layers, [T, D] → [T, D]; see CompiledLayers.run."""
        compiled = self._compiled
        if compiled is not None and (torch.get_num_threads() == 1 or not compiled.may_share(len(states))):
            return compiled.run(states, texts, stops, in_place=in_place)
        return self._apply_each(states, texts, stops)

    def _apply_each(self, states: Tensor, texts: Texts, stops: Sequence[int]) -> Iterator[Tensor]:
        """Computes the same, one layer after another."""
        layers, n_tokens = self._stack[stops[0] : stops[-1]], len(states)
        if self._kernels is None:
            run = torch_layers(layers, states, texts)
        else:
            padded = functional.pad(states, (0, 0, 0, -n_tokens % GRAIN))
            run = fused_layers(layers, self._kernels, padded, texts)
        for number, after_layer in enumerate(run, stops[0] + 1):
            if number in stops:
                yield after_layer[:n_tokens]

    def _copy(self, weight: Tensor) -> Tensor:
        return weight.clone()

    def _linear(self, weight: Tensor, bias: Tensor, dtype: str) -> Linear:
        return _LINEAR[dtype](weight, bias)


def _texts(part: Part, rotations: Mapping[Rotation, tuple[Tensor, Tensor]]) -> Texts:
    return Texts(
        part.groups, {kind: (cos[part.tokens], sin[part.tokens]) for kind, (cos, sin) in rotations.items()}
    )


def _compiled(layers: Sequence[LayerWeights], kernels: Kernels) -> CompiledLayers | None:
    """Returns the layers for one call; None if there are none, or their weights are not packed for it."""
    try:
        return CompiledLayers(layers, kernels) if layers else None
    except ValueError:
        return None


def _take_layers(wanted: Sequence[int], take: TakeLayer, run: Iterator[Tensor]) -> None:
    for number, states in zip(wanted, run, strict=True):
        take(number, states[None])


def _concatenated(states: list[Tensor]) -> Tensor:
    return states[0] if len(states) == 1 else torch.cat(states)
