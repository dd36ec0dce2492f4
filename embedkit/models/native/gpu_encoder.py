"""BERT and its kin on a GPU: CpuEncoder with other arithmetic.

All weights are on the device, in the number format of the run; texts go through linear layers and norms as one
matrix, and through attention in one launch a layer where there is a kernel for it. Nothing but the kernel is
particular to a GPU: tests run the same code on a CPU.

A batch of 65,536 tokens is some 140 launches of a tenth of a millisecond and more: the host is far ahead of the
device, so recording them as a CUDA graph would gain nothing, and want a graph for each number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from embedkit.models.native.checkpoint import NAMES, Checkpoint
from embedkit.models.native.cpu_encoder import STARTS, CpuEncoder, NativeModel
from embedkit.models.native.layer import FUNCTIONS, Norm
from embedkit.models.transformers.transformers_encoder import Arrays, Inputs, TakeLayer
from embedkit.models.varlen_attention import BACKENDS, CU_SEQLENS, Attend, Packing, cu_seqlens
from embedkit.types import Batch, Tokens

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer: [T, K] → [T, N]."""

    weight: Tensor
    bias: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """Weight times rows plus bias, summed in fp32; see `machine.disable_reduced_precision`."""
        return functional.linear(rows, self.weight, self.bias)


#: See `add_norm`.
AddNorm: TypeAlias = Callable[[Tensor, Tensor, Norm], Tensor]


def add_norm(update: Tensor, states: Tensor, norm: Norm) -> Tensor:
    """The norm of states and what is added to them, [T, D] each; `update` is not to be used after it."""
    return norm(update.add_(states))


@dataclass(frozen=True, slots=True)
class DeviceLayer:
    """Attention and feed-forward network of one layer, each with its residual and its norm behind it.

    Attributes:
        qkv: queries, keys and values in one: [T, D] → [T, 3 D].
        out: of the attention.
        norm: behind the attention.
        up, activation, down: the feed-forward network.
        last_norm: behind it.
        n_heads: of the attention.
    """

    qkv: Linear
    out: Linear
    norm: Norm
    up: Linear
    activation: Callable[[Tensor], Tensor]
    down: Linear
    last_norm: Norm
    n_heads: int

    def __call__(self, states: Tensor, packing: Packing, attend: Attend, add_norm: AddNorm) -> Tensor:
        """The next layer's states.

        Args:
            states: [T, D] of texts laid end to end.
            packing: those texts.
            attend: the kernel.
            add_norm: see `add_norm`.
        """
        query, key, value = self.qkv(states).view(len(states), 3, self.n_heads, -1).unbind(1)
        context = attend(query, key, value, packing).reshape(states.shape)
        attended = add_norm(self.out(context), states, self.norm)
        return add_norm(self.down(self.activation(self.up(attended))), attended, self.last_norm)


class GpuEncoder(CpuEncoder):
    """A frozen encoder and the layers that are wanted of it, on a device.

    Args:
        model: the checkpoint; closed when this is made.
        layers: the layers wanted, resolved.
        for_pooler: whether the model's own pooling head is wanted.

    Raises:
        NotNativeError: a weight cannot be read.
    """

    @torch.inference_mode()
    def __init__(self, model: NativeModel, layers: tuple[int, ...], *, for_pooler: bool) -> None:
        shape, checkpoint = model.shape, model.checkpoint
        #: The attention's name in `varlen.BACKENDS`; may be set to another.
        self.backend = "groups"
        #: May be set to a fused one.
        self.add_norm: AddNorm = add_norm
        self.device = model.device
        self.dtype = DTYPES[model.dtype]
        self.layers = layers
        self.n_layers = shape.n_layers
        self.hidden_size = shape.hidden_size
        self._shape = shape
        self._words = self._placed(checkpoint.embedding("embeddings.word_embeddings"))
        self._places = self._placed(checkpoint.embedding("embeddings.position_embeddings"))
        types = checkpoint.embedding("embeddings.token_type_embeddings") if shape.type_vocab_size else None
        self._types = None if types is None else self._placed(types)
        self._norm = self._read_device_norm(checkpoint, "embeddings.LayerNorm")
        projects = shape.embedding_size != shape.hidden_size
        self._project = self._linear(*checkpoint.mapped("embeddings_project")) if projects else None
        self._pooler = self._linear(*checkpoint.mapped("pooler.dense")) if for_pooler else None
        self.through = [self._read_device_layer(checkpoint, number) for number in range(max(layers))]
        checkpoint.close()

    @property
    def head_dim(self) -> int:
        """Of the attention's heads."""
        return self._shape.hidden_size // self._shape.n_heads

    def prepare(self, tokens: Tokens, batch: Batch) -> Arrays:
        """What a forward pass needs of a batch: int64 [T], and int32 [n + 1] of where each text begins.

        Args:
            tokens: the shard's texts.
            batch: which of them.
        """
        return {**super().prepare(tokens, batch), CU_SEQLENS: cu_seqlens(batch)}

    def _forward(self, inputs: Inputs, batch: Batch, take: TakeLayer, wanted: frozenset[int]) -> Tensor | None:
        packing = Packing.of(batch, inputs[CU_SEQLENS])
        attend = BACKENDS[self.backend]
        states = self._embed(inputs)
        if 0 in wanted:
            take(0, states[None])
        for number, layer in enumerate(self.through, start=1):
            states = layer(states, packing, attend, self.add_norm)
            if number in wanted:
                take(number, states[None])
        return None if self._pooler is None else torch.tanh(self._pooler(states[inputs[STARTS]]))

    def _placed(self, weight: Tensor) -> Tensor:
        # A copy even where nothing changes: it may lie in the file.
        return weight.to(self.device, self.dtype, copy=True)

    def _linear(self, weight: Tensor, bias: Tensor) -> Linear:
        return Linear(self._placed(weight), self._placed(bias))

    def _read_device_norm(self, checkpoint: Checkpoint, name: str) -> Norm:
        weight, bias = checkpoint.pair(name)
        return Norm(self._placed(weight), self._placed(bias), self._eps)

    def _read_device_layer(self, checkpoint: Checkpoint, number: int) -> DeviceLayer:
        shape = self._shape
        names = NAMES[shape.model_type]
        layer = names.layer.format(number)
        parts = [checkpoint.mapped(layer + part) for part in (names.query, names.key, names.value)]
        weights, biases = zip(*parts, strict=True)
        return DeviceLayer(
            qkv=self._linear(torch.cat(weights), torch.cat(biases)),
            out=self._linear(*checkpoint.mapped(layer + names.out)),
            norm=self._read_device_norm(checkpoint, layer + names.norm),
            up=self._linear(*checkpoint.mapped(layer + names.up)),
            activation=FUNCTIONS[shape.activation],
            down=self._linear(*checkpoint.mapped(layer + names.down)),
            last_norm=self._read_device_norm(checkpoint, layer + names.last_norm),
            n_heads=shape.n_heads,
        )
