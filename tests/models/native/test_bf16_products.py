"""Matrix products of bf16 against float64, with this processor's instruction and with the same in plain C++."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkit.models.native import compile_kernels, packed_products
from embedkit.models.native.linear import Bf16Linear, Rows
from embedkit.models.native.packed_products import PackedProducts, load_bf16_products
from tests.models.native.independent_rows import multiply_in_any_company

NATIVE = load_bf16_products()
COMPILER = compile_kernels.find_compiler()
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is here")
needs_instruction = pytest.mark.skipif(
    COMPILER is None or not torch.cpu._is_avx512_bf16_supported(),
    reason="this processor has no AVX512-BF16, or no C++ compiler is here",
)


def built_without(instructions: tuple[str, ...], folder: Path) -> PackedProducts:
    """The same source for a processor without these instructions."""
    built, source = folder / "bf16.so", compile_kernels._FOLDER / "bf16_products.cpp"
    flags = (*(f"-U{name}" for name in instructions), "-Wall", "-Werror", "-Wno-psabi")
    subprocess.run([COMPILER, *compile_kernels._FLAGS, *flags, "-o", built, source], check=True)
    return PackedProducts("bf16", ctypes.CDLL(str(built)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> PackedProducts:
    products = built_without(("__AVX512BF16__", "__AMX_BF16__"), tmp_path_factory.mktemp("plain"))
    assert products.instructions == "plain C++"
    return products


@pytest.fixture(
    params=[pytest.param("plain", marks=needs_compiler), pytest.param("native", marks=needs_instruction)],
    scope="module",
)
def products(request) -> PackedProducts:
    return request.getfixturevalue("plain") if request.param == "plain" else NATIVE


def operands(n_rows: int, n_inputs: int, n_outputs: int) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(n_rows + n_inputs + n_outputs)
    rows = torch.randn(n_rows, n_inputs, generator=random).to(torch.bfloat16)
    return rows, torch.randn(n_outputs, n_inputs, generator=random), torch.randn(n_outputs, generator=random)


@given(n_rows=st.integers(1, 40), n_inputs=st.integers(1, 900), n_outputs=st.integers(1, 110))
@settings(deadline=None, max_examples=40)
def test_products_are_those_of_the_rounded_numbers_summed_in_fp32(products, n_rows, n_inputs, n_outputs):
    rows, weight, bias = operands(n_rows, n_inputs, n_outputs)
    found = products.multiply(rows, products.pack_bf16(weight, bias))
    rounded = weight.to(torch.bfloat16).double()
    exact = rows.double() @ rounded.T + bias
    # Each of n_inputs additions rounds what it gives, which is at most the sum of all magnitudes, to 24 bits.
    most = rows.double().abs() @ rounded.abs().T + bias.abs()
    assert found.dtype == torch.float32
    assert ((found - exact).abs() <= n_inputs * 2.0**-24 * most).all()


def test_a_row_is_the_same_in_any_company_and_with_any_number_of_threads(products, monkeypatch):
    # Long rows, so that several blocks of them and of their inputs are multiplied one after another.
    rows, weight, bias = operands(130, 4097, 160)
    multiply_in_any_company(products.pack_bf16(weight, bias), rows, monkeypatch)


@needs_instruction
def test_the_instruction_gives_the_bits_of_plain_loops(plain, tmp_path):
    rows, weight, bias = operands(33, 1536, 96)
    without_tiles = built_without(("__AMX_BF16__",), tmp_path)
    assert without_tiles.instructions == "AVX512-BF16"
    by_instruction, by_loops = (of.multiply(rows, of.pack_bf16(weight, bias)) for of in (without_tiles, plain))
    assert torch.equal(by_instruction, by_loops)


def test_what_is_not_finite_stays_so_and_in_its_row(products):
    rows, weight, bias = operands(5, 64, 48)
    rows[1, 3], rows[3, 5] = torch.nan, torch.inf
    finite = products.multiply(rows, products.pack_bf16(weight, bias)).isfinite().all(dim=1)
    assert finite.tolist() == [True, False, True, False, True]


@needs_instruction
def test_a_linear_layer_takes_rows_in_its_own_form_alone():
    rows, weight, bias = operands(3, 64, 48)
    layer = Bf16Linear(weight, bias)
    found = layer.products(Rows(rows.float(), rows))
    assert found.steps is None
    assert torch.equal(found.values, layer(rows.float()))
    for given_rows in (Rows(rows.float()), Rows(rows.float(), rows.to(torch.uint8), torch.ones(3))):
        with pytest.raises(ValueError, match="takes rows in bf16"):
            layer.products(given_rows)


@needs_instruction
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("(char *)words + i % Kind::group * sizeof part", "words"),
        ("(1 + i / Kind::group) * OUTPUTS", "i / Kind::group * OUTPUTS"),
        ("#define OUTPUTS", "this does not compile"),
    ],
)
def test_products_that_are_wrong_are_not_used(right, wrong, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("bf16_products.cpp", "panels.h", "structs.h", "tiles.h"):
        shutil.copy(compile_kernels._FOLDER / name, tmp_path)
    changed = tmp_path / "panels.h"
    assert right in changed.read_text()
    changed.write_text(changed.read_text().replace(right, wrong))
    monkeypatch.setattr(compile_kernels, "_FOLDER", tmp_path)
    assert load_bf16_products.__wrapped__() is None


@needs_compiler
def test_plain_loops_are_not_used(plain, monkeypatch):
    monkeypatch.setattr(packed_products, "_load", lambda *_: plain)
    assert load_bf16_products.__wrapped__() is None
