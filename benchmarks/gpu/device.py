"""The device that is asked for, and what it is."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

_LIBRARIES = (
    *("transformers", "tokenizers", "sentence-transformers", "flash-attn", "triton", "numpy", "pyarrow", "orjson"),
)


def refuse_device(device: str) -> None:
    """Ends the process if there is no such device."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "error: torch sees no CUDA device here\n"
            "hint: `embedkit doctor` says why; --device cpu --small tries the script"
        )


def machine(device: str) -> dict[str, Any]:
    """Returns the device, its driver, and the versions of the libraries."""
    found: dict[str, Any] = {
        "device": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": None,
        "libraries": {library: _version(library) for library in _LIBRARIES},
    }
    if torch.device(device).type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        found["device"] = facts.name
        found["memory_gib"] = facts.total_memory / 2**30
        found["capability"] = f"{facts.major}.{facts.minor}"
        found["driver"] = _driver()
    return found


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.strip().split("\n")[0] or None


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
