"""Runs the layers on a CPU: parts of a batch in threads, with compiled kernels where there is a compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from embedkit.models.base import Inputs, TakeLayer, TakePart
from embedkit.models.native.attention import Texts
from embedkit.models.native.kernels import kernels_for
from embedkit.models.native.layer import LayerWeights, fused_layers, torch_layer
from embedkit.models.native.linear import GRAIN, Bf16Linear, Int8Linear, Linear, fp32_linear
from embedkit.models.native.native_encoder import STARTS, NativeEncoder
from embedkit.models.native.rotation import Rotation
from embedkit.models.native.thread_pool import Part, ThreadPool
from embedkit.types import Batch

if TYPE_CHECKING:
    from embedkit.models.native.native_model import NativeModel

_LINEAR: dict[str, Callable[[Tensor, Tensor], Linear]] = {
    "fp32": fp32_linear,
    "bf16": Bf16Linear,
    "int8": Int8Linear,
}


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

    def _forward(self, inputs: Inputs, batch: Batch, take: TakeLayer, wanted: frozenset[int]) -> Tensor | None:
        runs = [run for _, run in self._runs(inputs, batch)]
        states: list[Tensor] = []
        done = -1
        for number in sorted(wanted):
            states = self._threads.map(partial(_advance, number - done), runs)
            take(number, _concatenated(states)[None])
            done = number
        return None if self._pooler is None else self._pooler_output(_concatenated(states), inputs)

    @torch.inference_mode()
    def forward_parts(self, inputs: Inputs, batch: Batch, take_part: TakePart) -> None:
        """See LayerEncoder: each part goes through all layers in a thread of its own."""
        runs = [(take_part(part.texts), run) for part, run in self._runs(inputs, batch)]
        self._threads.map(partial(_take_layers, frozenset(self.layers)), *zip(*runs, strict=True))

    def _runs(self, inputs: Inputs, batch: Batch) -> list[tuple[Part, Iterator[Tensor]]]:
        """Returns the parts of a batch, and for each what computes its states, one layer after another."""
        rotations = self._angles(inputs)
        of_tokens = inputs.keys() - {STARTS}
        return [
            (part, self._layers({name: inputs[name][part.tokens] for name in of_tokens}, _texts(part, rotations)))
            for part in self._threads.parts(tuple(batch.length_groups()))
        ]

    def _layers(self, inputs: Inputs, texts: Texts) -> Iterator[Tensor]:
        """Computes the hidden states of some texts, one layer after another: [T, D]."""
        states = self._embed(inputs)
        yield states
        stack = self._stack
        if self._convolution is not None:
            states = self._convolution(states, next(self._apply(stack[:1], states, texts)), texts)
            yield self._finished(states, 1)
            stack = stack[1:]
        first = len(self._stack) - len(stack) + 1
        for number, after_layer in enumerate(self._apply(stack, states, texts), first):
            yield self._finished(after_layer, number)

    def _apply(self, layers: Sequence[LayerWeights], states: Tensor, texts: Texts) -> Iterator[Tensor]:
        """Computes the states after each of some layers: [T, D] → [T, D]."""
        if self._kernels is None or not layers:
            for layer in layers:
                states = torch_layer(layer, states, texts)
                yield states
            return
        n_tokens = len(states)
        padded = functional.pad(states, (0, 0, 0, -n_tokens % GRAIN))
        for after_layer in fused_layers(layers, self._kernels, padded, texts):
            yield after_layer[:n_tokens]

    def _copy(self, weight: Tensor) -> Tensor:
        return weight.clone()

    def _linear(self, weight: Tensor, bias: Tensor, dtype: str) -> Linear:
        return _LINEAR[dtype](weight, bias)


def _texts(part: Part, rotations: Mapping[Rotation, tuple[Tensor, Tensor]]) -> Texts:
    return Texts(
        part.groups, {kind: (cos[part.tokens], sin[part.tokens]) for kind, (cos, sin) in rotations.items()}
    )


def _advance(steps: int, run: Iterator[Tensor]) -> Tensor:
    """Returns the states so many layers further on."""
    return next(islice(run, steps - 1, None))


def _take_layers(wanted: frozenset[int], take: TakeLayer, run: Iterator[Tensor]) -> None:
    for number, states in enumerate(run):
        if number in wanted:
            take(number, states[None])


def _concatenated(states: list[Tensor]) -> Tensor:
    return states[0] if len(states) == 1 else torch.cat(states)
