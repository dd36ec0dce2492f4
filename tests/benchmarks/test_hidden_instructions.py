"""Commands under benchmarks.hidden_instructions find no instruction newer than AVX2, and otherwise run as ever."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.hidden_instructions import hidden
from benchmarks.hidden_instructions.__main__ import build, environment

NEWER = ("__AVX512", "__AMX", "__AVXVNNI", "__AVXIFMA", "__AVXNE", "__AVX10")
ROOT = Path(__file__).parents[2]
CPUINFO = Path("/proc/cpuinfo")

pytestmark = pytest.mark.skipif(
    platform.machine() not in {"x86_64", "AMD64"}
    or not CPUINFO.exists()
    or "cpuid_fault" not in CPUINFO.read_text(encoding="utf-8").split()
    or shutil.which("cc") is None,
    reason="needs Linux on a processor of x86 that can make CPUID fault, and a C compiler",
)


@pytest.fixture(scope="module")
def variables(tmp_path_factory):
    return environment(build(tmp_path_factory.mktemp("hidden")))


def printed(variables, *command):
    done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return done.stdout


def test_a_compiler_for_this_processor_uses_nothing_newer_than_avx2(variables):
    macros = printed(variables, "cc", "-march=native", "-dM", "-E", "-x", "c", "/dev/null").split()
    assert not [macro for macro in macros if macro.startswith(NEWER)]
    plain = subprocess.run(
        ["cc", "-march=native", "-dM", "-E", "-x", "c", "/dev/null"], capture_output=True, text=True, check=True
    )
    assert ("__AVX2__" in macros) == ("__AVX2__" in plain.stdout.split())


# Each asks CPUID anew: numpy does when it is loaded.
NUMPY = "from numpy._core._multiarray_umath import __cpu_features__ as f; print(f['AVX512F'], f['AVX2'])"
PLACES = {
    "a process that reports its faults": f"import faulthandler; faulthandler.enable(); {NUMPY}",
    "a thread": f"from threading import Thread; t = Thread(target=exec, args=({NUMPY!r},)); t.start(); t.join()",
    "a thread that blocks all signals": (
        "import signal; from threading import Thread\n"
        "def run():\n"
        f"    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()); exec({NUMPY!r})\n"
        "t = Thread(target=run); t.start(); t.join()"
    ),
    "a fork": f"import os\nif os.fork(): os.wait()\nelse: {NUMPY}",
    "a program that it executes": f"import os, sys; os.execv(sys.executable, [sys.executable, '-c', {NUMPY!r}])",
}


@pytest.mark.parametrize("code", PLACES.values(), ids=PLACES)
def test_it_is_hidden_in(code, variables):
    alone = subprocess.run([sys.executable, "-c", NUMPY], capture_output=True, text=True, check=True).stdout
    assert printed(variables, sys.executable, "-c", code).split() == ["False", alone.split()[1]]


@pytest.mark.parametrize("first", ["", "import faulthandler; faulthandler.enable(); "], ids=["plain", "reported"])
def test_a_fault_of_the_program_itself_ends_it(first, variables):
    code = f"{first}import ctypes; ctypes.string_at(0)"
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == -11
    assert ("ctypes" in done.stderr) == bool(first)


def test_a_result_says_what_is_hidden(variables):
    code = "from benchmarks.hidden_instructions import hidden; print(hidden())"
    assert printed(variables, sys.executable, "-c", code) == "AVX-512, AMX and AVX-VNNI hidden from CPUID\n"
    assert hidden() is None
