"""Which layers are aggregated how and pooled how: the plan, and its carrying out as the layers come.

Hidden states arrive one layer at a time and are pooled at once, so that the states of all layers are
never held together. Concatenation along the dimensions commutes with every pooling here (each works
on a dimension alone), so a concatenation of layers is pooled layer by layer too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from embedkit.pooling.tokens import POOLINGS, Pooling, weightedmean
from embedkit.records import Run, Variant


@dataclass(frozen=True, slots=True)
class PoolingPlan:
    """What is computed from the hidden states of a text.

    Attributes:
        layers: resolved layer numbers, in the order asked for.
        aggregation: concat, mean, sum, max or separate; applied to tokens, before pooling.
        poolings: names of POOLINGS or `pooler`, in the order asked for; () = token vectors.
        cls_is_last: whether the model's [CLS] closes the text (XLNet) instead of opening it.
        layer_weights: of each layer, under the aggregation `weighted`, which divides by their sum.
        skipped: tokens at the start of each text that take no part in the pooling: a prompt's.
        head: what comes behind the pooling, float32 [n, D] → [n, D']; None = nothing.
        head_width: D' of the head; None = D.
        told_as: what names of separate layers say of the pooling; by default the poolings.
    """

    layers: tuple[int, ...]
    aggregation: str
    poolings: tuple[str, ...]
    cls_is_last: bool = False
    layer_weights: tuple[float, ...] = ()
    skipped: int = 0
    head: Callable[[Tensor], Tensor] | None = None
    head_width: int | None = None
    told_as: str = ""

    def variants(self, hidden_size: int) -> tuple[Variant, ...]:
        """Columns of the output for a model whose states have `hidden_size` dimensions."""
        width = self.head_width or self.pooled_width(hidden_size)
        if self.aggregation == "separate":
            suffix = self.told_as or "_".join(self.poolings) or "tokens"
            return tuple(Variant(f"L{layer:02d}_{suffix}", width) for layer in self.layers)
        return (Variant("", width),)

    def pooled_width(self, hidden_size: int) -> int:
        """Dimensions of a pooled vector, before the head."""
        return hidden_size * max(1, len(self.poolings)) * (len(self.layers) if self.aggregation == "concat" else 1)

    def pooling(self, name: str) -> Pooling:
        """The function behind a pooling's name, for this model."""
        if name == "weightedmean" and self.skipped:
            # What is left out keeps its weight's place: the weights go on from there.
            return partial(weightedmean, skipped=self.skipped)
        return POOLINGS["lasttoken" if name == "cls" and self.cls_is_last else name]


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """Texts of a batch whose states form a rectangle.

    Attributes:
        texts: which texts of the batch, a slice of 0..n.
        run: where their tokens lie in a packed batch; None: the batch is this rectangle.
        mask: bool [texts, T], the tokens that take part in pooling; None = all.
    """

    texts: slice
    run: Run | None
    mask: Tensor | None

    def states(self, hidden_states: Tensor) -> Tensor:
        """This group's part of [1, T, D] or [B, T, D], as [texts, length, D]; a view, not a copy."""
        if self.run is None:
            return hidden_states
        width = hidden_states.shape[-1]
        tokens = hidden_states[0, self.run.start : self.run.start + self.run.count * self.run.length]
        return tokens.view(self.run.count, self.run.length, width)


class BatchPooler:
    """Takes the layers of one batch as they come, and has the batch's vectors at the end."""

    def __init__(self, plan: PoolingPlan, groups: Sequence[TokenGroup]) -> None:
        self.plan = plan
        self.groups = groups
        self.joined: Tensor | None = None
        self.pooled: dict[tuple[str, int], list[Tensor]] = {}

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
        """float32 [n, D] for each variant, texts in the batch's order."""
        layers = self._finish_layers()
        parts = {
            (name, layer): torch.cat(self.pooled[name, layer]) for layer in layers for name in self.plan.poolings
        }
        if self.plan.aggregation == "separate":
            pooled = {
                variant.name: torch.cat([parts[name, layer] for name in self.plan.poolings], dim=-1)
                for layer, variant in zip(layers, self.plan.variants(0), strict=True)
            }
        else:
            # The layers are aggregated first and pooled second: pooling is the outer order.
            pooled = {
                "": torch.cat([parts[name, layer] for name in self.plan.poolings for layer in layers], dim=-1)
            }
        head = self.plan.head
        return pooled if head is None else {name: head(vectors) for name, vectors in pooled.items()}

    def token_vectors(self) -> dict[str, list[Tensor]]:
        """For each variant a list of n float32 [tokens that take part, D], texts in the batch's order."""
        layers = self._finish_layers()
        if self.plan.aggregation == "separate":
            return {
                variant.name: self.pooled["", layer]
                for layer, variant in zip(layers, self.plan.variants(0), strict=True)
            }
        texts = zip(*(self.pooled["", layer] for layer in layers), strict=True)
        return {"": [torch.cat(states, dim=-1) for states in texts]}

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
        for group in self.groups:
            states = group.states(hidden_states)
            if not self.plan.poolings:
                self._keep_tokens(layer, states, group.mask)
            for name in self.plan.poolings:
                if name != "pooler":
                    vectors = self.plan.pooling(name)(states, group.mask)
                    self.pooled.setdefault((name, layer), []).append(vectors)

    def _keep_tokens(self, layer: int, states: Tensor, mask: Tensor | None) -> None:
        kept = self.pooled.setdefault(("", layer), [])
        for text, of_text in enumerate(states):
            kept.append((of_text if mask is None else of_text[mask[text]]).float().clone())
