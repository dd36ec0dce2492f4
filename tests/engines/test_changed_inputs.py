"""Planning reads an input once and notices later that it was changed; of Parquet it reads the columns in use."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from embedkit.config import InputConfig, OutputConfig, RunConfig
from embedkit.engines import segments
from embedkit.engines.open_input import table_of
from embedkit.engines.planning import input_facts, trust_planned_files
from embedkit.engines.read_shards import read_shards
from embedkit.engines.scanning import scan_input
from embedkit.engines.segments import Cut
from embedkit.manifest.identity import input_difference
from embedkit.sources import columnar

CUT = Cut(70, 10**6)


def rows(count=400, size=40):
    chance = random.Random(3)
    return [
        {
            "id": f"r{row:04d}",
            "text": "".join(chance.choices("abcdef ", k=size)),
            "day": row % 7,
            "other": "".join(chance.choices("ghijkl ", k=3 * size)),
        }
        for row in range(count)
    ]


def as_parquet(path, found, **options):
    """Without compression, dictionaries and statistics a changed value changes no size and no footer."""
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.Table.from_pylist(found), path, row_group_size=90, **plain, **options)


def planned(path, keep=("day",), stored=None):
    config = RunConfig(InputConfig((str(path),), keep=keep), OutputConfig("out", "parquet"))
    table, _ = table_of(config)
    if stored is not None:
        return table, None, input_facts(table, None, config.input, stored, large=0)
    scan = scan_input(table, None, config, CUT)
    return table, scan.sharding, input_facts(table, None, config.input, digests=scan.digests)


@pytest.mark.parametrize("size", [10**9, 40_000])
@pytest.mark.parametrize(
    ("column", "value", "seen"), [("text", "x" * 40, True), ("day", 9, True), ("other", "y" * 120, False)]
)
def test_a_change_of_a_parquet_file_is_seen_in_the_columns_in_use_alone(
    column, value, seen, size, tmp_path, monkeypatch
):
    monkeypatch.setattr(segments, "SEGMENT_BYTES", size)
    monkeypatch.setattr("embedkit.storage.filesystem._SAMPLED", 2_000)  # the change is not at an end of the file
    path, content = tmp_path / "t.parquet", rows()
    as_parquet(path, content)
    _, _, facts = planned(path)
    assert facts.files[0].columns_sha256
    assert facts.files[0].content_sha256 is None
    assert input_difference(facts, planned(path, stored=facts)[2]) is None
    content[200][column] = value
    before = path.stat()
    as_parquet(path, content)
    assert path.stat().st_size == before.st_size
    difference = input_difference(facts, planned(path, stored=facts)[2])
    assert (difference is not None and difference[0].endswith("columns_sha256")) is seen
    moved = path.rename(tmp_path / "moved.parquet")
    assert (input_difference(facts, planned(moved, stored=facts)[2]) is not None) is seen


def test_plans_of_earlier_versions_are_compared_by_the_hashes_that_they_have(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 40_000)
    path = tmp_path / "t.parquet"
    as_parquet(path, rows())
    _, _, facts = planned(path)
    (file,) = facts.files
    bare = replace(file, columns_sha256=None)
    content = path.read_bytes()
    whole = replace(bare, content_sha256=hashlib.sha256(content).hexdigest())
    metadata = pq.ParquetFile(path).metadata
    pieces = {}
    for group in (metadata.row_group(at) for at in range(metadata.num_row_groups)):
        start = group.column(0).data_page_offset
        for column in (group.column(at) for at in range(3)):  # id, text and day
            begin = column.data_page_offset
            pieces[start // 40_000] = (
                pieces.get(start // 40_000, b"") + content[begin:][: column.total_compressed_size]
            )
    hashes = [hashlib.sha256(pieces[piece]).hexdigest() for piece in sorted(pieces)]
    in_pieces = replace(bare, pieces_sha256=hashlib.sha256("".join(hashes).encode()).hexdigest())
    assert len(hashes) > 1
    for stored in (whole, in_pieces):
        now = planned(path, stored=replace(facts, files=(stored,)))[2]
        assert now.files == (stored,)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="Linux says what a process has read")
@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_planning_reads_what_it_needs_once(suffix, tmp_path):
    path, content = tmp_path / f"t.{suffix}", rows(1_500, 800)
    frame = pa.Table.from_pylist(content)
    if suffix == "parquet":
        as_parquet(path, content)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    else:
        pa.csv.write_csv(frame, path)
    needed = sum(frame[name].nbytes for name in ("id", "text")) if suffix == "parquet" else path.stat().st_size
    config = RunConfig(InputConfig((str(path),)), OutputConfig("out", "parquet"))
    table, _ = table_of(config)

    def read():
        return int(Path("/proc/self/io").read_text().split()[1])

    before = read()
    scan = scan_input(table, None, config, CUT)
    input_facts(table, None, config.input, digests=scan.digests)
    # The beginning is looked at for the format, and the end for the footer.
    assert needed <= read() - before < needed + 10**6 < 0.6 * path.stat().st_size + 0.9 * needed


def test_rows_that_planning_has_read_are_not_probed_again_unless_the_file_was_touched(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    as_parquet(path, rows())
    probes = []

    def probed(source, form, *, part, without):
        probes.append((part, frozenset(without)))

    monkeypatch.setattr(columnar, "probe_file", probed)
    table, sharding, facts = planned(path)
    # Columns that only reading needs are probed when planning reads the others.
    assert {without for part, without in probes if part != "none"} == {frozenset({"other"})}
    assert {part for part, _ in probes} == {"none", 0, 1, 2, 3, 4}
    probes.clear()

    def read(of):
        return [record for shard in read_shards(of, sharding, "fail") for record in shard.records]

    found = read(table)
    assert len(probes) > 5
    for opened in (
        table,
        table_of(RunConfig(InputConfig((str(path),), keep=("day",)), OutputConfig("o", "npy")))[0],
    ):
        trust_planned_files(opened, facts)
        probes.clear()
        assert read(opened) == found
        assert probes == []
    path.touch()
    assert read(table) == found
    assert len(probes) > 5
    for unlike in ({"columns_sha256": None}, {"sha256": "0" * 64}, {"mtime_ns": 5}):
        other, _, _ = planned(path)
        trust_planned_files(other, replace(facts, files=(replace(facts.files[0], **unlike),)))
        probes.clear()
        assert read(other) == found
        assert len(probes) > 5
