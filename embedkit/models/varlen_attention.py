"""Attention over texts that lie end to end: one table of the kernels that can do it.

Knows tensors and where texts begin; nothing of models. `groups` works everywhere. The others take a whole batch in
one launch, on CUDA devices and in 16 bits; none of them has been measured on a GPU yet. Each sums in an order that
hangs on the text alone, and uses no atomics going forward: the same batch gives the same bytes twice.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embedkit.types import Batch, LengthGroup

#: The name of `cu_seqlens` among what is prepared for a forward pass.
CU_SEQLENS = "cu_seqlens"


@dataclass(frozen=True, slots=True)
class Packing:
    """Where the texts of a packed batch lie; worked out on the host, so that no layer waits for the device.

    Attributes:
        runs: the texts, as runs of equal length; they cover the T tokens in order.
        cu_seqlens: int32 [n + 1], where each text begins, and T behind them; on the device.
        max_length: tokens of the longest text.
    """

    runs: tuple[LengthGroup, ...]
    cu_seqlens: Tensor
    max_length: int

    @classmethod
    def of(cls, batch: Batch, cu_seqlens: Tensor) -> Packing:
        """That of a batch, whose `cu_seqlens` are on the device already."""
        return cls(tuple(batch.length_groups()), cu_seqlens, int(batch.lengths[-1]))


def cu_seqlens(batch: Batch) -> NDArray[np.int32]:
    """Where each text of a packed batch begins, and T behind them: int32 [n + 1]."""
    begins = np.zeros(len(batch.lengths) + 1, np.int32)
    np.cumsum(batch.lengths, out=begins[1:])
    return begins


class Attend(Protocol):
    """Attention of each text to itself."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        packing: Packing,
        *,
        causal: bool = False,
        window: int | None = None,
        scale: float | None = None,
    ) -> Tensor:
        """What each token sees of its text.

        Args:
            query: [T, heads, head_dim].
            key: [T, key_value_heads, head_dim]; each of its heads serves as many of the query's.
            value: of the same shape.
            packing: the texts.
            causal: a token sees only what precedes it, and itself.
            window: a token sees those less than this many tokens away; None = all.
            scale: of the scores; None = 1 / sqrt(head_dim).

        Returns:
            [T, heads, head_dim].

        Raises:
            ValueError: the kernel that is installed cannot do this.
        """


