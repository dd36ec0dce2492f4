"""The kernels for each instruction set, against plain loops; where this processor lacks one, it is emulated."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from embedkit.models.native import compile_kernels

pytestmark = pytest.mark.instruction_sets
SOURCES = compile_kernels._FOLDER
HERE = Path(__file__).with_name("instruction_sets")
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wno-psabi")
ARM, EMULATOR = "aarch64-linux-gnu-g++", ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")
#: Sources that may be compiled with tiles, beside the products of bytes, of which there are most kinds.
OTHERS = ("fp32_products", "bf16_products", "attention", "bf16_attention")


def compiled(compiler: str, machine: str, products: Path, to: Path, others: str = f"{SOURCES}/{{}}.cpp") -> Path:
    """The test of the kernels for one kind of machine, or only one kind of products if `to` is an object file."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no compiler {compiler} is here")
    sources = (
        [products]
        if to.suffix == ".o"
        else [HERE / "kernels_test.cpp", SOURCES / "kernels.cpp", products, *map(others.format, OTHERS)]
    )
    only = ["-c"] if to.suffix == ".o" else []
    subprocess.run([compiler, *FLAGS, *machine.split(), f"-I{SOURCES}", *only, "-o", to, *sources], check=True)
    return to


def instructions(*command: str | Path) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout.strip()


@pytest.mark.parametrize(
    ("machine", "expected"),
    [("-march=armv8-a", "plain C++"), ("-march=armv8.2-a+dotprod", "ARM dot products")],
    ids=["armv8", "dotprod"],
)
def test_on_arm(machine, expected, tmp_path):
    if shutil.which(EMULATOR[0]) is None:
        pytest.skip(f"no emulator {EMULATOR[0]} is here")
    built = compiled(ARM, machine, SOURCES / "int8_products.cpp", tmp_path / "test")
    assert instructions(*EMULATOR, built) == expected


@pytest.mark.parametrize(
    ("machine", "expected", "needed"),
    [
        ("-march=x86-64", "SSE2", "sse2"),
        ("-march=x86-64-v3", "AVX2", "avx2"),
        ("-march=x86-64-v4", "AVX-512", "avx512bw"),
    ],
    ids=["sse2", "avx2", "avx512"],
)
def test_on_x86(machine, expected, needed, tmp_path):
    if needed not in Path("/proc/cpuinfo").read_text().split():
        pytest.skip(f"this processor has no {needed}")
    built = compiled("g++", machine, SOURCES / "int8_products.cpp", tmp_path / "test")
    assert instructions(built) == expected


@pytest.mark.parametrize(
    ("machine", "expected"),
    [("-march=x86-64-v3", "AVX-VNNI"), ("-march=x86-64-v3 -DEMULATE_AVX512", "AVX-512 VNNI")],
    ids=["avx-vnni", "avx512-vnni"],
)
def test_with_vnni_emulated(machine, expected, tmp_path):
    built = compiled("g++", machine, HERE / "emulated_vnni.cpp", tmp_path / "test")
    assert instructions(built) == expected


@pytest.mark.parametrize(("answer", "expected"), [("", "AMX-INT8"), ("-DREFUSED", "AVX-512 VNNI")])
def test_with_tiles_emulated_that_the_system_grants_or_refuses(answer, expected, tmp_path):
    machine = f"-march=x86-64-v3 -DEMULATE_AVX512 -DEMULATE_TILES {answer}"
    built = compiled("g++", machine, HERE / "emulated_vnni.cpp", tmp_path / "test", f"{HERE}/emulated_{{}}.cpp")
    assert instructions(built) == expected


@pytest.mark.parametrize(
    ("machine", "products", "instruction"),
    [
        ("-march=x86-64-v3 -mavxvnni", "int8_products.cpp", "vpdpbusd"),
        ("-march=x86-64-v4 -mavx512vnni", "int8_products.cpp", "vpdpbusd"),
        ("-march=x86-64-v4 -mavx512bf16", "bf16_products.cpp", "vdpbf16ps"),
        ("-march=x86-64-v4 -mavx512vnni -mamx-int8", "int8_products.cpp", "tdpbusd"),
        ("-march=x86-64-v4 -mavx512bf16 -mamx-bf16", "bf16_products.cpp", "tdpbf16ps"),
        ("-march=x86-64-v4 -mavx512bf16 -mamx-bf16", "fp32_products.cpp", "tdpbf16ps"),
        ("-march=x86-64-v4 -mavx512bf16 -mamx-bf16", "attention.cpp", "tdpbf16ps"),
        ("-march=x86-64-v4 -mavx512bf16", "bf16_attention.cpp", "vdpbf16ps"),
        ("-march=x86-64-v4 -mavx512bf16 -mamx-bf16", "bf16_attention.cpp", "tdpbf16ps"),
        ("-march=x86-64-v4", "fp32_products.cpp", "vfmadd"),
        ("-march=x86-64-v3", "fp32_products.cpp", "vfmadd"),
    ],
)
def test_the_compiler_uses_the_instruction(machine, products, instruction, tmp_path):
    built = compiled("g++", machine, SOURCES / products, tmp_path / "products.o")
    assert instruction in subprocess.check_output(["objdump", "-d", built], text=True)
