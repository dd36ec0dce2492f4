"""The stages of a run side by side: what fails in one ends the others."""

from __future__ import annotations

import threading

from embedkit.embedding import Embedding
from embedkit.engines import job
from embedkit.errors import OutputError
from tests.conftest import NOTES


def test_what_fails_behind_the_model_ends_the_run_at_its_next_batch_not_at_the_next_shard(
    encode, tmp_path, monkeypatch
):
    failed, batches, collect = threading.Event(), [], Embedding.collect

    def failing(*_, **__):
        failed.set()
        raise OutputError("a vector has a value beyond 65,504", hint="use --precision float32")

    def counted(self, batch, started):
        shard = self.of.read.index
        if shard == 1:
            # The writer has the first shard, and all the time it wants.
            assert failed.wait(20)
            threading.Event().wait(0.2)
        batches.append(shard)
        collect(self, batch, started)

    monkeypatch.setattr(job, "finish_shard", failing)
    monkeypatch.setattr(Embedding, "collect", counted)
    arguments = ("--shard-rows", 30, "--batch-tokens", 60, "--max-length", 20)
    ran = encode(NOTES, "-o", tmp_path / "out.parquet", *arguments)
    assert (ran.code, "beyond 65,504" in ran.err) == (5, True), ran.err
    assert batches.count(0) > 5
    assert batches.count(1) == 1
