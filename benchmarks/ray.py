"""Speed of `--engine ray` against the worker pool, with as many workers on this machine, in turn.

    python -m benchmarks.ray TEXTS.jsonl [--rows 4800] [--workers 2] [--runs 5] [-m minilm] [-o RESULT.json]

TEXTS.jsonl has `id` and `text`, as `python -m benchmarks.texts` writes it. Each run is a process of its own, and
with Ray one that starts its own; which of the two is first alternates. Prints JSON: for every run the seconds
before the first shard was committed (start-up: imports, Ray, the model) and the rows per second after it; the
ratio of the medians, and that of each pair of neighbours. Small shards measure what a shard costs; with few, one
worker waits in the end for the other's last, which alone moves a ratio by up to 3 % with 38 shards. The load
averages say whether other work shared the processor: then no ratio means much, since Linux may divide the
processor by sessions, and Ray has more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peers.__main__ import machine, versions


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("texts", type=Path)
    options.add_argument("--rows", type=int, default=4_800)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--shard-rows", type=int, default=128)
    options.add_argument("-m", "--model", default="minilm")
    options.add_argument("-o", "--output", type=Path)
    asked = options.parse_args()
    load = [os.getloadavg()[0]]
    runs: dict[str, list[dict[str, float]]] = {"pool": [], "ray": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with asked.texts.open("rb") as file:
            (folder / "rows.jsonl").write_bytes(b"".join(islice(file, asked.rows)))
        for number in range(asked.runs):
            pair = (("pool", "local"), ("ray", "ray"))
            for label, engine in pair if number % 2 == 0 else reversed(pair):
                arguments = ("-m", asked.model, "--workers", asked.workers, "--shard-rows", asked.shard_rows)
                runs[label].append(encode(folder, "--engine", engine, *arguments))
    rates = {label: median(run["rows_per_second"] for run in of) for label, of in runs.items()}
    found = {
        "machine": machine(),
        "versions": versions(sys.executable) | {"ray": version("ray")},
        "load_average": [round(of, 2) for of in (*load, os.getloadavg()[0])],
        "rows": asked.rows,
        "shard_rows": asked.shard_rows,
        "workers": asked.workers,
        "model": asked.model,
        "runs": runs,
        "startup_seconds": {label: median(run["startup_seconds"] for run in of) for label, of in runs.items()},
        "ratio": round(rates["ray"] / rates["pool"], 3),
        "ratios_of_neighbours": [
            round(ray["rows_per_second"] / pool["rows_per_second"], 3)
            for ray, pool in zip(runs["ray"], runs["pool"], strict=True)
        ],
    }
    text = json.dumps(found, indent=2)
    print(text)
    if asked.output:
        asked.output.write_text(text + "\n", encoding="utf-8")


def encode(folder: Path, *arguments: Any) -> dict[str, float]:
    """Returns the start-up and the speed of one run, by its events."""
    out = ("-o", folder / "out", "--on-exists", "overwrite", "--progress", "json")
    command = (sys.executable, "-m", "embedkit", "encode", folder / "rows.jsonl", *out, *arguments)
    began = time.perf_counter()
    committed: list[tuple[float, int]] = []
    lines: list[str] = []
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            lines.append(line)
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "shard":
                committed.append((time.perf_counter() - began, event["committed"]))
    if process.returncode:
        raise SystemExit("".join(lines[-5:]))
    (first, before), (last, rows) = committed[0], committed[-1]
    return {
        "startup_seconds": round(first, 2),
        "rows_per_second": round((rows - before) / (last - first), 1),
        "clock_seconds": round(time.perf_counter() - began, 2),
    }


if __name__ == "__main__":
    main()
