"""When memory runs out: the batch is halved, nothing is lost, and the budget is remembered."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedkit import Encoder
from embedkit.config import BatchConfig
from embedkit.errors import ModelError
from embedkit.inference import batching, build, embedder
from embedkit.inference.batching import bytes_per_token, tokens_that_fit
from tests import tiny_models
from tests.conftest import NOTES


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    """Returns a tiny BERT on a machine that has room for 100 tokens at a time."""
    made = Encoder(str(tiny_models.make("bert", tmp_path / "bert").folder), pool="mean", layers="all")
    expected = made.encode(tiny_models.TEXTS)
    inner = made._embedder.encoder
    forward_parts = inner.forward_parts

    def small(inputs, batch, take_part):
        # Memory runs out at the end, when the parts have been pooled.
        forward_parts(inputs, batch, take_part)
        if batch.tokens > made.room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(inner, "forward_parts", small)
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


def test_a_repeated_text_is_computed_once_and_gets_the_same_bits(tmp_path, monkeypatch):
    encoder = Encoder(str(tiny_models.make("bert", tmp_path / "bert").folder), pool="mean,max")
    once = list(dict.fromkeys(tiny_models.TEXTS))
    expected = encoder.encode(once)
    inner = encoder._embedder.encoder
    forward_parts, computed = inner.forward_parts, []

    def counted(inputs, batch, take_part):
        computed.extend(batch.texts.tolist())
        forward_parts(inputs, batch, take_part)

    monkeypatch.setattr(inner, "forward_parts", counted)
    found = encoder.encode(once + once[::-1])
    assert np.array_equal(found[: len(once)], expected)
    assert np.array_equal(found[len(once) :], expected[::-1])
    # As often as there are texts that differ in their tokens; "sob" and "SOB" do not.
    assert len(computed) == len({row.tobytes() for row in expected}) <= len(once)


@pytest.mark.parametrize(("rule", "code"), [("fail", 4), ("null", 0), ("skip", 0)])
def test_a_row_that_does_not_fit_alone_goes_by_on_bad_row(tmp_path, monkeypatch, capsys, rule, code):
    import embedkit
    from embedkit.cli import run as run_command
    from embedkit.engines.in_process import InProcessEngine
    from embedkit.models.native.cpu_encoder import CpuEncoder

    folder = tiny_models.make("bert", tmp_path / "bert").folder
    texts = ["pain", "fever " * 50, "cough"]
    (tmp_path / "t.txt").write_text("\n".join(texts) + "\n")
    real = CpuEncoder.forward_parts

    def small(self, inputs, batch, take_part):
        # The check at load runs texts of its own; they fit.
        if loaded and batch.tokens > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(self, inputs, batch, take_part)

    monkeypatch.setattr(CpuEncoder, "forward_parts", small)
    loaded: list[bool] = []
    load = InProcessEngine.load
    monkeypatch.setattr(InProcessEngine, "load", lambda self: (load(self), loaded.append(True))[0])
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


# What a card has room for --------------------------------------------------------------------------------

_GIB = 1 << 30


@pytest.mark.parametrize(
    ("memory_gib", "processes", "expected"),
    [
        (140, 1, 65_536),  # however large it is
        (140, 2, 65_536),
        (4, 1, 65_536),  # (0.6 x 4 GiB - 220 MB) / 33,792 = 69,755
        (4, 2, 16_384),  # (0.3 x 4 GiB - 220 MB) / 33,792 = 31,622
        (0.4, 1, 1_024),  # 1,116
        (0.1, 4, 1_024),  # not even the weights fit: that is for the run to find out
    ],
)
def test_a_card_gets_64k_tokens_where_they_fit(memory_gib, processes, expected):
    # BERT-base in bf16: 2 x (10 x 768 + 3 x 3,072) bytes.
    per_token = bytes_per_token(768, 3072, 12, size=2, longest_scores=None)
    assert per_token == 33_792
    assert tokens_that_fit(int(memory_gib * _GIB), 220_000_000, per_token, processes) == expected


def test_scores_that_are_made_whole_count_by_the_longest_text():
    plain = bytes_per_token(768, 3072, 12, size=4, longest_scores=None)
    # Three copies, 12 heads, 512 tokens, 4 bytes.
    assert bytes_per_token(768, 3072, 12, size=4, longest_scores=512) - plain == 3 * 12 * 512 * 4


def test_vectors_of_tokens_are_held_to_a_gib_a_batch_and_count_four_times():
    # Of 13 layers of 768 dimensions: 39,936 bytes a token.
    wide = 13 * 768
    plain = bytes_per_token(768, 3072, 12, size=2, longest_scores=None)
    per_token = bytes_per_token(768, 3072, 12, size=2, longest_scores=None, returned=wide)
    assert per_token - plain == 4 * 39_936
    # 2^30 / 39,936 = 26,886
    assert tokens_that_fit(140 * _GIB, 0, per_token, returned=wide) == 16_384


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 36), st.integers(1, 1 << 20), st.integers(1, 8))
def test_a_budget_is_a_power_of_two_that_fits_and_shrinks_with_each_process(total, weights, per_token, processes):
    found = tokens_that_fit(total, weights, per_token, processes)
    assert found & (found - 1) == 0
    assert found == 1024 or found * per_token <= total / processes - weights
    assert tokens_that_fit(total, weights, per_token, processes + 1) <= found


@pytest.mark.parametrize(
    ("said", "device", "expected"), [(None, "cuda", 16_384), (77, "cuda", None), (None, "cpu", None)]
)
def test_the_budget_of_a_card_is_asked_for_on_a_card_and_where_the_user_did_not_say(
    monkeypatch, said, device, expected
):
    monkeypatch.setattr(batching, "device_memory", lambda _: (4 * _GIB, 220_000_000))
    encoder = SimpleNamespace(device=torch.device(device), hidden_size=768, packed=True)
    loaded = SimpleNamespace(config=SimpleNamespace(intermediate_size=3072, num_attention_heads=12), dtype="bf16")
    assert build._tokens_for(encoder, loaded, 512, 0, 2, BatchConfig(said)) == expected


def test_a_resumed_run_keeps_to_the_batches_of_its_plan(encode, tmp_path, monkeypatch):
    """The first card had room for 96 tokens, and the run goes on on one that has room for 4,096."""
    sizes, make_batches = [], embedder.make_batches

    def counted(lengths, **limits):
        sizes.append(limits["max_tokens"])
        return make_batches(lengths, **limits)

    monkeypatch.setattr(embedder, "make_batches", counted)
    monkeypatch.setattr(build, "_tokens_for", lambda *_: 96)
    out = tmp_path / "out"
    assert encode(NOTES, "-o", out, "--shard-rows", 20).code == 0
    plan = (out / "plan.json").read_bytes()
    assert json.loads(plan)["batch_tokens"] == 96
    before = (out / "embeddings/part-00001.parquet").read_bytes()
    for gone in ("manifest.json", "commits/00001.json"):
        (out / gone).unlink()
    monkeypatch.setattr(build, "_tokens_for", lambda *_: 4096)
    ran = encode(NOTES, "-o", out, "--shard-rows", 20, "--on-exists", "resume")
    assert ran.code == 0, ran.err
    assert set(sizes) == {96}
    assert (out / "plan.json").read_bytes() == plan
    assert (out / "embeddings/part-00001.parquet").read_bytes() == before
