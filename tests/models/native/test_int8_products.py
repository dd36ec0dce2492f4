"""Matrix products of bytes against integer arithmetic in numpy, exactly."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkit.models.native import compile_kernels, linear
from embedkit.models.native.compile_kernels import find_compiler
from embedkit.models.native.linear import Int8Linear, Rows, onednn_multiplies_bytes
from embedkit.models.native.packed_products import PackedProducts, load_int8_products
from tests.models.native.independent_rows import multiply_in_any_company

PRODUCTS = load_int8_products()
needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler is here")


def products() -> PackedProducts:
    assert PRODUCTS is not None
    return PRODUCTS


def operands(n_rows: int, n_inputs: int, n_outputs: int, *, extreme: bool = False) -> tuple[torch.Tensor, ...]:
    random = np.random.default_rng(n_rows + n_inputs + n_outputs)
    rows = random.integers(1, 256, (n_rows, n_inputs), dtype=np.uint8)
    weight = random.integers(-127, 128, (n_outputs, n_inputs), dtype=np.int8)
    if extreme:
        rows[:] = random.choice([1, 255], (n_rows, 1))
        weight[:] = random.choice([-127, 127], (n_outputs, 1))
    return torch.from_numpy(rows), torch.from_numpy(weight), torch.rand(n_outputs)


def by_numpy(rows: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> np.ndarray:
    sums = (rows.numpy().astype(np.int32) - 128) @ weight.numpy().astype(np.int32).T
    return sums.astype(np.float32) * scale.numpy()


any_shape = given(
    n_rows=st.integers(1, 40),
    n_inputs=st.integers(1, 900),
    n_outputs=st.integers(1, 60),
    extreme=st.booleans(),
)


@needs_compiler
@any_shape
@settings(deadline=None, max_examples=60)
def test_sums_are_exact_for_any_shape(n_rows, n_inputs, n_outputs, extreme):
    rows, weight, scale = operands(n_rows, n_inputs, n_outputs, extreme=extreme)
    found = products().multiply(rows, products().pack_bytes(weight, scale))
    assert np.array_equal(found.numpy(), by_numpy(rows, weight, scale))


@pytest.fixture(scope="module")
def for_avx2(tmp_path_factory):
    if find_compiler() is None or torch.backends.cpu.get_cpu_capability() not in {"AVX2", "AVX512"}:
        pytest.skip("needs a C++ compiler and AVX2")
    built = tmp_path_factory.mktemp("avx2") / "products.so"
    flags = ["-march=x86-64-v3" if flag == "-march=native" else flag for flag in compile_kernels._FLAGS]
    source = compile_kernels._FOLDER / "int8_products.cpp"
    subprocess.run([find_compiler(), *flags, "-o", built, source], check=True)
    return PackedProducts("int8", ctypes.CDLL(str(built)))


@any_shape
@settings(deadline=None, max_examples=60)
def test_sums_are_exact_with_avx2(for_avx2, n_rows, n_inputs, n_outputs, extreme):
    assert for_avx2.instructions == "AVX2"
    rows, weight, scale = operands(n_rows, n_inputs, n_outputs, extreme=extreme)
    found = for_avx2.multiply(rows, for_avx2.pack_bytes(weight, scale))
    assert np.array_equal(found.numpy(), by_numpy(rows, weight, scale))


@needs_compiler
def test_a_row_is_the_same_in_any_company_and_with_any_number_of_threads(monkeypatch):
    # Long rows, so that several blocks of them and of their inputs are multiplied one after another.
    rows, weight, scale = operands(130, 4097, 70)
    found = multiply_in_any_company(products().pack_bytes(weight, scale), rows, monkeypatch)
    assert np.array_equal(found.numpy(), by_numpy(rows, weight, scale))


@pytest.mark.skipif(not onednn_multiplies_bytes() or PRODUCTS is None, reason="oneDNN multiplies no bytes here")
def test_onednn_gives_the_same_bits(monkeypatch):
    rows, weight, bias = operands(33, 384, 48)[0], torch.randn(48, 384), torch.randn(48)
    given_rows = Rows(torch.zeros(33, 384), rows, torch.ones(33))
    ours = Int8Linear(weight, bias)
    assert ours.packed is not None
    monkeypatch.setattr(linear, "load_int8_products", lambda: None)
    by_onednn = Int8Linear(weight, bias)
    assert by_onednn.packed is None
    assert torch.equal(ours.products(given_rows).values, by_onednn.products(given_rows).values)


@needs_compiler
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("(1 + i / Kind::group) * OUTPUTS", "i / Kind::group * OUTPUTS"),
        ("vector(sums, floats) *", "vector(sums, floats) +"),
        ("#define OUTPUTS", "this does not compile"),
    ],
)
def test_products_that_are_wrong_are_not_used(right, wrong, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for source in (compile_kernels._FOLDER / "int8_products.cpp", *compile_kernels._FOLDER.glob("*.h")):
        shutil.copy(source, tmp_path)
    (changed,) = (path for path in tmp_path.iterdir() if path.is_file() and right in path.read_text())
    changed.write_text(changed.read_text().replace(right, wrong))
    monkeypatch.setattr(compile_kernels, "_FOLDER", tmp_path)
    assert load_int8_products.__wrapped__() is None


def test_int8_without_a_compiler_and_without_vnni_is_refused_with_the_way_out(embedkit_cli, monkeypatch, tmp_path):
    monkeypatch.setattr(linear, "load_int8_products", lambda: None)
    monkeypatch.setattr(linear, "onednn_multiplies_bytes", lambda: False)
    ran = embedkit_cli("encode", "tests/data/notes.csv", "-o", tmp_path / "out", "--dtype", "int8")
    assert ran.code == 2
    assert "--dtype int8 needs a C++ compiler (c++, g++ or clang++) or a CPU with AVX-512 VNNI" in ran.err
    assert "install a compiler" in ran.err
