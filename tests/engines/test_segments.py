"""Segments, scanned alone and in any order, give the plan and the errors of one pass over the input."""

from __future__ import annotations

import pickle
import tempfile
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedkit.config import OutputConfig, RunConfig, ShareConfig
from embedkit.engines import segments
from embedkit.engines.open_input import table_of
from embedkit.engines.planning import input_facts, trust_planned_files
from embedkit.engines.ranks import shards_of
from embedkit.engines.read_shards import read_shards
from embedkit.engines.scanning import scan_input
from embedkit.engines.segments import Cut, SegmentScan, cut_segments
from embedkit.errors import InputError
from embedkit.sources import Part, SourceFile, open_table
from embedkit.types import Record
from tests.engines.test_read_shards import plain
from tests.sources.random_tables import TABLES, written

OUTPUT = OutputConfig("out", "jsonl")


@pytest.fixture
def segment_bytes(monkeypatch):
    """Returns a function that sets the size of segments."""
    return lambda size: monkeypatch.setattr(segments, "SEGMENT_BYTES", size)


def elsewhere(tasks, order):
    """Yields each segment as other processes scan it, one of which keeps the input open; as JSON."""
    job = pickle.loads(pickle.dumps(tasks[0].job))  # noqa: S301 - our own
    opened = job.table()
    for number, task in enumerate(order(list(tasks))):
        scan = replace(task, job=job).run(opened if number % 2 else None)
        yield SegmentScan.parse(scan.serialize(), "")


def one_pass(config):
    """Rows, result, notices and counts of one pass; or its error."""
    table = open_table(config)
    try:
        scan = table.scan()
        rows = list(open_table(config).records())
    except InputError as error:
        return error.message
    return rows, scan, table.take_notes(), dict(table.non_finite)


def restarted(rows, bounds, cut):
    """Returns the first rows of shards, cut anew at each bound."""
    starts = []
    for first, stop in zip(bounds, [*bounds[1:], len(rows)], strict=True):
        cutter = cut.cutter()
        for row in range(first, stop):
            text = rows[row].text if isinstance(rows[row], Record) else None
            if cutter.opens_shard(len(text or "")):
                starts.append(row)
    return starts


def dealt(sharding, data):
    """Returns the shards of each of several ranks, in their order, or of one process in any order."""
    if data.draw(st.booleans()):
        return [data.draw(st.permutations(range(sharding.shards)))]
    size = data.draw(st.integers(1, 5))
    return [shards_of(ShareConfig(rank, size), sharding) for rank in range(size)]


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(files=TABLES, size=st.integers(15, 900), limit=st.none() | st.integers(0, 20), data=st.data())
def test_segments_of_any_size_give_the_plan_of_one_pass(files, size, limit, data, segment_bytes):
    segment_bytes(size)
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(written(Path(folder), files, limit=limit), OUTPUT)
        expected = one_pass(config.input)
        cut = Cut(data.draw(st.integers(1, 6)), data.draw(st.integers(5, 60)))
        table, _ = table_of(config)

        def scanner(tasks):
            return elsewhere(tasks, lambda some: data.draw(st.permutations(some)))

        if isinstance(expected, str):
            with pytest.raises(InputError) as caught:
                scan_input(table, None, config, cut, scanner=scanner)
            assert caught.value.message == expected
            return
        found = scan_input(table, None, config, cut, scanner=scanner)
        rows, scan, notes, non_finite = expected
        assert (found.scan, table.take_notes(), dict(table.non_finite)) == (scan, notes, non_finite)
        parts = cut_segments(table, None, config)
        counts = [table.scan_part(part).rows for part in parts]
        bounds = [sum(counts[:number]) for number in range(len(counts))]
        assert list(found.sharding.starts) == restarted(rows, bounds, cut)
        shards = {}
        facts = input_facts(table, None, config.input, digests=found.digests)
        deals = dealt(found.sharding, data)
        assert sorted(chain(*deals)) == list(range(found.sharding.shards))
        for deal in deals:
            reader, _ = table_of(config, data.draw(st.sampled_from([None, table.facts])))
            if data.draw(st.booleans()):
                trust_planned_files(reader, facts)
            shards |= {shard.index: shard for shard in read_shards(reader, found.sharding, "skip", deal)}
        records = [row for index in sorted(shards) for row in plain(shards[index])[3]]
        faults = [fault for index in sorted(shards) for fault in shards[index].faults]
        table_rows = [item for item in rows if isinstance(item, Record)]
        assert [row[:3] for row in records] == [(of.row, of.id, of.text) for of in table_rows]
        assert faults == [item for item in rows if not isinstance(item, Record)]


def pieces(file, size):
    return [Part(file, file + 1, (first, min(size, first + 100))) for first in range(0, size, 100)]


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ([("jsonl", 30), ("csv", 40), ("csv", 31)], [Part(0, 2), Part(2, 3)]),
        ([("jsonl", 250), ("txt", 250)], [*pieces(0, 250), Part(1, 2)]),
        ([("csv", 50), ("parquet", 101), ("csv", 50)], [Part(0, 1), *pieces(1, 101), Part(2, 3)]),
        ([("jsonl.gz", 500), ("jsonl", 100)], [Part(0, 1), Part(1, 2)]),
        ([("jsonl", 0), ("jsonl", 0)], [Part(0, 2)]),
    ],
)
def test_segments_follow_from_names_and_sizes(files, parts, segment_bytes, tmp_path):
    segment_bytes(100)
    config = RunConfig(written(tmp_path, [(".jsonl", b'{"text": "x", "k": 1}')]), OUTPUT)
    table, _ = table_of(config)
    table.files = tuple(
        SourceFile(name, name.split(".")[0], name.partition(".")[2] or None, size) for name, size in files
    )
    assert cut_segments(table, None, config) == parts


def test_a_change_in_the_middle_of_a_file_in_pieces_is_seen(segment_bytes, tmp_path, encode):
    path = tmp_path / "t.jsonl"
    lines = [b'{"id": "%d", "text": "note %d"}\n' % (row, row) for row in range(1_000)]
    path.write_bytes(b"".join(lines))
    segment_bytes(4_000)
    arguments = (path, "-o", tmp_path / "out", "--shard-rows", 400)
    assert encode(*arguments).code == 0
    assert encode(*arguments, "--on-exists", "resume").code == 0
    lines[500] = lines[500].replace(b"note", b"nose")
    path.write_bytes(b"".join(lines))
    ran = encode(*arguments, "--on-exists", "resume")
    assert (ran.code, "pieces_sha256" in ran.err) == (5, True), ran.err
