"""The machine that a model runs on: its device, its number format, and how its memory is kept."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import torch
from torch.torch_version import TorchVersion

from embedkit.errors import ModelError, UsageError
from embedkit.models.repository.model_folder import ModelFolder

_SAFE_TORCH = "2.10"


def pick_device(name: str) -> torch.device:
    """The device that `--device` names; auto = a GPU if there is one.

    Raises:
        UsageError: there is no such device here.
    """
    found = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    found += ["mps"] if torch.backends.mps.is_available() else []
    found += ["cpu"]
    wanted = found[0] if name == "auto" else ("cuda:0" if name == "cuda" else name)
    if wanted not in found:
        raise UsageError(f"there is no device '{name}' here", hint=f"use one of: {', '.join(found)}")
    return torch.device(wanted)


def pick_dtype(name: str, device: torch.device) -> str:
    """The number format that `--dtype` names; auto = fp32 on a CPU, on a GPU bf16 if it has it, else fp16."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if _has_bf16(device) else "fp16"
    return "fp32"


def _has_bf16(device: torch.device) -> bool:
    """Whether a card computes in bf16 itself. `is_bf16_supported` may ask another card, and counts emulation."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def disable_reduced_precision(device: torch.device) -> None:
    """Let a CUDA device's products of matrices sum in fp32, and its convolutions compute in the fp32 asked for.

    For this process, from now on. By default torch lets cuBLAS add partial sums of 16-bit products in 16 bits, and
    cuDNN round the numbers of fp32 convolutions to TF32. Its fp32 products are not rounded by default; a user who
    has set `torch.backends.cuda.matmul.allow_tf32` wants it, and it stays.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cudnn.allow_tf32 = False


def tune_malloc() -> None:
    """Let glibc keep big freed blocks for the next activation.

    It gives each one back to the kernel otherwise, and faults it in again page by page: 620,000 page faults
    in 600 rows, 5 to 10 % of the time.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold, one_gib = -1, -3, 1 << 30
        mallopt(m_mmap_threshold, one_gib)
        mallopt(m_trim_threshold, one_gib)


def limit_onednn_cache(kept: int) -> None:
    """Let oneDNN keep so many primitives instead of 1,024.

    Each kept one holds a buffer as big as its output, and hardly two packed batches have the same shape: GELU
    alone held 600 MB after 90 batches of MiniLM. Making one anew takes 0.2 ms. oneDNN reads the variable when it
    is first used, which loading a model comes before.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(kept))


def refuse_old_torch(folder: ModelFolder, weights: Path) -> None:
    """A pickle is read by a torch that reads tensors alone from it, without the holes that this had before.

    Args:
        folder: of the model.
        weights: which of its files, from there.

    Raises:
        ModelError: it is a pickle, and torch is too old.
    """
    version = TorchVersion(torch.__version__)
    if weights.name.startswith("pytorch_model.bin") and version < _SAFE_TORCH:
        raise ModelError(
            f"torch {version} does not read {weights} of model '{folder.name}' safely; 2.10 and newer do",
            hint="install a newer torch, or put a model.safetensors into the model's folder",
        )
