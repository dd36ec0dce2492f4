"""Attention in fp32 against float64 and torch: by this processor's instructions, and without its tiles."""

from __future__ import annotations

import ctypes
import subprocess

import pytest
import torch
from torch.nn import functional

from embedkit.models.native import compile_kernels
from embedkit.models.native.kernels import Kernels, load_kernels
from embedkit.models.native.linear import Form, Products
from tests.models.native.attention_checks import (
    COLUMNS,
    NOT_FINITE,
    assert_alike_in_any_company,
    with_what_is_not_finite,
)
from tests.models.native.test_kernels import attention, full, normal, texts_of

pytestmark = pytest.mark.skipif(load_kernels() is None, reason="no C++ compiler is here")


@pytest.fixture(scope="module", params=["native", "without tiles"])
def kernels(request, tmp_path_factory) -> Kernels:
    """Returns the kernels with attention by the instructions that are left."""
    paths = {source: compile_kernels.library(source) for source in ("kernels.cpp", "attention.cpp")}
    if request.param == "without tiles":
        source = compile_kernels._FOLDER / "attention.cpp"
        paths["attention.cpp"] = tmp_path_factory.mktemp("built") / "attention.so"
        flags = (*compile_kernels._FLAGS, "-U__AMX_BF16__", "-O1")
        compiler = compile_kernels.find_compiler()
        subprocess.run([compiler, *flags, "-o", paths["attention.cpp"], source], check=True)
    return Kernels({source: ctypes.CDLL(str(path)) for source, path in paths.items()})


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("length", [12, 85, 700])
def test_errors_are_not_above_those_of_torch(kernels, length, head_dim):
    products = normal(length, 3 * 4 * head_dim, size=2.0)
    products[:, : 4 * head_dim] *= head_dim**-0.5
    found = kernels.attend(Products(products), texts_of([length]), full(4), form=Form.FLOATS).states
    query, key, value = (part.unflatten(1, (4, -1)).transpose(0, 1) for part in products.chunk(3, dim=1))
    # Not torch's function for attention, whose sums depend on the processor.
    scores = torch.bmm(query, key.transpose(1, 2))
    by_torch = torch.bmm(functional.softmax(scores, dim=2), value).transpose(0, 1).flatten(1)
    exact = attention(products, [length], 4, None)
    assert (found - exact).norm() <= 2 * (by_torch - exact).norm()


def test_a_text_is_the_same_to_the_bit_in_any_company(kernels):
    assert_alike_in_any_company(kernels, [3, 16, 17, 40, 96, 400])


@COLUMNS
@NOT_FINITE
def test_what_is_not_finite_stays_so_within_its_text(kernels, column, bits):
    found, expected = with_what_is_not_finite(kernels, column, bits)
    # Of an infinite key torch has scores of minus infinity, too, which count for nothing; its parts make them NaN.
    assert not found[~expected.isfinite()].isfinite().any()


def test_scores_that_are_far_apart_leave_weights_of_one_and_of_zero(kernels):
    products = torch.zeros(40, 96)
    products[:, 0], products[:, 64] = 100.0, torch.arange(40.0)
    products[:, 32] = -torch.arange(40.0)
    found = kernels.attend(Products(products), texts_of([40]), full(1), form=Form.FLOATS).states
    assert found[:, 0].eq(0).all()
