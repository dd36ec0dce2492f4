"""Aggregates and pools the layers of a batch as they are computed.

Each layer is pooled at once, so that the states of all layers are never held together. Concatenating layers along
the dimensions commutes with every pooling of `functions.py`, which treat each dimension alone, so concatenated
layers are pooled one by one too. A pooler may need several layers at once: then the states of a batch are held
until the last of them is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from embedkit.errors import ModelError
from embedkit.pooling.functions import Inputs, Rectangle, Segments, pool
from embedkit.pooling.poolers import LayerwisePooler
from embedkit.pooling.pooling_spec import PoolingSpec
from embedkit.types import LengthGroup


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """Texts of a batch whose states form a rectangle."""

    tokens: LengthGroup | None  # where they are in a packed batch; None if the batch is this rectangle
    mask: Tensor | None  # bool [texts, T], the tokens that take part in pooling; None if all do
    input_ids: Tensor | None = None  # int64 [texts, T]; None unless a pooler needs them

    def states(self, hidden_states: Tensor) -> Tensor:
        """Returns this group's part of [1, T, D] or [B, T, D], as a view [texts, length, D]."""
        if self.tokens is None:
            return hidden_states
        start, count, length = self.tokens.start, self.tokens.count, self.tokens.length
        return hidden_states[0, start : start + count * length].view(count, length, hidden_states.shape[-1])


class BatchPooler:
    """Takes the layers of one batch as they are computed, and returns its vectors at the end.

    Args:
        spec: layers and poolings.
        groups: the texts, in order; () if `segments` suffice, and for token vectors.
        segments: the arrays of Segments, to pool a packed batch without groups; None if groups are used.
        places: for token vectors: int64 [T'], the rows of the states, packed, that take part; None if all do.
    """

    def __init__(
        self,
        spec: PoolingSpec,
        groups: Sequence[TokenGroup],
        segments: Inputs | None = None,
        places: Tensor | None = None,
    ) -> None:
        self._spec = spec
        self._groups = groups
        self._segments = segments
        self._places = places
        self._joined: Tensor | None = None
        self._pooled: dict[tuple[str, int], list[Tensor]] = {}
        self._held: dict[int, list[Tensor]] = {}
        self._own_poolings = [name for name in spec.poolings if name != "pooler" and name not in spec.poolers]

    def take(self, layer: int, hidden_states: Tensor) -> None:
        """Uses the states of a layer: [1, T, D] if packed, else [B, T, D]; not kept after this call."""
        if self._spec.aggregation in {"concat", "separate"}:
            self._pool(layer, hidden_states)
            return
        states = hidden_states.float()
        if self._spec.layer_weights:
            states = states * self._spec.layer_weights[self._spec.layers.index(layer)]
        if self._joined is None:
            self._joined = states.clone()
        elif self._spec.aggregation == "max":
            self._joined = torch.maximum(self._joined, states)
        else:
            self._joined.add_(states)

    def take_pooler_output(self, vectors: Tensor) -> None:
        """Uses the output of the model's own pooling head: [n, D]."""
        self._pooled["pooler", self._spec.layers[0]] = [vectors.float()]

    def vectors(self) -> dict[str, Tensor]:
        """Returns float32 [n, D] for each variant, texts in the batch's order.

        Raises:
            ModelError: the result of a pooler has another shape or dtype than it should.
        """
        layers = self._finish_layers()
        # The layers are aggregated first and pooled second: pooling is the outer order.
        at_once = [(layer,) for layer in layers] if self._spec.aggregation == "separate" else [layers]
        pooled = {
            variant: torch.cat([self._vectors_of(name, together) for name in self._spec.poolings], dim=-1)
            for variant, together in zip(self._spec.variant_names(), at_once, strict=True)
        }
        head = self._spec.head
        return pooled if head is None else {name: head(vectors) for name, vectors in pooled.items()}

    def token_vectors(self) -> dict[str, Tensor]:
        """Returns float32 [T', D] for each variant: the tokens that take part, packed, in the batch's order."""
        layers = self._finish_layers()
        if self._spec.aggregation == "separate":
            of_layers = zip(layers, self._spec.variant_names(), strict=True)
            return {variant: self._pooled["", layer][0] for layer, variant in of_layers}
        states = [self._pooled["", layer][0] for layer in layers]
        return {"": states[0] if len(states) == 1 else torch.cat(states, dim=-1)}

    def _vectors_of(self, name: str, layers: tuple[int, ...]) -> Tensor:
        """Returns the vectors [n, D'] of one pooling, of these layers at once."""
        pooler = self._spec.poolers.get(name)
        if pooler is None:
            return torch.cat([torch.cat(self._pooled[name, layer]) for layer in layers], dim=-1)
        if isinstance(pooler, LayerwisePooler):
            return pooler.of_layers(torch.stack([torch.cat(self._pooled[name, layer]) for layer in layers]))
        vectors = []
        for number, group in enumerate(self._groups):
            states = torch.stack([self._held[layer][number] for layer in layers])
            mask = torch.ones(states.shape[1:3], dtype=torch.bool, device=states.device)
            found = pooler(states, mask if group.mask is None else group.mask, _ids(group))
            _check_shape(name, found, (states.shape[1], pooler.dims(len(layers), states.shape[-1])))
            vectors.append(found)
        return torch.cat(vectors)

    def _finish_layers(self) -> tuple[int, ...]:
        """Pools the aggregated states, if layers are aggregated; returns the numbers of the pooled layers."""
        if self._joined is None:
            return self._spec.layers
        if self._spec.aggregation == "mean":
            self._joined /= len(self._spec.layers)
        if self._spec.layer_weights:
            self._joined /= sum(self._spec.layer_weights)
        self._pool(self._spec.layers[0], self._joined)
        self._joined = None
        return self._spec.layers[:1]

    def _pool(self, layer: int, hidden_states: Tensor) -> None:
        spec = self._spec
        if not spec.poolings:
            self._pooled["", layer] = [self._kept_tokens(hidden_states.flatten(0, 1))]
            return
        if self._segments is not None:
            segments = Segments(self._segments, hidden_states[0])
            for name in self._own_poolings:
                self._pooled[name, layer] = [pool(spec.pooling_name(name), segments)]
        for group in self._groups:
            states = group.states(hidden_states)
            if any(not isinstance(pooler, LayerwisePooler) for pooler in spec.poolers.values()):
                self._held.setdefault(layer, []).append(states.clone())
            for name, pooler in spec.poolers.items():
                if isinstance(pooler, LayerwisePooler):
                    vectors = pooler.of_layer(states, group.mask, _ids(group))
                    self._pooled.setdefault((name, layer), []).append(vectors)
            if self._segments is None:
                rectangle = Rectangle(states, group.mask, spec.skipped)
                for name in self._own_poolings:
                    vectors = pool(spec.pooling_name(name), rectangle)
                    self._pooled.setdefault((name, layer), []).append(vectors)

    def _kept_tokens(self, states: Tensor) -> Tensor:
        if self._places is None:
            return states.to(torch.float32, copy=True)
        return states.index_select(0, self._places).float()


def _ids(group: TokenGroup) -> Tensor:
    if group.input_ids is None:
        raise ValueError("a pooler needs the token ids of its group")
    return group.input_ids


def _check_shape(name: str, found: object, expected: tuple[int, int]) -> None:
    if not isinstance(found, Tensor) or tuple(found.shape) != expected or found.dtype != torch.float32:
        returned = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ModelError(
            f"the pooler '{name}' returned {returned}; its dims() promises float32 {list(expected)}",
            hint="fix the pooler, or leave it out of --pool",
        )
