"""Attention over packed texts: one table of the kernels that can compute it.

`groups` works everywhere. The others take a whole batch in one launch, on CUDA devices and in 16 bits. Each sums
in an order that depends on the text alone, and uses no atomics in the forward pass: a batch always gives the same
bytes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embedkit.types import Batch, LengthGroup

#: Queries of a text that go through a window together.
_BLOCK = 256
#: The name of `cu_seqlens` among what is prepared for a forward pass.
CU_SEQLENS = "cu_seqlens"


@dataclass(frozen=True, slots=True)
class Packing:
    """The texts of a packed batch; computed on the host, so that no layer waits for the device."""

    groups: tuple[LengthGroup, ...]  # the texts by length; they cover the T tokens in order
    cu_seqlens: Tensor  # int32 [n + 1], where each text begins, and T; on the device
    max_length: int  # tokens of the longest text

    @classmethod
    def of(cls, batch: Batch, cu_seqlens: Tensor) -> Packing:
        """Returns the packing of a batch whose `cu_seqlens` are on the device."""
        return cls(tuple(batch.length_groups()), cu_seqlens, int(batch.lengths[-1]))


def cu_seqlens(batch: Batch) -> NDArray[np.int32]:
    """Returns where each text of a packed batch begins, and T: int32 [n + 1]."""
    begins = np.zeros(len(batch.lengths) + 1, np.int32)
    np.cumsum(batch.lengths, out=begins[1:])
    return begins


@dataclass(frozen=True, slots=True)
class AttentionRules:
    """The tokens of its text that a token attends to, and the scale of the scores."""

    causal: bool = False  # a token attends only to itself and earlier ones
    window: int | None = None  # a token attends to those less than this many tokens away; None if to all
    scale: float | None = None  # factor for the scores; None for 1 / sqrt(head_dim)

    @property
    def reach(self) -> tuple[int, int]:
        """Tokens seen to the left and to the right, as the kernels count them; -1 for all."""
        reach = -1 if self.window is None else self.window - 1
        return reach, 0 if self.causal else reach


FULL = AttentionRules()
#: Computes attention within each text. Takes queries [T, heads, head_dim], keys and values [T, key_value_heads,
#: head_dim] (each of their heads serves as many of the queries'), the texts, and the rules; returns
#: [T, heads, head_dim]. Raises ValueError if the installed kernel does not support the rules.
Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor, Packing, AttentionRules], Tensor]


def groups(query: Tensor, key: Tensor, value: Tensor, packing: Packing, rules: AttentionRules = FULL) -> Tensor:
    """Runs torch's SDPA on texts of one length at a time; see Attend."""
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    for group in packing.groups:
        rows = slice(group.start, group.start + group.count * group.length)
        # [count * length, heads, head_dim] -> [count, heads, length, head_dim], without a copy.
        q, k, v = (
            states[rows].view(group.count, group.length, *states.shape[1:]).transpose(1, 2)
            for states in (query, key, value)
        )
        into = out[rows].view(group.count, group.length, *out.shape[1:]).transpose(1, 2)
        if rules.window is not None and group.length > rules.window:
            _attend_in_window(q, k, v, rules, into)
            continue
        seen = nn.functional.scaled_dot_product_attention(
            *(q, k, v), is_causal=rules.causal, scale=rules.scale, enable_gqa=key.shape[1] != query.shape[1]
        )
        into.copy_(seen)
    return out


