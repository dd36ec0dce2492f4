"""The compiled kernels against torch in float64, and the loading of libraries that only this user can write."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from embedkit.models.native import compile_kernels as built
from embedkit.models.native import kernels as kernels_module
from embedkit.models.native.attention import SelfAttention, Texts
from embedkit.models.native.kernels import Kernels, load_kernels
from embedkit.models.native.layer import ACTIVATIONS, Norms
from embedkit.models.native.linear import Form, Products, Rows
from embedkit.models.native.norm import Norm, RmsNorm
from embedkit.models.native.relative import DistanceTable
from embedkit.models.native.rotation import Rotation
from embedkit.models.native.structs import EmbeddingStruct, address, norm_pointer
from embedkit.models.varlen_attention import FULL, AttentionRules
from embedkit.types import LengthGroup

KERNELS = load_kernels()
CPU_INFO = Path("/proc/cpuinfo")
needs_tiles = pytest.mark.skipif(
    not CPU_INFO.exists() or "amx_bf16" not in CPU_INFO.read_text().split(), reason="this processor has no AMX"
)
needs_compiler = pytest.mark.skipif(built.find_compiler() is None, reason="no C++ compiler is here")
WIDTH = 48
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))


def kernels() -> Kernels:
    assert KERNELS is not None
    return KERNELS


def normal(*shape: int, seed: int = 0, size: float = 1.0) -> torch.Tensor:
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def texts_of(lengths: list[int], **rotations: torch.Tensor) -> Texts:
    starts = np.cumsum([0, *lengths])
    groups = tuple(LengthGroup(int(start), 1, length) for start, length in zip(starts, lengths, strict=False))
    return Texts(groups, rotations)


def full(n_heads: int, bias: DistanceTable | None = None) -> SelfAttention:
    return SelfAttention(n_heads, n_heads, FULL, bias=bias)


def attention(
    products: torch.Tensor,
    lengths: list[int],
    n_heads: int,
    near: torch.Tensor | None,
    rules: AttentionRules = FULL,
) -> torch.Tensor:
    """Torch's own attention in float64, a text at a time: [T, D]."""
    found = []
    for of_text in products.double().split(lengths):
        query, key, value = (
            part.view(len(of_text), n_heads, -1).transpose(0, 1) for part in of_text.chunk(3, dim=1)
        )
        distance = torch.arange(len(of_text))[:, None] - torch.arange(len(of_text))
        unseen = (distance < 0) & rules.causal
        if rules.window is not None:
            unseen |= distance.abs() >= rules.window
        bias = torch.zeros(len(of_text), len(of_text)).double()
        if near is not None:
            # That of distance 0 is in the middle; theirs is the key's position minus the query's.
            bias = near.double()[:, near.shape[1] // 2 - distance]
        bias = bias.masked_fill(unseen, -torch.inf)
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        found.append(seen.transpose(0, 1).reshape(len(of_text), -1))
    return torch.cat(found)


def raw(meant: torch.Tensor) -> Products:
    """The same products as an int8 layer hands them over: unscaled, without their bias."""
    steps, bias = normal(len(meant), seed=8).exp(), normal(meant.shape[1], seed=9)
    return Products((meant - bias) / steps[:, None], steps, bias)


def assert_written(rows: Rows, form: Form) -> None:
    assert rows.form == form
    if form == Form.BF16:
        assert torch.equal(rows.inputs, rows.states.to(torch.bfloat16))
    if form != Form.BYTES:
        return
    largest = rows.states.abs().amax(dim=1)
    assert torch.allclose(rows.steps, largest.clamp_min(1e-36) / 127)
    meant = (rows.inputs.double() - 128) * rows.steps.double()[:, None]
    assert ((meant - rows.states).abs() <= 0.5001 * rows.steps[:, None]).all()


@needs_compiler
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=6),
    head_dim=st.sampled_from([1, 7, 16, 24, 32, 64, 72]),
    biased=st.booleans(),
    form=st.sampled_from(Form),
    size=st.sampled_from([1e-3, 1.0, 30.0]),
)
@settings(deadline=None, max_examples=60)
def test_attention_is_torchs_for_each_text_alone(lengths, head_dim, biased, form, size):
    # As many heads as make whole vectors of any width.
    n_heads, n_tokens = 16, sum(lengths)
    products = normal(n_tokens, 3 * n_heads * head_dim, size=size)
    products[:, : n_heads * head_dim] *= head_dim**-0.5
    near = normal(n_heads, 2 * 70 + 1, seed=3) if biased else None
    table = None if near is None else DistanceTable(near, lambda distances: (distances + 70).clamp(0, 140))
    given_products = raw(products) if form == Form.BYTES else Products(products)
    meant = products
    if form == Form.BYTES:
        meant = given_products.values * given_products.steps[:, None] + given_products.bias
    found = kernels().attend(given_products, texts_of(lengths), full(n_heads, table), form=form)
    expected = attention(meant, lengths, n_heads, near)
    # A score of some thousands has no more digits after its point.
    assert (found.states - expected).abs().max() <= 2e-6 * max(1.0, size**3)
    assert_written(found, form)


