"""embedkit beside its peers on a CPU, interleaved: make bench [TEXTS=file.jsonl].

    python -m benchmarks.peers TEXTS.jsonl --peers PYTHON [--rows N] [--rounds N] [-o RESULTS.json]

Every contender has loaded its model and chosen its best settings (libraries.py) before the first round. In each
round each encodes the same texts once, one after another, and the matrix products of the same shapes are computed,
which are the machine's own limit (limit.py). Ratios are of the same round; what is told is their median. Vectors
are held against embedkit's in fp32, and those against plain transformers, one text at a time. Never fails for a
time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hidden_instructions import hidden
from benchmarks.peers.models import bert_base, minilm
from embedkit.manifest.versions import processor
from embedkit.models.native.linear import bf16_instructions, int8_instructions

ROOT = Path(__file__).parents[2]
CONTENDER = "benchmarks.peers.contender"
#: Texts that are compared with plain transformers, that calibrate a quantisation, and that settings are chosen on.
ALONE, CALIBRATION, TUNING = 20, 32, 32
#: Seconds that a library may take to export or quantise a model and load it.
READY = 150.0
LIBRARIES = (
    "torch",
    "transformers",
    "tokenizers",
    "sentence-transformers",
    "onnxruntime",
    "optimum",
    "ctranslate2",
    "openvino",
    "nncf",
    "fastembed",
)


class ContenderError(Exception):
    """A library does not load or run the model; the message says why."""


@dataclass
class Contender:
    """A library with a type of number, in its own process."""

    kind: str
    dtype: str
    python: str
    seconds: list[float] = field(default_factory=list)
    peak_mib: float = 0.0
    settings: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind} {self.dtype}"

    def start(self, folder: Path, limit: float | None = None) -> None:
        """Starts it, and waits until its model is loaded, at most `limit` seconds.

        Raises:
            ContenderError: it does not load the model, or takes longer.
        """
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
        self.process = subprocess.Popen(
            [self.python, "-m", CONTENDER, self.kind, str(folder), self.dtype],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        # What is not ready in time is killed, which ends the wait for its answer.
        timer = threading.Timer(limit or threading.TIMEOUT_MAX, self.process.kill)
        timer.daemon = True
        timer.start()
        answer = self._answer()
        timer.cancel()
        if "ready" not in answer:
            self.stop()
            raise ContenderError(answer.get("reason", f"it ended, or was not ready in {limit} seconds"))

    def encode(self, texts: Path, out: Path | None = None, *, tune: bool = False) -> float:
        order = {"texts": str(texts), "out": out and str(out), "tune": tune}
        print(json.dumps(order), file=self.process.stdin, flush=True)
        answer = self._answer()
        if "seconds" not in answer:
            self.stop()
            raise ContenderError(answer.get("reason", "it ended"))
        self.peak_mib, self.settings = answer["peak_mib"], answer["settings"]
        return float(answer["seconds"])

    def stop(self) -> None:
        """Ends it."""
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        return dict(json.loads(line)) if line else {}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("texts", type=Path)
    options.add_argument("--peers", required=True, help="python with what `make .venv-peers/installed` installs")
    options.add_argument("--rows", type=int, default=300)
    options.add_argument("--base-rows", type=int, default=64)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("-o", "--out", type=Path)
    asked = options.parse_args()
    with asked.texts.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in islice(lines, max(asked.rows, asked.base_rows, 2000))]
    with tempfile.TemporaryDirectory() as name:
        found = {
            "machine": machine(),
            "versions": {
                "embedkit and sentence-transformers": versions(sys.executable),
                "others": versions(asked.peers),
            },
            "minilm": measure(minilm(Path(name)), texts, asked.rows, asked, Path(name)),
            "bert_base": measure(bert_base(Path(name)), texts, asked.base_rows, asked, Path(name)),
        }
    for model in ("minilm", "bert_base"):
        of = found[model]
        print(f"\n{model}, {of['rows']} texts, {of['rounds']} rounds, medians\n{table(of)}")
        print("".join(f"{name} does not run: {why}\n" for name, why in of["does_not_run"].items()), end="")
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def measure(
    folder: Path, texts: Sequence[str], rows: int, asked: argparse.Namespace, work: Path
) -> dict[str, Any]:
    """Measures all contenders on one model."""
    dtypes = ("fp32", "int8") if int8_instructions() else ("fp32",)
    ours = [Contender("embedkit", dtype, sys.executable) for dtype in dtypes]
    kinds = [("onnx", dtypes), ("openvino", dtypes), ("ctranslate2", dtypes), ("fastembed", ("fp32",))]
    theirs = [
        Contender("sentence-transformers", "fp32", sys.executable),
        *(Contender(kind, dtype, asked.peers) for kind, of in kinds for dtype in of),
    ]
    limits = [Contender("gemm", dtype, sys.executable) for dtype in dtypes]
    contenders = [*ours, *theirs, *limits]
    timed, few = work / "timed.json", work / "few.json"
    timed.write_text(json.dumps(list(texts[:rows])), encoding="utf-8")
    few.write_text(json.dumps(list(texts[:TUNING])), encoding="utf-8")
    # Texts of their own: those that are timed would flatter static quantisation.
    (folder / "calibration.json").write_text(json.dumps(list(texts[-CALIBRATION:])), encoding="utf-8")
    absent = {}
    for contender in [*contenders]:
        try:
            contender.start(folder, READY)
            contender.encode(few, tune=True)  # what is made at the first call is not timed
        except ContenderError as fault:
            absent[contender.name] = str(fault)
            contenders.remove(contender)
    if lost := absent.keys() & {contender.name for contender in (*ours, *limits)}:
        raise SystemExit(f"error: {min(lost)} does not run: {absent[min(lost)]}")
    vectors: dict[str, np.ndarray] = {}
    for contender in contenders:
        contender.encode(timed, work / "vectors.npy")
        vectors[contender.name] = np.load(work / "vectors.npy", allow_pickle=False)
    for _ in range(asked.rounds):
        for contender in contenders:
            contender.seconds.append(contender.encode(timed))
    for contender in contenders:
        contender.stop()
    lengths = token_lengths(folder, texts[:rows])
    exact, plain = vectors["embedkit fp32"], alone(folder, texts[: min(ALONE, rows)])

    def paces(contender: Contender) -> dict[str, float]:
        middle = statistics.median(contender.seconds)
        return {
            "rows_per_second": round(rows / middle, 1),
            "tokens_per_second": round(float(lengths.sum()) / middle),
        }

    return {
        "rows": rows,
        "rounds": asked.rounds,
        "tokens": int(lengths.sum()),
        "largest_difference_to_plain_transformers": float(np.abs(exact[: len(plain)] - plain).max()),
        "contenders": {
            contender.name: {
                **paces(contender),
                "embedkit_is_faster_by": median_ratio(contender, of_kind(ours, contender.dtype)),
                **{
                    f"share_of_{limit.dtype}_gemm": median_ratio(limit, contender)
                    for limit in limits
                    if limit.dtype in {"fp32", contender.dtype}
                },
                **cosines(vectors[contender.name], exact),
                "peak_mib": round(contender.peak_mib),
                "settings": contender.settings,
            }
            for contender in contenders
            if contender not in limits
        },
        "does_not_run": absent,
        "limits": {limit.name: {**paces(limit), "settings": limit.settings} for limit in limits},
    }


def of_kind(contenders: Sequence[Contender], dtype: str) -> Contender:
    return next(contender for contender in contenders if contender.dtype == dtype)


def median_ratio(one: Contender, other: Contender) -> float:
    """Returns the seconds of one in those of the other, of the same round."""
    return round(statistics.median(a / b for a, b in zip(one.seconds, other.seconds, strict=True)), 2)


def cosines(found: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Returns the least and the mean cosine; all vectors have length 1."""
    of_rows = np.einsum("nd,nd->n", found.astype(np.float64), exact.astype(np.float64))
    return {"min_cosine": round(float(of_rows.min()), 6), "mean_cosine": round(float(of_rows.mean()), 6)}


