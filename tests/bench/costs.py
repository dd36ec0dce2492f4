"""What a job costs beside the forward passes, and that cost follows the work: make bench-costs [TEXTS=file.jsonl].

    python -m tests.bench.costs TEXTS.jsonl [--rounds N] [-o RESULTS.json]

Every question is a ratio of two times of the same run, in turn, the median of the rounds. Never fails for a time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from embedkit import Encoder
from embedkit.cli.progress import make_watcher
from embedkit.config import InputConfig, ModelConfig, OutputConfig, PoolingConfig, RunConfig
from embedkit.engines.local import run
from embedkit.records import EncodedShard, Variant
from embedkit.sinks import Layout, make_sink
from embedkit.sources import open_table
from tests.bench.peers.__main__ import LIBRARIES, machine, versions
from tests.bench.peers.models import bert_base, minilm

THEIRS = """
import sys
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu")
print(model.encode([sys.stdin.readline()])[0, :4].tolist())
"""
Work = Callable[[], object]


def seconds(work: Work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compared(work: Work, other: Work, rounds: int) -> dict[str, float]:
    """Seconds of both, and the median of their ratio."""
    pairs = [(seconds(work), seconds(other)) for _ in range(rounds)]
    return {
        "seconds": round(statistics.median(pair[0] for pair in pairs), 3),
        "beside": round(statistics.median(pair[1] for pair in pairs), 3),
        "ratio": round(statistics.median(mine / other for mine, other in pairs), 3),
    }


def layers(folder: Path, texts: list[str], rounds: int) -> dict[str, Any]:
    """A third of the layers; all layers and four poolings at once; half of the texts copies of the others."""
    last = Encoder(folder, pool="mean")
    fourth = Encoder(folder, pool="mean", layers="4")
    every = Encoder(folder, pool="cls,mean,max,min", layers="all", layer_agg="separate")
    half = texts[: len(texts) // 2]
    for encoder in (last, fourth):
        encoder.encode(texts)
    return {
        "layer 4 of 12, beside layer 12": compared(
            lambda: fourth.encode(texts), lambda: last.encode(texts), rounds
        ),
        "13 layers x 4 poolings, beside one vector": compared(
            lambda: every.encode_variants(texts), lambda: last.encode(texts), rounds
        ),
        "half of the texts copies, beside none": compared(
            lambda: last.encode([*half, *half]), lambda: last.encode(texts), rounds
        ),
    }


def long_texts(folder: Path, texts: list[str], rounds: int) -> dict[str, Any]:
    """The same tokens in one text of windows, and in texts that each fill a window."""
    words = " ".join(texts).split()
    whole = " ".join(words[:12_000])
    pieces = [" ".join(words[start : start + 100]) for start in range(0, 12_000, 100)]
    windows = Encoder(folder, pool="mean", max_length=256, on_long="chunk")
    plain = Encoder(folder, pool="mean", max_length=256)
    return {
        "one text of 12,000 words in windows, beside as many words in short texts": compared(
            lambda: windows.encode([whole]), lambda: plain.encode(pieces), rounds
        )
    }


def start_up(folder: Path, rounds: int) -> dict[str, Any]:
    """One line to one vector, as whole processes."""
    line = b'{"text": "no acute distress"}\n'

    def ours() -> None:
        command = ["encode", "-", "--format", "jsonl", "-m", str(folder), "-o", "-", "-q"]
        subprocess.run([sys.executable, "-m", "embedkit", *command], input=line, check=True, capture_output=True)

    def theirs() -> None:
        command = [sys.executable, "-c", THEIRS, str(folder)]
        subprocess.run(command, input=b"no acute distress\n", check=True, capture_output=True)

    def helps() -> None:
        subprocess.run([sys.executable, "-m", "embedkit", "--help"], check=True, capture_output=True)

    return {
        "one line to one vector, beside sentence-transformers": compared(ours, theirs, rounds),
        "embedkit --help, seconds": round(statistics.median(seconds(helps) for _ in range(rounds)), 3),
    }


def reading_and_writing(texts: Path, work: Path, rounds: int) -> dict[str, Any]:
    """Rows of a CSV a second; MB of Parquet with page checksums a second."""
    import csv

    rows = [json.loads(line) for line in texts.read_text(encoding="utf-8").splitlines()]
    with (work / "all.csv").open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["id", "text"])
        writer.writerows((row["id"], row["text"]) for row in rows)

    def read() -> None:
        for _ in open_table(InputConfig((str(work / "all.csv"),))).records():
            pass

    vectors = np.random.default_rng(0).standard_normal((8192, 768), np.float32)
    n_rows, counts = len(vectors), np.ones(len(vectors), np.int32)
    sink = make_sink("parquet", Layout((Variant("", 768),), "float32", False, {}, {}))
    shard = EncodedShard(
        *(0, 0, n_rows, [str(row) for row in range(n_rows)], {}, counts, counts, counts, ["ok"] * n_rows),
        has_vector=np.ones(n_rows, np.bool_),
        vectors={"": vectors},
        rejects=[],
    )

    def create(name: str) -> Any:
        (work / name).parent.mkdir(exist_ok=True)
        return (work / name).open("wb")

    write = statistics.median(seconds(lambda: sink.write(shard, create)) for _ in range(rounds))
    reads = statistics.median(seconds(read) for _ in range(rounds))
    return {
        "rows of csv read": len(rows),
        "seconds to read them": round(reads, 2),
        "MB of Parquet a second": round(vectors.nbytes / 1e6 / write),
    }


def end_to_end(folder: Path, texts: Sequence[str], work: Path, rounds: int) -> dict[str, Any]:
    """CSV to a committed folder of Parquet, beside the same texts in memory; both with the model loaded."""
    import csv

    with (work / "some.csv").open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["text"])
        writer.writerows([text] for text in texts)
    config = RunConfig(
        InputConfig((str(work / "some.csv"),)),
        OutputConfig(str(work / "out"), "parquet", on_exists="overwrite"),
        ModelConfig(str(folder)),
        pooling=PoolingConfig(pool="mean"),
    )
    encoder = Encoder(folder, pool="mean")
    encoder.encode(list(texts[:64]))
    pairs: list[tuple[float, float]] = []
    for _ in range(rounds):
        summary = run(config, make_watcher("none", quiet=True), threading.Event())
        pairs.append((summary.encoding_seconds, seconds(lambda: encoder.encode(list(texts)))))
    return {
        "rows": len(texts),
        "seconds from csv to Parquet": round(statistics.median(files for files, _ in pairs), 3),
        "Encoder.encode": round(statistics.median(memory for _, memory in pairs), 3),
        "share of the speed in memory": round(statistics.median(memory / files for files, memory in pairs), 3),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("texts", type=Path)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--rows", type=int, default=2000)
    options.add_argument("-o", "--out", type=Path)
    asked = options.parse_args()
    with asked.texts.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in islice(lines, max(asked.rows, 400))]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        small, base = minilm(work), bert_base(work)
        found: dict[str, Any] = {
            "machine": machine(),
            "versions": {library: of for library, of in versions(sys.executable).items() if library in LIBRARIES},
            "start_up": start_up(small, asked.rounds),
            "layers": layers(base, texts[:64], asked.rounds),
            "long_texts": long_texts(small, texts[:400], asked.rounds),
            "files": reading_and_writing(asked.texts, work, asked.rounds),
            "end_to_end": end_to_end(small, texts[: asked.rows], work, asked.rounds),
        }
    told = json.dumps(found, indent=2)
    print(told)
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(told + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
