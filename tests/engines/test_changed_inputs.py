"""Planning reads an input once and notices later that it was changed; of Parquet it reads the columns in use."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
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
from embedkit.storage import ranged_reader
from tests.storage.memory_store import MemoryStore

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


def write(path, found):
    name, _, compression = path.name.partition(".")[2].partition(".")
    if name == "parquet":
        as_parquet(path, found)
    elif name == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
    elif name == "csv":
        pa.csv.write_csv(pa.Table.from_pylist(found), path)
    else:
        pa.feather.write_feather(pa.Table.from_pylist(found), path, compression="uncompressed", chunksize=90)
    if compression:
        path.write_bytes(gzip.compress(path.read_bytes(), compresslevel=0))


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


@pytest.fixture
def bucket(monkeypatch):
    """A store of which small ranges are read, so that no object is small; the last bytes of one are 1,000."""
    whole = MemoryStore()
    monkeypatch.setattr("embedkit.storage.object_filesystem.object_store_for", lambda of: whole.folder(of.key))
    for name, size in (("FIRST_BYTES", 1_000), ("WHOLE_BYTES", 2_000), ("MOST_BYTES", 20_000)):
        monkeypatch.setattr(ranged_reader, name, size)
    for name in ("_TAIL", "_NEAR"):
        monkeypatch.setattr(f"embedkit.storage.partial_copy.{name}", 1_000)
    monkeypatch.setattr("embedkit.storage.filesystem._SAMPLED", 1_000)
    for module in ("sources.file_hashes", "manifest.identity"):
        monkeypatch.setattr(f"embedkit.{module}.BYTES_OF_ENDS", 2_000)
    return whole


@pytest.mark.parametrize("size", [10**9, 400_000])
@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv", "arrow", "jsonl.gz", "parquet.gz"])
def test_an_object_has_the_hashes_of_a_local_copy_and_is_fetched_once_for_them(
    suffix, size, bucket, tmp_path, monkeypatch
):
    monkeypatch.setattr(segments, "SEGMENT_BYTES", size)
    path, content = tmp_path / f"t.{suffix}", rows(2_000, 200)
    write(path, content)
    bucket.write(f"in/{path.name}", path.read_bytes())
    local, remote = planned(path)[2], planned(f"s3://bucket/in/{path.name}")[2]
    fetched = bucket.sent
    place = {"name": "", "mtime_ns": 0, "etag": None}
    assert [replace(file, **place) for file in remote.files] == [replace(file, **place) for file in local.files]
    # What is used; the ends, which are looked at before; and of each segment the first range. Where nothing says
    # where the columns are, all is fetched for their names as well.
    needed = path.stat().st_size if suffix != "parquet" else 2_000 * (5 + 200 + 8)
    times = 2.1 if suffix in {"arrow", "parquet.gz"} else 1.1
    assert fetched < times * needed + 250_000
    for stored, now in ((remote, path), (remote, f"s3://bucket/in/{path.name}"), (local, path)):
        assert input_difference(stored, planned(now, stored=stored)[2]) is None
    content[200]["day"] = 9
    write(path, content)
    for stored in (remote, local):
        assert input_difference(stored, planned(path, stored=stored)[2]) is not None


def test_a_row_of_an_object_that_is_not_text_is_found_as_in_a_local_copy(bucket, tmp_path):
    path = tmp_path / "t.parquet"
    texts = pa.array([b"no fever", b"\xff\xfe", b"pain"] * 30, pa.binary())
    table = pa.table({"id": list(range(90)), "text": texts, "day": list(range(90))})
    pq.write_table(table, path, row_group_size=20, compression="none")
    bucket.write("in/t.parquet", path.read_bytes())
    found = []
    for source in (path, "s3://bucket/in/t.parquet"):
        config = RunConfig(InputConfig((str(source),), id_column="id", keep=("day",)), OutputConfig("out", "npy"))
        scan = scan_input(table_of(config)[0], None, config, CUT).scan
        found.append((scan.rows, scan.n_faults, [(fault.row, fault.code) for fault in scan.faults]))
    assert found[0] == found[1]
    assert found[0][:2] == (90, 30)


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
