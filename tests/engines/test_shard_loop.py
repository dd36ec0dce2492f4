"""Shards of a table as a process reads them: its own, and of the others no more than where their rows end.

What fails behind the model ends the run.
"""

from __future__ import annotations

import json
import threading

import pytest

from embedkit.config import InputConfig
from embedkit.engines import shard_loop
from embedkit.engines.read_shards import read_shards
from embedkit.errors import OutputError
from embedkit.inference.embedder import EmbeddingTask
from embedkit.manifest.schema import Sharding
from embedkit.sources import jsonl, open_table
from tests.conftest import NOTES

ROWS, SHARD_ROWS = 50, 7


@pytest.fixture
def table(tmp_path):
    for name, rows in (("a", range(20)), ("b", range(20, ROWS))):
        lines = (json.dumps({"id": f"n{row}", "text": f"note {row}"}) for row in rows)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n\n")
    return open_table(InputConfig((str(tmp_path / "*.jsonl"),)))


@pytest.mark.parametrize("wanted", [[0], [3], [7], [1, 2], [0, 4, 7], list(range(8)), []])
def test_a_process_parses_the_rows_of_its_own_shards_and_one_row_more(table, wanted, monkeypatch):
    sharding = Sharding(SHARD_ROWS, 10**6, ROWS, tuple(range(0, ROWS, SHARD_ROWS)), None)
    parsed = []
    parse = jsonl.parsed
    monkeypatch.setattr(jsonl, "parsed", lambda line: parsed.append(line) or parse(line))
    # As a crew hands them out: the next one is not known before one has been read.
    shards = list(read_shards(table, sharding, "fail", (number for number in wanted)))
    expected = [range(number * SHARD_ROWS, min(ROWS, (number + 1) * SHARD_ROWS)) for number in wanted]
    assert [shard.index for shard in shards] == wanted
    assert [[record.id for record in shard.records] for shard in shards] == [
        [f"n{row}" for row in rows] for rows in expected
    ]
    assert [(shard.start, shard.stop, list(shard.faults)) for shard in shards] == [
        (rows.start, rows.stop, []) for rows in expected
    ]
    # Two lines tell the columns of the two files.
    assert len(parsed) <= sum(map(len, expected)) + len(wanted) + 2


def test_what_fails_behind_the_model_ends_the_run_at_its_next_batch_not_at_the_next_shard(
    encode, tmp_path, monkeypatch
):
    failed, batches, collect = threading.Event(), [], EmbeddingTask.collect

    def failing(*_, **__):
        failed.set()
        raise OutputError("a vector has a value beyond 65,504", hint="use --precision float32")

    def counted(self, batch, started):
        shard = self.source.read.index
        if shard == 1:
            # The writer has the first shard, and all the time it wants.
            assert failed.wait(20)
            threading.Event().wait(0.2)
        batches.append(shard)
        collect(self, batch, started)

    monkeypatch.setattr(shard_loop, "finish_shard", failing)
    monkeypatch.setattr(EmbeddingTask, "collect", counted)
    arguments = ("--shard-rows", 30, "--batch-tokens", 60, "--max-length", 20)
    ran = encode(NOTES, "-o", tmp_path / "out.parquet", *arguments)
    assert (ran.code, "beyond 65,504" in ran.err) == (5, True), ran.err
    assert batches.count(0) > 5
    assert batches.count(1) == 1
