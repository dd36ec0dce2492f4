"""Attention in bf16 against float64: by this processor's instructions, without its tiles, and in plain C++."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from copy import copy
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkit.models.native import compile_kernels
from embedkit.models.native import kernels as kernels_module
from embedkit.models.native.attention import SelfAttention
from embedkit.models.native.kernels import Bf16Attention, Kernels, kernels_for, load_kernels
from embedkit.models.native.linear import Form, Products
from embedkit.models.native.norm import RmsNorm
from embedkit.models.native.relative import DistanceTable
from embedkit.models.native.rotation import Rotation
from embedkit.models.varlen_attention import FULL, AttentionRules
from tests.models.native.attention_checks import (
    COLUMNS,
    NOT_FINITE,
    assert_alike_in_any_company,
    with_what_is_not_finite,
)
from tests.models.native.test_kernels import (
    N_HEADS,
    assert_written,
    attention,
    full,
    in_every_head,
    normal,
    products_of,
    rotated_texts_of,
    sharing,
    texts_of,
)

pytestmark = pytest.mark.skipif(load_kernels() is None, reason="no C++ compiler is here")
IS_FAST = load_kernels() is not None and kernels_for("int8").bf16_attention is not None
#: What is left out of the instructions for each way.
WAYS = {
    "native": (),
    "without tiles": ("__AMX_BF16__",),
    "plain": ("__AMX_BF16__", "__AVX512BF16__", "__AVX512DQ__"),
}
#: A weight: half of a step of bf16, and what the polynomial adds.
OF_A_WEIGHT = 2.0**-9 + 0.0018


@pytest.fixture(scope="module", params=WAYS)
def kernels(request, tmp_path_factory) -> Kernels:
    built = compile_kernels.library("bf16_attention.cpp")
    if left_out := WAYS[request.param]:
        source, built = (
            compile_kernels._FOLDER / "bf16_attention.cpp",
            tmp_path_factory.mktemp("built") / "attention.so",
        )
        flags = (*(f"-U{name}" for name in left_out), "-O1", "-Wno-psabi")
        compiler = compile_kernels.find_compiler()
        subprocess.run([compiler, *compile_kernels._FLAGS, *flags, "-o", built, source], check=True)
    found = copy(load_kernels())
    found.bf16_attention = Bf16Attention(ctypes.CDLL(str(built)))
    return found


@dataclass
class Rounded:
    """Attention in float64 of rounded queries, keys and values, and how far from it any way of rounding may be."""

    exact: torch.Tensor
    tolerance: torch.Tensor

    @classmethod
    def of(cls, products, lengths, n_heads, near=None, rules=FULL, scores=0.0) -> Rounded:
        """Each weight may be off by OF_A_WEIGHT of itself, their sum likewise, and a score by `scores`."""
        rounded = products.to(torch.bfloat16).double()
        query, key, value = rounded.chunk(3, dim=1)
        sizes = attention(torch.cat([query, key, value.abs()], dim=1), lengths, n_heads, near, rules)
        exact = attention(rounded, lengths, n_heads, near, rules)
        return cls(exact, 2 * (OF_A_WEIGHT + scores) * sizes + 1e-5)

    def check(self, found: torch.Tensor) -> None:
        assert ((found - self.exact).abs() <= self.tolerance).all()


@given(
    # At the borders of tiles, of pairs of them, and of blocks of keys.
    lengths=st.lists(
        st.one_of(st.integers(1, 70), st.sampled_from((96, 97, 255, 256, 257, 530))), min_size=1, max_size=4
    ),
    head_dim=st.sampled_from([1, 7, 24, 32, 64, 72, 128]),
    biased=st.booleans(),
    form=st.sampled_from(Form),
    size=st.sampled_from([1e-3, 1.0, 6.0]),
)
@settings(deadline=None, max_examples=20)
def test_attention_is_that_of_the_rounded_numbers(kernels, lengths, head_dim, biased, form, size):
    # As many heads as make whole vectors of any width.
    n_heads, n_tokens = 16, sum(lengths)
    products = normal(n_tokens, 3 * n_heads * head_dim, size=size)
    products[:, : n_heads * head_dim] *= head_dim**-0.5
    near = normal(n_heads, 2 * 70 + 1, seed=3) if biased else None
    of_pairs = None
    if near is not None:
        reach = max(lengths)
        of_pairs = near[:, (torch.arange(-reach, reach + 1) + 70).clamp(0, 140)]
    table = None if near is None else DistanceTable(near, lambda distances: (distances + 70).clamp(0, 140))
    given_products, meant = Products(products), products
    if form == Form.BYTES:
        # Powers of two: products are exact, and it does not matter whether they are rounded before the sum.
        steps = 2.0 ** torch.arange(n_tokens).remainder(5).sub(2)
        given_products = Products(
            (products / steps[:, None]).contiguous(), steps, normal(products.shape[1], seed=9)
        )
        meant = given_products.values * steps[:, None] + given_products.bias
    found = kernels.attend(given_products, texts_of(lengths), full(n_heads, table), form=form)
    Rounded.of(meant, lengths, n_heads, of_pairs, scores=1e-5 * size**2).check(found.states)
    assert_written(found, form)


@given(
    lengths=st.lists(st.one_of(st.integers(1, 150), st.sampled_from((257, 400))), min_size=1, max_size=3),
    rules=st.builds(AttentionRules, st.booleans(), st.one_of(st.none(), st.integers(1, 130))),
    n_key_heads=st.sampled_from((1, 2, 8)),
    head_dim=st.sampled_from([8, 10, 32, 64]),
    normed=st.booleans(),
    rotated=st.booleans(),
    n_threads=st.integers(1, 3),
)
@settings(deadline=None, max_examples=15)
def test_attention_of_any_kind_is_that_of_the_rounded_numbers(
    kernels, lengths, rules, n_key_heads, head_dim, normed, rotated, n_threads
):
    products, of_query, of_key = products_of(sum(lengths), n_key_heads, head_dim), None, None
    if normed:
        of_query, of_key = (
            RmsNorm(head_dim**-0.25 * (1 + 0.1 * normal(head_dim, seed=seed)), None, 0.01) for seed in (2, 3)
        )
    rotation = Rotation("default", 100.0, head_dim) if rotated else None
    kind = SelfAttention(N_HEADS, n_key_heads, rules, of_query, of_key, rotation)
    texts = rotated_texts_of(lengths, rotation, head_dim)
    query, key, value = in_every_head(products, kind)
    # A number that is prepared in fp32 may fall to the other side when it is rounded, a step of bf16 away: of a
    # score's products one or two, seldom as large as the largest.
    scores = 2.0**-7 * float(query.abs().amax() * key.abs().amax()) if normed or rotated else 0.0
    every_head = torch.cat([part.flatten(1) for part in (query, key, value)], 1)
    expected = Rounded.of(every_head, lengths, N_HEADS, None, rules, scores + 1e-5)
    alone = kernels.attend(Products(products), texts, kind, form=Form.BYTES)
    expected.check(alone.states)
    assert_written(alone, Form.BYTES)
    with sharing(n_threads):
        shared = kernels.attend(Products(products), texts, kind, form=Form.BYTES)
    assert torch.equal(shared.states, alone.states)


def test_a_text_is_the_same_to_the_bit_in_any_company(kernels):
    assert_alike_in_any_company(kernels, [3, 17, 40, 96, 300])


@COLUMNS
@NOT_FINITE
def test_what_is_not_finite_is_where_torch_has_it(kernels, column, bits):
    found, expected = with_what_is_not_finite(kernels, column, bits)
    assert torch.equal(found.isfinite().all(dim=1), expected.isfinite().all(dim=1))


def test_scores_that_are_far_apart_leave_weights_of_one_and_of_zero(kernels):
    products = torch.zeros(40, 96)
    products[:, 0], products[:, 64] = 100.0, torch.arange(40.0)
    products[:, 32] = -torch.arange(40.0)
    found = kernels.attend(Products(products), texts_of([40]), full(1), form=Form.FLOATS).states
    assert found[:, 0].eq(0).all()


def test_only_models_in_int8_and_bf16_round_and_only_where_that_is_fast(monkeypatch):
    assert kernels_for("fp32") is load_kernels()
    assert (kernels_for("bf16").bf16_attention is not None) == IS_FAST
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert kernels_for.__wrapped__("int8") is load_kernels()


@pytest.mark.skipif(not IS_FAST, reason="this processor has neither AMX nor AMD's AVX512-BF16")
@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("tiled_attention.h", "base + t - query - q", "base + t - query"),
        ("tiled_attention.h", "load(to + d) * factor + load(of + d)", "load(to + d) + load(of + d)"),
        ("tiled_attention.h", "struct FlushedToZero", "this does not compile"),
    ],
)
def test_attention_that_computes_something_else_is_not_used(name, right, wrong, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # Compiles in a fifth of the time; the last level counts.
    monkeypatch.setattr(compile_kernels, "_FLAGS", (*compile_kernels._FLAGS, "-O0"))
    for path in compile_kernels._FOLDER.iterdir():
        if path.suffix in {".cpp", ".h"}:
            shutil.copy(path, tmp_path)
    changed = tmp_path / name
    assert right in changed.read_text()
    changed.write_text(changed.read_text().replace(right, wrong))
    monkeypatch.setattr(compile_kernels, "_FOLDER", tmp_path)
    sound = load_kernels()
    monkeypatch.setattr(kernels_module, "load_kernels", lambda: sound)
    assert kernels_for.__wrapped__("int8") is sound