def torch_varlen(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, rules: AttentionRules = FULL
) -> Tensor:
    """Runs torch's own kernel, flash-attention 2 unless another is activated; see Attend.

    Its arguments depend on torch's version: 2.10 has `is_causal` alone, 2.11 `window_size` and `scale`, 2.12
    `enable_gqa` and `num_splits`.
    """
    from torch.nn.attention.varlen import varlen_attn

    known = _parameters(varlen_attn)
    options: dict[str, Any] = {}
    if "window_size" in known:
        options["window_size"] = rules.reach
    elif rules.window is not None:
        raise ValueError("this torch's varlen_attn has no window")
    else:
        options["is_causal"] = rules.causal
    if "scale" in known:
        options["scale"] = rules.scale
    elif rules.scale is not None and not math.isclose(rules.scale, query.shape[2] ** -0.5):
        raise ValueError("this torch's varlen_attn only scales by 1 / sqrt(head_dim)")
    if key.shape[1] != query.shape[1]:
        if "enable_gqa" in known:
            options["enable_gqa"] = True
        else:
            key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], 1) for states in (key, value))
    if "num_splits" in known and _may_split():
        # Otherwise the longest text of the batch decides how the sums of all texts are split.
        options["num_splits"] = 1
    at, longest = packing.cu_seqlens, packing.max_length
    seen = varlen_attn(query, key, value, at, at, longest, longest, **options)
    # It returns a pair only if the sums of the scores are asked for.
    return cast("Tensor", seen)


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    rules: AttentionRules = FULL,
    *,
    package: str = "flash_attn",
) -> Tensor:
    """Runs the package flash-attn, or version 3 of it for Hopper, `flash_attn_interface`; see Attend."""
    kernel = import_module(package).flash_attn_varlen_func
    # Version 3 has `num_splits`, and might split by the longest text of the batch; 2 does not split packed texts.
    unsplit = {"num_splits": 1} if "num_splits" in _parameters(kernel) else {}
    seen = kernel(
        *(query, key, value),
        cu_seqlens_q=packing.cu_seqlens,
        cu_seqlens_k=packing.cu_seqlens,
        max_seqlen_q=packing.max_length,
        max_seqlen_k=packing.max_length,
        softmax_scale=rules.scale,
        causal=rules.causal,
        window_size=rules.reach,
        **unsplit,
    )
    # The first releases of version 3 also return the sums of the scores.
    out: Tensor = seen[0] if isinstance(seen, tuple) else seen
    return out


#: By name, in the order in which they are tried.
BACKENDS: dict[str, Attend] = {
    "fa3": partial(flash_attention, package="flash_attn_interface"),
    "torch_varlen": torch_varlen,
    "fa2": flash_attention,
    "groups": groups,
}
#: The module that a backend needs, and the compute capabilities of the GPUs that it is for.
_NEEDS = {
    "fa3": ("flash_attn_interface", range(9, 10)),
    "torch_varlen": ("torch.nn.attention.varlen", range(8, 100)),
    "fa2": ("flash_attn", range(8, 100)),
}


def usable(device: torch.device, dtype: torch.dtype, head_dim: int | None) -> tuple[str, ...]:
    """Returns names of backends that may work, the fastest first; the last one always does.

    The check at load shows whether they support a model's windows and scales. `head_dim` is None if unknown.
    """
    # Flash attention is for 16 bits, and for heads of 8 to 256 in steps of 8. On ROCm it is another kernel.
    odd = head_dim is not None and (head_dim % 8 != 0 or head_dim > 256)
    if device.type != "cuda" or torch.version.hip or odd or dtype not in {torch.bfloat16, torch.float16}:
        return ("groups",)
    major, _ = torch.cuda.get_device_capability(device)
    found = (name for name, (module, majors) in _NEEDS.items() if major in majors and _is_installed(module))
    return (*found, "groups")


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@cache
def _parameters(kernel: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(kernel).parameters)


def _may_split() -> bool:
    """Checks whether a kernel other than flash-attention 2 is active; that one splits no packed texts."""
    current = getattr(nn.attention, "current_flash_attention_impl", None)
    return current is not None and current() not in {None, "FA2"}


def _attend_in_window(query: Tensor, key: Tensor, value: Tensor, rules: AttentionRules, out: Tensor) -> None:
    """Computes attention within a window into `out`, [texts, heads, length, head_dim].

    A block of queries takes the keys that it can see: time and memory grow with the length of a text, not with its
    square.
    """
    length, reach = query.shape[2], cast("int", rules.window) - 1
    for first in range(0, length, _BLOCK):
        stop = min(first + _BLOCK, length)
        seen_from, seen_to = max(0, first - reach), stop if rules.causal else min(length, stop + reach)
        distance = (
            torch.arange(first, stop, device=query.device)[:, None]
            - torch.arange(seen_from, seen_to, device=query.device)[None]
        )
        mask = distance.abs() <= reach
        if rules.causal:
            mask &= distance >= 0
        seen = nn.functional.scaled_dot_product_attention(
            query[:, :, first:stop],
            key[:, :, seen_from:seen_to],
            value[:, :, seen_from:seen_to],
            attn_mask=mask,
            scale=rules.scale,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        out[:, :, first:stop].copy_(seen)
