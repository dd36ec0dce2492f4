"""What a job costs beside the forward passes, and that cost follows the work: make bench [TEXTS=file.jsonl].

    python -m benchmarks.costs TEXTS.jsonl [--rounds N] [--rows N] [-o RESULTS.json]

A row a question: what was measured, beside what, and the goal. Times are of the same run, in turn, and what is
told is the median of the rounds. Never fails for a time.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.__main__ import LIBRARIES, machine, versions
from benchmarks.peers.models import bert_base, minilm
from embedkit import Encoder
from embedkit.cli.progress import make_callbacks
from embedkit.config import InputConfig, ModelConfig, OutputConfig, PoolingConfig, RunConfig
from embedkit.engines.run import run
from embedkit.models.native.linear import bf16_instructions, int8_instructions
from embedkit.output.formats import Layout, make_sink
from embedkit.sources import open_table
from embedkit.types import EncodedShard, Variant

THEIRS = """
import sys
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu")
print(model.encode([sys.stdin.readline()])[0, :4].tolist())
"""
Task = Callable[[], object]


@dataclass(frozen=True)
class Answer:
    """One question answered.

    Attributes:
        value: what was measured, in `unit`.
        goal: such as "<= 0.40"; empty where there is none.
        seconds, beside: what a ratio is of.
    """

    value: float
    unit: str
    goal: str = ""
    seconds: float | None = None
    beside: float | None = None


Answers = dict[str, Answer]


def seconds(work: Task) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ratio(pairs: Sequence[tuple[float, float]], goal: str) -> Answer:
    """Returns the median of the ratios of both times of a round."""
    mine, other = (statistics.median(times) for times in zip(*pairs, strict=True))
    middle = statistics.median(of / beside for of, beside in pairs)
    return Answer(round(middle, 3), "x", goal, round(mine, 3), round(other, 3))


def compared(work: Task, other: Task, rounds: int, goal: str) -> Answer:
    return ratio([(seconds(work), seconds(other)) for _ in range(rounds)], goal)


def layers(folder: Path, texts: list[str], rounds: int) -> Answers:
    """Times a third of the layers, all layers with four poolings, and texts of which half are copies."""
    last = Encoder(folder, pool="mean")
    fourth = Encoder(folder, pool="mean", layers="4")
    every = Encoder(folder, pool="cls,mean,max,min", layers="all", layer_agg="separate")
    # Of short and of long texts alike, so that each half has half of the tokens.
    half = [text for place, text in enumerate(sorted(texts, key=len)) if place % 4 in (0, 3)]
    for encoder in (last, fourth):
        encoder.encode(texts)
    return {
        "deep and shallow: layer 4 of 12, beside layer 12": compared(
            lambda: fourth.encode(texts), lambda: last.encode(texts), rounds, "<= 0.40"
        ),
        "sweep: all 13 layers x 4 poolings, beside one vector": compared(
            lambda: every.encode_variants(texts), lambda: last.encode(texts), rounds, "<= 1.10"
        ),
        "copies: half of the texts, beside none": compared(
            lambda: last.encode([*half, *half]), lambda: last.encode(texts), rounds, "<= 0.53"
        ),
    }


def long_texts(folder: Path, texts: list[str], rounds: int) -> Answers:
    """Times the same tokens in one text of windows, and in texts that each fill a window."""
    words = " ".join(texts).split()
    whole = " ".join(words[:12_000])
    pieces = [" ".join(words[start : start + 100]) for start in range(0, 12_000, 100)]
    windows = Encoder(folder, pool="mean", max_length=256, on_long="chunk")
    plain = Encoder(folder, pool="mean", max_length=256)
    return {
        "long texts: one of 12,000 words in windows, beside as many words in short texts": compared(
            lambda: windows.encode([whole]), lambda: plain.encode(pieces), rounds, "<= 1.08"
        )
    }


def start_up(folder: Path, rounds: int) -> Answers:
    """Times whole processes that turn one line into one vector."""
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
        "start-up: one line to one vector, beside sentence-transformers": compared(
            ours, theirs, rounds, "<= 0.35"
        ),
        "start-up: embedkit --help": Answer(
            round(statistics.median(seconds(helps) for _ in range(rounds)), 3), "s", "<= 0.3"
        ),
    }


def reader(texts: Path, work: Path, rounds: int, rows_a_second: float) -> Answers:
    """Times reading a CSV beside encoding its rows."""
    rows = [json.loads(line) for line in texts.read_text(encoding="utf-8").splitlines()]
    as_csv(work / "all.csv", rows)

    def read() -> None:
        for _ in open_table(InputConfig((str(work / "all.csv"),))).records():
            pass

    reads, encodes = statistics.median(seconds(read) for _ in range(rounds)), len(rows) / rows_a_second
    return {
        f"reader: {len(rows):,} rows of csv, beside encoding them": Answer(
            round(reads / encodes, 5), "x", "< 0.02", round(reads, 3), round(encodes)
        )
    }


def as_csv(path: Path, rows: Sequence[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["id", "text"])
        writer.writerows((row["id"], row["text"]) for row in rows)


def writer(work: Path, rounds: int) -> Answers:
    """Times writing a shard of 4,096 rows as Parquet with page checksums."""
    vectors = np.random.default_rng(0).standard_normal((4096, 768), np.float32)
    sink = make_sink("parquet", Layout((Variant("", 768),), "float32", False, {}, {}))
    shard = made_up_shard(0, vectors)

    def create(name: str) -> Any:
        (work / name).parent.mkdir(exist_ok=True)
        return (work / name).open("wb")

    write = statistics.median(seconds(lambda: sink.write(shard, create)) for _ in range(rounds))
    return {"writer: Parquet": Answer(round(vectors.nbytes / 1e6 / write), "MB/s", ">= 150")}


def made_up_shard(index: int, vectors: np.ndarray) -> EncodedShard:
    """Makes a shard of the rows [index * N, (index + 1) * N) with these vectors [N, D]."""
    rows, counts = len(vectors), np.full(len(vectors), 90, np.int32)
    start = index * rows
    return EncodedShard(
        *(index, start, start + rows, [f"row-{start + row}" for row in range(rows)], {}),
        *(counts, counts, np.ones(rows, np.int32), ["ok"] * rows),
        has_vector=np.ones(rows, np.bool_),
        vectors={"": vectors},
        rejects=[],
    )


def end_to_end(folder: Path, texts: Sequence[str], work: Path, rounds: int) -> tuple[Answers, float]:
    """Times CSV to a committed folder of Parquet beside the same texts in memory, both with the model loaded.

    Returns:
        The answer, and the rows a second in memory.
    """
    as_csv(work / "some.csv", [{"id": str(row), "text": text} for row, text in enumerate(texts)])
    config = RunConfig(
        input=InputConfig((str(work / "some.csv"),)),
        output=OutputConfig(str(work / "out"), "parquet", on_exists="overwrite"),
        model=ModelConfig(str(folder)),
        pooling=PoolingConfig(pool="mean"),
    )
    encoder = Encoder(folder, pool="mean")
    encoder.encode(list(texts[:64]))
    pairs: list[tuple[float, float]] = []
    for _ in range(rounds):
        summary = run(config, make_callbacks("none", quiet=True), threading.Event())
        pairs.append((seconds(lambda: encoder.encode(list(texts))), summary.encoding_seconds))
    pace = len(texts) / statistics.median(memory for memory, _ in pairs)
    return {
        f"end to end: {len(texts):,} rows in memory, beside csv to committed Parquet": ratio(pairs, ">= 0.95")
    }, pace


def formats(folder: Path, texts: Sequence[str]) -> Answers:
    """Compares vectors in bf16 and int8 with those in fp32."""

    def vectors(dtype: str) -> np.ndarray:
        encoder = Encoder(folder, pool="mean", max_length=256, normalize=True, dtype=dtype)
        return encoder.encode(list(texts)).astype(np.float64)

    exact, answers = vectors("fp32"), {}
    goals = {"bf16": (bf16_instructions(), 0.9999), "int8": (int8_instructions(), 0.995)}
    for dtype, (instructions, goal) in goals.items():
        if instructions is None:
            continue
        cosines = np.einsum("nd,nd->n", exact, vectors(dtype))
        of = f"cosine to fp32 of {len(texts):,} texts"
        answers[f"{dtype}: least {of}"] = Answer(round(cosines.min(), 5), "", f">= {goal}")
        answers[f"{dtype}: mean {of}"] = Answer(round(cosines.mean(), 5), "")
    return answers


def table(answers: Answers) -> str:
    """Returns the results as a table in Markdown."""
    lines = ["| question | measured | goal | seconds | beside |", "| --- | ---: | --- | ---: | ---: |"]
    for question, of in answers.items():
        times = (str(time or "") for time in (of.seconds, of.beside))
        lines.append(f"| {question} | {of.value:g} {of.unit} | {of.goal} | {' | '.join(times)} |")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("texts", type=Path)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--rows", type=int, default=5000, help="for the job from end to end")
    options.add_argument("-o", "--out", type=Path)
    asked = options.parse_args()
    with asked.texts.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in islice(lines, asked.rows)]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        small, base = minilm(work), bert_base(work)
        whole, rows_a_second = end_to_end(small, texts, work, asked.rounds)
        answers = {
            **start_up(small, asked.rounds),
            **layers(base, texts[:40], asked.rounds),
            **long_texts(small, texts[:400], asked.rounds),
            **formats(small, texts[:2000]),
            **writer(work, asked.rounds),
            **whole,
            **reader(asked.texts, work, asked.rounds, rows_a_second),
        }
    print(table(answers))
    if asked.out:
        libraries = {library: of for library, of in versions(sys.executable).items() if library in LIBRARIES}
        found = {
            "machine": machine(),
            "versions": libraries,
            "answers": {question: asdict(of) for question, of in answers.items()},
        }
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
