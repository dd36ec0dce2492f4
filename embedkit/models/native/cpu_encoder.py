"""BERT and its kin without transformers: token ids → hidden states, layer by layer.

Has the interface of `models/encoder.py`'s TransformersEncoder, and runs packed. Reads no weights of layers that
nobody asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from embedkit.models.native import fused_layer, layer
from embedkit.models.native.checkpoint import NAMES, Checkpoint
from embedkit.models.native.config import NativeConfig
from embedkit.models.native.fused_layer import FusedLayer
from embedkit.models.native.kernels import load_kernels
from embedkit.models.native.layer import FUNCTIONS, Layer, Norm
from embedkit.models.native.linear import dense
from embedkit.models.native.thread_pool import ThreadPool
from embedkit.models.positions import after_pad
from embedkit.models.repository.architectures import ARCHITECTURES, Architecture
from embedkit.models.transformers.transformers_encoder import Arrays, Inputs, LayerEncoder, TakeLayer
from embedkit.types import Batch, Tokens

_CPU = torch.device("cpu")
#: Where each text of the batch begins, among what is prepared; the rest is of its tokens.
STARTS = "starts"


class NativeModel:
    """A checkpoint that was understood whole; its weights are read when it is known which layers are wanted.

    Args:
        shape: what config.json says.
        checkpoint: the weights.
        dtype: fp32 or int8; on a GPU fp32, bf16 or fp16.
        device: where it is to run.
    """

    def __init__(
        self, shape: NativeConfig, checkpoint: Checkpoint, dtype: str, device: torch.device = _CPU
    ) -> None:
        self.shape = shape
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.device = device

    @property
    def notice(self) -> None:
        """Nothing to tell of its config.json: every key of it is known."""

    @property
    def architecture(self) -> Architecture:
        """What is known of its kind."""
        return ARCHITECTURES[self.shape.model_type]

    @property
    def n_layers(self) -> int:
        """Encoder layers; hidden states are numbered 0..n_layers."""
        return self.shape.n_layers

    @property
    def hidden_size(self) -> int:
        """Dimensions of a state."""
        return self.shape.hidden_size

    @property
    def has_pooler(self) -> bool:
        """Whether the checkpoint has weights for its pooling head."""
        return self.checkpoint.has_pooler

    @property
    def max_positions(self) -> int:
        """Most tokens that it has positions for."""
        return self.shape.usable_positions

    @property
    def config(self) -> NativeConfig:
        """Its configuration, as far as it is understood."""
        return self.shape


class CpuEncoder(LayerEncoder):
    """A frozen encoder and the layers that are wanted of it, on the CPU.

    Args:
        model: the checkpoint; closed when this is made.
        layers: the layers wanted, resolved.
        for_pooler: whether the model's own pooling head is wanted.

    Raises:
        NotNativeError: a weight cannot be read.
    """

    engine = "lean"
    packed = True
    equal_lengths = False
    device = _CPU

    @torch.inference_mode()
    def __init__(self, model: NativeModel, layers: tuple[int, ...], *, for_pooler: bool) -> None:
        shape, checkpoint = model.shape, model.checkpoint
        self.layers = layers
        self.n_layers = shape.n_layers
        self.hidden_size = shape.hidden_size
        self._shape = shape
        self._team = ThreadPool()
        kernels = load_kernels()
        fits = kernels is not None and kernels.fit(shape.hidden_size, shape.intermediate_size)
        self._kernels = kernels if fits else None
        # Their last bits differ, so a run keeps to one of them.
        self.engine = "fused" if fits else "lean"
        self._words = checkpoint.embedding("embeddings.word_embeddings")
        self._places = checkpoint.embedding("embeddings.position_embeddings")
        self._types = checkpoint.embedding("embeddings.token_type_embeddings") if shape.type_vocab_size else None
        self._norm: Callable[[Tensor], Tensor] = self._read_norm(checkpoint, "embeddings.LayerNorm")
        projects = shape.embedding_size != shape.hidden_size
        self._project: Callable[[Tensor], Tensor] | None = (
            dense(*checkpoint.mapped("embeddings_project"), "fp32") if projects else None
        )
        self._pooler: Callable[[Tensor], Tensor] | None = (
            dense(*checkpoint.mapped("pooler.dense"), "fp32") if for_pooler else None
        )
        # MPNet's bias of nearness (arXiv 2004.09297; the buckets are T5's): [32, heads].
        near = shape.model_type == "mpnet"
        self._nearness = checkpoint.embedding("encoder.relative_attention_bias") if near else None
        self._stack = [self._read_layer(checkpoint, number, model.dtype) for number in range(max(layers))]
        self._run_layers: Any = layer.through if self._kernels is None else fused_layer.through
        checkpoint.close()

    def prepare(self, tokens: Tokens, batch: Batch) -> Arrays:
        """What a forward pass needs of a batch: int64 [T]. Numpy alone: any thread may make it ahead.

        Args:
            tokens: the shard's texts.
            batch: which of them.
        """
        places, position = tokens.indices_of(batch.texts)
        ids = tokens.input_ids[places].astype(np.int64)
        if self._shape.pad_id is not None:
            position = after_pad(ids, position, self._shape.pad_id)
        arrays: Arrays = {"input_ids": ids, "position_ids": position}
        if self._types is not None and tokens.token_type_ids is not None:
            arrays["token_type_ids"] = tokens.token_type_ids[places].astype(np.int64)
        if self._pooler is not None:
            arrays[STARTS] = np.cumsum(batch.lengths) - batch.lengths
        return arrays

    def _forward(self, inputs: Inputs, batch: Batch, take: TakeLayer, wanted: frozenset[int]) -> Tensor | None:
        runs = tuple(batch.length_groups())
        biases = {}
        if self._nearness is not None:
            biases = {run.length: _bias(self._nearness, run.length) for run in runs}
        parts = self._team.parts(runs)
        of_tokens = inputs.keys() - {STARTS}
        given = [{name: inputs[name][part.start : part.stop] for name in of_tokens} for part in parts]
        pieces = self._team.map(lambda of_part, _: self._embed(of_part), given, parts)
        if 0 in wanted:
            take(0, _joined(pieces)[None])
        done = 0
        for number in sorted(wanted - {0}):
            pieces = self._team.map(partial(self._run_layers, self._stack[done:number], biases), pieces, parts)
            take(number, _joined(pieces)[None])
            done = number
        if self._pooler is None:
            return None
        return torch.tanh(self._pooler(_joined(pieces)[inputs[STARTS]]))

    def _embed(self, inputs: Inputs) -> Tensor:
        """hidden_states[0] of the batch's texts, laid end to end: fp32 [T, D]."""
        states = functional.embedding(inputs["input_ids"], self._words)
        if self._types is not None:
            types = inputs.get("token_type_ids")
            states += self._types[0] if types is None else functional.embedding(types, self._types)
        states += functional.embedding(inputs["position_ids"], self._places)
        states = self._norm(states)
        return states if self._project is None else self._project(states)

    @property
    def _eps(self) -> float:
        return 1e-12 if self._shape.model_type == "distilbert" else self._shape.layer_norm_eps

    def _read_norm(self, checkpoint: Checkpoint, name: str) -> Norm:
        return Norm(*checkpoint.pair(name), self._eps)

    def _read_layer(self, checkpoint: Checkpoint, number: int, dtype: str) -> Layer | FusedLayer:
        shape = self._shape
        names = NAMES[shape.model_type]
        at = names.layer.format(number)
        parts = [checkpoint.mapped(at + part) for part in (names.query, names.key, names.value)]
        # Scores are scaled once for all: 1 / sqrt(head_dim) goes into the queries.
        scaling = math.sqrt(shape.n_heads / shape.hidden_size)
        parts[0] = (parts[0][0] * scaling, parts[0][1] * scaling)
        weights, biases = zip(*parts, strict=True)
        of_layer: dict[str, Any] = {
            "qkv": dense(torch.cat(weights), torch.cat(biases), dtype),
            "out": dense(*checkpoint.mapped(at + names.out), dtype),
            "norm": self._read_norm(checkpoint, at + names.norm),
            "up": dense(*checkpoint.mapped(at + names.up), dtype),
            "down": dense(*checkpoint.mapped(at + names.down), dtype),
            "last_norm": self._read_norm(checkpoint, at + names.last_norm),
            "n_heads": shape.n_heads,
        }
        if self._kernels is None:
            return Layer(**of_layer, activation=FUNCTIONS[shape.activation])
        return FusedLayer(**of_layer, activation=shape.activation, kernels=self._kernels, int8=dtype == "int8")


def _joined(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _bias(nearness: Tensor, length: int) -> Tensor:
    """What a text of this length has added to its scores: fp32 [heads, length, length]."""
    place = torch.arange(length)
    return functional.embedding(buckets(place[None] - place[:, None]), nearness).permute(2, 0, 1).contiguous()


def buckets(offsets: Tensor) -> Tensor:
    """Which of 32 embeddings stands for how far, and on which side, another token is.

    Args:
        offsets: int64, the other token's place minus one's own.

    Returns:
        int64 of the same shape. 16 a side: one each up to 7 tokens away, then by the logarithm up to 128.
    """
    distance = offsets.abs()
    # The same operations in the same order as in transformers: at a border, rounding decides.
    far = 8 + (torch.log(distance.float() / 8) / math.log(128 / 8) * 8).to(torch.int64)
    return (offsets > 0) * 16 + torch.where(distance < 8, distance, far.clamp(max=15))
