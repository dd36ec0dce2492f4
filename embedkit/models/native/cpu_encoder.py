"""Runs the layers on a CPU: parts of a batch in threads, with compiled kernels where there is a compiler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from embedkit.models.base import Inputs, TakeLayer
from embedkit.models.native.attention import Texts
from embedkit.models.native.kernels import load_kernels
from embedkit.models.native.layer import LayerWeights, fused_layers, torch_layer
from embedkit.models.native.linear import (
    GRAIN,
    Bf16Linear,
    Int8Linear,
    Linear,
    OneDnnLinear,
    TorchLinear,
    has_onednn,
)
from embedkit.models.native.native_encoder import STARTS, NativeEncoder
from embedkit.models.native.rotation import Rotation
from embedkit.models.native.thread_pool import Part, ThreadPool
from embedkit.types import Batch

if TYPE_CHECKING:
    from embedkit.models.native.native_model import NativeModel

_LINEAR = {"bf16": Bf16Linear, "int8": Int8Linear}


class CpuEncoder(NativeEncoder):
    """A frozen encoder on the CPU; see NativeEncoder."""

    scales_queries = True

    @torch.inference_mode()
    def __init__(self, model: NativeModel, layers: tuple[int, ...], *, for_pooler: bool) -> None:
        kernels = load_kernels()
        config = model.config
        widths = (config.hidden_size, config.n_heads * config.head_width, config.intermediate_size)
        fits = kernels is not None and kernels.fit(*widths)
        self._kernels = kernels if fits else None
        # The names in plans: their last bits differ, so a run keeps to one of them.
        self.backend = "fused" if fits else "lean"
        self._threads = ThreadPool()
        super().__init__(model, layers, for_pooler=for_pooler)

    def _forward(self, inputs: Inputs, batch: Batch, take: TakeLayer, wanted: frozenset[int]) -> Tensor | None:
        groups = tuple(batch.length_groups())
        rotations = self._angles(inputs)
        parts = self._threads.parts(groups)
        texts = [_texts(part, rotations) for part in parts]
        of_tokens = inputs.keys() - {STARTS}
        of_parts = [{name: inputs[name][part.start : part.stop] for name in of_tokens} for part in parts]
        states = self._threads.map(self._embed, of_parts)
        if 0 in wanted:
            take(0, _concatenated(states)[None])
        done = 0
        for number in sorted(wanted - {0}):
            states = self._threads.map(partial(self._run_layers, done, number), states, texts)
            take(number, _concatenated(states)[None])
            done = number
        return None if self._pooler is None else self._pooler_output(_concatenated(states), inputs)

    def _run_layers(self, done: int, number: int, states: Tensor, texts: Texts) -> Tensor:
        """Computes hidden_states[number] from hidden_states[done]."""
        if done == 0 and self._convolution is not None:
            states = self._convolution(states, self._apply(self._stack[:1], states, texts), texts)
            done = 1
        return self._finished(self._apply(self._stack[done:number], states, texts), number)

    def _apply(self, layers: Sequence[LayerWeights], states: Tensor, texts: Texts) -> Tensor:
        """Computes the states after some layers, or none: [T, D] → [T, D]."""
        if self._kernels is None or not layers:
            for layer in layers:
                states = torch_layer(layer, states, texts)
            return states
        n_tokens = len(states)
        padded = functional.pad(states, (0, 0, 0, -n_tokens % GRAIN))
        return fused_layers(layers, self._kernels, padded, texts)[:n_tokens]

    def _copy(self, weight: Tensor) -> Tensor:
        return weight.clone()

    def _linear(self, weight: Tensor, bias: Tensor, dtype: str) -> Linear:
        if dtype in _LINEAR:
            return _LINEAR[dtype](weight, bias)
        return OneDnnLinear(weight, bias) if has_onednn() else TorchLinear(weight.clone(), bias.clone())


def _texts(part: Part, rotations: Mapping[Rotation, tuple[Tensor, Tensor]]) -> Texts:
    rows = slice(part.start, part.stop)
    return Texts(part.groups, {kind: (cos[rows], sin[rows]) for kind, (cos, sin) in rotations.items()})


def _concatenated(states: list[Tensor]) -> Tensor:
    return states[0] if len(states) == 1 else torch.cat(states)