def token_lengths(folder: Path, texts: Sequence[str]) -> np.ndarray:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    return np.array([len(encoded.ids) for encoded in tokenizer.encode_batch(list(texts))])


def alone(folder: Path, texts: Sequence[str]) -> np.ndarray:
    """Plain transformers, one text at a time: mean, scaled to length 1."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    pooled = []
    with torch.no_grad():
        for text in texts:
            encoded = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
            pooled.append(model(**encoded).last_hidden_state[0].mean(dim=0).numpy())
    return np.stack([vector / np.linalg.norm(vector) for vector in pooled])


def table(found: dict[str, Any]) -> str:
    """As GitHub shows it."""
    rows = {**found["contenders"], **{f"limit: {name}": of for name, of in found["limits"].items()}}
    # The row that has most to tell says in which order.
    heads = list(dict.fromkeys(head for of in sorted(rows.values(), key=len, reverse=True) for head in of))
    lines = [f"| | {' | '.join(head.replace('_', ' ') for head in heads)} |", "| --- |" + " ---: |" * len(heads)]
    lines += [f"| {name} | {' | '.join(str(of.get(head, '')) for head in heads)} |" for name, of in rows.items()]
    return "\n".join(lines)


def machine() -> dict[str, object]:
    import torch

    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "int8": int8_instructions(),  # which instructions multiply, by embedkit's own code
        "bf16": bf16_instructions(),
        **({"hidden": told} if (told := hidden()) else {}),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def versions(python: str) -> dict[str, str]:
    code = (
        "import json; from importlib.metadata import distributions as d;"
        f"print(json.dumps({{x.metadata['Name']: x.version for x in d() if x.metadata['Name'] in {LIBRARIES}}}))"
    )
    return dict(
        json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)
    )


if __name__ == "__main__":
    main()