@needs_compiler
@given(
    # Longer than a block of queries and one of keys, and at their borders.
    lengths=st.lists(
        st.one_of(st.integers(1, 220), st.sampled_from((96, 97, 144, 145, 289))), min_size=1, max_size=3
    ),
    rules=st.builds(AttentionRules, st.booleans(), st.one_of(st.none(), st.integers(1, 130))),
    n_key_heads=st.sampled_from((1, 2, 8)),
    head_dim=st.sampled_from([2, 8, 10, 16, 32, 64]),
    norms=st.sampled_from([None, Norm, RmsNorm]),
    rotated=st.booleans(),
    form=st.sampled_from(Form),
    n_threads=st.integers(1, 3),
)
@settings(deadline=None, max_examples=25)
def test_attention_of_any_kind_is_torchs_for_each_text_alone(
    lengths, rules, n_key_heads, head_dim, norms, rotated, form, n_threads
):
    products = products_of(sum(lengths), n_key_heads, head_dim)
    given_products, meant = Products(products), products
    if form == Form.BYTES:
        given_products = raw(products)
        meant = given_products.values * given_products.steps[:, None] + given_products.bias
    of_query = of_key = None
    if norms is not None:
        bias = normal(head_dim, seed=4) * head_dim**-0.5 if norms is Norm else None
        of_query, of_key = (norms(normal(head_dim, seed=seed) * head_dim**-0.5, bias, 0.01) for seed in (2, 3))
    rotation = Rotation("default", 100.0, head_dim) if rotated else None
    kind = SelfAttention(N_HEADS, n_key_heads, rules, of_query, of_key, rotation)
    every_head = torch.cat([part.flatten(1) for part in in_every_head(meant, kind)], 1)
    texts = rotated_texts_of(lengths, rotation, head_dim)
    expected = attention(every_head, lengths, N_HEADS, None, rules)
    alone = kernels().attend(given_products, texts, kind, form=form)
    assert (alone.states - expected).abs().max() <= 1e-5
    assert_written(alone, form)
    with sharing(n_threads):
        shared = kernels().attend(given_products, texts, kind, form=form)
    assert torch.equal(shared.states, alone.states)
    assert_written(shared, form)


#: Of queries.
N_HEADS = 8


def products_of(n_tokens: int, n_key_heads: int, head_dim: int) -> torch.Tensor:
    """Returns scaled queries, keys and values: [T, (heads + 2 key heads) * head_dim]."""
    products = normal(n_tokens, (N_HEADS + 2 * n_key_heads) * head_dim)
    products[:, : N_HEADS * head_dim] *= head_dim**-0.5
    return products


