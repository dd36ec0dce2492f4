"""Packed attention for the models of transformers: texts lie end to end, and each sees itself alone.

Registered with transformers' AttentionInterface, so that the models' own code stays in use. Which tokens belong
together comes through the forward's keyword arguments.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

from torch import Tensor, nn

from embedkit.models.varlen_attention import BACKENDS, Attend, Packing

#: The keyword argument that carries a batch's Packing through the model to `packed_attention`.
PACKING = "embedkit_packing"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    attend: Attend,
    scaling: float | None = None,
    sliding_window: int | None = None,
    embedkit_packing: Packing | None = None,
    **_others: Any,
) -> tuple[Tensor, None]:
    """Attention within each text of a packed batch.

    Args:
        module: the attention layer; its `is_causal` says whether a token sees only what precedes it.
        query: [1, heads, T, head_dim], T the tokens of all texts.
        key: [1, key_value_heads, T, head_dim].
        value: of the same shape.
        attention_mask: None; a packed batch has no padding.
        attend: the kernel.
        scaling: of the scores; None = 1 / sqrt(head_dim).
        sliding_window: a token sees those less than this many tokens away; None = all.
        embedkit_packing: the texts.

    Returns:
        [1, T, heads, head_dim] and None in the place of the attention weights.

    Raises:
        ValueError: the model did not hand the texts on, or made a mask: it cannot be packed. Or the kernel cannot
            do what the layer asks for.
    """
    if embedkit_packing is None or attention_mask is not None:
        raise ValueError("this model's code does not hand on what packed attention needs")
    causal = bool(getattr(module, "is_causal", False))
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    seen = attend(q, k, v, embedkit_packing, causal=causal, window=sliding_window, scale=scaling)
    return seen[None], None


def name_of(backend: str) -> str:
    """What transformers calls packed attention with a backend of `varlen.BACKENDS`.

    transformers takes a name with "flash" in it for its own flash attention.
    """
    return f"embedkit_packed_{backend}"


@cache
def register(backend: str) -> None:
    """Make `packed_attention` with this backend known to transformers.

    Without a mask function of that name, transformers makes no mask, which is what a packed batch needs.
    """
    # Imported here: importing transformers takes seconds, and not every model needs it.
    from transformers import AttentionInterface

    AttentionInterface.register(name_of(backend), partial(packed_attention, attend=BACKENDS[backend]))
