"""What planning and reading cost 8 processes together, beside one: make bench-planning [TEXTS=file.jsonl].

    python -m benchmarks.planning TABLE [--megabytes N] [--processes N] [--segment-megabytes N] [-o OUT.json]

A table, CSV or JSON Lines, is repeated to N MB and written as JSON Lines, CSV and Parquet. One process plans and
reads all of it. Then each of several scans its segments and reads its part of the shards, as ranks do. Then each
does as before there were segments: it scans the whole input, and passes over the rows of others. Processor time,
user and system, of all processes and of those in which files are probed, from the open table on: without what a
process takes to start. Also the bytes of the file that planning reads. Never fails for a time.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.peers.__main__ import machine, versions
from embedkit.config import InputConfig, OutputConfig, RunConfig, ShareConfig
from embedkit.engines import segments
from embedkit.engines.open_input import table_of
from embedkit.engines.ranks import shards_of
from embedkit.engines.read_shards import read_shards
from embedkit.engines.scanning import ScanTask, scan_input
from embedkit.engines.segments import Cut, SegmentScan, cut_segments, sharding_of
from embedkit.manifest.schema import Sharding
from embedkit.storage import parser_probe

_CUT = Cut(4096, 64_000_000)
_FORMATS = ("jsonl", "csv", "parquet")
_ROW_GROUP = 50_000


def cpu_seconds() -> float:
    """User and system time of this process, and of its children that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def bytes_read() -> int:
    """What this process has read of files since it began."""
    for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines():
        if line.startswith("rchar"):
            return int(line.split()[1])
    return 0


def make_inputs(table: Path, folder: Path, megabytes: int) -> dict[str, list[Path]]:
    """The table, repeated, in each format, as one file; CSV as four, since one is never cut."""
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
    """The options under which the files are read."""
    return RunConfig(InputConfig(tuple(map(str, paths)), text_columns=(text,)), OutputConfig("out", "parquet"))


def one_process(config: RunConfig) -> dict[str, Any]:
    """Plans and reads all."""
    table, _ = table_of(config)
    began, read = cpu_seconds(), bytes_read()
    scanned = scan_input(table, None, config, _CUT)
    planned, of_plan = cpu_seconds(), bytes_read() - read
    rows = sum(len(shard.records) for shard in read_shards(table, scanned.sharding, "null"))
    parser_probe._PROBER.close()
    assert rows == scanned.sharding.rows
    size = sum(file.size or 0 for file in table.files)
    return {
        "cpu": cpu_seconds() - began,
        "cpu_plan": planned - began,
        "bytes_planned_over_bytes": of_plan / size,
        "rows": rows,
        "segments": len(cut_segments(table, None, config)),
        "scans": [],
    }


def scan_part(config: RunConfig, rank: int, of: int) -> dict[str, Any]:
    """Scans the segments of one of several processes."""
    table, _ = table_of(config)
    began = cpu_seconds()
    parts = cut_segments(table, None, config)
    tasks = [ScanTask(config, table.facts, part, _CUT, at, "") for at, part in enumerate(parts)][rank::of]
    scans = [task.run() for task in tasks]
    parser_probe._PROBER.close()
    return {"cpu": cpu_seconds() - began, "scans": [scan.serialize() for scan in scans]}


def read_part(config: RunConfig, rank: int, of: int, sharding: Sharding) -> dict[str, Any]:
    """Reads the shards of one of several processes."""
    table, _ = table_of(config)
    began = cpu_seconds()
    part = shards_of(ShareConfig(rank, of), sharding)
    rows = sum(len(shard.records) for shard in read_shards(table, sharding, "null", part))
    parser_probe._PROBER.close()
    return {"cpu": cpu_seconds() - began, "rows": rows}


def each_for_itself(config: RunConfig, rank: int, of: int, sharding: Sharding) -> dict[str, Any]:
    """Does what a process did before there were segments and places."""
    table, _ = table_of(config)
    began = cpu_seconds()
    for item in table.records():
        assert item
    for number, _ in enumerate(table.files):
        table.content_sha256(number)
    plain = replace(sharding, file_rows=None, offsets=None, stretches=None)
    rows = sum(len(shard.records) for shard in read_shards(table, plain, "null", range(rank, sharding.shards, of)))
    parser_probe._PROBER.close()
    return {"cpu": cpu_seconds() - began, "rows": rows}


def _serve(segment_bytes: int, work: Any, arguments: tuple[Any, ...], link: Any) -> None:
    segments.SEGMENT_BYTES = segment_bytes
    link.send(work(*arguments))


def in_processes(work: Any, some: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """The results of a function, each by a process of its own, two at a time."""
    context = multiprocessing.get_context("spawn")
    found = []
    for arguments in some:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(segments.SEGMENT_BYTES, work, arguments, theirs))
        process.start()
        theirs.close()
        found.append(ours.recv())
        process.join()
    return found


def costs(config: RunConfig, processes: int) -> dict[str, Any]:
    """Processor seconds of one process and of several together, planning and reading."""
    (alone,) = in_processes(one_process, [(config,)])
    ranks = range(processes)
    scanned = in_processes(scan_part, [(config, rank, processes) for rank in ranks])
    table, _ = table_of(config)
    scans = [SegmentScan.parse(scan, "") for of in scanned for scan in of["scans"]]
    parts = cut_segments(table, None, config)
    sharding = sharding_of(_CUT, parts, sorted(scans, key=lambda scan: scan.index))
    read = in_processes(read_part, [(config, rank, processes, sharding) for rank in ranks])
    assert sum(of["rows"] for of in read) == alone["rows"]
    before = in_processes(each_for_itself, [(config, rank, processes, sharding) for rank in ranks])
    together = sum(of["cpu"] for of in (*scanned, *read))
    return {
        "rows": alone["rows"],
        "shards": sharding.shards,
        "segments": alone["segments"],
        "bytes_read_by_planning_over_bytes": round(alone["bytes_planned_over_bytes"], 3),
        "one_process": {"plan": round(alone["cpu_plan"], 2), "plan_and_read": round(alone["cpu"], 2)},
        "together": {
            "plan": round(sum(of["cpu"] for of in scanned), 2),
            "plan_and_read": round(together, 2),
            "over_one": round(together / alone["cpu"], 2),
        },
        "each_for_itself_over_one": round(sum(of["cpu"] for of in before) / alone["cpu"], 2),
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
        found = {
            "machine": machine(),
            "versions": versions(sys.executable),
            "load_average_before": round(os.getloadavg()[0], 2),
            "megabytes": asked.megabytes,
            "processes": asked.processes,
            "segment_megabytes": asked.segment_megabytes,
            **{
                form: costs(config_of(inputs[form], asked.text), asked.processes)
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
