"""Whole runs on the device: levels and windows are those of the CPU in fp32, and bytes are always the same."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

import embedkit
from benchmarks.gpu_exactness.test_states import TOLERANCE, error
from embedkit import Encoder
from tests.conftest import NOTES
from tests.engines.test_resume import assert_same

LEVELS = {
    "windows": ("--pool", "mean", "--on-long", "chunk"),
    "windows one by one": ("--pool", "mean", "--on-long", "chunk", "--level", "chunk"),
    "words": ("--level", "word", "--subtoken-pooling", "mean"),
    "tokens": ("--pool", "none"),
    "spans": ("--pool", "mean", "--spans-column", "spans"),
    "several layers": ("--layers", "-2:", "--pool", "cls,max"),
    "groups": ("--pool", "mean", "--group-by", "label", "--group-pool", "mean"),
}


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """Writes the sample notes as JSON Lines, with some spans of each."""
    import csv

    path = tmp_path_factory.mktemp("notes") / "notes.jsonl"
    with NOTES.open(encoding="utf-8", newline="") as rows, path.open("w", encoding="utf-8") as out:
        for row in csv.DictReader(rows):
            length = len(row["text"])
            spans = [
                [a, min(a + 9, length), "part"]
                for a in range(0, min(length, 60), 15)
                if row["text"][a : a + 9].strip()
            ]
            out.write(json.dumps({**row, "spans": spans}) + "\n")
    return path


@pytest.fixture
def encoded(embedkit_cli, folder_of, table, tmp_path):
    """Returns a function that encodes the notes and returns the folder of the output."""

    def encoded(name, *options):
        out = tmp_path / name
        ran = embedkit_cli("encode", table, "-m", folder_of("bert"), "-o", out, "--shard-rows", 8, *options)
        assert ran.code == 0, ran.err
        return out

    return encoded


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("level", LEVELS)
def test_vectors_of_every_unit_are_those_of_the_cpu_in_fp32(level, dtype, device, encoded):
    on_cpu = embedkit.read(encoded("cpu", *LEVELS[level], "--device", "cpu", "--dtype", "fp32"))
    found = embedkit.read(encoded("device", *LEVELS[level], "--device", device, "--dtype", dtype))
    assert found.ids == on_cpu.ids
    one, other = (
        np.concatenate(list(output.token_vectors)) if level == "tokens" else output.vectors
        for output in (found, on_cpu)
    )
    assert len(other) >= 5
    assert error(np.asarray(one, np.float64), np.asarray(other, np.float64)) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("model", "dtype"),
    [("bert", "fp32"), ("bert", "bf16"), ("modernbert", "bf16"), ("modernbert", "fp16"), ("deberta-v2", "bf16")],
)
def test_the_same_plan_gives_the_same_bytes_twice_and_after_it_was_stopped(
    model, dtype, device, embedkit_cli, folder_of, table, tmp_path
):
    def encode(*options):
        place = ("-o", tmp_path / "now" / "out", "--shard-rows", 8, "--device", device, "--dtype", dtype)
        ran = embedkit_cli("encode", table, "-m", folder_of(model), "--pool", "mean", *place, *options)
        assert ran.code == 0, ran.err

    (tmp_path / "now").mkdir()
    encode()
    shutil.copytree(tmp_path / "now", tmp_path / "first")
    encode("--on-exists", "overwrite")
    assert_same(tmp_path / "now", tmp_path / "first")
    # As a run that was killed leaves it: no manifest, some shards without a record.
    (tmp_path / "now" / "out" / "manifest.json").unlink()
    for shard in ("00002", "00005", "00008"):
        (tmp_path / "now" / "out" / "commits" / f"{shard}.json").unlink()
    encode("--on-exists", "resume")
    assert_same(tmp_path / "now", tmp_path / "first")


def test_two_processes_on_one_device_give_the_bytes_of_one(device, encoded, tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        encoded(f"{name}/out", "--pool", "mean", "--device", device, "--workers", workers)
    assert_same(tmp_path / "two", tmp_path / "one")


def test_a_batch_that_does_not_fit_is_halved_and_the_budget_remembered(cuda, folder_of):
    generator = np.random.default_rng(0)
    texts = [" ".join(map(str, generator.integers(0, 1000, 20))) for _ in range(20_000)]
    options = {"device": str(cuda), "dtype": "fp32", "pool": "mean"}
    expected = Encoder(folder_of("bert"), batch_tokens=4096, **options).encode(texts)
    encoder = Encoder(folder_of("bert"), batch_tokens=4_000_000, **options)
    encoder.encode(texts[:8])
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(cuda).total_memory
    # The texts want about 60 tokens x 96 numbers x 4 bytes x 20,000 = 460 MB in one tensor alone.
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(cuda) + (200 << 20)) / whole, cuda)
    try:
        found = encoder.encode(texts)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, cuda)
    assert encoder._embedder.budget.tokens <= 1_000_000
    assert np.abs(found - expected).max() < 1e-5
