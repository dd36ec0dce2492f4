"""The forward passes in other ways than the usual one: batches of other sizes, other attention, compiled norms.

For whoever sets the defaults: what is fastest here is told beside what embedkit took.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.gpu.clock import Clock, Timed, rate
from benchmarks.gpu.ours import Forward
from embedkit.models.native.gpu_encoder import GpuEncoder
from embedkit.models.native.torch_compile import add_norm
from embedkit.models.varlen_attention import usable

#: Rows that a run must have for everything to be compiled that can be.
_MANY = 10**12
_TOO_BIG = float("inf")


def ways(
    forward: Forward, texts: Sequence[str], sizes: Sequence[int], clock: Clock, budget: float
) -> dict[str, Any]:
    """Returns the tokens a second of each way, in three rounds in turn; the usual way is the first."""
    usual = forward.model.embedder.budget.tokens
    lengths = forward.take(texts)
    works: dict[str, Timed] = {"usual": forward.timed}
    for size in sizes:
        if size != usual:
            ready = forward.batched(texts, size)
            works[f"{size} tokens a batch"] = lambda ready=ready: _unless_too_big(forward, ready)
    encoder = forward.model.embedder.encoder
    if isinstance(encoder, GpuEncoder):
        taken = encoder.attention
        for name in usable(encoder.device, encoder.dtype, encoder.head_dim):
            if name != taken:
                works[f"attention by {name}"] = _set(forward, encoder, "attention", name, taken)
        notice = encoder.compile_if_worthwhile(_MANY)
        if notice:
            clock.left_out.append(notice)
        compiled, encoder.add_norm = encoder.add_norm, add_norm
        if compiled is not add_norm:
            works["norms compiled"] = _set(forward, encoder, "add_norm", compiled, add_norm)
    seconds = clock.rounds(works, rounds=3, budget=budget, what="other ways")
    for name in [name for name, of in seconds.items() if _TOO_BIG in of]:
        del seconds[name]
        clock.left_out.append(f"{name}: a batch does not fit into memory")
    return {
        "batch_tokens": usual,
        "attention": getattr(encoder, "attention", None),
        "tokens_per_second": {name: rate(int(lengths.sum()), of) for name, of in seconds.items()},
        "seconds": seconds,
    }


def _set(forward: Forward, encoder: GpuEncoder, name: str, value: Any, usual: Any) -> Callable[[], float]:
    """Returns the forward passes with an attribute of the encoder set to something else."""

    def timed() -> float:
        setattr(encoder, name, value)
        try:
            return forward.timed()
        finally:
            setattr(encoder, name, usual)

    return timed


def _unless_too_big(forward: Forward, ready: list[Any]) -> float:
    """Returns the seconds; `_TOO_BIG` where a batch does not fit into memory."""
    try:
        return forward.timed(ready)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return _TOO_BIG
