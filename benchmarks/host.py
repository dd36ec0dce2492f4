"""What a machine does for a job beside the forward passes, piece by piece: make bench-host [TEXTS=file.jsonl].

    python -m benchmarks.host TEXTS.jsonl [--rounds N] [--shards N,N] [--work FOLDER] [-o RESULTS.json]

Reading, planning, tokenising and writing on one core, committing a shard, and what an output of 10,000 and of
100,000 shards takes to resume and to finish. The median of the rounds, but for the last, which is done once. Times
are the processor's, but for what waits for the disk (writing). These are the constants of scale.py. FOLDER is on
the disk that is asked about. Never fails for a time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.costs import as_csv, made_up_shard, seconds
from benchmarks.peers.__main__ import machine, versions
from embedkit.config import InputConfig, ModelConfig
from embedkit.engines.accounting import account_for_rows
from embedkit.manifest.schema import Manifest, ShardRecord, Totals
from embedkit.manifest.shards import ShardCutter
from embedkit.models.repository.resolve import resolve_model
from embedkit.output.commit import OutputFolder
from embedkit.output.destination.folder import Folder
from embedkit.output.formats import Layout, make_sink
from embedkit.sources import open_table
from embedkit.storage.protocol import PublishedFile
from embedkit.tokenizer import TextTokenizer, load_tokenizer
from embedkit.types import TextCounts, Variant
from tests.manifest.plans import make_plan

_DIMS = 768
_SHARD_ROWS = 4096
#: Shards that are committed in a row.
_COMMITS = 50


def one_thread() -> None:
    """Keeps this process and the tokenizers' threads to one core."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def cpu_seconds(work: Callable[[], object]) -> float:
    """Returns the seconds of the one core that a work takes, whatever else runs there."""
    began = time.process_time()
    work()
    return time.process_time() - began


def middle(work: Callable[[], object], rounds: int) -> float:
    return statistics.median(cpu_seconds(work) for _ in range(rounds))


def reading(texts: Path, work: Path, rounds: int) -> dict[str, float]:
    """Measures rows a second: read for their texts, and skipped because another process has them."""
    rows = [json.loads(line) for line in texts.read_text(encoding="utf-8").splitlines()]
    as_csv(work / "all.csv", rows)
    pq.write_table(pa.table({name: [row[name] for row in rows] for name in ("id", "text")}), work / "all.parquet")
    found = {}
    for name, path in (("jsonl", texts), ("csv", work / "all.csv"), ("parquet", work / "all.parquet")):
        table = open_table(InputConfig((str(path),)))

        def read(table: Any = table) -> None:
            for _ in table.records():
                pass

        def plan(table: Any = table) -> None:
            table.scan(ShardCutter(_SHARD_ROWS).opens_shard)

        found[f"{name}_rows_per_second"] = round(len(rows) / middle(read, rounds))

        def skip(table: Any = table) -> None:
            for _ in table.records(lambda *_: False):
                pass

        found[f"{name}_rows_skipped_per_second"] = round(len(rows) / middle(skip, rounds))
        found[f"{name}_rows_planned_per_second"] = round(len(rows) / middle(plan, rounds))
    return found


def tokenising(texts: Path, rounds: int) -> dict[str, float]:
    """Measures tokens a second of MiniLM's tokenizer, which is BERT's, a shard at a time."""
    lines = texts.read_text(encoding="utf-8").splitlines()[:_SHARD_ROWS]
    some = [json.loads(line)["text"] for line in lines]
    folder = resolve_model(ModelConfig("minilm")).folder
    raw, _ = load_tokenizer(str(folder), casing="auto", known_casing=None, states_casing=True)
    tokenizer = TextTokenizer(raw, max_length=256)
    tokens = int(tokenizer.tokenize(some).n_used.sum())
    took = middle(lambda: tokenizer.tokenize(some), rounds)
    return {"tokens_per_second_and_core": round(tokens / took), "tokens_per_row": round(tokens / len(some), 1)}


