"""Held against a table of real texts: numbers, formats, memory, and speed beside sentence-transformers.

    python -m benchmarks.real TEXTS.jsonl [--peer PYTHON]

TEXTS.jsonl has `id` and `text`, 5,000 rows or more. PYTHON is the interpreter of an environment that has
sentence-transformers. Prints what it measured as JSON; fails where an answer is wrong, never for a time.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np

ROWS, FEW_ROWS, ORACLE_ROWS, TIMED_ROWS, ROUNDS = 5000, 500, 200, 400, 5
POOLINGS = ("cls", "mean", "max", "min", "mean_sqrt_len", "weightedmean", "lasttoken")

_TIMED = """
import json, sys, time
texts = json.load(sys.stdin)
{setup}
encode(texts[:32])
began = time.perf_counter()
vectors = encode(texts)
print(json.dumps({{"seconds": time.perf_counter() - began, "first": [float(x) for x in vectors[0]]}}))
"""
OURS = "import embedkit; encode = embedkit.Encoder('minilm', device='cpu').encode"
THEIRS = """
from sentence_transformers import SentenceTransformer
model = SentenceTransformer({folder!r}, device='cpu')
encode = lambda texts: model.encode(texts, show_progress_bar=False)
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("texts", type=Path)
    options.add_argument("--peer", help="python of an environment with sentence-transformers")
    asked = options.parse_args()
    with asked.texts.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, ROWS)]
    found = {
        "machine": f"{platform.processor() or platform.machine()}, {platform.system()}",
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "pyarrow")},
        "numbers": numbers([row["text"] for row in rows[:ORACLE_ROWS]]),
        **formats_and_memory(rows),
    }
    if asked.peer:
        found["speed"] = speed([row["text"] for row in rows[:TIMED_ROWS]], asked.peer)
    print(json.dumps(found, indent=2))


def numbers(texts: list[str]) -> dict[str, float]:
    """Prints the largest |Δ| to plain transformers, one text at a time, over all layers and poolings of MiniLM."""
    from embedkit import Encoder
    from embedkit.config import ModelConfig
    from embedkit.models.repository.resolve import resolve_model
    from tests.oracle import Oracle, pool

    encoder = Encoder("minilm", layers="all", layer_agg="separate", pool=",".join(POOLINGS))
    vectors = encoder.encode_variants(texts)
    oracle = Oracle(resolve_model(ModelConfig("minilm")).folder, max_length=512)
    worst = 0.0
    for row, text in enumerate(texts):
        for layer, states in enumerate(oracle.states(text).layers):
            expected = np.concatenate([pool(name, states) for name in POOLINGS])
            found = vectors[f"L{layer:02d}_{'_'.join(POOLINGS)}"][row]
            scale = max(1.0, np.abs(expected).max())
            worst = max(worst, float(np.abs(found - expected).max() / scale))
    assert worst <= 1e-5, worst
    return {"texts": len(texts), "layers": 7, "poolings": len(POOLINGS), "largest_difference": worst}


def formats_and_memory(rows: list[dict[str, str]]) -> dict[str, object]:
    """Checks that CSV and JSON Lines of the same rows give the same vectors; measures memory of few and many."""
    import embedkit

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "a.jsonl").open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with (folder / "a.csv").open("w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        memory = {
            rows_used: encode(folder / "a.jsonl", folder / f"jsonl-{rows_used}", rows_used)
            for rows_used in (FEW_ROWS, ROWS)
        }
        encode(folder / "a.csv", folder / "csv", ROWS)
        of_jsonl, of_csv = embedkit.read(folder / f"jsonl-{ROWS}"), embedkit.read(folder / "csv")
        assert of_jsonl.ids == of_csv.ids == [row["id"] for row in rows]
        assert np.array_equal(of_jsonl.vectors, of_csv.vectors)
    grown = memory[ROWS] - memory[FEW_ROWS]
    assert grown < 100, memory
    return {"csv_equals_jsonl": True, "peak_rss_mib": memory, "rss_grown_mib": round(grown, 1)}


def encode(source: Path, out: Path, limit: int) -> float:
    """Runs the command line; returns its peak memory in MiB."""
    code = (
        "import sys, resource; from embedkit.cli import run; code = run(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "encode", str(source), "-o", str(out), "--limit", str(limit), "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return round(float(done.stdout), 1)


def speed(texts: list[str], peer: str) -> dict[str, object]:
    """Measures rows a second in memory, ours and theirs in turn, and the median of the ratios."""
    from embedkit.config import ModelConfig
    from embedkit.models.repository.resolve import resolve_model

    theirs = THEIRS.format(folder=str(resolve_model(ModelConfig("minilm")).folder))
    pairs = [(timed(sys.executable, OURS, texts), timed(peer, theirs, texts)) for _ in range(ROUNDS)]
    ours, other = ([len(texts) / pair[side]["seconds"] for pair in pairs] for side in (0, 1))
    difference = np.abs(np.array(pairs[0][0]["first"]) - np.array(pairs[0][1]["first"])).max()
    assert difference < 1e-5, difference
    return {
        "rows": len(texts),
        "embedkit_rows_per_second": round(statistics.median(ours), 1),
        "sentence_transformers_rows_per_second": round(statistics.median(other), 1),
        "ratio": round(statistics.median(a / b for a, b in zip(ours, other, strict=True)), 2),
        "rounds": ROUNDS,
    }


def timed(python: str, setup: str, texts: list[str]) -> dict[str, object]:
    done = subprocess.run(
        [python, "-c", _TIMED.format(setup=setup)],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"},
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
