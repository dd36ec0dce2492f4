"""Where the time of a device goes, by families of kernels."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.ours import wait

#: In this order: a name belongs to the first family that it fits.
_FAMILIES = (
    ("attention", r"flash|fmha|attention|attn|sdpa|softmax|aten::bmm"),
    ("gemm", r"gemm|gemv|cublas|cutlass|xmma|nvjet|wgmma|matmul|aten::(add)?mm|linear|onednn"),
    ("copies", r"memcpy|memset|copy|aten::(to|cat|clone|contiguous|_to_copy)$|catarray"),
    ("embedding and pooling", r"index|embedding|gather|scatter|segment|aten::(max|min)"),
    (
        "elementwise and norms",
        r"norm|elementwise|gelu|tanh|reduce|triton|vectorized|fill|aten::(add|mul|div|sum|mean)",
    ),
)


def by_family(work: Callable[[Callable[[], object]], object], device: str) -> dict[str, Any]:
    """Runs a work under torch's profiler.

    Args:
        work: is given what it calls when that which counts begins.
        device: where it computes.

    Returns:
        `share` of the device's time by families; `busy_share` of the whole time, in which the device was at work;
        `top`, the most expensive kernels by name, and their shares.
    """
    on_gpu = torch.device(device).type == "cuda"
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    profiled = profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU])
    began = []

    def begin() -> None:
        profiled.start()
        wait(device)
        began.append(time.perf_counter())

    work(begin)
    wait(device)
    wall = time.perf_counter() - began[0]
    profiled.stop()
    seconds = {name: 0.0 for name, _ in (*_FAMILIES, ("other", ""))}
    names: dict[str, float] = {}
    spans: list[tuple[float, float]] = []
    for event in profiled.events():
        if event.device_type != kind or event.name.startswith(("ProfilerStep", "Activity Buffer")):
            continue
        taken = (event.time_range.elapsed_us() if on_gpu else event.self_cpu_time_total) / 1e6
        seconds[family(event.name)] += taken
        names[event.name] = names.get(event.name, 0.0) + taken
        spans.append((event.time_range.start / 1e6, event.time_range.end / 1e6))
    whole = sum(seconds.values())
    if not whole:
        return {"seconds": wall, "busy_share": 0.0, "share": {}, "top": {}}
    top = sorted(names, key=lambda name: -names[name])[:12]
    return {
        "seconds": wall,
        "busy_share": min(1.0, covered(spans) / wall),
        "share": {name: taken / whole for name, taken in seconds.items()},
        "top": {name[:120]: names[name] / whole for name in top},
    }


def family(name: str) -> str:
    """Returns the family of a kernel, or on a CPU of an operator."""
    return next((kind for kind, pattern in _FAMILIES if re.search(pattern, name, re.IGNORECASE)), "other")


def covered(spans: list[tuple[float, float]]) -> float:
    """Returns the seconds in at least one of these spans, which may overlap."""
    whole, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        whole += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return whole
