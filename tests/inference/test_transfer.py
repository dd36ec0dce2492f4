"""To a device and back by way of pinned memory: nothing is read or written before its event has passed."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from embedkit import Encoder
from embedkit.inference.batching import TokenBudget
from embedkit.inference.transfer import PinnedTransfer
from tests import tiny_models
from tests.conftest import NOTES
from tests.inference.fake_device import FakeDevice, RaceError


def through(transfer, value, rows=3):
    """Returns a batch of one array: what is on the device, and the same plus one on its way back."""
    staged = transfer.stage({"a": np.full((rows, 2), value, np.float32), "b": np.ones((1, rows), np.bool_)})
    given = transfer.receive(staged)
    assert given["a"].tolist() == [[value, value]] * rows
    assert given["b"].dtype == torch.bool
    return transfer.give_back(staged, {"v": given["a"] + 1})


def collected(transfer, returning):
    kept = []
    transfer.collect(returning, lambda found: kept.append(found["v"].copy()))
    return kept[0]


def test_batches_of_many_sizes_come_back_as_they_went_in_the_same_buffers():
    device = FakeDevice()
    transfer, under_way = PinnedTransfer(device), []
    for number in range(40):
        under_way.append((number, through(transfer, float(number), rows=1 + number * 37 % 11)))
        if len(under_way) > transfer.in_flight:
            value, returning = under_way.pop(0)
            assert (collected(transfer, returning) == value + 1).all()
    assert [(collected(transfer, of) == value + 1).all() for value, of in under_way] == [True] * transfer.in_flight
    # Vectors and the event behind them, of as many batches as may be late and the one that was just started.
    assert device.most_waiting <= 2 * (transfer.in_flight + 1)


def test_the_time_between_batches_is_known_when_their_events_have_passed():
    transfer = PinnedTransfer(FakeDevice())
    assert transfer.stats() is None
    for returning in [through(transfer, 1.0), through(transfer, 2.0), through(transfer, 3.0)]:
        collected(transfer, returning)
    # Events at 1 2, 3 4, 5 6: three batches of a second, and two seconds between them.
    used = transfer.stats()
    assert (used.busy, used.waited, used.idle_fraction) == (3.0, 2.0, 0.4)
    assert (used.allocated, used.reserved) == (3 << 30, 4 << 30)


@pytest.mark.parametrize("skipped", ["finish", "wait"])
def test_the_fake_device_refuses_a_transfer_that_does_not_wait(skipped, monkeypatch):
    """Or the tests with it would prove nothing."""
    device = FakeDevice()
    monkeypatch.setattr(device, skipped, lambda *_: None)
    transfer = PinnedTransfer(device)
    with pytest.raises((RaceError, AssertionError)):
        for number in range(8):
            assert (collected(transfer, through(transfer, float(number))) == number + 1).all()


def test_what_a_failed_batch_was_given_is_not_written_before_it_is_through():
    transfer = PinnedTransfer(FakeDevice())
    for number in range(12):
        staged = transfer.stage({"a": np.full(5, number)})
        assert transfer.receive(staged)["a"].tolist() == [number] * 5
        transfer.discard(staged)
        # Prepared, and never started.
        transfer.discard(transfer.stage({"a": np.zeros(5, np.int64)}))
        if number % 3 == 0:
            transfer.drop(through(transfer, 1.0))


# With a model -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_models.make("bert", tmp_path_factory.mktemp("m") / "bert").folder)


def on_fake_device(encoder, tokens=60):
    """Returns the same encoder, its batches sent to a fake device and pooled as on a GPU."""
    device = FakeDevice()
    encoder._embedder = replace(
        encoder._embedder, transfer=PinnedTransfer(device), by_segments=True, budget=TokenBudget(tokens)
    )
    return device


@pytest.mark.parametrize(
    "options",
    [
        {"pool": "cls,mean,max,min,lasttoken,weightedmean,mean_sqrt_len", "layers": "all"},
        {"pool": "mean,max", "layers": "-1,-2", "layer_agg": "mean", "exclude_special": True},
        {"pool": "pooler"},
        {"pool": "mean", "on_long": "chunk", "max_length": 16, "stride": 4},
    ],
    ids=lambda options: options["pool"],
)
def test_vectors_are_those_of_the_plain_way(folder, options):
    texts = [*tiny_models.TEXTS, *tiny_models.TEXTS[:3], ""]
    encoder = Encoder(folder, **options)
    expected = encoder.encode(texts)
    device = on_fake_device(encoder)
    found = encoder.encode(texts)
    assert np.allclose(found, expected, atol=1e-5, equal_nan=True)
    assert device.put["out"] > 4
    # The same plan gives the same bytes twice.
    assert np.array_equal(encoder.encode(texts), found, equal_nan=True)


def test_token_vectors_are_those_of_the_plain_way(folder):
    encoder = Encoder(folder, pool="none", layers="1,3", exclude_special=True)
    expected = encoder.encode_tokens(tiny_models.TEXTS)
    on_fake_device(encoder)
    found = encoder.encode_tokens(tiny_models.TEXTS)
    assert all(np.allclose(of, alone, atol=1e-5) for of, alone in zip(found, expected, strict=True))


def test_out_of_memory_on_the_device_halves_and_is_remembered_and_no_result_is_lost(folder, monkeypatch):
    encoder = Encoder(folder, pool="mean")
    expected = encoder.encode(tiny_models.TEXTS)
    device, inner = on_fake_device(encoder, 150), encoder._embedder.encoder
    forward, failed = inner.forward, []

    def small(inputs, batch, take):
        if batch.tokens > 80:
            failed.append(batch.tokens)
            # It fails when part of it was started.
            forward(inputs, batch, lambda *_: None)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(inputs, batch, take)

    monkeypatch.setattr(inner, "forward", small)
    assert np.allclose(encoder.encode(tiny_models.TEXTS), expected, atol=1e-5)
    assert (len(failed), device.freed, encoder._embedder.budget.tokens <= 80) == (1, 1, True)
    # Later shards of the run begin with what fitted.
    assert np.allclose(encoder.encode(tiny_models.TEXTS), expected, atol=1e-5)
    assert len(failed) == 1


@pytest.mark.parametrize("unit", [(), ("--level", "word", "--subtoken-pooling", "mean"), ("--pool", "none")])
def test_files_are_the_same_bytes_whichever_way_the_batches_went(encode, tmp_path, monkeypatch, unit):
    arguments = (NOTES, "--shard-rows", 8, "--batch-tokens", 100, *unit)
    assert encode(*arguments, "-o", tmp_path / "plain.parquet").code == 0
    devices = []

    def fake(_device):
        devices.append(FakeDevice())
        return PinnedTransfer(devices[-1])

    monkeypatch.setattr("embedkit.inference.transfer.transfer_for", fake)
    ran = encode(*arguments, "-o", tmp_path / "late.parquet")
    assert ran.code == 0, ran.err
    assert devices[0].put["out"] > 20
    assert re.search(
        r"tokens/s on cpu in fp32\nthe device was idle for \d\d\.\d % of the time; peak memory 3\.0 GiB", ran.err
    )
    assert (tmp_path / "late.parquet").read_bytes() == (tmp_path / "plain.parquet").read_bytes()