def groups(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    *,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Torch's SDPA, texts of one length at a time: a rectangle without padding. See Attend."""
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    for run in packing.runs:
        place = slice(run.start, run.start + run.count * run.length)
        # [count * length, heads, head_dim] -> [count, heads, length, head_dim], without a copy.
        q, k, v = (
            states[place].view(run.count, run.length, *states.shape[1:]).transpose(1, 2)
            for states in (query, key, value)
        )
        mask = None
        if window is not None and run.length > window:
            mask = _band(run.length, window, causal=causal, device=query.device)
        seen = nn.functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=causal and mask is None,
            scale=scale,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        out[place].view(run.count, run.length, *out.shape[1:]).copy_(seen.transpose(1, 2))
    return out


def torch_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    *,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Torch's own kernel, flash-attention 2 unless another was activated. See Attend.

    Its arguments have changed: 2.10 has `is_causal` alone, 2.11 `window_size` and `scale`, 2.12 `enable_gqa` and
    `num_splits`.
    """
    from torch.nn.attention.varlen import varlen_attn

    known = _parameters(varlen_attn)
    given: dict[str, Any] = {}
    if "window_size" in known:
        given["window_size"] = _window(window, causal=causal)
    elif window is not None:
        raise ValueError("this torch's varlen_attn has no window")
    else:
        given["is_causal"] = causal
    if "scale" in known:
        given["scale"] = scale
    elif scale is not None and not math.isclose(scale, query.shape[2] ** -0.5):
        raise ValueError("this torch's varlen_attn scales by 1 / sqrt(head_dim) alone")
    if key.shape[1] != query.shape[1]:
        if "enable_gqa" in known:
            given["enable_gqa"] = True
        else:
            key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], 1) for states in (key, value))
    if "num_splits" in known and _may_split():
        # Else the longest text of the batch decides in how many parts every text's sum is made.
        given["num_splits"] = 1
    at, longest = packing.cu_seqlens, packing.max_length
    seen = varlen_attn(query, key, value, at, at, longest, longest, **given)
    # A pair only for those who ask for the sums of the scores, too.
    return cast("Tensor", seen)


def flash_attention_2(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    *,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """The package flash-attn. See Attend."""
    from flash_attn import flash_attn_varlen_func

    return _flash(flash_attn_varlen_func, (query, key, value), packing, causal=causal, window=window, scale=scale)


def flash_attention_3(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    *,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """The package flash-attn-3, for Hopper. See Attend."""
    from flash_attn_interface import flash_attn_varlen_func

    return _flash(flash_attn_varlen_func, (query, key, value), packing, causal=causal, window=window, scale=scale)


#: By name; what comes first is tried first.
BACKENDS: dict[str, Attend] = {
    "fa3": flash_attention_3,
    "torch_varlen": torch_varlen,
    "fa2": flash_attention_2,
    "groups": groups,
}
#: The module that a backend needs; `groups` needs none.
_MODULES = {"fa3": "flash_attn_interface", "torch_varlen": "torch.nn.attention.varlen", "fa2": "flash_attn"}


def usable(device: torch.device, dtype: torch.dtype, head_dim: int | None) -> tuple[str, ...]:
    """Names of the backends that may do, the fastest first; the last one does.

    What a model's layers ask for beyond this (windows, scales) shows when the model is checked at load.

    Args:
        device: where the states are.
        dtype: of the states.
        head_dim: of the model's heads; None = not known.
    """
    # Flash attention is for 16 bits, and for heads of 8 to 256 in steps of 8. On ROCm it is another kernel.
    odd = head_dim is not None and (head_dim % 8 != 0 or head_dim > 256)
    if device.type != "cuda" or torch.version.hip or odd or dtype not in {torch.bfloat16, torch.float16}:
        return ("groups",)
    major, _ = torch.cuda.get_device_capability(device)
    wanted = {"fa3": major == 9, "torch_varlen": major >= 8, "fa2": major >= 8}
    found = (name for name, module in _MODULES.items() if wanted[name] and _is_here(module))
    return (*found, "groups")


def _is_here(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _flash(
    kernel: Callable[..., Any],
    states: tuple[Tensor, Tensor, Tensor],
    packing: Packing,
    *,
    causal: bool,
    window: int | None,
    scale: float | None,
) -> Tensor:
    # Version 3 has `num_splits`, and might split by the longest text of the batch; 2 does not split packed texts.
    unsplit = {"num_splits": 1} if "num_splits" in _parameters(kernel) else {}
    seen = kernel(
        *states,
        cu_seqlens_q=packing.cu_seqlens,
        cu_seqlens_k=packing.cu_seqlens,
        max_seqlen_q=packing.max_length,
        max_seqlen_k=packing.max_length,
        softmax_scale=scale,
        causal=causal,
        window_size=_window(window, causal=causal),
        **unsplit,
    )
    # The first releases of version 3 gave the sums of the scores, too.
    out: Tensor = seen[0] if isinstance(seen, tuple) else seen
    return out


@cache
def _parameters(kernel: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(kernel).parameters)


def _may_split() -> bool:
    """Whether another kernel than flash-attention 2 was activated in torch; that one splits no packed texts."""
    current = getattr(nn.attention, "current_flash_attention_impl", None)
    return current is not None and current() not in {None, "FA2"}


def _window(window: int | None, *, causal: bool) -> tuple[int, int]:
    """Tokens seen to the left and to the right, as the kernels count them; -1 = all."""
    reach = -1 if window is None else window - 1
    return reach, 0 if causal else reach


def _band(length: int, window: int, *, causal: bool, device: torch.device) -> Tensor:
    """Who sees whom when only tokens nearer than `window` are seen: bool [length, length]."""
    place = torch.arange(length, device=device)
    distance = place[:, None] - place[None, :]
    return (distance.abs() < window) & (distance >= 0) if causal else distance.abs() < window
