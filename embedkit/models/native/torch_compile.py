"""The residual and the norm behind it as one kernel, which torch compiles where that pays.

Linear layers, GELU and attention are one kernel each already; two of these pairs a layer are all that there is to
fuse. What fails leaves everything as it is.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor
from torch.nn import functional

from embedkit.models.native.gpu_encoder import AddNorm
from embedkit.models.native.layer import Norm
from embedkit.storage.filesystem import cache_folder

#: Rows of a run from which on compiling pays, whatever the card; see `pays`.
_ROWS = 100_000_000
#: Rows of the matrices that a kernel is tried on.
_TRIED = (33, 257)


def pays(rows: int | None, device: torch.device, *, has_triton: bool) -> bool:
    """Whether to compile for a run of so many rows.

    Reckoned, not measured. A fused pair reads two matrices [T, D] and writes one, where add and norm apart read
    three and write two; in BERT-base that spares some 5 % of a forward pass, which is bound by its products.
    Compiling takes every process up to a minute, or seconds where it finds the last run's kernel. At a million
    tokens a second, rows of 90 tokens and 5 %, a minute is won back in 13 million rows; on a card five times as
    fast, in 67 million. So it is for the longest runs alone, until a GPU has been measured.

    It hangs on the plan alone, not on what is left to do: the last bits differ, and a run that is resumed is to
    end with the bytes of one that was not stopped.

    Args:
        rows: of the whole input; None = a stream.
        device: that the model runs on.
        has_triton: whether what torch compiles with on a GPU is installed.
    """
    return device.type == "cuda" and has_triton and rows is not None and rows >= _ROWS


def compiled_add_norm(norm: Norm, backend: str = "inductor") -> AddNorm:
    """`add_norm` as one kernel, for any number of rows, tried on a few.

    Args:
        norm: one of the model's; the others have the same width, epsilon, dtype and device.
        backend: of torch.compile.

    Raises:
        ArithmeticError: it gives other numbers. Compilers raise much else.
    """
    keep_kernels()
    eps = norm.eps

    def fused(update: Tensor, states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.layer_norm(update + states, weight.shape, weight, bias, eps)

    kernel = torch.compile(fused, backend=backend)
    random = torch.Generator().manual_seed(0)
    for rows in _TRIED:
        update, states = torch.randn(2, rows, len(norm.weight), generator=random).to(norm.weight)
        # Else the second number of rows would be compiled for, too; later ones are not marked, and need not be.
        torch._dynamo.mark_dynamic(update, 0)  # noqa: SLF001 - its public name
        torch._dynamo.mark_dynamic(states, 0)  # noqa: SLF001
        exact = fused(*(part.double() for part in (update, states, norm.weight, norm.bias)))
        found = kernel(update, states, norm.weight, norm.bias)
        # Sum and norm are each rounded once to the format of the states.
        allowed = 4 * torch.finfo(norm.weight.dtype).eps * float(exact.abs().max())
        if not float((found.double() - exact).abs().max()) <= allowed:
            raise ArithmeticError("the compiled kernel gives other numbers")

    def through(update: Tensor, states: Tensor, norm: Norm) -> Tensor:
        result: Tensor = kernel(update, states, norm.weight, norm.bias)
        return result

    return through


def keep_kernels() -> None:
    """Let compiled kernels outlast the process, in the user's cache folder unless something else is set."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "kernels"))
