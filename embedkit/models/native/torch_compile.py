"""A residual and the norm after it as one kernel, compiled by torch for runs that are long enough.

Linear layers, GELU and attention are one kernel each already; these pairs, two a layer, are all that can be fused.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from embedkit.models.native.norm import Norm
from embedkit.storage.filesystem import cache_folder

#: See `add_norm`.
AddNorm: TypeAlias = Callable[[Tensor, Tensor, Norm], Tensor]
#: Rows of a run from which on compiling pays, on any GPU; see `pays`.
_ROWS = 100_000_000
#: Numbers of rows that a kernel is tested on.
_TESTED = (33, 257)


def add_norm(update: Tensor, states: Tensor, norm: Norm) -> Tensor:
    """Adds [T, D] to states [T, D] and normalises the sum; overwrites `update`."""
    return norm(update.add_(states))


def pays(rows: int | None, device: torch.device, *, has_triton: bool) -> bool:
    """Decides whether to compile for a run of so many rows.

    Estimated, not measured. A fused pair reads two matrices [T, D] and writes one, where add and norm apart read
    three and write two; in BERT-base that saves some 5 % of a forward pass, whose time is mostly matrix products.
    Compiling takes every process up to a minute, or seconds where the last run's kernel is cached. At a million
    tokens a second, rows of 90 tokens and 5 %, a minute is won back in 13 million rows; on a GPU five times as
    fast, in 67 million.

    Depends on the plan alone, not on the rows left: the last bits differ, and a resumed run must give the bytes of
    one that was not stopped.

    Args:
        rows: rows of the whole input; None for a stream.
        device: the model's.
        has_triton: whether Triton, which torch compiles with on a GPU, is installed.
    """
    return device.type == "cuda" and has_triton and rows is not None and rows >= _ROWS


def compiled_add_norm(norm: Norm, backend: str = "inductor") -> AddNorm:
    """Compiles `add_norm` into one kernel for any number of rows, and tests it.

    Args:
        norm: one of the model's; the others have the same width, epsilon, dtype and device.
        backend: of torch.compile.

    Raises:
        ArithmeticError: the kernel gives other numbers. Compilers may raise any other exception.
    """
    keep_kernels()
    eps = norm.eps

    def fused(update: Tensor, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.layer_norm(update + states, weight.shape, weight, bias, eps)

    kernel = torch.compile(fused, backend=backend)
    random = torch.Generator().manual_seed(0)
    for rows in _TESTED:
        update, states = torch.randn(2, rows, len(norm.weight), generator=random).to(norm.weight)
        # Otherwise the second number of rows would be compiled for separately.
        torch._dynamo.mark_dynamic(update, 0)  # noqa: SLF001 - its public name
        torch._dynamo.mark_dynamic(states, 0)  # noqa: SLF001
        bias = None if norm.bias is None else norm.bias.double()
        exact = fused(update.double(), states.double(), norm.weight.double(), bias)
        found = kernel(update, states, norm.weight, norm.bias)
        # Sum and norm are each rounded once to the format of the states.
        allowed = 4 * torch.finfo(norm.weight.dtype).eps * float(exact.abs().max())
        if not float((found.double() - exact).abs().max()) <= allowed:
            raise ArithmeticError("the compiled kernel gives other numbers")

    def compiled(update: Tensor, states: Tensor, norm: Norm) -> Tensor:
        result: Tensor = kernel(update, states, norm.weight, norm.bias)
        return result

    return compiled


def keep_kernels() -> None:
    """Keeps compiled kernels in the user's cache folder, unless another folder is set."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "kernels"))