def in_every_head(products: torch.Tensor, kind: SelfAttention) -> list[torch.Tensor]:
    """Returns queries, keys and values as they are multiplied, in float64: [T, heads, head_dim] each."""
    shares = [N_HEADS, kind.n_key_heads, kind.n_key_heads]
    heads = products.double().unflatten(1, (sum(shares), -1))
    query, key, value = heads.split(shares, dim=1)
    if kind.query_norm is not None and kind.key_norm is not None:
        query, key = in_double(kind.query_norm)(query), in_double(kind.key_norm)(key)
    if kind.rotation is not None:
        angles = angles_of(len(products), heads.shape[2]).double()
        query, key = (turned(part, angles) for part in (query, key))
    return [query, *(part.repeat_interleave(N_HEADS // kind.n_key_heads, 1) for part in (key, value))]


def rotated_texts_of(lengths: list[int], rotation: Rotation | None, head_dim: int) -> Texts:
    angles, texts = angles_of(sum(lengths), head_dim), texts_of(lengths)
    if rotation is not None:
        texts.rotations[rotation] = (angles.cos(), angles.sin())
    return texts


def angles_of(n_tokens: int, head_dim: int) -> torch.Tensor:
    return normal(n_tokens, head_dim // 2, seed=5)


def in_double(norm: Norm) -> Norm:
    bias = None if norm.bias is None else norm.bias.double()
    return type(norm)(norm.weight.double(), bias, norm.eps)


def turned(heads: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Numbers half a head apart as complex numbers, turned by these angles: [T, heads, width]."""
    pairs = torch.complex(*heads.chunk(2, dim=2)) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat([pairs.real, pairs.imag], dim=2)


@contextmanager
def sharing(n_threads: int) -> Iterator[None]:
    """Divides even small work among so many threads."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels_module, "_FEWEST_NUMBERS", 1)
        torch.set_num_threads(n_threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@needs_compiler
def test_rows_after_the_last_text_are_zeros():
    found = kernels().attend(Products(normal(9, 48)), texts_of([2, 3]), full(2), form=Form.BYTES)
    assert found.states[5:].eq(0).all()
    assert_written(Rows(found.states[:5], found.inputs[:5], found.steps[:5]), Form.BYTES)
    assert found.inputs[5:].eq(128).all()
    in_bf16 = kernels().attend(Products(normal(9, 48)), texts_of([2, 3]), full(2), form=Form.BF16)
    assert in_bf16.inputs[5:].eq(0).all()


@needs_compiler
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("form", Form, ids=lambda form: form.name.lower())
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_torchs_in_float64(name, form, gated):
    # Every hundredth where it bends, and far out.
    meant = torch.cat([torch.arange(-12, 12, 0.01), torch.tensor([-1e4, -60.0, 60.0, 1e4])])[: 50 * WIDTH]
    meant = meant[: len(meant) // WIDTH * WIDTH].view(-1, WIDTH)
    if gated:
        meant = torch.cat([meant, normal(*meant.shape, seed=1)], dim=1)
    products = raw(meant) if form == Form.BYTES else Products(meant.clone())
    if form == Form.BYTES:
        meant = products.values * products.steps[:, None] + products.bias
    exact = ACTIVATIONS[name](meant.double()[:, :WIDTH])
    exact = exact * meant[:, WIDTH:] if gated else exact
    with sharing(3):
        found = kernels().activate(products, name, gated=gated, form=form)
    assert ((found.states - exact).abs() <= 4e-6 + 1e-6 * exact.abs()).all()
    assert_written(found, form)


@needs_compiler
@pytest.mark.parametrize("kind", [Norm, RmsNorm])
@pytest.mark.parametrize("width", [16, 48, 64, 384, 400])
@pytest.mark.parametrize("form", Form, ids=lambda form: form.name.lower())
def test_a_residual_and_its_norms_are_torchs_in_float64(width, form, kind):
    for around in itertools.product([False, True], repeat=3):
        meant, residual = normal(11, width, size=3), 5 + normal(11, width, seed=1)
        products = raw(meant) if form == Form.BYTES else Products(meant.clone())
        shift = normal(width, seed=3) if kind is Norm else None
        of = [kind(normal(width, seed=seed), shift, 1e-5) if there else None for seed, there in enumerate(around)]
        inner, after, following = of

        def normed(norm: Norm | None, states: torch.Tensor) -> torch.Tensor:
            return states if norm is None else in_double(norm)(states)

        exact = normed(after, normed(inner, meant.double()) + residual.double())
        norms = Norms(before=None, inner=inner, after=after)
        with sharing(2):
            states, rows = kernels().join(products, residual, norms, following, form=form)
        assert (states - exact).abs().max() <= 1e-5
        assert (rows.states - normed(following, exact)).abs().max() <= 1e-5
        assert_written(rows, form)
    alone = kernels().normed(states, kind(normal(width), shift, 1e-5), form=Form.BYTES)
    assert (alone.states - in_double(kind(normal(width), shift, 1e-5))(states.double())).abs().max() <= 1e-5
    assert_written(alone, Form.BYTES)


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("typed", "placed", "kind"), [(None, False, None), (False, True, Norm), (True, True, RmsNorm)]
)
def test_embeddings_are_the_sums_of_their_rows(typed, placed, kind, threads, monkeypatch):
    monkeypatch.setattr(kernels_module, "_FEWEST_NUMBERS", 1)
    words, types, positions = normal(30, WIDTH), normal(2, WIDTH, seed=1), normal(9, WIDTH, seed=2)
    ids, of_types, places = (torch.tensor(rows) for rows in ([29, 0, 7, 7, 3], [0, 1, 1, 0, 1], [0, 1, 8, 0, 1]))
    norm = (
        None
        if kind is None
        else kind(normal(WIDTH, seed=3), normal(WIDTH, seed=4) if kind is Norm else None, 1e-5)
    )
    expected = 1.5 * words.double()[ids]
    if typed is not None:
        expected += types.double()[of_types] if typed else types.double()[0]
    if placed:
        expected += positions.double()[places]
    tables = (words, None if typed is None else types, positions if placed else None)
    struct = EmbeddingStruct(*map(address, tables), norm_pointer(norm), WIDTH, 1.5)
    with sharing(threads):
        found = kernels().embed(struct, ids, of_types if typed else None, places)
    assert (found - (expected if norm is None else in_double(norm)(expected))).abs().max() <= 1e-5


@needs_compiler
@pytest.mark.parametrize("broken", NOT_FINITE, ids=str)
def test_non_finite_values_stay_non_finite_and_in_their_text(broken):
    lengths, n_heads = [3, 20, 5], 2
    products, residual = normal(28, 3 * WIDTH), normal(28, WIDTH, seed=1)
    norm = Norm(torch.ones(WIDTH), torch.zeros(WIDTH), 1e-5)
    products[7, 2 * WIDTH + 3] = residual[9, 5] = broken
    texts, kind = texts_of(lengths), full(n_heads)
    sound = kernels().attend(Products(normal(28, 3 * WIDTH)), texts, kind, form=Form.BYTES)
    found = kernels().attend(Products(products), texts, kind, form=Form.BYTES)
    in_text = torch.arange(28).sub(3).div(20, rounding_mode="floor").eq(0)
    # A value that every token of the text weighs: its scale says so, which is what the bytes stand for.
    assert not found.states[in_text].isfinite().all(dim=1).any()
    assert not found.steps[in_text].isfinite().any()
    for of_found, of_sound in (
        (found.states, sound.states),
        (found.inputs, sound.inputs),
        (found.steps, sound.steps),
    ):
        assert torch.equal(of_found[~in_text], of_sound[~in_text])
    around = Norms(before=None, inner=None, after=norm)
    _, normed = kernels().join(Products(normal(28, WIDTH)), residual, around, None, form=Form.BYTES)
    assert normed.states.isfinite().all(dim=1).tolist() == [row != 9 for row in range(28)]
    assert normed.steps.isfinite().tolist() == [row != 9 for row in range(28)]
    activated = kernels().activate(Products(residual.clone()), "gelu", gated=False, form=Form.BYTES)
    # GELU of minus infinity is 0 times infinity: NaN, as torch has it.
    assert activated.steps.isfinite().tolist() == [row != 9 for row in range(28)]
    in_bf16 = kernels().rows(residual, form=Form.BF16).inputs
    assert torch.equal(in_bf16.isfinite(), residual.isfinite())


@needs_compiler
@given(st.integers(1, 40), st.integers(0, 39))
@settings(deadline=None, max_examples=30)
def test_a_row_depends_on_no_other_to_the_bit(n_rows, row):
    row %= n_rows
    rows = normal(n_rows, WIDTH)
    together = kernels().rows(rows, form=Form.BYTES)
    alone = kernels().rows(rows[row : row + 1].contiguous(), form=Form.BYTES)
    assert torch.equal(together.inputs[row], alone.inputs[0])
    assert torch.equal(together.steps[row], alone.steps[0])
    gelu = kernels().activate(Products(rows.clone()), "gelu", gated=False, form=Form.BYTES)
    of_row = kernels().activate(Products(rows[row : row + 1].clone()), "gelu", gated=False, form=Form.BYTES)
    assert torch.equal(gelu.states[row], of_row.states[0])
    assert torch.equal(gelu.inputs[row], of_row.inputs[0])


@needs_compiler
def test_numbers_are_rounded_to_bf16_as_torch_rounds_them():
    # Every number of bf16, and numbers beside and halfway to the next.
    upper, lower = torch.arange(1 << 16) << 16, torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    numbers = (upper[:, None] + lower).to(torch.int32).view(torch.float32).reshape(-1, WIDTH)
    found = kernels().rows(numbers, form=Form.BF16).inputs
    assert torch.equal(found.isnan(), numbers.isnan())
    assert torch.equal(found.nan_to_num(), numbers.to(torch.bfloat16).nan_to_num())


@needs_compiler
def test_rows_of_zeros_and_of_the_smallest_numbers_are_quantised():
    rows = torch.stack([torch.zeros(WIDTH), torch.full((WIDTH,), 1e-40), torch.full((WIDTH,), -1e38)])
    found = kernels().rows(rows, form=Form.BYTES)
    assert found.inputs[:2].eq(128).all()
    assert found.inputs[2].eq(1).all()
    assert found.steps.isfinite().all()


def test_models_of_other_widths_use_torch():
    if KERNELS is not None:
        lanes = KERNELS.lanes
        assert KERNELS.fit(4 * lanes, 8 * lanes)
        assert not KERNELS.fit(4 * lanes + 1, 8 * lanes)
        assert not KERNELS.fit(4 * lanes, 8 * lanes - 1)
        assert np.log2(lanes) in {2, 3, 4}
