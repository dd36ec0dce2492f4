"""Versions of what computed a result, for files that others should be able to reproduce."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from importlib.metadata import PackageNotFoundError

from embedkit.storage.filesystem import read_file

#: Cached: it parses all metadata of a package, which for seven takes as long as loading a small model.
version = functools.cache(importlib.metadata.version)

#: Those whose version may change a vector.
_OF_VECTORS = ("embedkit", "torch", "tokenizers", "transformers")
_LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch", "tokenizers", "transformers")


def library_versions() -> dict[str, str]:
    """Returns the versions of embedkit, Python and the libraries that are installed, by name."""
    found = {"embedkit": version("embedkit-cli"), "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def vector_versions(backend: str = "") -> dict[str, str]:
    """Returns the versions of what computes vectors, without builds such as `+cpu`, by name.

    Args:
        backend: the one of the model, if it is known. Attention in bf16 changes vectors as another version may,
            and is named like one; in fp32 it is not.
    """
    found = {name: full.partition("+")[0] for name, full in library_versions().items() if name in _OF_VECTORS}
    return {**found, "attention": "bf16"} if backend.endswith("-bf16-attention") else found


def processor() -> str:
    """Returns the model of the processor, such as `Intel(R) Xeon(R) Platinum 8480+`; its family if unknown."""
    try:
        for line in read_file("/proc/cpuinfo").decode(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
