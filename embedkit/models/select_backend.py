"""Picks what computes a model: embedkit's own code where it knows the family, else that of transformers.

transformers is imported only if it is needed: that alone takes longer than most small jobs.
"""

from __future__ import annotations

from typing import Literal

import torch

from embedkit.config import ModelConfig
from embedkit.errors import ModelError, UsageError
from embedkit.models.base import LoadedModel
from embedkit.models.device import pick_device, pick_dtype
from embedkit.models.native.compile_kernels import find_compiler
from embedkit.models.native.config_reader import NotNativeError
from embedkit.models.native.families import FAMILIES
from embedkit.models.native.linear import bf16_instructions, int8_instructions
from embedkit.models.native.native_model import open_native
from embedkit.models.repository.model_folder import ModelFolder


def load_model(
    folder: ModelFolder,
    config: ModelConfig,
    *,
    backend: Literal["fastest", "transformers", "reference"] = "fastest",
) -> LoadedModel:
    """Loads the encoder of a model's folder.

    `transformers` leaves embedkit's own code out; `reference` is transformers' code as it is, for one text at a
    time.

    Raises:
        ModelError: it cannot be loaded, or not in int8.
        UsageError: there is no such device, or this machine has no int8.
    """
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    if dtype == "int8":
        _check_int8(device)
    if backend == "fastest" and _is_ours(device, dtype):
        try:
            return open_native(folder, dtype, device)
        except NotNativeError as why:
            if dtype == "int8":
                raise ModelError(
                    f"--dtype int8: embedkit does not quantise '{folder.name}', because {why}",
                    hint=f"leave --dtype out; int8 is for plain models of these types: {', '.join(FAMILIES)}",
                ) from None
    from embedkit.models.transformers import load

    return load.load_model(folder, config, reference=backend == "reference")


def why_no_int8() -> str | None:
    """Returns why int8 is impossible on this CPU; None if it is possible."""
    if int8_instructions() is not None:
        return None
    if find_compiler() is None:
        lacks = "there is no C++ compiler"
    else:
        lacks = "embedkit's products cannot be built by the C++ compiler, or give wrong numbers (please report it)"
    return f"this CPU has no AVX-512 VNNI, and {lacks}"


def _is_ours(device: torch.device, dtype: str) -> bool:
    """Checks that embedkit's own code computes in this number format on this device."""
    if device.type == "cpu" and dtype == "bf16":
        return bf16_instructions() is not None
    return device.type == "cuda" or (device.type == "cpu" and dtype in {"fp32", "int8"})


def _check_int8(device: torch.device) -> None:
    if device.type != "cpu":
        raise UsageError(
            f"--dtype int8 is for CPUs, and --device is {device.type} here",
            hint="leave --dtype out: the default is the fastest here",
        )
    why = why_no_int8()
    if why is not None:
        raise UsageError(
            f"--dtype int8 needs a C++ compiler (c++, g++ or clang++) or a CPU with AVX-512 VNNI: {why}",
            hint="install a compiler, such as the package g++; or leave --dtype out",
        )
