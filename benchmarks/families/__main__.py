"""Native families beside other libraries on a CPU: make bench-families [TEXTS=file.jsonl].

    python -m benchmarks.families TEXTS.jsonl [--families NAME...] [--peers PYTHON] [--rows N] [--rounds N]
        [--starts N] [--no-long] [-o RESULTS.json]

Models are those of models.py: a ratio is that of the layers. Each library has a process of its own, with its
model loaded. In each round each encodes the same texts, in turn: embedkit in fp32 and in int8,
sentence-transformers with its own defaults, and with `--peers` OpenVINO or else ONNX Runtime with the fastest of
its settings, where the model exports to ONNX. What is told is the median ratio of the rounds, the largest
difference of the vectors, and the cosine of int8 to fp32 on more texts. Then whole processes that encode one line,
in turn with those of sentence-transformers; and embedkit alone on as many tokens in texts of 256, 1,024, 4,096 and
8,192. Takes a quarter of an hour on two cores. Never fails for a time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.families.models import FAMILIES, make
from benchmarks.peers.__main__ import Contender, ContenderError, cosines, machine, median_ratio, versions
from embedkit.models.native.linear import int8_instructions

#: sentence-transformers pads every text to Longformer's window: fewer rows take as long.
FEWER = {"longformer": 4}
LONG = ("modernbert", "longformer")
LENGTHS = (256, 1024, 4096, 8192)
#: Texts of the vocabularies, of the cosines of int8, and those on which a library chooses its settings.
VOCABULARY, COSINES, TUNING = 2000, 128, 16
#: The second where the first does not run the model.
RUNTIMES = ("openvino", "onnxruntime")
#: Seconds that a model may take to export.
EXPORT = 90.0
OURS = "import embedkit; embedkit.Encoder({folder!r}, pool='mean', device='cpu').encode(['a line of text'])"
THEIRS = (
    "from sentence_transformers import SentenceTransformer as S;"
    "S({folder!r}, device='cpu').encode(['a line of text'])"
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("texts", type=Path)
    options.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    options.add_argument("--peers", help="python with what `make .venv-peers/installed` installs")
    options.add_argument("--rows", type=int, default=32)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--starts", type=int, default=3, help="pairs of whole processes")
    options.add_argument("--no-long", action="store_true", help="leave out the long texts")
    options.add_argument("-o", "--out", type=Path)
    asked = options.parse_args()
    with asked.texts.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in islice(lines, VOCABULARY)]
    found: dict[str, Any] = {
        "machine": machine(),
        "versions": {
            "embedkit and sentence-transformers": versions(sys.executable),
            **({"others": versions(asked.peers)} if asked.peers else {}),
        },
        "families": {},
    }
    for name in asked.families:
        with tempfile.TemporaryDirectory() as work:
            folder = make(name, Path(work) / "model", texts)
            rows = asked.rows // FEWER.get(name, 1)
            of = found["families"][name] = beside(folder, texts, rows, asked.rounds, asked.peers)
            if asked.starts:
                of["start"] = starts(folder, asked.starts)
            if name in LONG and not asked.no_long:
                of["seconds_per_1000_tokens"] = by_length(folder, texts, min(3, asked.rounds))
        print(name, json.dumps(of), flush=True)
    print(table(found["families"]))
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def table(families: dict[str, Any]) -> str:
    """As GitHub shows it."""
    heads = ("", "sentence-transformers", "OpenVINO or ONNX Runtime", "int8 over fp32", "cosine", "start", "8,192")
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for name, of in families.items():
        runtimes = [of[kind]["embedkit_is_faster_by"] for kind in RUNTIMES if isinstance(of.get(kind), dict)]
        int8 = of.get("int8", {})
        cells = [
            *(of["embedkit_is_faster_by"], *(runtimes or [""])),
            *(int8.get("is_faster_than_fp32_by", ""), int8.get("min_cosine", "")),
            of.get("start", {}).get("share", ""),
            of.get("seconds_per_1000_tokens", {}).get("8192_over_256", ""),
        ]
        lines.append(f"| {' | '.join(map(str, (name, *cells)))} |")
    return "\n".join(lines)


def beside(folder: Path, texts: Sequence[str], rows: int, rounds: int, peers: str | None) -> dict[str, Any]:
    """Compares the libraries on the first texts, and int8 with fp32 on more of them."""
    files = {name: folder.parent / f"{name}.json" for name in ("timed", "tuning", "more")}
    for name, count in zip(files, (rows, TUNING, COSINES), strict=True):
        files[name].write_text(json.dumps(list(texts[:count])), encoding="utf-8")
    dtypes = ("fp32", "int8") if int8_instructions() else ("fp32",)
    contenders = [Contender("embedkit", dtype, sys.executable) for dtype in dtypes]
    contenders.append(Contender("sentence-transformers", "fp32", sys.executable))
    for contender in contenders:
        contender.start(folder)
    found: dict[str, Any] = {"rows": rows, "tokens": n_tokens(folder, texts[:rows])}
    peer = None
    for kind in RUNTIMES if peers else ():
        peer = Contender(kind, "fp32", peers)
        try:
            peer.start(folder, limit=EXPORT)
            peer.encode(files["tuning"], tune=True)
            contenders.append(peer)
            break
        except ContenderError as fault:
            found[kind], peer = f"does not run: {fault}", None
    vectors = {contender.name: encoded(contender, files["timed"]) for contender in contenders}
    exact = vectors["embedkit fp32"]
    found["largest_difference"] = float(np.abs(exact - vectors["sentence-transformers fp32"]).max())
    for _ in range(rounds):
        for contender in contenders:
            contender.seconds.append(contender.encode(files["timed"]))
    by_name = {contender.name: contender for contender in contenders}
    ours = by_name["embedkit fp32"]
    found["seconds"] = {one.name: round(statistics.median(one.seconds), 3) for one in contenders}
    found["embedkit_is_faster_by"] = median_ratio(by_name["sentence-transformers fp32"], ours)
    if peer is not None:
        of = {**cosines(vectors[peer.name], exact), "settings": peer.settings}
        found[peer.kind] = {"embedkit_is_faster_by": median_ratio(peer, ours), **of}
    if in_bytes := by_name.get("embedkit int8"):
        of = cosines(encoded(in_bytes, files["more"]), encoded(ours, files["more"]))
        found["int8"] = {"is_faster_than_fp32_by": median_ratio(ours, in_bytes), "texts": COSINES, **of}
    for contender in contenders:
        contender.stop()
    return found


def encoded(contender: Contender, texts: Path) -> np.ndarray:
    out = texts.with_suffix(".npy")
    contender.encode(texts, out)
    vectors: np.ndarray = np.load(out, allow_pickle=False)
    return vectors


def starts(folder: Path, pairs: int) -> dict[str, float]:
    """Times processes that load the model and encode one line, in turn."""
    seconds: dict[str, list[float]] = {"embedkit": [], "sentence-transformers": []}
    for _ in range(pairs):
        for name, code in zip(seconds, (OURS, THEIRS), strict=True):
            began = time.perf_counter()
            command = [sys.executable, "-c", code.format(folder=str(folder))]
            subprocess.run(command, check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
            seconds[name].append(time.perf_counter() - began)
    shares = (a / b for a, b in zip(*seconds.values(), strict=True))
    middle = {f"{name}_seconds": round(statistics.median(times), 2) for name, times in seconds.items()}
    return {**middle, "share": round(statistics.median(shares), 3)}


def by_length(folder: Path, texts: Sequence[str], rounds: int) -> dict[str, float]:
    """Times 8,192 tokens in texts of each length, in turn."""
    from embedkit import Encoder

    encoder = Encoder(str(folder), pool="mean", device="cpu", max_length=LENGTHS[-1])
    words = whole_words(folder, texts)
    random = np.random.default_rng(1)
    cut = {
        length: [" ".join(random.choice(words, length - 2)) for _ in range(LENGTHS[-1] // length)]
        for length in LENGTHS
    }
    seconds: dict[int, list[float]] = {length: [] for length in LENGTHS}
    encoder.encode(cut[LENGTHS[0]])
    for _ in range(rounds):
        for length in LENGTHS:
            began = time.perf_counter()
            encoder.encode(cut[length])
            seconds[length].append(time.perf_counter() - began)
    middle = {str(length): statistics.median(times) / LENGTHS[-1] * 1000 for length, times in seconds.items()}
    pairs = zip(seconds[LENGTHS[-1]], seconds[LENGTHS[0]], strict=True)
    ratio = statistics.median(longest / shortest for longest, shortest in pairs)
    return {**{length: round(of, 5) for length, of in middle.items()}, "8192_over_256": round(ratio, 2)}


def whole_words(folder: Path, texts: Sequence[str]) -> list[str]:
    """Returns words that are one token each, wherever they stand."""
    tokenizer = plain_tokenizer(folder)
    words = sorted(set(" ".join(texts[:100]).split()))
    alone, after = (tokenizer.encode_batch([first + word for word in words]) for first in ("", "the "))
    return [word for word, a, b in zip(words, alone, after, strict=True) if (len(a.ids), len(b.ids)) == (3, 4)]


def n_tokens(folder: Path, texts: Sequence[str]) -> int:
    tokenizer = plain_tokenizer(folder)
    tokenizer.enable_truncation(256)
    return sum(len(encoded.ids) for encoded in tokenizer.encode_batch(list(texts)))


def plain_tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


if __name__ == "__main__":
    main()
