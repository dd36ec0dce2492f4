"""Packed attention for the models of transformers: texts are concatenated, and each attends only to itself.

It is registered with transformers' AttentionInterface, so that the models' own code runs. The lengths of the texts
are passed through the keyword arguments of the forward pass.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

from torch import Tensor, nn

from embedkit.models.varlen_attention import BACKENDS, Attend, AttentionRules, Packing

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
    **_unused: Any,
) -> tuple[Tensor, None]:
    """Computes attention within each text of a packed batch.

    Args:
        module: the attention layer; if its `is_causal` is True, a token attends only to earlier ones.
        query: [1, heads, T, head_dim], with T tokens of all texts.
        key: [1, key_value_heads, T, head_dim].
        value: as `key`.
        attention_mask: None; a packed batch has no padding.
        attend: the kernel.
        scaling: factor for the scores; None for 1 / sqrt(head_dim).
        sliding_window: a token attends to those less than this many tokens away; None if all.
        embedkit_packing: the lengths of the texts.

    Returns:
        [1, T, heads, head_dim]; and None for the attention weights.

    Raises:
        ValueError: the model does not pass the lengths on, or makes a mask, so that it cannot be packed; or the
            kernel does not support the layer.
    """
    if embedkit_packing is None or attention_mask is not None:
        raise ValueError("this model's code does not pass on what packed attention needs")
    causal = bool(getattr(module, "is_causal", False))
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    output = attend(q, k, v, embedkit_packing, AttentionRules(causal, sliding_window, scaling))
    return output[None], None


@cache
def register(backend: str) -> str:
    """Registers `packed_attention` in transformers with a backend of `varlen_attention.BACKENDS`.

    Returns:
        Its name there. No mask function has that name, so that transformers makes no mask; with "flash" in it, the
        name would mean transformers' own flash attention.
    """
    # Imported here: importing transformers takes seconds, and not every model needs it.
    from transformers import AttentionInterface

    name = f"embedkit_packed_{backend}"
    AttentionInterface.register(name, partial(packed_attention, attend=BACKENDS[backend]))
    return name
