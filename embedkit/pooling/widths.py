"""Names and widths of the output's variants, by what is asked alone: needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from embedkit.types import Variant


class Wide(Protocol):
    """Something that pools, as far as its width goes."""

    def dims(self, n_layers: int, hidden_size: int) -> int:
        """Dimensions of its vectors."""


def variants(
    layers: Sequence[int],
    aggregation: str,
    poolings: Sequence[str],
    poolers: Mapping[str, Wide],
    hidden_size: int,
    *,
    variant_suffix: str,
    head_width: int | None,
) -> tuple[Variant, ...]:
    """Columns of the output for a model whose states have `hidden_size` dimensions; see `PoolingPlan`."""
    width = head_width or pooled_width(layers, aggregation, poolings, poolers, hidden_size)
    return tuple(Variant(name, width) for name in variant_names(layers, aggregation, poolings, variant_suffix))


def variant_names(
    layers: Sequence[int], aggregation: str, poolings: Sequence[str], variant_suffix: str
) -> tuple[str, ...]:
    """Names of the variants: one a layer under `separate`."""
    if aggregation != "separate":
        return ("",)
    suffix = variant_suffix or "_".join(poolings) or "tokens"
    return tuple(f"L{layer:02d}_{suffix}" for layer in layers)


def pooled_width(
    layers: Sequence[int], aggregation: str, poolings: Sequence[str], poolers: Mapping[str, Wide], hidden_size: int
) -> int:
    """Dimensions of a pooled vector, before the head."""
    n_layers = len(layers) if aggregation == "concat" else 1
    if not poolings:
        return n_layers * hidden_size
    return sum(
        poolers[name].dims(n_layers, hidden_size) if name in poolers else n_layers * hidden_size
        for name in poolings
    )
