"""Picks a model's device and number format, and sets up the process for it."""

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
    """Returns the device that `--device` names; auto is a GPU if there is one.

    Raises:
        UsageError: there is no such device here.
    """
    found = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    found += ["mps"] if torch.backends.mps.is_available() else []
    found += ["cpu"]
    wanted = {"auto": found[0], "cuda": "cuda:0"}.get(name, name)
    if wanted not in found:
        raise UsageError(f"there is no device '{name}' here", hint=f"use one of: {', '.join(found)}")
    return torch.device(wanted)


def pick_dtype(name: str, device: torch.device) -> str:
    """Returns the number format that `--dtype` names; auto is fp32 on a CPU, and bf16 or fp16 on a GPU."""
    if name != "auto":
        return name
    if device.type == "cuda":
        # `is_bf16_supported` may ask about another GPU, and counts emulation.
        has_bf16 = torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
        return "bf16" if has_bf16 else "fp16"
    return "fp32"


def disable_reduced_precision(device: torch.device) -> None:
    """Makes CUDA sum matrix products in fp32 and compute fp32 convolutions in fp32, for the whole process.

    By default torch lets cuBLAS add partial sums of 16-bit products in 16 bits, and cuDNN round fp32 convolutions
    to TF32. fp32 products are exact by default; `torch.backends.cuda.matmul.allow_tf32` stays as the user set it.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cudnn.allow_tf32 = False


def tune_malloc() -> None:
    """Makes glibc keep large freed blocks for the next activation.

    By default it returns each block to the kernel, and faults it in again page by page: 620,000 page faults in 600
    rows, 5 to 10 % of the time.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold, one_gib = -1, -3, 1 << 30
        mallopt(m_mmap_threshold, one_gib)
        mallopt(m_trim_threshold, one_gib)


def limit_onednn_cache(kept: int) -> None:
    """Makes oneDNN keep so many primitives instead of 1,024; must run before its first use.

    Each holds a buffer as large as its output, and few packed batches have the same shape: GELU alone held 600 MB
    after 90 batches of MiniLM. Making a new one takes 0.2 ms.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(kept))


def check_torch_version(folder: ModelFolder, weights: Path) -> None:
    """Checks that torch is new enough to read tensors alone from a pickle: older versions have known holes.

    Raises:
        ModelError: the file is a pickle, and torch is too old.
    """
    version = TorchVersion(torch.__version__)
    if weights.name.startswith("pytorch_model.bin") and version < _SAFE_TORCH:
        raise ModelError(
            f"torch {version} does not read {weights} of model '{folder.name}' safely; 2.10 and newer do",
            hint="install a newer torch, or put a model.safetensors into the model's folder",
        )
