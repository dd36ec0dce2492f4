"""Embedding and weights of embedkit's own encoders: token ids → hidden states, without transformers."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from embedkit.models.base import Arrays, Inputs, LayerEncoder, positions_after_pad
from embedkit.models.native.layer import LayerWeights, Norm
from embedkit.models.native.linear import Linear
from embedkit.types import Batch, Tokens

if TYPE_CHECKING:
    from embedkit.models.native.native_model import NativeModel

#: The name of the first token of each text among the prepared arrays; all others have a value for each token.
STARTS = "starts"


class NativeEncoder(LayerEncoder):
    """Reads the weights of the wanted layers, and embeds tokens; subclasses run the layers.

    Closes the model's checkpoint. `for_pooler` also reads the model's own pooling head.

    Raises:
        NotNativeError: a weight cannot be read.
    """

    packed = True
    equal_lengths = False
    #: True if 1 / sqrt(head_dim) is part of the queries' weights, False if the attention kernel applies it.
    scales_queries: bool

    def __init__(self, model: NativeModel, layers: tuple[int, ...], *, for_pooler: bool) -> None:
        config, checkpoint, family = model.config, model.checkpoint, model.config.family
        self.device = model.device
        self.layers = layers
        self.n_layers = config.n_layers
        self.hidden_size = config.hidden_size
        self._model = model

        def read(name: str) -> Tensor:
            return self._copy(checkpoint.tensor(f"{name}.weight"))

        self._words = read("embeddings.word_embeddings")
        self._positions = read("embeddings.position_embeddings")
        self._types = read("embeddings.token_type_embeddings") if config.type_vocab_size else None
        self._norm = self._read_norm("embeddings.LayerNorm")
        projects = config.embedding_size != config.hidden_size
        self._project = self._linear(*checkpoint.pair("embeddings_project"), "fp32") if projects else None
        self._pooler = self._linear(*checkpoint.pair("pooler.dense"), "fp32") if for_pooler else None
        #: [buckets, heads].
        self._relative_bias = read(family.relative_bias) if family.relative_bias else None
        self._stack = [self._read_layer(number) for number in range(max(layers))]
        checkpoint.close()

    def prepare(self, tokens: Tokens, batch: Batch) -> Arrays:
        """Makes the inputs of a forward pass, int64 [T]; see LayerEncoder."""
        places, position = tokens.indices_of(batch.texts)
        ids = tokens.input_ids[places].astype(np.int64)
        pad_id = self._model.config.pad_id
        if pad_id is not None:
            position = positions_after_pad(ids, position, pad_id)
        arrays: Arrays = {"input_ids": ids, "position_ids": position}
        if self._types is not None and tokens.token_type_ids is not None:
            arrays["token_type_ids"] = tokens.token_type_ids[places].astype(np.int64)
        if self._pooler is not None:
            arrays[STARTS] = np.cumsum(batch.lengths) - batch.lengths
        return arrays

    def _embed(self, inputs: Inputs) -> Tensor:
        """Computes hidden_states[0] of packed tokens: [T, D]."""
        states = functional.embedding(inputs["input_ids"], self._words)
        if self._types is not None:
            types = inputs.get("token_type_ids")
            states += self._types[0] if types is None else functional.embedding(types, self._types)
        states += functional.embedding(inputs["position_ids"], self._positions)
        states = self._norm(states)
        return states if self._project is None else self._project(states)

    def _pooler_output(self, states: Tensor, inputs: Inputs) -> Tensor | None:
        """Applies the model's own pooling head, [T, D] → [n, D]; None if it is not wanted."""
        return None if self._pooler is None else torch.tanh(self._pooler(states[inputs[STARTS]]))

    @abstractmethod
    def _copy(self, weight: Tensor) -> Tensor:
        """Copies a weight: a file that is overwritten while it is mapped would change the numbers."""

    @abstractmethod
    def _linear(self, weight: Tensor, bias: Tensor, dtype: str) -> Linear:
        """Copies weight and bias into a linear layer of this number format."""

    def _read_norm(self, name: str) -> Norm:
        weight, bias = self._model.checkpoint.pair(name)
        return Norm(self._copy(weight), self._copy(bias), self._model.config.layer_norm_eps)

    def _read_layer(self, number: int) -> LayerWeights:
        config, dtype, pair = self._model.config, self._model.dtype, self._model.checkpoint.pair
        family = config.family
        at = family.layer.format(number)
        parts = [pair(at + part) for part in (family.query, family.key, family.value)]
        if self.scales_queries:
            scaling = math.sqrt(config.n_heads / config.hidden_size)
            parts[0] = (parts[0][0] * scaling, parts[0][1] * scaling)
        weights, biases = zip(*parts, strict=True)
        return LayerWeights(
            qkv=self._linear(torch.cat(weights), torch.cat(biases), dtype),
            attention_out=self._linear(*pair(at + family.attention_out), dtype),
            attention_norm=self._read_norm(at + family.attention_norm),
            up=self._linear(*pair(at + family.up), dtype),
            activation=config.activation,
            down=self._linear(*pair(at + family.down), dtype),
            output_norm=self._read_norm(at + family.output_norm),
            n_heads=config.n_heads,
        )
