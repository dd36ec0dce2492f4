"""Memory of the process that runs `encode --engine ray`, with many shards: a part of make bench-ray.

    python -m benchmarks.driver [--shards 1000,100000] [-o RESULT.json]

The engine, the plan, the records and the manifest are the real ones; the actors are the tests' fakes, which say
that that they have committed a shard at once, so that 100,000 take half a minute. Their records, of 4,096 rows,
lie in a folder before. Each number of shards has a process of its own. Its resident memory is told when the
modules of a run and Ray are imported, and at its peak after each stage. Not in it: what Ray's client takes for
its connection.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.peers.__main__ import machine, versions
from embedkit.engines.accounting import account_for_rows
from embedkit.engines.base import ShardJob
from embedkit.engines.ray import RayEngine
from embedkit.manifest.schema import Manifest, ShardRecord, Totals
from embedkit.output.commit import OutputFolder
from embedkit.output.destination.folder import Folder
from embedkit.output.formats import layout_of, make_sink
from embedkit.storage.protocol import PublishedFile
from embedkit.types import TextCounts
from tests.engines.fake_ray import FakeActor, FakeCluster, setup
from tests.manifest.plans import make_plan

_SHARD_ROWS = 4096
#: Words what a worker says of a commit; writes nothing.
_WRITER = OutputFolder(Path())


def peak_mb() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1)


def record_of(shard: int) -> ShardRecord:
    name = f"embeddings/part-{shard:05d}.parquet"
    counts = TextCounts(_SHARD_ROWS, {"ok": _SHARD_ROWS}, 0, 0)
    start = shard * _SHARD_ROWS
    files = (PublishedFile(name, 7, "0" * 64),)
    return ShardRecord(
        shard, start, start + _SHARD_ROWS, _SHARD_ROWS, 0, counts, counts, has_units=False, files=files
    )


def write_records(folder: Path, shards: int) -> None:
    """Writes the plan of an output of so many shards, and the records that its workers will have written."""
    output = OutputFolder(folder)
    output.join_plan(make_plan(shards * _SHARD_ROWS, _SHARD_ROWS, fingerprint="f", engine="fused"))
    (folder / "embeddings").mkdir()
    for shard in range(shards):
        record = record_of(shard)
        (folder / record.files[0].path).write_bytes(b"vectors")
        (folder / "commits" / f"{shard:05d}.json").write_bytes(record.serialize())


class Silent:
    """Callbacks that tell nobody."""

    def notice(self, sentence: str) -> None: ...

    def shard_done(self, rows: int) -> None: ...


class Uncounted(Counter[int]):
    """Counters of the fake that take no memory."""

    def __setitem__(self, shard: int, count: int) -> None: ...


class CommittingActor(FakeActor):
    """Tells of its commits what a worker does."""

    def messages(self, seconds: float) -> list[str]:
        oldest = self.held[0] if self.held else None
        messages: list[str] = []
        for text in super().messages(seconds):
            if "done" in json.loads(text) and oldest is not None:
                messages.append(json.dumps({"committed": _WRITER.acknowledgement(record_of(oldest))}))
            messages.append(text)
        return messages


class CommittingCluster(FakeCluster):
    def create(self) -> CommittingActor:
        self.actors.append(CommittingActor(self, len(self.actors)))
        return self.actors[-1]


def drive(folder: Path, shards: int) -> dict[str, Any]:
    """Runs the shards in this process; returns its memory and seconds."""
    import ray  # noqa: F401 - a run has it

    found: dict[str, Any] = {"mb_when_imported": peak_mb()}
    began = time.process_time()
    cluster = CommittingCluster(8)
    cluster.given, cluster.committed = Uncounted(), Uncounted()
    destination = Folder(folder, "resume")
    plan = destination.open()
    assert plan is not None
    found["peak_mb_with_the_plan"] = peak_mb()
    made, _ = setup(shards, Silent(), threading.Event(), workers=8)
    with RayEngine(made, cluster) as engine:
        engine.load()
        records = engine.run(ShardJob(plan, destination, {}, range(shards)))
    assert len(records) == shards
    found["peak_mb_when_all_are_committed"] = peak_mb()
    in_order = [records[index] for index in sorted(records)]
    account_for_rows(in_order, plan)
    destination.finish(
        make_sink(plan.format, layout_of(plan)),
        Manifest.of(plan, in_order, Totals.of(in_order, plan.sharding.rows)),
    )
    return found | {"peak_mb": peak_mb(), "cpu_seconds": round(time.process_time() - began, 1)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--shards", default="1000,100000")
    options.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    options.add_argument("-o", "--output", type=Path)
    asked = options.parse_args()
    if asked.drive:
        print(json.dumps(drive(asked.drive, int(asked.shards))))
        return
    found: dict[str, Any] = {
        "machine": machine(),
        "versions": versions(sys.executable) | {"ray": version("ray")},
        "load_average": round(os.getloadavg()[0], 2),
        "shards": {},
    }
    counts = [int(count) for count in asked.shards.split(",")]
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            write_records(Path(name) / "out", count)
            words = (sys.executable, "-m", "benchmarks.driver", "--shards", count, "--drive", Path(name) / "out")
            ran = subprocess.run(list(map(str, words)), stdout=subprocess.PIPE, check=True)
            found["shards"][count] = json.loads(ran.stdout)
    grown = found["shards"][counts[-1]]["peak_mb"] - found["shards"][counts[0]]["peak_mb"]
    found["bytes_per_shard"] = round(1e6 * grown / (counts[-1] - counts[0]))
    text = json.dumps(found, indent=2)
    print(text)
    if asked.output:
        asked.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
