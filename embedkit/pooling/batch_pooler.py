"""Which layers are aggregated how and pooled how: the plan, and its carrying out as the layers come.

Hidden states arrive one layer at a time and are pooled at once, so that the states of all layers are
never held together. Concatenation along the dimensions commutes with every pooling of `tokens.py` (each
works on a dimension alone), so a concatenation of layers is pooled layer by layer too. A pooler may look at
several layers at once: for one that does, the states of a batch are held until the last of them is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from embedkit.errors import ModelError
from embedkit.pooling.functions import POOLINGS, Pooling, weightedmean
from embedkit.pooling.poolers import LayerwisePooler, Pooler
from embedkit.pooling.segments import Segments
from embedkit.pooling.widths import pooled_width, variant_names, variants
from embedkit.types import LengthGroup, Variant


@dataclass(frozen=True, slots=True)
class PoolingPlan:
    """What is computed from the hidden states of a text.

    Attributes:
        layers: resolved layer numbers, in the order asked for.
        aggregation: concat, mean, sum, max or separate; applied to tokens, before pooling.
        poolings: names of POOLINGS or of `poolers`, or `pooler`, in the order asked for; () = token vectors.
        cls_is_last: whether the model's [CLS] closes the text (XLNet) instead of opening it.
        layer_weights: of each layer, under the aggregation `weighted`, which divides by their sum.
        skipped: tokens at the start of each text that take no part in the pooling: a prompt's.
        head: what comes behind the pooling, float32 [n, D] → [n, D']; None = nothing.
        head_width: D' of the head; None = D.
        variant_suffix: what names of separate layers say of the pooling; by default the poolings.
        poolers: by the names that `poolings` has for them.
    """

    layers: tuple[int, ...]
    aggregation: str
    poolings: tuple[str, ...]
    cls_is_last: bool = False
    layer_weights: tuple[float, ...] = ()
    skipped: int = 0
    head: Callable[[Tensor], Tensor] | None = None
    head_width: int | None = None
    variant_suffix: str = ""
    poolers: Mapping[str, Pooler] = field(default_factory=dict)

    def variants(self, hidden_size: int) -> tuple[Variant, ...]:
        """Columns of the output for a model whose states have `hidden_size` dimensions."""
        return variants(
            *(self.layers, self.aggregation, self.poolings, self.poolers, hidden_size),
            variant_suffix=self.variant_suffix,
            head_width=self.head_width,
        )

    def names(self) -> tuple[str, ...]:
        """Names of the variants: one a layer under `separate`."""
        return variant_names(self.layers, self.aggregation, self.poolings, self.variant_suffix)

    def pooled_width(self, hidden_size: int) -> int:
        """Dimensions of a pooled vector, before the head."""
        return pooled_width(self.layers, self.aggregation, self.poolings, self.poolers, hidden_size)

    def pooling(self, name: str) -> Pooling:
        """The function behind a pooling's name, for this model."""
        if name == "weightedmean" and self.skipped:
            # What is left out keeps its weight's place: the weights go on from there.
            return partial(weightedmean, skipped=self.skipped)
        return POOLINGS[self.pooling_name(name)]

    def pooling_name(self, name: str) -> str:
        """The pooling that a name means for this model."""
        return "lasttoken" if name == "cls" and self.cls_is_last else name


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """Texts of a batch whose states form a rectangle.

    Attributes:
        texts: which texts of the batch, a slice of 0..n.
        run: where their tokens lie in a packed batch; None: the batch is this rectangle.
        mask: bool [texts, T], the tokens that take part in pooling; None = all.
        input_ids: int64 [texts, T]; None where no pooler wants them.
    """

    texts: slice
    run: LengthGroup | None
    mask: Tensor | None
    input_ids: Tensor | None = None

    def states(self, hidden_states: Tensor) -> Tensor:
        """This group's part of [1, T, D] or [B, T, D], as [texts, length, D]; a view, not a copy."""
        if self.run is None:
            return hidden_states
        width = hidden_states.shape[-1]
        tokens = hidden_states[0, self.run.start : self.run.start + self.run.count * self.run.length]
        return tokens.view(self.run.count, self.run.length, width)


class BatchPooler:
    """Takes the layers of one batch as they come, and has the batch's vectors at the end.

    Args:
        plan: what is computed.
        groups: the texts, in order; () where `segments` are all that is needed, and for token vectors.
        segments: the texts of a packed batch; the poolings of `tokens.py` then need no groups.
        places: int64 [T'], the tokens that take part, in the rows of states laid end to end; None = all. For token
            vectors alone.
    """

    def __init__(
        self,
        plan: PoolingPlan,
        groups: Sequence[TokenGroup],
        segments: Segments | None = None,
        places: Tensor | None = None,
    ) -> None:
        self.plan = plan
        self.groups = groups
        self.segments = segments
        self.places = places
        self.joined: Tensor | None = None
        self.pooled: dict[tuple[str, int], list[Tensor]] = {}
        self.held: dict[int, list[Tensor]] = {}

    def take(self, layer: int, hidden_states: Tensor) -> None:
        """Use the states of a layer: [1, T, D] if packed, else [B, T, D]; not kept past this call."""
        match self.plan.aggregation:
            case "concat" | "separate":
                self._pool(layer, hidden_states)
            case "max":
                states = hidden_states.float()
                self.joined = states.clone() if self.joined is None else torch.maximum(self.joined, states)
            case _:
                states = hidden_states.float()
                if self.plan.layer_weights:
                    states = states * self.plan.layer_weights[self.plan.layers.index(layer)]
                self.joined = states.clone() if self.joined is None else self.joined.add_(states)

    def take_pooler_output(self, vectors: Tensor) -> None:
        """Use what the model's own pooling head gave: [n, D]."""
        self.pooled["pooler", self.plan.layers[0]] = [vectors.float()]

    def vectors(self) -> dict[str, Tensor]:
        """float32 [n, D] for each variant, texts in the batch's order.

        Raises:
            ModelError: a pooler gave something else than it should.
        """
        layers = self._finish_layers()
        # The layers are aggregated first and pooled second: pooling is the outer order.
        at_once = [(layer,) for layer in layers] if self.plan.aggregation == "separate" else [layers]
        pooled = {
            variant: torch.cat([self._of(name, together) for name in self.plan.poolings], dim=-1)
            for variant, together in zip(self.plan.names(), at_once, strict=True)
        }
        head = self.plan.head
        return pooled if head is None else {name: head(vectors) for name, vectors in pooled.items()}

    def _of(self, name: str, layers: tuple[int, ...]) -> Tensor:
        """Vectors [n, D'] of one pooling, of these layers at once."""
        pooler = self.plan.poolers.get(name)
        if pooler is None:
            return torch.cat([torch.cat(self.pooled[name, layer]) for layer in layers], dim=-1)
        if isinstance(pooler, LayerwisePooler):
            return pooler.of_layers(torch.stack([torch.cat(self.pooled[name, layer]) for layer in layers]))
        vectors = []
        for number, group in enumerate(self.groups):
            states = torch.stack([self.held[layer][number] for layer in layers])
            mask = torch.ones(states.shape[1:3], dtype=torch.bool, device=states.device)
            found = pooler(states, mask if group.mask is None else group.mask, _ids(group))
            _refuse_shape(name, found, (states.shape[1], pooler.dims(len(layers), states.shape[-1])))
            vectors.append(found)
        return torch.cat(vectors)

    def token_vectors(self) -> dict[str, Tensor]:
        """For each variant float32 [T', D]: the tokens that take part, end to end, texts in the batch's order."""
        layers = self._finish_layers()
        if self.plan.aggregation == "separate":
            of_layers = zip(layers, self.plan.names(), strict=True)
            return {variant: self.pooled["", layer][0] for layer, variant in of_layers}
        states = [self.pooled["", layer][0] for layer in layers]
        return {"": states[0] if len(states) == 1 else torch.cat(states, dim=-1)}

    def _finish_layers(self) -> tuple[int, ...]:
        if self.joined is None:
            return self.plan.layers
        if self.plan.aggregation == "mean":
            self.joined /= len(self.plan.layers)
        if self.plan.layer_weights:
            self.joined /= sum(self.plan.layer_weights)
        self._pool(self.plan.layers[0], self.joined)
        self.joined = None
        return self.plan.layers[:1]

    def _pool(self, layer: int, hidden_states: Tensor) -> None:
        if not self.plan.poolings:
            self._keep_tokens(layer, hidden_states.flatten(0, 1))
            return
        if self.segments is not None:
            for name in self._own_poolings():
                vectors = self.segments.pool(self.plan.pooling_name(name), hidden_states[0])
                self.pooled[name, layer] = [vectors]
        for group in self.groups:
            states = group.states(hidden_states)
            if any(not isinstance(pooler, LayerwisePooler) for pooler in self.plan.poolers.values()):
                self.held.setdefault(layer, []).append(states.clone())
            for name, pooler in self.plan.poolers.items():
                if isinstance(pooler, LayerwisePooler):
                    vectors = pooler.of_layer(states, group.mask, _ids(group))
                    self.pooled.setdefault((name, layer), []).append(vectors)
            for name in self._own_poolings() if self.segments is None else ():
                vectors = self.plan.pooling(name)(states, group.mask)
                self.pooled.setdefault((name, layer), []).append(vectors)

    def _own_poolings(self) -> list[str]:
        """Those of `tokens.py`."""
        return [name for name in self.plan.poolings if name != "pooler" and name not in self.plan.poolers]

    def _keep_tokens(self, layer: int, states: Tensor) -> None:
        if self.places is None:
            self.pooled["", layer] = [states.to(torch.float32, copy=True)]
        else:
            self.pooled["", layer] = [states.index_select(0, self.places).float()]


def _ids(group: TokenGroup) -> Tensor:
    if group.input_ids is None:
        raise ValueError("a pooler needs the token ids of its group")
    return group.input_ids


def _refuse_shape(name: str, found: object, expected: tuple[int, int]) -> None:
    if not isinstance(found, Tensor) or tuple(found.shape) != expected or found.dtype != torch.float32:
        given = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ModelError(
            f"the pooler '{name}' gave {given}; float32 {list(expected)} is what its dims() says",
            hint="mend the pooler, or leave it out of --pool",
        )
