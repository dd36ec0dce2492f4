"""Attention over texts that lie end to end: each text sees itself and nothing else.

Registered with transformers' AttentionInterface, so that the models' own code stays in use. Which
tokens belong together comes through the forward's keyword arguments, as runs of texts of equal length:
a run is a rectangle without padding, and goes through one call of torch's SDPA.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from embedkit.records import Run

NAME = "embedkit_packed"
#: The keyword argument that carries the runs through the model to `packed_attention`.
RUNS = "embedkit_runs"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    embedkit_runs: Sequence[Run] | None = None,
    **_others: Any,
) -> tuple[Tensor, None]:
    """Attention within each text of a packed batch.

    Args:
        module: the attention layer; its `is_causal` says whether a token sees only what precedes it.
        query: [1, heads, T, head_dim], T the tokens of all texts.
        key: [1, key_value_heads, T, head_dim].
        value: of the same shape.
        attention_mask: None; a packed batch has no padding.
        scaling: of the scores; None = 1 / sqrt(head_dim).
        sliding_window: a token sees those less than this many tokens away; None = all.
        embedkit_runs: the texts; they cover the T tokens in order.

    Returns:
        [1, T, heads, head_dim] and None in the place of the attention weights.

    Raises:
        ValueError: the model did not hand the runs on, or made a mask: it cannot be packed.
    """
    if embedkit_runs is None or attention_mask is not None:
        raise ValueError("this model's code does not hand on what packed attention needs")
    _, heads, tokens, head_dim = query.shape
    out = query.new_empty(1, tokens, heads, head_dim)
    causal = bool(getattr(module, "is_causal", False))
    for run in embedkit_runs:
        stop = run.start + run.count * run.length
        shape = (run.count, run.length)
        # [1, heads, count * length, head_dim] -> [count, heads, length, head_dim], without a copy.
        q, k, v = (
            states[0, :, run.start : stop].view(-1, *shape, head_dim).transpose(0, 1)
            for states in (query, key, value)
        )
        mask = None
        if sliding_window is not None and run.length > sliding_window:
            mask = _band(run.length, sliding_window, causal=causal, device=query.device)
        part = nn.functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=causal and mask is None,
            scale=scaling,
            enable_gqa=key.shape[1] != heads,
        )
        out[0, run.start : stop].view(*shape, heads, head_dim).copy_(part.transpose(1, 2))
    return out, None


@cache
def register() -> None:
    """Make `packed_attention` known to transformers under NAME.

    Without a mask function of that name, transformers makes no mask, which is what a packed batch needs.
    """
    # Imported here: importing transformers takes seconds, and not every model needs it.
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)


def _band(length: int, window: int, *, causal: bool, device: torch.device) -> Tensor:
    """Who sees whom when only tokens nearer than `window` are seen: bool [length, length]."""
    place = torch.arange(length, device=device)
    distance = place[:, None] - place[None, :]
    return (distance.abs() < window) & (distance >= 0) if causal else distance.abs() < window
