"""When memory runs out: the batch is halved, nothing is lost, and the budget is remembered."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embedkit import Encoder
from embedkit.errors import ModelError
from tests import tiny_models


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    """A tiny BERT on a machine that has room for 100 tokens at a time."""
    made = Encoder(str(tiny_models.make("bert", tmp_path / "bert").folder), pool="mean", layers="all")
    expected = made.encode(tiny_models.TEXTS)
    inner = made._embedder.encoder
    forward = inner.forward

    def small(inputs, batch, take):
        if batch.tokens > made.room:
            forward(inputs, batch, lambda *_: None)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(inputs, batch, take)

    monkeypatch.setattr(inner, "forward", small)
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
    forward, computed = inner.forward, []

    def counted(inputs, batch, take):
        computed.extend(batch.texts.tolist())
        return forward(inputs, batch, take)

    monkeypatch.setattr(inner, "forward", counted)
    found = encoder.encode(once + once[::-1])
    assert np.array_equal(found[: len(once)], expected)
    assert np.array_equal(found[len(once) :], expected[::-1])
    # As often as there are texts that differ in their tokens; "sob" and "SOB" do not.
    assert len(computed) == len({row.tobytes() for row in expected}) <= len(once)


@pytest.mark.parametrize(("rule", "code"), [("fail", 4), ("null", 0), ("skip", 0)])
def test_a_row_that_does_not_fit_alone_goes_by_on_bad_row(tmp_path, monkeypatch, capsys, rule, code):
    import embedkit
    from embedkit.cli import run as run_command
    from embedkit.engines.alone import Alone
    from embedkit.models.lean.encoder import LeanEncoder

    folder = tiny_models.make("bert", tmp_path / "bert").folder
    texts = ["pain", "fever " * 50, "cough"]
    (tmp_path / "t.txt").write_text("\n".join(texts) + "\n")
    real = LeanEncoder.forward

    def small(self, inputs, batch, take):
        # The check at load runs texts of its own; they fit.
        if loaded and batch.tokens > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, inputs, batch, take)

    monkeypatch.setattr(LeanEncoder, "forward", small)
    loaded: list[bool] = []
    load = Alone.load
    monkeypatch.setattr(Alone, "load", lambda self: (load(self), loaded.append(True))[0])
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
