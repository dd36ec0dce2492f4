"""Builds kernels.cpp and int8_products.cpp into a library for this processor, kept in the user's cache.

Takes a second. Imports no torch, so that the library is built while torch is imported.
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

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("kernels.cpp", "int8_products.cpp"))
#: No -ffast-math: NaN and infinity must stay so.
_FLAGS = (
    # On ARM, older compilers take `native` for -mcpu alone.
    "-mcpu=native" if platform.machine() in {"aarch64", "arm64"} else "-march=native",
    *("-std=c++17", "-O3", "-shared", "-fPIC"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)
_COMPILERS = ("c++", "g++", "clang++")
_SECONDS = 60
_building = Lock()


def build_ahead() -> None:
    """Starts to build the library in a thread."""
    Thread(target=library, name="embedkit-build", daemon=True).start()


def library(*, rebuild: bool = False) -> Path | None:
    """Returns the library's path, built if it is not cached or on `rebuild`; None if it cannot be built."""
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None or sys.platform == "win32":
        return None
    with _building:
        try:
            path = cache_folder() / "cpu-kernels" / f"{_identity(compiler)}.so"
            if rebuild or not _is_ours(path):
                _build(compiler, path)
            return path if _is_ours(path) else None
        except (OSError, subprocess.SubprocessError):
            return None


def _identity(compiler: str) -> str:
    """Hashes everything that decides the result: machines of many kinds may share a home folder."""
    found = Path(compiler).resolve()
    facts = found.stat()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        relevant = ("flags", "model name", "Features")
        processor = sorted({line for line in text.splitlines() if line.startswith(relevant)})
    except OSError:
        processor = [platform.processor(), platform.node()]
    deciding = [str(found), facts.st_size, facts.st_mtime_ns, platform.machine(), *processor, *_FLAGS]
    sources = b"".join(source.read_bytes() for source in _SOURCES)
    return hashlib.sha256(sources + repr(deciding).encode()).hexdigest()[:32]


def _build(compiler: str, path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        built = Path(work) / "kernels.so"
        subprocess.run(  # noqa: S603 - the compiler that is on the PATH, on our own source
            [compiler, *_FLAGS, "-o", str(built), *map(str, _SOURCES), "-lm"],
            check=True,
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
        # A file left half written by a power cut would crash the process that loads it.
        with built.open("rb") as file:
            os.fsync(file.fileno())
        built.replace(path)


def _is_ours(path: Path) -> bool:
    """Checks that a library exists that only this user can have written: loading it runs its code."""
    try:
        facts = [path.lstat(), path.parent.lstat()]
    except OSError:
        return False
    return all(fact.st_uid == os.getuid() and not fact.st_mode & 0o022 for fact in facts)
