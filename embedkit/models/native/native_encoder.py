"""Embedding and weights of embedkit's own encoders: token ids → hidden states, without transformers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from embedkit.models.base import Arrays, Inputs, LayerEncoder, positions_after_pad
from embedkit.models.native.attention import Attention, SelfAttention
from embedkit.models.native.convolution import TokenConvolution
from embedkit.models.native.disentangled import DisentangledAttention
from embedkit.models.native.families.family import Disentangled, NormNames, RelativeBias
from embedkit.models.native.layer import LayerWeights, Norms
from embedkit.models.native.linear import Linear
from embedkit.models.native.norm import Norm, RmsNorm
from embedkit.models.native.relative import DistanceTable, deberta_rows, t5_buckets
from embedkit.models.native.rotary import frequencies
from embedkit.models.native.rotation import Rotation
from embedkit.models.varlen_attention import AttentionRules
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
        config, checkpoint, layout = model.config, model.checkpoint, model.checkpoint.layout
        self.device = model.device
        self.layers = layers
        self.n_layers = config.n_layers
        self.hidden_size = config.hidden_size
        self._model = model

        def read(name: str | None) -> Tensor | None:
            return None if name is None else self._copy(checkpoint.tensor(f"{name}.weight"))

        self._words = self._copy(checkpoint.tensor(f"{layout.words}.weight"))
        self._embedding_scale = None
        if config.family.scales_embeddings:
            # Rounded to the states' dtype, as in transformers.
            self._embedding_scale = float(torch.tensor(config.embedding_size**0.5, dtype=self._words.dtype))
        self._positions = read(layout.positions) if config.has_positions else None
        self._types = read(layout.types) if config.type_vocab_size else None
        tables = {"input_ids": self._words, "position_ids": self._positions, "token_type_ids": self._types}
        self._n_rows = {name: len(table) for name, table in tables.items() if table is not None}
        self._norm = self._read_norm(layout.embedding_norm)
        projects = config.embedding_size != config.hidden_size
        self._project = self._read_projection() if projects else None
        self._projects_first = config.family.projects_first
        self._pooler = None
        if for_pooler and layout.pooler is not None:
            self._pooler = self._linear(*checkpoint.linear(layout.pooler), "fp32")
        self._biases: dict[str, DistanceTable] = {}  # of the scores, by their names: layers may share one
        self._distances: Tensor | None = None  # DeBERTa's embeddings of them
        # First: layers may share what these have read.
        attentions = [self._read_attention(number) for number in range(max(layers))]
        self._stack = self._read_layers(attentions)
        self._convolution = self._read_convolution() if max(layers) > 0 else None
        self._final_norm = self._read_norm(layout.final_norm) if max(layers) == config.n_layers else None
        self._frequencies = {
            of_layer.rotation: frequencies(of_layer.rotation, self.device)
            for of_layer in config.attention[: max(layers)]
            if of_layer.rotation is not None
        }
        checkpoint.close()

    def prepare(self, tokens: Tokens, batch: Batch) -> Arrays:
        """Makes the inputs of a forward pass, int64 [T]; see LayerEncoder.

        Raises:
            IndexError: a token has no embedding.
        """
        places, position = tokens.indices_of(batch.texts)
        ids = tokens.input_ids[places].astype(np.int64)
        pad_id = self._model.config.pad_id
        if pad_id is not None:
            position = positions_after_pad(ids, position, pad_id)
        arrays: Arrays = {"input_ids": ids, "position_ids": position}
        if self._types is not None and tokens.token_type_ids is not None:
            arrays["token_type_ids"] = tokens.token_type_ids[places].astype(np.int64)
        for name, n_rows in self._n_rows.items():
            # Compiled code would read whatever is in memory there.
            if name in arrays and not 0 <= arrays[name].min() <= arrays[name].max() < n_rows:
                raise IndexError(f"{name} up to {arrays[name].max()}: the model has embeddings of {n_rows}")
        if self._pooler is not None:
            arrays[STARTS] = np.cumsum(batch.lengths) - batch.lengths
        return arrays

    def _embed(self, inputs: Inputs) -> Tensor:
        """Computes hidden_states[0] of packed tokens: [T, D]."""
        states = functional.embedding(inputs["input_ids"], self._words)
        if self._embedding_scale is not None:
            states *= self._embedding_scale
        if self._types is not None:
            types = inputs.get("token_type_ids")
            states += self._types[0] if types is None else functional.embedding(types, self._types)
        if self._positions is not None:
            states += functional.embedding(inputs["position_ids"], self._positions)
        for step in (self._project, self._norm) if self._projects_first else (self._norm, self._project):
            states = states if step is None else step(states)
        return states

    def _angles(self, inputs: Inputs) -> dict[Rotation, tuple[Tensor, Tensor]]:
        """Computes cosine and sine of each rotation for every token."""
        positions = inputs["position_ids"]
        return {rotation: steps.angles(positions) for rotation, steps in self._frequencies.items()}

    def _finished(self, states: Tensor, number: int) -> Tensor:
        """Applies the norm after the last layer: hidden_states[number] of the output of a layer."""
        return states if self._final_norm is None or number < self.n_layers else self._final_norm(states)

    def _pooler_output(self, states: Tensor, inputs: Inputs) -> Tensor | None:
        """Applies the model's own pooling head, [T, D] → [n, D]; None if it is not wanted."""
        return None if self._pooler is None else torch.tanh(self._pooler(states[inputs[STARTS]]))

    @abstractmethod
    def _copy(self, weight: Tensor) -> Tensor:
        """Copies a weight: a file that is overwritten while it is mapped would change the numbers."""

    @abstractmethod
    def _linear(self, weight: Tensor, bias: Tensor, dtype: str) -> Linear:
        """Copies weight and bias into a linear layer of this number format."""

    @overload
    def _read_norm(self, name: str, *, scale: float = ...) -> Norm: ...
    @overload
    def _read_norm(self, name: str | None, *, scale: float = ...) -> Norm | None: ...
    def _read_norm(self, name: str | None, *, scale: float = 1.0) -> Norm | None:
        """Reads a norm; its result is multiplied by `scale`."""
        if name is None:
            return None
        family = self._model.config.family
        weight, bias = self._model.checkpoint.norm(name)
        weight = (weight + 1.0 if family.norms_add_one else weight) * scale
        kind = RmsNorm if family.rms_norms else Norm
        return kind(
            self._copy(weight), None if bias is None else self._copy(bias * scale), self._model.config.norm_eps
        )

    def _read_norms(self, names: NormNames, at: str) -> Norms:
        return Norms(
            *(
                None if name is None else self._read_norm(at + name)
                for name in (names.before, names.inner, names.after)
            )
        )

    def _read_layers(self, attentions: Sequence[Attention]) -> list[LayerWeights]:
        """Reads the layers with these kinds of attention."""
        return list(map(self._read_layer, range(len(attentions)), attentions))

    def _read_layer(self, number: int, attention: Attention) -> LayerWeights:
        config, dtype, checkpoint = self._model.config, self._model.dtype, self._model.checkpoint
        layout, biased = checkpoint.layout, config.biased
        at = layout.layer.format(number)
        weight, bias = checkpoint.linear(*(at + name for name in layout.qkv), bias="qkv" in biased)
        of_queries = config.n_heads * config.head_width
        if self.scales_queries and layout.query_norm is None:
            if len(layout.qkv) == 1:  # mapped from the file, and else made for us
                weight, bias = weight.clone(), bias.clone()
            weight[:of_queries] *= config.scale
            bias[:of_queries] *= config.scale
        up = checkpoint.linear(*(at + name for name in layout.up), bias="up" in biased)
        if not layout.gate_is_first:
            up = (up[0].roll(config.intermediate_size, 0), up[1].roll(config.intermediate_size, 0))
        return LayerWeights(
            qkv=self._linear(weight, bias, dtype),
            attention=attention,
            attention_out=self._linear(*checkpoint.linear(at + layout.attention_out, bias="out" in biased), dtype),
            attention_norms=self._read_norms(checkpoint.attention_norms(number), at),
            up=self._linear(*up, dtype),
            activation=config.activation,
            gated=config.gated,
            down=self._linear(*checkpoint.linear(at + layout.down, bias="down" in biased), dtype),
            ffn_norms=self._read_norms(layout.ffn_norms, at),
        )

    def _read_projection(self) -> Linear:
        checkpoint, biased = self._model.checkpoint, self._model.config.biased
        return self._linear(*checkpoint.linear(checkpoint.layout.projection, bias="projection" in biased), "fp32")

    def _read_convolution(self) -> TokenConvolution | None:
        """Reads the convolution beside the first layer as a linear layer of neighbouring tokens."""
        convolution, checkpoint = self._model.config.convolution, self._model.checkpoint
        name, norm = checkpoint.layout.convolution, checkpoint.layout.convolution_norm
        if convolution is None or name is None or norm is None:
            return None
        weight, bias = checkpoint.linear(name)
        linear = self._linear(weight.flatten(1), bias, self._model.dtype)
        return TokenConvolution(linear, convolution.size, convolution.activation, self._read_norm(norm))

    def _read_attention(self, number: int) -> Attention:
        config, layout = self._model.config, self._model.checkpoint.layout
        at, of_layer = layout.layer.format(number), config.attention[number]
        if of_layer.disentangled is not None:
            return self._read_disentangled(number, of_layer.disentangled)
        usual = config.scale == config.head_width**-0.5
        query_scale = config.scale if self.scales_queries else 1.0
        return SelfAttention(
            n_heads=config.n_heads,
            n_key_heads=config.n_key_heads,
            rules=AttentionRules(of_layer.causal, of_layer.window, None if usual else config.scale),
            query_norm=None
            if layout.query_norm is None
            else self._read_norm(at + layout.query_norm, scale=query_scale),
            key_norm=None if layout.key_norm is None else self._read_norm(at + layout.key_norm),
            rotation=of_layer.rotation,
            bias=None if of_layer.bias is None else self._read_bias(number, of_layer.bias),
        )

    def _read_bias(self, number: int, bias: RelativeBias) -> DistanceTable:
        """Reads what is added to the scores of a layer: [heads, buckets]."""
        checkpoint = self._model.checkpoint
        name = str(checkpoint.layout.relative_bias).format(number)
        if name not in self._biases:
            rows = self._copy(checkpoint.tensor(f"{name}.weight")).T.contiguous()
            row_of = partial(t5_buckets, n_buckets=bias.buckets, farthest=bias.farthest)
            self._biases[name] = DistanceTable(rows, row_of)
        return self._biases[name]

    def _read_disentangled(self, number: int, positions: Disentangled) -> DisentangledAttention:
        """Projects the embeddings of distances to keys and queries of a layer's heads."""
        config, checkpoint = self._model.config, self._model.checkpoint
        layout = checkpoint.layout
        at, (query, key, _) = layout.layer.format(number), layout.qkv
        if not positions.shares_projections:
            query, key = str(layout.distances_query), str(layout.distances_key)
        distances = self._distances
        if distances is None:
            distances = checkpoint.tensor(f"{layout.distances}.weight")
            if positions.normed:
                distances = self._read_norm(str(layout.distances_norm))(distances)
            self._distances = distances
        row_of = partial(deberta_rows, n_buckets=positions.buckets, farthest=positions.farthest)

        def table(name: str, scale: float) -> DistanceTable:
            projected = functional.linear(distances, *checkpoint.linear(at + name)).mul_(scale)
            return DistanceTable(projected.T.reshape(config.n_heads, config.head_width, -1).contiguous(), row_of)

        return DisentangledAttention(
            config.n_heads,
            table(key, 1.0) if positions.has_keys else None,
            # Queries are scaled.
            table(query, config.scale) if positions.has_queries else None,
        )
