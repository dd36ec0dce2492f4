"""Estimates the time of a job from the measured cost of its stages: the tables of docs/performance/cost.md.

    python -m benchmarks.scale [--gpu-tokens N] [--put-seconds S]

Seconds = start-up + planning + the slowest of the stages that run side by side + finishing. Constants are those of
the newest files in benchmarks/results (make bench, make bench-host, python -m benchmarks.objects). Not measured,
and so options: how fast a GPU is (a goal), and how long a store takes to answer a put (what Amazon states for S3).
`make docs-tables` puts the tables into the page.

Assumed beside that: nothing fails; all processes are alike and as fast as the measured core; shards spread evenly;
a disk or a store serves all processes as well as it serves one; the input is JSON Lines in files or byte ranges of
1 GiB, so that all processes plan; each process commits one shard after another; Ray has the cores that tokenise to
plan with, before there is anything to tokenise.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
#: Tokens a second of BERT-base on one GPU: what is aimed at on an H200, and so many cores to tokenise for it.
GPU_GOAL, CORES_A_GPU = 2_500_000, 16
ROWS = (10**6, 10**8, 10**10)
#: Seconds that a store takes to answer a small put: the slower end of the 100 to 200 ms of Amazon's guide to the
#: performance of S3. A server on this machine answers faster, and says nothing about a store.
PUT_SECONDS = 0.2
#: Records that are read from a store at once, in the end; keys of a page of a listing; objects of a shard.
GETS_AT_ONCE, KEYS_A_PAGE, OBJECTS_A_SHARD = 64, 1000, 2
SEGMENT_BYTES = 2**30
#: Of English prose in JSON Lines.
BYTES_A_TOKEN = 4.5
#: Rows of a shard by default, and of a large one: of 768 values, 200 MB.
SHARD_ROWS, LARGE_SHARD_ROWS = 4096, 65_536
_START_UP = "start-up: one line to one vector, beside sentence-transformers"
_MINUTE, _HOUR, _DAY, _YEAR = 60, 3600, 86400, 365 * 86400


@dataclass(frozen=True, slots=True)
class Constants:
    """What the pieces take.

    Attributes:
        start_up: seconds until the first vector.
        tokens_a_row: on average.
        plan: rows a second that are looked through before the first is computed, by one process.
        read: rows a second that one process reads.
        tokenise: tokens a second and core.
        write: MB of vectors a second that one process brings to disk, in full shards.
        commit: seconds that each shard takes beside that.
        finish: seconds a shard to list, check and hash all records in the end, by who was told of all commits.
        read_records: seconds a shard to read them as well.
        puts: requests of a shard that write to an object store, or look at what was written.
    """

    start_up: float
    tokens_a_row: float
    plan: float
    read: float
    tokenise: float
    write: float
    commit: float
    finish: float
    read_records: float
    puts: float


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done, and with what.

    Attributes:
        rows: of the input.
        devices: each with a process of its own.
        rate: tokens a second of one of them.
        cores: that tokenise for each device.
        shard_rows, dims: rows of a shard, float32 values of a row.
        planners: processes that plan; by default one for each device, as ranks and workers on one machine do.
        put_seconds: of one small request to an object store; 0 for a disk.
        ranks: True for processes that know nothing of each other, so that the last one reads all records; False if
            the run is told of them, as it is by Ray's workers.
    """

    rows: int
    devices: int
    rate: float
    cores: int
    shard_rows: int = SHARD_ROWS
    dims: int = 768
    planners: int = 0
    put_seconds: float = 0.0
    ranks: bool = True


