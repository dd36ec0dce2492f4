"""Runs a command to which this machine has AVX2 and nothing newer: make bench-avx2.

    python -m benchmarks.hidden_instructions COMMAND [WORD...]

hide.c, preloaded into the command and into all that it starts, answers CPUID: PyTorch, ONNX Runtime, OpenVINO,
CTranslate2 and a compiler's -march=native take AVX2 then. For Linux on x86 with a processor that can make CPUID
fault (cpuid_fault in /proc/cpuinfo: Intel since Ivy Bridge). What reads /proc/cpuinfo still finds the other
instructions; embedkit names its compiled kernels by it, so it gets another cache.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("hide.c")
BUILD = Path(__file__).parents[2] / "build" / "hidden-instructions"
#: glibc chooses its own functions before anything can be preloaded.
TUNABLES = "glibc.cpu.hwcaps=" + ",".join(f"-AVX512{part}" for part in ("F", "CD", "BW", "DQ", "VL"))


def build(folder: Path = BUILD) -> Path:
    """Compiles hide.c into a folder, and returns the library."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "hide.so"
    with tempfile.TemporaryDirectory(dir=folder) as work:
        made = Path(work) / library.name
        # initfirst: other libraries ask CPUID when they are loaded.
        flags = ("-std=gnu11", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-Wl,-z,initfirst")
        subprocess.run(["cc", *flags, "-o", made, SOURCE, "-ldl"], check=True)
        made.replace(library)
    return library


def environment(library: Path) -> dict[str, str]:
    """Returns the variables of a command from which instructions are hidden."""
    return {
        **os.environ,
        "LD_PRELOAD": str(library),
        "GLIBC_TUNABLES": TUNABLES,
        "XDG_CACHE_HOME": str(library.parent / "cache"),
    }


def main() -> None:
    command = sys.argv[1:]
    if not command:
        raise SystemExit(__doc__)
    raise SystemExit(subprocess.run(command, env=environment(build()), check=False).returncode)


if __name__ == "__main__":
    main()
