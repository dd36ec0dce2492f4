"""kernels.cpp → a library for the processor at hand, built once and kept in the user's cache.

That takes the C++ compiler that is here half a second. Imports no torch: the library is built while that is read.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from threading import Lock, Thread

from embedkit.storage.filesystem import cache_folder

_SOURCE = Path(__file__).with_name("kernels.cpp")
#: No -ffast-math: what is not finite has to stay so.
_FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)
_COMPILERS = ("c++", "g++", "clang++")
_SECONDS = 60
_building = Lock()


def build_ahead() -> None:
    """Begin to build the library in a thread, so that it is there when it is asked for."""
    Thread(target=library, name="embedkit-build", daemon=True).start()


def library(*, anew: bool = False) -> Path | None:
    """The library, built if it has not been; None where that cannot be done.

    Args:
        anew: whether to build it even so.
    """
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None or sys.platform == "win32":
        return None
    with _building:
        try:
            path = cache_folder() / "cpu-kernels" / f"{_identity(compiler)}.so"
            if anew or not _is_ours(path):
                _build(compiler, path)
            return path if _is_ours(path) else None
        except (OSError, subprocess.SubprocessError):
            return None


def _identity(compiler: str) -> str:
    """Hash of all that decides what the compiler gives; home folders are shared by machines of many kinds."""
    found = Path(compiler).resolve()
    facts = found.stat()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        told = ("flags", "model name", "Features")
        processor = sorted({line for line in text.splitlines() if line.startswith(told)})
    except OSError:
        processor = [platform.processor(), platform.node()]
    decides = [str(found), facts.st_size, facts.st_mtime_ns, platform.machine(), *processor, *_FLAGS]
    return hashlib.sha256(_SOURCE.read_bytes() + repr(decides).encode()).hexdigest()[:32]


def _build(compiler: str, path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        built = Path(work) / "kernels.so"
        subprocess.run(  # noqa: S603 - the compiler that is on the PATH, on our own source
            [compiler, *_FLAGS, "-o", str(built), str(_SOURCE), "-lm"],
            check=True,
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
        # A library that a power cut left half written would end the process that loads it.
        with built.open("rb") as file:
            os.fsync(file.fileno())
        built.replace(path)


def _is_ours(path: Path) -> bool:
    """Whether a library is there that nobody else could have written: loading it runs its code."""
    try:
        facts = [path.lstat(), path.parent.lstat()]
    except OSError:
        return False
    return all(fact.st_uid == os.getuid() and not fact.st_mode & 0o022 for fact in facts)
