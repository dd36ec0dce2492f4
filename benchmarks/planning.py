"""What planning and reading cost 8 processes together, beside one: make bench-planning [TEXTS=file.jsonl].

    python -m benchmarks.planning TABLE [--megabytes N] [--processes N] [--segment-megabytes N] [-o OUT.json]

A table, CSV or JSON Lines, is repeated to N MB and written as JSON Lines, CSV and Parquet. One process plans and
reads all of it. Then each of several scans its segments and reads its part of the shards, as ranks do. Then each
does as before there were segments: it scans the whole input, and passes over the rows of others. All of it runs in
this process, one part after the other: what counts is processor time, user and system, with that of the child in
which Parquet is probed, but for the start of that child. Also the bytes of the file that planning reads. Never
fails for a time.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.peers.__main__ import machine, versions
from embedkit.config import InputConfig, OutputConfig, RunConfig, ShareConfig
from embedkit.engines import segments
from embedkit.engines.open_input import table_of
from embedkit.engines.planning import input_facts, trust_planned_files
from embedkit.engines.ranks import shards_of
from embedkit.engines.read_shards import read_shards
from embedkit.engines.scanning import InputScan, ScanJob, ScanTask, scan_input
from embedkit.engines.segments import Cut, SegmentScan, cut_segments, sharding_of
from embedkit.manifest.schema import InputFacts, Sharding
from embedkit.sources.file_hashes import content_sha256
from embedkit.storage import parser_probe

_CUT = Cut(4096, 64_000_000)
_FORMATS = ("jsonl", "csv", "parquet")
_ROW_GROUP = 50_000


def cpu_seconds() -> float:
    """Returns user and system time of this process and of the child that probes, which it ends."""
    parser_probe._PROBER.close()
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def cost_of(work: Callable[[], Any], starts: float) -> tuple[float, Any]:
    """Returns the processor seconds of a work, without `starts`, and its result."""
    began = cpu_seconds()
    result = work()
    return cpu_seconds() - began - starts, result


def start_of_probe(parquet: Path) -> float:
    """Returns the processor seconds of a child that probes nothing but the metadata."""
    return cost_of(lambda: parser_probe.probe_file(str(parquet), "parquet", part="none"), 0.0)[0]


def bytes_read() -> int:
    """Returns how many bytes of files this process has read since it began."""
    for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines():
        if line.startswith("rchar"):
            return int(line.split()[1])
    return 0


def bytes_in_use(path: Path) -> int:
    """Bytes of a file that a run needs: of Parquet, of the columns of ids and texts."""
    if path.suffix != ".parquet":
        return path.stat().st_size
    metadata = pq.ParquetFile(path).metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [group.column(at) for group in groups for at in range(group.num_columns)]
    return sum(of.total_compressed_size for of in columns if of.path_in_schema in {"id", "text"})


def make_inputs(table: Path, folder: Path, megabytes: int) -> dict[str, list[Path]]:
    """Writes the table, repeated, in each format as one file; CSV as four, since one is never cut."""
    csv.field_size_limit(2**30)
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(map(json.loads, file) if table.suffix == ".jsonl" else csv.DictReader(file))
    times = max(1, megabytes * 10**6 // max(1, table.stat().st_size))
    every = [
        {**row, "id": f"{copy}-{row.get('id', number)}"}
        for copy in range(times)
        for number, row in enumerate(rows)
    ]
    with (folder / "t.jsonl").open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in every)
    names = list(every[0])
    parts = []
    for part in range(4):
        parts.append(folder / f"{part}.csv")
        with parts[-1].open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(every[part * len(every) // 4 : (part + 1) * len(every) // 4])
    columns = pa.table({name: [row[name] for row in every] for name in names})
    pq.write_table(columns, folder / "t.parquet", row_group_size=_ROW_GROUP)
    del rows, every, columns
    return {"jsonl": [folder / "t.jsonl"], "csv": parts, "parquet": [folder / "t.parquet"]}


def config_of(paths: list[Path], text: str) -> RunConfig:
    """Returns the options with which the files are read."""
    return RunConfig(InputConfig(tuple(map(str, paths)), text_columns=(text,)), OutputConfig("out", "parquet"))


def read_part(
    config: RunConfig, sharding: Sharding, part: Iterable[int], planned: InputFacts | None = None
) -> int:
    """Reads some shards as a process does that was started for them, and counts the rows."""
    table, _ = table_of(config)
    if planned is not None:
        trust_planned_files(table, planned)
    return sum(len(shard.records) for shard in read_shards(table, sharding, "null", part))


def scan_part(config: RunConfig, rank: int, of: int) -> list[SegmentScan]:
    """Scans the segments of one of several processes."""
    table, _ = table_of(config)
    parts = cut_segments(table, None, config)
    job = ScanJob(config, table.facts, _CUT, "")
    tasks = [ScanTask(job, part, at) for at, part in enumerate(parts)][rank::of]
    return [SegmentScan.parse(task.run(table).serialize(), "") for task in tasks]


def for_itself(config: RunConfig, rank: int, of: int, sharding: Sharding) -> int:
    """Does what one of several processes did before there were segments and places."""
    table, _ = table_of(config)
    for _ in table.records():
        pass
    for number in range(len(table.files)):
        content_sha256(table, number)
    plain = replace(sharding, file_rows=None, offsets=None, stretches=None)
    return read_part(config, plain, range(rank, sharding.shards or 0, of))


def costs(config: RunConfig, processes: int, start: float) -> dict[str, Any]:
    """Measures the processor seconds of one process and of several together, planning and reading."""
    table, _ = table_of(config)
    parts, ranks = cut_segments(table, None, config), range(processes)
    start = start if table.files[0].format == "parquet" else 0.0

    def scan() -> tuple[InputScan, int]:
        before = bytes_read()  # here, since a child that has ended adds what it has read
        return scan_input(table, None, config, _CUT), bytes_read() - before

    plan, (scanned, planned) = cost_of(scan, start)
    facts = input_facts(table, None, config.input, digests=scanned.digests)
    shards = range(scanned.sharding.shards or 0)
    read, rows = cost_of(lambda: read_part(config, scanned.sharding, shards, facts), start)
    scans = [cost_of(partial(scan_part, config, rank, processes), start) for rank in ranks]
    in_order = sorted((scan for _, some in scans for scan in some), key=lambda scan: scan.index)
    sharding = sharding_of(_CUT, parts, in_order)
    assert sharding == scanned.sharding
    shares = [shards_of(ShareConfig(rank, processes), sharding) for rank in ranks]
    reads = [cost_of(partial(read_part, config, sharding, share, facts), start) for share in shares]
    assert sum(count for _, count in reads) == rows == sharding.rows
    former, _ = cost_of(partial(for_itself, config, 1, processes, sharding), start)
    in_use = sum(map(bytes_in_use, map(Path, config.input.inputs)))
    scan_cost, read_cost = (sum(cost for cost, _ in some) for some in (scans, reads))
    return {
        "rows": rows,
        "shards": len(shards),
        "segments": len(parts),
        "bytes": sum(file.size or 0 for file in table.files),
        "bytes_of_columns_in_use": in_use,
        "bytes_read_by_planning_over_those": round(planned / in_use, 3),
        "one_process": {"plan": round(plan, 2), "read": round(read, 2)},
        "together": {"plan": round(scan_cost, 2), "read": round(read_cost, 2)},
        "together_over_one": round((scan_cost + read_cost) / (plan + read), 2),
        "each_for_itself_over_one": round(processes * former / (plan + read), 2),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("table", type=Path)
    options.add_argument("--text", default="text")
    options.add_argument("--megabytes", type=int, default=200)
    options.add_argument("--processes", type=int, default=8)
    options.add_argument("--segment-megabytes", type=int, default=20)
    options.add_argument("--formats", default=",".join(_FORMATS))
    options.add_argument("-o", "--out", type=Path)
    asked = options.parse_args()
    segments.SEGMENT_BYTES = asked.segment_megabytes * 10**6
    with tempfile.TemporaryDirectory() as name:
        inputs = make_inputs(asked.table, Path(name), asked.megabytes)
        start = start_of_probe(inputs["parquet"][0])
        found = {
            "machine": machine(),
            "versions": versions(sys.executable),
            "load_average_before": round(os.getloadavg()[0], 2),
            "megabytes": asked.megabytes,
            "processes": asked.processes,
            "segment_megabytes": asked.segment_megabytes,
            "start_of_the_probing_child": round(start, 2),
            **{
                form: costs(config_of(inputs[form], asked.text), asked.processes, start)
                for form in asked.formats.split(",")
            },
            "time": time.strftime("%Y-%m-%d"),
        }
    told = json.dumps(found, indent=2)
    print(told)
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(told + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