def writing(work: Path, rounds: int) -> dict[str, float]:
    """Measures MB of vectors a second and a core, and the fixed time of a commit."""
    sink = make_sink("parquet", Layout((Variant("", _DIMS),), "float32", False, {}, {}))
    full = made_up_shard(0, np.random.default_rng(0).standard_normal((_SHARD_ROWS, _DIMS), np.float32))
    tiny = [made_up_shard(index, full.vectors[""][:1]) for index in range(1, _COMMITS + 1)]

    def encode() -> None:
        with (work / "part.parquet").open("wb") as file:
            sink.write(full, lambda _: file)

    took, of_commits, of_shards = [], [], []
    for attempt in range(rounds):
        folder = Folder(work / f"committed-{attempt}", "error")
        folder.begin(make_plan())
        took.append(cpu_seconds(encode))
        of_shards.append(seconds(lambda folder=folder: folder.write(full, sink)))
        of_commits.append(seconds(lambda folder=folder: [folder.write(shard, sink) for shard in tiny]))
    size, encoding, commit = (
        full.vectors[""].nbytes / 1e6,
        statistics.median(took),
        statistics.median(of_commits) / _COMMITS,
    )
    return {
        "mb_encoded_per_second": round(size / encoding),
        # Encoded, hashed and synced; without what an empty shard takes, too.
        "mb_written_per_second": round(size / max(encoding, statistics.median(of_shards) - commit)),
        "seconds_per_commit": round(commit, 5),
    }


def many_shards(work: Path, shards: int) -> dict[str, float]:
    """Times an output of so many shards: its plan, listing and reading its records, its manifest."""
    output = OutputFolder(work / f"shards-{shards}")
    plan = make_plan(shards * _SHARD_ROWS, _SHARD_ROWS)
    counts = TextCounts(_SHARD_ROWS, {"ok": _SHARD_ROWS}, 0, 0)
    took = {"plan": cpu_seconds(lambda: output.join_plan(plan)) + cpu_seconds(output.read_plan)}
    (output.path / "embeddings").mkdir()
    for index, (start, stop) in (plan.sharding.ranges or {}).items():
        name = f"embeddings/part-{index:05d}.parquet"
        (output.path / name).write_bytes(b"vectors")
        files = (PublishedFile(name, 7, "0" * 64),)
        record = ShardRecord(index, start, stop, _SHARD_ROWS, 0, counts, counts, has_units=False, files=files)
        (output.path / "commits" / f"{index:05d}.json").write_bytes(record.serialize())
    records: dict[int, ShardRecord] = {}
    took["list and read the records"] = cpu_seconds(lambda: records.update(output.committed()))
    assert len(records) == shards
    in_order = [records[index] for index in sorted(records)]
    told = OutputFolder(output.path)
    told.read_plan()
    took["be told of the records"] = cpu_seconds(
        lambda: [told.adopt(output.acknowledgement(of)) for of in in_order]
    )
    took["list the records that it was told of"] = cpu_seconds(told.committed)

    def account() -> None:
        account_for_rows(in_order, plan)
        Totals.of(in_order)

    took["account for all rows"] = cpu_seconds(account)
    took["look for leftovers"] = cpu_seconds(told.remove_leftovers)
    manifest = Manifest.of(plan, in_order, Totals.of(in_order))
    took["hash all records and write the manifest"] = cpu_seconds(lambda: told.write_manifest(manifest))
    took["read all records for that"] = cpu_seconds(output.hashes) - cpu_seconds(told.hashes)
    # What only a run does that was told of no commits, such as the last one of several ranks.
    reading = took["list and read the records"] - took["list the records that it was told of"]
    reading += took["read all records for that"]
    only_readers = ("list and read the records", "read all records for that")
    total = sum(of for what, of in took.items() if what not in only_readers)
    return {
        **{what: round(of, 3) for what, of in took.items()},
        "microseconds_per_shard": round(1e6 * total / shards),
        "microseconds_per_record_read": round(1e6 * reading / shards),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("texts", type=Path)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--shards", default="10000,100000")
    options.add_argument("--work", type=Path)
    options.add_argument("-o", "--out", type=Path)
    asked = options.parse_args()
    one_thread()
    with tempfile.TemporaryDirectory(dir=asked.work) as name:
        work = Path(name)
        found = {
            "machine": machine(),
            "versions": versions(sys.executable),
            "load_average_before": round(os.getloadavg()[0], 2),
            "reading": reading(asked.texts, work, asked.rounds),
            "tokenising": tokenising(asked.texts, asked.rounds),
            "writing": writing(work, asked.rounds),
            "shards": {count: many_shards(work, int(count)) for count in asked.shards.split(",")},
        }
    told = json.dumps(found, indent=2)
    print(told)
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(told + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
