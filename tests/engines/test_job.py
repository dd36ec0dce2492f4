"""Shards of a table as a process reads them: its own, and of the others no more than where their rows end."""

from __future__ import annotations

import json

import pytest

from embedkit.config import InputConfig
from embedkit.engines.job import read_shards
from embedkit.sources import jsonl, open_table

ROWS, SHARD_ROWS = 50, 7


@pytest.fixture
def table(tmp_path):
    for name, rows in (("a", range(20)), ("b", range(20, ROWS))):
        lines = (json.dumps({"id": f"n{row}", "text": f"note {row}"}) for row in rows)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n\n")
    return open_table(InputConfig((str(tmp_path / "*.jsonl"),)))


@pytest.mark.parametrize("wanted", [[0], [3], [7], [1, 2], [0, 4, 7], list(range(8)), []])
def test_a_process_parses_the_rows_of_its_own_shards_and_one_row_more(table, wanted, monkeypatch):
    plan = {"starts": list(range(0, ROWS, SHARD_ROWS)), "rows": ROWS, "shard_rows": SHARD_ROWS}
    plan["shard_characters"] = 10**6
    parsed = []
    parse = jsonl.parsed
    monkeypatch.setattr(jsonl, "parsed", lambda line: parsed.append(line) or parse(line))
    # As a crew hands them out: the next one is not known before one has been read.
    shards = list(read_shards(table, plan, "fail", (number for number in wanted)))
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
