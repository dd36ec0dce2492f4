"""Matrix products of fp32 against float64, with its instructions and with those of others."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from embedkit.models.native import compile_kernels, linear
from embedkit.models.native.linear import Fp32Linear, OneDnnLinear, TorchLinear, fp32_linear, has_onednn
from embedkit.models.native.packed_products import PackedProducts, load_fp32_products
from tests.models.native.independent_rows import multiply_in_any_company

NATIVE = load_fp32_products()
COMPILER = compile_kernels.find_compiler()
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is here")


def built(folder: Path, *flags: str) -> PackedProducts:
    library, source = folder / "fp32.so", compile_kernels._FOLDER / "fp32_products.cpp"
    warnings = ("-Wall", "-Werror", "-Wno-psabi")
    subprocess.run([COMPILER, *compile_kernels._FLAGS, *warnings, *flags, "-o", library, source], check=True)
    return PackedProducts("fp32", ctypes.CDLL(str(library)))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory) -> PackedProducts:
    """The same source with the shortest vectors, as for a processor that has no others."""
    others = ("-U__AVX512F__", "-U__AVX2__", "-U__AMX_BF16__", "-U__aarch64__")
    products = built(tmp_path_factory.mktemp("narrow"), *others)
    assert products.instructions == "plain C++"
    return products


@pytest.fixture(scope="module")
def vectors(tmp_path_factory) -> PackedProducts:
    """The same source without tiles."""
    return built(tmp_path_factory.mktemp("vectors"), "-U__AMX_BF16__")


@pytest.fixture(params=["narrow", "vectors", "native"], scope="module")
def products(request) -> PackedProducts:
    return NATIVE if request.param == "native" else request.getfixturevalue(request.param)


def operands(n_rows: int, n_inputs: int, n_outputs: int) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(n_rows + n_inputs + n_outputs)
    shapes = ((n_rows, n_inputs), (n_outputs, n_inputs), (n_outputs,))
    return tuple(torch.randn(*shape, generator=random) for shape in shapes)


@given(n_rows=st.integers(1, 40), n_inputs=st.integers(1, 900), n_outputs=st.integers(1, 110))
@settings(deadline=None, max_examples=40)
def test_sums_are_those_of_float64_but_for_the_rounding_of_each_addition(products, n_rows, n_inputs, n_outputs):
    rows, weight, bias = operands(n_rows, n_inputs, n_outputs)
    found = products.multiply(rows, products.pack_fp32(weight, bias))
    exact = rows.double() @ weight.double().T + bias
    # Of n_inputs additions and of a product, which by tiles is the sum of six; each rounds what is at most the sum
    # of all magnitudes to 24 bits.
    roundings = n_inputs + (6 if products.instructions == "AMX-BF16" else 1)
    most = rows.double().abs() @ weight.double().abs().T + bias.abs()
    assert found.dtype == torch.float32
    assert ((found - exact).abs() <= roundings * 2.0**-24 * most).all()


def test_errors_of_wide_layers_are_not_much_above_those_of_torch(products):
    rows, weight, bias = operands(64, 3072, 192)
    exact = rows.double() @ weight.double().T + bias
    by_torch, ours = (
        functional.linear(rows, weight, bias),
        products.multiply(rows, products.pack_fp32(weight, bias)),
    )
    assert (ours - exact).norm() <= 3 * (by_torch - exact).norm()


def test_a_row_is_the_same_in_any_company_and_with_any_number_of_threads(products, monkeypatch):
    # Many and long rows, so that several blocks of them and of their inputs are multiplied one after another.
    rows, weight, bias = operands(290, 4129, 150)
    multiply_in_any_company(products.pack_fp32(weight, bias), rows, monkeypatch)


@pytest.mark.skipif(
    NATIVE is None or NATIVE.instructions == "plain C++", reason="this processor may not fuse sums"
)
def test_vectors_of_all_lengths_give_the_same_bits(vectors, narrow):
    rows, weight, bias = operands(33, 1537, 96)
    long, short = (of.multiply(rows, of.pack_fp32(weight, bias)) for of in (vectors, narrow))
    assert torch.equal(long, short)


def test_what_is_not_finite_stays_so_and_in_its_row(products):
    rows, weight, bias = operands(5, 64, 48)
    rows[1, 3], rows[3, 5] = torch.nan, torch.inf
    finite = products.multiply(rows, products.pack_fp32(weight, bias)).isfinite().all(dim=1)
    assert finite.tolist() == [True, False, True, False, True]


@pytest.mark.parametrize(
    ("of_vectors", "of_tiles"),
    [
        (("have_sums ? OUTPUTS : 0", "0"), ("LOAD(5, rows + HALF)", "LOAD(5, rows)")),
        (
            ("(1 + i / Kind::group) * OUTPUTS", "i / Kind::group * OUTPUTS"),
            ("SPLIT_OUTPUTS + i / STEP * STEP_WORDS", "SPLIT_OUTPUTS"),
        ),
        (("#define OUTPUTS", "this does not compile"), ("#define STEP", "nor does this")),
    ],
)
def test_instead_of_products_that_are_wrong_those_of_onednn_or_torch_are_used(
    of_vectors, of_tiles, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("fp32_products.cpp", "panels.h", "split_products.h", "tiles.h", "structs.h"):
        shutil.copy(compile_kernels._FOLDER / name, tmp_path)
    for name, (right, wrong) in {"panels.h": of_vectors, "split_products.h": of_tiles}.items():
        source = (tmp_path / name).read_text()
        assert right in source
        (tmp_path / name).write_text(source.replace(right, wrong))
    monkeypatch.setattr(compile_kernels, "_FOLDER", tmp_path)
    assert load_fp32_products.__wrapped__() is None
    rows, weight, bias = operands(16, 32, 48)
    assert isinstance(fp32_linear(weight, bias), Fp32Linear)
    monkeypatch.setattr(linear, "load_fp32_products", lambda: None)
    other = fp32_linear(weight, bias)
    assert isinstance(other, OneDnnLinear if has_onednn() else TorchLinear)
    assert torch.allclose(other(rows), functional.linear(rows, weight, bias), atol=1e-5)