def stages(job: Job, of: Constants) -> dict[str, float]:
    """Returns the seconds of each stage, if it had nothing to wait for; see `seconds` for which of them add up."""
    tokens, mine = job.rows * of.tokens_a_row, job.rows / job.devices
    shards = -(-job.rows // job.shard_rows)
    segments = -(-int(tokens * BYTES_A_TOKEN) // SEGMENT_BYTES)
    commit = of.commit + of.puts * job.put_seconds
    listings = 2 if job.ranks else 1  # when the last shard is done, and for the manifest
    finish = of.finish + listings * OBJECTS_A_SHARD / KEYS_A_PAGE * job.put_seconds
    if job.ranks:
        finish += of.read_records + job.put_seconds / GETS_AT_ONCE
    return {
        "start-up": of.start_up,
        "planning": job.rows / (of.plan * min(job.planners or job.devices, segments)),
        "forward passes": tokens / (job.rate * job.devices),
        "tokenising": tokens / (of.tokenise * job.cores * job.devices),
        "reading": mine / of.read,
        "writing": mine * job.dims * 4 / 1e6 / of.write + shards / job.devices * commit,
        "finishing": shards * finish,
    }


def seconds(job: Job, of: Constants) -> float:
    """Returns the seconds of the whole: start-up, planning, then what runs side by side, then the manifest."""
    found = stages(job, of)
    one_after_another = ("start-up", "planning", "finishing")
    return sum(found[name] for name in one_after_another) + max(
        took for name, took in found.items() if name not in one_after_another
    )


def bottleneck(job: Job, of: Constants) -> str:
    """Returns the stage that takes longest."""
    found = stages(job, of)
    return max(found, key=lambda name: found[name])


def newest(kind: str) -> dict[str, Any]:
    """Returns the newest results of a kind."""
    path = max(RESULTS.glob(f"{kind}-cpu-*.json"))
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def measured() -> Constants:
    """Returns the constants, by the newest results; the input is JSON Lines."""
    host, costs, objects = newest("host"), newest("costs"), newest("objects")
    most = max(host["shards"], key=int)
    return Constants(
        start_up=costs["answers"][_START_UP]["seconds"],
        tokens_a_row=host["tokenising"]["tokens_per_row"],
        plan=host["reading"]["jsonl_rows_planned_per_second"],
        read=host["reading"]["jsonl_rows_per_second"],
        tokenise=host["tokenising"]["tokens_per_second_and_core"],
        write=host["writing"]["mb_written_per_second"],
        commit=host["writing"]["seconds_per_commit"],
        finish=host["shards"][most]["microseconds_per_shard"] / 1e6,
        # Older results have it in the former.
        read_records=host["shards"][most].get("microseconds_per_record_read", 0) / 1e6,
        puts=objects["requests_per_shard"]["PUT"] + objects["requests_per_shard"]["HEAD"],
    )


def told(took: float) -> str:
    """Returns seconds in the unit that people would use."""
    for size, unit in ((_YEAR, "years"), (_DAY, "days"), (_HOUR, "h"), (_MINUTE, "min")):
        if took >= 2 * size:
            return f"{took / size:,.1f} {unit}" if took < 10 * size else f"{took / size:,.0f} {unit}"
    return f"{took:.0f} s"


def constants_table(of: Constants) -> str:
    rows = {
        "start-up": f"{of.start_up:.1f} s",
        "planning: all rows are checked before the first batch": f"{of.plan:,.0f} rows/s per process",
        "reading": f"{of.read:,.0f} rows/s per process",
        "tokenising": f"{of.tokenise:,.0f} tokens/s per core",
        "writing Parquet with checksums, SHA-256 and sync": f"{of.write:,.0f} MB/s per process",
        "committing a shard": f"{1000 * of.commit:.1f} ms per shard",
        "finishing: records are listed, checked and hashed": f"{1e6 * of.finish:.0f} µs per shard",
        "requests to an object store that write or check": f"{of.puts:.0f} per shard",
    }
    if of.read_records:
        rows["reading the records of other ranks as well"] = f"{1e6 * of.read_records:.0f} µs per shard"
    return "\n".join(
        ["| stage | measured |", "| --- | --- |", *(f"| {name} | {what} |" for name, what in rows.items())]
    )


def predictions(of: Constants, rate: float) -> str:
    """Returns a table of time and first bottleneck: rows down, machines across."""
    peers = newest("peers")
    cores = peers["machine"]["cores"]
    paces = {
        model: peers[model]["contenders"]["embedkit fp32"]["tokens_per_second"]
        for model in ("minilm", "bert_base")
    }
    machines = {
        "MiniLM, this CPU": (1, paces["minilm"], cores, 384),
        "BERT-base, this CPU": (1, paces["bert_base"], cores, 768),
        **{
            f"BERT-base, {devices} GPU{'s' * (devices > 1)}": (devices, rate, CORES_A_GPU, 768)
            for devices in (1, 8, 64)
        },
    }
    lines = [f"| rows | {' | '.join(machines)} |", "| --- |" + " --- |" * len(machines)]
    for rows in ROWS:
        cells = []
        for devices, pace, of_device, dims in machines.values():
            job = Job(rows, devices, pace, of_device, dims=dims)
            cells.append(f"{told(seconds(job, of))}, {bottleneck(job, of)}")
        lines.append(f"| 10^{len(str(rows)) - 1} | {' | '.join(cells)} |")
    return "\n".join(lines)


def large(of: Constants, rate: float, put_seconds: float) -> str:
    """Returns all stages of 10^10 rows on 64 GPUs: by ranks and by Ray to a disk, and by Ray to a bucket."""
    devices = 64
    ray = Job(ROWS[-1], devices, rate, CORES_A_GPU, planners=devices * CORES_A_GPU, ranks=False)
    jobs = {
        "ranks, disk": Job(ROWS[-1], devices, rate, CORES_A_GPU),
        "Ray, disk": ray,
        f"Ray, bucket, shards of {SHARD_ROWS:,} rows": replace(ray, put_seconds=put_seconds),
        f"Ray, bucket, shards of {LARGE_SHARD_ROWS:,} rows": replace(
            ray, put_seconds=put_seconds, shard_rows=LARGE_SHARD_ROWS
        ),
    }
    found = {name: stages(job, of) for name, job in jobs.items()}
    lines = [f"| stage | {' | '.join(jobs)} |", "| --- |" + " --- |" * len(jobs)]
    for stage in stages(ray, of):
        cells = [told(took[stage]) for took in found.values()]
        lines += [f"| {stage} | {' | '.join(cells)} |"]
    lines.append(f"| in all | {' | '.join(told(seconds(job, of)) for job in jobs.values())} |")
    lines.append(f"| longest | {' | '.join(bottleneck(job, of) for job in jobs.values())} |")
    return "\n".join(lines)


def page(rate: float = GPU_GOAL, put_seconds: float = PUT_SECONDS) -> str:
    """Returns the tables as Markdown."""
    of = measured()
    cores = -(-rate // of.tokenise)
    return (
        f"{constants_table(of)}\n\n"
        f"Time, and the stage that takes longest, for JSON Lines with {of.tokens_a_row:.0f} tokens per row:\n\n"
        f"{predictions(of, rate)}\n\n"
        f"A GPU that computes {rate / 1e6:g} M tokens/s needs {cores:.0f} such cores for tokenising.\n\n"
        f"10^10 rows on 64 such GPUs, to a disk, and to a bucket that answers in {1000 * put_seconds:.0f} ms:\n\n"
        f"{large(of, rate, put_seconds)}\n"
    )


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--gpu-tokens", type=float, default=GPU_GOAL, help="tokens a second of one GPU")
    options.add_argument("--put-seconds", type=float, default=PUT_SECONDS, help="of a store")
    asked = options.parse_args()
    print(page(asked.gpu_tokens, asked.put_seconds))
