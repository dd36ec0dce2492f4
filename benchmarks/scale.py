"""Estimates the time of a job from the measured cost of its stages: the tables of docs/performance/cost.md.

    python -m benchmarks.scale

Seconds = start-up + planning + the slowest of the stages that run side by side + finishing. Constants are those of
the newest files in benchmarks/results (make bench, make bench-host). How fast a GPU is was never measured: what
is taken for it is a goal. `make docs-tables` puts the tables into the page.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
#: Tokens a second of BERT-base on one GPU: what is aimed at on an H200, and so many cores to tokenise for it.
GPU_GOAL, CORES_A_GPU = 2_500_000, 16
ROWS = (10**6, 10**8, 10**10)
_START_UP = "start-up: one line to one vector, beside sentence-transformers"
_MINUTE, _HOUR, _DAY, _YEAR = 60, 3600, 86400, 365 * 86400


@dataclass(frozen=True, slots=True)
class Constants:
    """What the pieces take.

    Attributes:
        start_up: seconds until the first vector.
        tokens_a_row: on average.
        plan: rows a second that are looked through before the first is computed, by one process.
        read, skip: rows a second that one process reads, and that it passes over because another has them.
        tokenise: tokens a second and core.
        write: MB of vectors a second that one process brings to disk, in full shards.
        commit: seconds that each shard takes beside that.
        finish: seconds a shard to list, check and hash all records in the end.
    """

    start_up: float
    tokens_a_row: float
    plan: float
    read: float
    skip: float
    tokenise: float
    write: float
    commit: float
    finish: float


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done, and with what.

    Attributes:
        rows: of the input.
        devices: each with a process of its own.
        rate: tokens a second of one of them.
        cores: that tokenise for each device.
        shard_rows, dims: rows of a shard, float32 values of a row.
    """

    rows: int
    devices: int
    rate: float
    cores: int
    shard_rows: int = 4096
    dims: int = 768


def stages(job: Job, of: Constants) -> dict[str, float]:
    """Seconds of each stage, if it had nothing to wait for; see `seconds` for which of them add up."""
    tokens, mine = job.rows * of.tokens_a_row, job.rows / job.devices
    shards = -(-job.rows // job.shard_rows)
    return {
        "start-up": of.start_up,
        "planning": job.rows / of.plan,
        "forward passes": tokens / (job.rate * job.devices),
        "tokenising": tokens / (of.tokenise * job.cores * job.devices),
        # Every process goes through the whole input.
        "reading": mine / of.read + (job.rows - mine) / of.skip,
        "writing": mine * job.dims * 4 / 1e6 / of.write + shards / job.devices * of.commit,
        "finishing": shards * of.finish,
    }


def seconds(job: Job, of: Constants) -> float:
    """Seconds of the whole: start-up, planning, then what runs side by side, then the manifest."""
    found = stages(job, of)
    one_after_another = ("start-up", "planning", "finishing")
    return sum(found[name] for name in one_after_another) + max(
        took for name, took in found.items() if name not in one_after_another
    )


def bottleneck(job: Job, of: Constants) -> str:
    """The stage that takes longest."""
    found = stages(job, of)
    return max(found, key=lambda name: found[name])


def newest(kind: str) -> dict[str, Any]:
    """The newest results of a kind."""
    path = max(RESULTS.glob(f"{kind}-cpu-*.json"))
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def measured() -> Constants:
    """The constants, by the newest results; the input is JSON Lines."""
    host, costs = newest("host"), newest("costs")
    most = max(host["shards"], key=int)
    return Constants(
        start_up=costs["answers"][_START_UP]["seconds"],
        tokens_a_row=host["tokenising"]["tokens_per_row"],
        plan=host["reading"]["jsonl_rows_planned_per_second"],
        read=host["reading"]["jsonl_rows_per_second"],
        skip=host["reading"]["jsonl_rows_skipped_per_second"],
        tokenise=host["tokenising"]["tokens_per_second_and_core"],
        write=host["writing"]["mb_written_per_second"],
        commit=host["writing"]["seconds_per_commit"],
        finish=host["shards"][most]["microseconds_per_shard"] / 1e6,
    )


def told(took: float) -> str:
    """Seconds in the unit that people would use."""
    for size, unit in ((_YEAR, "years"), (_DAY, "days"), (_HOUR, "h"), (_MINUTE, "min")):
        if took >= 2 * size:
            return f"{took / size:,.1f} {unit}" if took < 10 * size else f"{took / size:,.0f} {unit}"
    return f"{took:.0f} s"


def constants_table(of: Constants) -> str:
    rows = {
        "start-up": f"{of.start_up:.1f} s",
        "planning: all rows are checked before the first batch": f"{of.plan:,.0f} rows/s",
        "reading; skipping the rows of other processes": f"{of.read:,.0f}; {of.skip:,.0f} rows/s per process",
        "tokenising": f"{of.tokenise:,.0f} tokens/s per core",
        "writing Parquet with checksums, SHA-256 and sync": f"{of.write:,.0f} MB/s per process",
        "committing a shard": f"{1000 * of.commit:.1f} ms per shard",
        "finishing: records are listed, checked and hashed": f"{1e6 * of.finish:.0f} µs per shard",
    }
    return "\n".join(
        ["| stage | measured |", "| --- | --- |", *(f"| {name} | {what} |" for name, what in rows.items())]
    )


def predictions(of: Constants) -> str:
    """Time and first bottleneck: rows down, machines across."""
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
            f"BERT-base, {devices} GPU{'s' * (devices > 1)}": (devices, GPU_GOAL, CORES_A_GPU, 768)
            for devices in (1, 8, 64)
        },
    }
    lines = [f"| rows | {' | '.join(machines)} |", "| --- |" + " --- |" * len(machines)]
    for rows in ROWS:
        cells = []
        for devices, rate, of_device, dims in machines.values():
            job = Job(rows, devices, rate, of_device, dims=dims)
            cells.append(f"{told(seconds(job, of))}, {bottleneck(job, of)}")
        lines.append(f"| 10^{len(str(rows)) - 1} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page() -> str:
    """Return the tables as Markdown."""
    of = measured()
    cores = -(-GPU_GOAL // of.tokenise)
    return (
        f"{constants_table(of)}\n\n"
        f"Time, and the stage that takes longest, for JSON Lines with {of.tokens_a_row:.0f} tokens per row:\n\n"
        f"{predictions(of)}\n\n"
        f"A GPU that computes {GPU_GOAL / 1e6:g} M tokens/s needs {cores:.0f} such cores for tokenising.\n"
    )


if __name__ == "__main__":
    print(page())
