"""Layers and poolings as resolved for a model, and the columns that they give; imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from embedkit.types import Variant

if TYPE_CHECKING:
    from torch import Tensor

    from embedkit.pooling.poolers import Pooler


@dataclass(frozen=True, slots=True)
class PoolingSpec:
    """Layers, aggregation and poolings, resolved for a model."""

    layers: tuple[int, ...]  # resolved layer numbers, in the order asked for
    aggregation: str  # concat, mean, sum, max, separate or weighted; applied to tokens, before pooling
    #: Names of POOLINGS or of `poolers`, or `pooler`, in the order asked for; () for token vectors.
    poolings: tuple[str, ...]
    cls_is_last: bool = False  # whether the model's [CLS] ends the text, as XLNet's does, instead of beginning it
    layer_weights: tuple[float, ...] = ()  # under the aggregation `weighted`, which divides by their sum
    skipped: int = 0  # tokens of a prompt at the start of each text, which take no part in the pooling
    #: The modules after the pooling, float32 [n, D] → [n, D'].
    head: Callable[[Tensor], Tensor] | None = None
    head_width: int | None = None  # D' of the head; None if it is D
    variant_suffix: str = ""  # names the pooling in the names of separate layers; by default the poolings
    poolers: Mapping[str, Pooler] = field(default_factory=dict)  # by the names that `poolings` has for them

    def variants(self, hidden_size: int) -> tuple[Variant, ...]:
        """Returns the columns of the output for a model whose states have `hidden_size` dimensions."""
        width = self.head_width or self.pooled_width(hidden_size)
        return tuple(Variant(name, width) for name in self.variant_names())

    def variant_names(self) -> tuple[str, ...]:
        """Returns the names of the variants: one a layer under `separate`."""
        if self.aggregation != "separate":
            return ("",)
        suffix = self.variant_suffix or "_".join(self.poolings) or "tokens"
        return tuple(f"L{layer:02d}_{suffix}" for layer in self.layers)

    def pooled_width(self, hidden_size: int) -> int:
        """Returns the dimensions of a pooled vector, before the head."""
        n_layers = len(self.layers) if self.aggregation == "concat" else 1
        names = self.poolings or ("none",)  # token vectors have the width of one pooling
        return sum(
            self.poolers[name].dims(n_layers, hidden_size) if name in self.poolers else n_layers * hidden_size
            for name in names
        )

    def pooling_name(self, name: str) -> str:
        """Returns the pooling that a name means for this model."""
        return "lasttoken" if name == "cls" and self.cls_is_last else name
