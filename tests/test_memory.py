"""When memory runs out: the batch is halved, nothing is lost, and the budget is remembered."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedkit import Encoder
from embedkit.batching import make_batches
from embedkit.errors import ModelError
from embedkit.memory import TokenBudget, compute_halving
from tests import tiny_models

KINDS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: you tried 9"),
]


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=40),
    st.integers(1, 400),
    st.integers(1, 400),
    st.sampled_from(KINDS),
)
def test_every_text_that_fits_alone_is_computed_once_and_the_budget_shrinks(sizes, asked, room, kind):
    done: list[int] = []
    failed = 0

    def compute(batch):
        nonlocal failed
        if batch.tokens > room:
            failed += 1
            raise kind
        done.extend(batch.texts.tolist())

    budget = TokenBudget(asked)
    batches = make_batches(sizes, max_tokens=asked, padded=False)
    unfit = compute_halving(batches, compute, lambda batch: batch.tokens, budget)
    assert sorted(done + unfit) == list(range(len(sizes)))
    assert all(sizes[text] > room for text in unfit)
    assert all(sizes[text] <= room for text in done)
    assert budget.tokens <= asked
    # Each failure that is not a single text's halves the budget: there are few, however many batches.
    assert failed - len(unfit) <= np.log2(max(asked, *sizes)) + 1


def test_another_fault_is_not_taken_for_a_want_of_memory():
    def compute(_batch):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        compute_halving(
            make_batches([3], max_tokens=9, padded=False), compute, lambda batch: batch.tokens, TokenBudget(9)
        )


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    """A tiny BERT on a machine that has room for 100 tokens at a time."""
    made = Encoder(str(tiny_models.make("bert", tmp_path / "bert").folder), pool="mean", layers="all")
    expected = made.encode(tiny_models.TEXTS)
    inner = made._embedder.encoder
    run = inner.run

    def small(tokens, batch, take):
        if batch.tokens > made.room:
            run(tokens, batch, lambda *_: None)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(tokens, batch, take)

    monkeypatch.setattr(inner, "run", small)
    made.room, made.expected = 100, expected
    return made


def test_vectors_are_the_same_when_batches_had_to_be_halved(encoder):
    found = encoder.encode(tiny_models.TEXTS)
    assert np.abs(found - encoder.expected).max() <= 1e-5 * np.abs(encoder.expected).max()
    assert encoder._embedder.budget.tokens <= 100


def test_a_text_that_does_not_fit_alone_is_named(encoder):
    encoder.room = 30
    lengths = encoder._embedder.tokenizer.tokenize(tiny_models.TEXTS).n_used
    first = next(text for text, length in enumerate(lengths) if length > 30)
    with pytest.raises(ModelError, match=f"text {first} does not fit into memory"):
        encoder.encode(tiny_models.TEXTS)


# Not doing the same work twice ---------------------------------------------------------------------------


def test_a_text_that_stands_there_again_is_computed_once_and_gets_the_same_bits(tmp_path, monkeypatch):
    encoder = Encoder(str(tiny_models.make("bert", tmp_path / "bert").folder), pool="mean,max")
    once = list(dict.fromkeys(tiny_models.TEXTS))
    expected = encoder.encode(once)
    inner = encoder._embedder.encoder
    run, computed = inner.run, []

    def counted(tokens, batch, take):
        computed.extend(batch.texts.tolist())
        return run(tokens, batch, take)

    monkeypatch.setattr(inner, "run", counted)
    found = encoder.encode(once + once[::-1])
    assert np.array_equal(found[: len(once)], expected)
    assert np.array_equal(found[len(once) :], expected[::-1])
    # As often as there are texts that differ in their tokens; "sob" and "SOB" do not.
    assert len(computed) == len({row.tobytes() for row in expected}) <= len(once)


@pytest.mark.parametrize(("rule", "code"), [("fail", 4), ("null", 0), ("skip", 0)])
def test_a_row_that_does_not_fit_alone_goes_by_on_bad_row(tmp_path, monkeypatch, capsys, rule, code):
    import embedkit
    from embedkit.cli import run as run_command
    from embedkit.models.lean.encoder import LeanEncoder

    folder = tiny_models.make("bert", tmp_path / "bert").folder
    texts = ["pain", "fever " * 50, "cough"]
    (tmp_path / "t.txt").write_text("\n".join(texts) + "\n")
    real = LeanEncoder.run

    def small(self, tokens, batch, take):
        # The check at load runs texts of its own; they fit.
        if len(tokens.lengths) == 3 and batch.tokens > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, tokens, batch, take)

    monkeypatch.setattr(LeanEncoder, "run", small)
    out = tmp_path / "out"
    command = ["encode", str(tmp_path / "t.txt"), "-m", str(folder), "-o", str(out), "--on-bad-row", rule, "-q"]
    assert run_command(command) == code
    told = capsys.readouterr().err
    if rule == "fail":
        assert "a text does not fit into memory even alone: row 1" in told
        return
    found = embedkit.read(out)
    assert found.ids == ["0", "2"]
    expected = ["ok", "out_of_memory", "ok"] if rule == "null" else ["ok", "ok"]
    assert found.table["status"].to_pylist() == expected
    assert '"row": 1' in (out / "rejects/part-00000.jsonl").read_text()
