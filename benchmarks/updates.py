"""The cost of `encode --update`: a table of old and new rows against the new rows alone, in turn.

    python -m benchmarks.updates TABLE.csv [--old 6000] [--new 600] [--runs 3] [-m minilm] [-o RESULT.json]

TABLE.csv has `id` and `text`. The new rows are spread evenly over the old ones, so that every shard has some. Each
run is a process of its own; prints JSON with the seconds of the processor and of the clock of every run, and the
ratio of the medians. The load averages say whether other work shared the processor: seconds of the clock then mean
nothing.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peers.__main__ import machine, versions


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("table", type=Path)
    options.add_argument("--old", type=int, default=6000, help="rows")
    options.add_argument("--new", type=int, default=600, help="rows")
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("-m", "--model", default="minilm")
    options.add_argument("-o", "--output", type=Path)
    asked = options.parse_args()
    csv.field_size_limit(sys.maxsize)
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        split(asked.table, folder, asked.old, asked.new)
        encode(asked.model, folder / "old.csv", "-o", folder / "old", "--keep-hashes")
        runs: dict[str, list[dict[str, float]]] = {"new rows alone": [], "update": []}
        for _ in range(asked.runs):
            for label, table, *update in (
                ("new rows alone", "new.csv"),
                ("update", "all.csv", "--update", folder / "old"),
            ):
                out = ("-o", folder / "out", "--on-exists", "overwrite")
                runs[label].append(encode(asked.model, folder / table, *update, *out))
    medians = {label: {key: median(run[key] for run in of) for key in of[0]} for label, of in runs.items()}
    ratio = {key: round(of / medians["new rows alone"][key], 3) for key, of in medians["update"].items()}
    found = {
        "machine": machine(),
        "versions": versions(sys.executable),
        "load_average": [round(of, 2) for of in (*load, os.getloadavg()[0])],
        "rows": {"old": asked.old, "new": asked.new},
        "model": asked.model,
        "runs": runs,
        "ratio": ratio,
    }
    text = json.dumps(found, indent=2)
    print(text)
    if asked.output:
        asked.output.write_text(text + "\n", encoding="utf-8")


def split(table: Path, folder: Path, old: int, new: int) -> None:
    """Writes old.csv, new.csv, and all.csv with the rows of both."""
    with table.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        header = next(reader)
        rows = list(islice(reader, old + new))
    every = len(rows) // new
    is_new = [at % every == 0 and at // every < new for at in range(len(rows))]
    parts = {
        "old.csv": [row for row, later in zip(rows, is_new, strict=True) if not later],
        "new.csv": [row for row, later in zip(rows, is_new, strict=True) if later],
        "all.csv": rows,
    }
    for name, part in parts.items():
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *part])


def encode(model: str, *arguments: Any) -> dict[str, float]:
    """Returns the seconds of one encode in a process of its own."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "embedkit", "encode", "-q", "-m", model, *map(str, arguments)]
    subprocess.run(command, check=True, env=os.environ)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"processor_seconds": round(used, 2), "clock_seconds": round(time.perf_counter() - began, 2)}


if __name__ == "__main__":
    main()
