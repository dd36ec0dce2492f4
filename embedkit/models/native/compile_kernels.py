"""Builds kernels.cpp, attention and matrix products: a library for this CPU of each source.

They are kept in the user's cache. Takes half a second to a second for each; bf16 and int8 are built only if a
model needs them. Imports no torch, so that the others are built while torch is imported.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from threading import Lock, Thread

from embedkit.storage.filesystem import cache_folder

_FOLDER = Path(__file__).parent
#: No -ffast-math: NaN and infinity must stay so.
_FLAGS = (
    # On ARM, older compilers take `native` for -mcpu alone.
    "-mcpu=native" if platform.machine() in {"aarch64", "arm64"} else "-march=native",
    *("-std=c++17", "-O3", "-shared", "-fPIC"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)
_COMPILERS = ("c++", "g++", "clang++")
_SECONDS = 60
#: The sources that nearly every model needs.
_AHEAD = ("kernels.cpp", "attention.cpp", "fp32_products.cpp")
_OTHERS = ("bf16_attention.cpp", "bf16_products.cpp", "int8_products.cpp")
#: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
_ASK_FOR_TILES = (158, 0x1023, 18)
_building = {source: Lock() for source in (*_AHEAD, *_OTHERS)}


def build_ahead() -> None:
    """Starts to build what nearly every model needs, in threads."""
    for source in _AHEAD:
        Thread(target=library, args=(source,), name="embedkit-build", daemon=True).start()


def find_compiler() -> str | None:
    """Returns the path of the C++ compiler; None if there is none, and on Windows, where none is tested."""
    return None if sys.platform == "win32" else next(filter(None, map(shutil.which, _COMPILERS)), None)


def library(source: str, *, rebuild: bool = False) -> Path | None:
    """Returns the path of a source's library.

    Args:
        source: a file beside this one.
        rebuild: build it even if it is cached.

    Returns:
        None if it cannot be built.
    """
    compiler = find_compiler()
    if compiler is None:
        return None
    with _building[source]:
        try:
            path = cache_folder() / "cpu-kernels" / f"{_identity(compiler, source)}.so"
            if rebuild or not _is_ours(path):
                _build(compiler, source, path)
            return path if _is_ours(path) else None
        except (OSError, subprocess.SubprocessError):
            return None


def passes(check: Callable[[], bool], code: str, libraries: Iterable[Path]) -> bool:
    """Runs a check of libraries, unless the same one has passed on the same bytes and processor before.

    Args:
        check: compares their results with others'.
        code: the path of the check's source.
        libraries: their paths.
    """
    try:
        # A library's name has the processor's facts; whether it may use tiles is up to the kernel's settings.
        facts: list[object] = [_answer_about_tiles()]
        for path in (Path(code), *libraries):
            facts += [path.name, hashlib.sha256(path.read_bytes()).hexdigest()]
        passed = cache_folder() / "checked-kernels" / hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
        if _is_ours(passed):
            return True
    except OSError:
        return check()
    if not check():
        return False
    with suppress(OSError):
        passed.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        passed.touch(mode=0o600)
    return True


def _answer_about_tiles() -> int | None:
    """Asks the kernel for AMX's tiles as tiles.h does; 0: this process may use them; None if there are none."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    answer: int = ctypes.CDLL(None).syscall(*map(ctypes.c_long, _ASK_FOR_TILES))
    return answer


def _identity(compiler: str, source: str) -> str:
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
    texts = [path.read_bytes() for path in (_FOLDER / source, *sorted(_FOLDER.glob("*.h")))]
    return hashlib.sha256(b"".join(texts) + repr(deciding).encode()).hexdigest()[:32]


def _build(compiler: str, source: str, path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        built = Path(work) / f"{source}.so"
        subprocess.run(  # noqa: S603 - the compiler that is on the PATH, on our own source
            [compiler, *_FLAGS, "-o", str(built), str(_FOLDER / source), "-lm"],
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
    """Checks that a file exists that only this user can have written: loading a library runs its code."""
    try:
        facts = [path.lstat(), path.parent.lstat()]
    except OSError:
        return False
    return all(fact.st_uid == os.getuid() and not fact.st_mode & 0o022 for fact in facts)
