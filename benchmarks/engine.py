"""Forward passes: embedkit's own in fp32, bf16 and int8, transformers', and the matrix products alone.

    python -m benchmarks.engine TEXTS.jsonl [--rows N] [--rounds N]

All in turn in one process, the median of the rounds. The limit is the time of the linear layers' products alone,
of the same batches, in fp32 (peers/limit.py). Never fails for a time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch

from benchmarks.peers.limit import products
from benchmarks.peers.models import bert_base, minilm
from embedkit.config import ModelConfig
from embedkit.inference.batching import make_batches
from embedkit.inference.build import BATCH_TOKENS
from embedkit.models.base import LayerEncoder
from embedkit.models.native.linear import bf16_instructions, int8_instructions
from embedkit.models.repository.resolve import resolve_model
from embedkit.models.select_backend import load_model
from embedkit.percent import percent
from embedkit.tokenizer import TextTokenizer, load_tokenizer
from embedkit.types import Batch, Tokens

_LENGTH = 256


def tokens_of(folder: Path, texts: list[str]) -> Tokens:
    raw, _ = load_tokenizer(str(folder), casing="auto", known_casing=None, states_casing=True)
    return TextTokenizer(raw, max_length=_LENGTH).tokenize(texts).tokens


def engines(folder: Path, probe: Tokens) -> dict[str, LayerEncoder]:
    """Returns each way to compute the last layer of a model."""
    model = resolve_model(ModelConfig(str(folder)))
    found: dict[str, LayerEncoder] = {}
    possible = {"bf16": bf16_instructions(), "int8": int8_instructions()}
    for name in ("fp32", "transformers", *(dtype for dtype, instructions in possible.items() if instructions)):
        config = ModelConfig(str(folder), device="cpu", dtype=name if name in possible else "fp32")
        loaded = load_model(model, config, backend="transformers" if name == "transformers" else "fastest")
        found[name] = loaded.make_encoder((loaded.n_layers,), probe, for_pooler=False)[0]
        assert found[name].packed
    return found


def forward(encoder: LayerEncoder, tokens: Tokens, batches: list[Batch]) -> Callable[[], None]:
    def run() -> None:
        for batch in batches:
            encoder.run(tokens, batch, lambda *_: None)

    return run


def measured(name: str, folder: Path, texts: list[str], rounds: int) -> None:
    tokens = tokens_of(folder, texts)
    batches = make_batches(tokens.lengths, max_tokens=BATCH_TOKENS["cpu"], padded=False)
    probe = tokens_of(folder, ["a cat", "a dog that we saw"])
    works = {kind: forward(encoder, tokens, batches) for kind, encoder in engines(folder, probe).items()}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    works["limit"], way = products(config, [batch.tokens for batch in batches], "fp32")
    times: dict[str, list[float]] = {kind: [] for kind in works}
    with torch.inference_mode():
        for attempt in range(rounds + 1):
            for kind, work in works.items():
                began = time.perf_counter()
                work()
                if attempt:  # the first is for caches
                    times[kind].append(time.perf_counter() - began)
    middle = {kind: statistics.median(of_kind) for kind, of_kind in times.items()}
    total = int(tokens.lengths.sum())
    print(f"{name}: {len(texts)} texts of {total / len(texts):.0f} tokens, {torch.get_num_threads()} threads")
    print(f"  the limit is by {way}")
    for kind, seconds in middle.items():
        share = statistics.median(b / a for a, b in zip(times[kind], times["limit"], strict=True))
        spread = f"{min(times[kind]):.2f} to {max(times[kind]):.2f} s"
        print(
            f"  {kind:<13} {len(texts) / seconds:7.1f} rows/s  {total / seconds:9,.0f} tokens/s  "
            f"{percent(share):>7} of the limit  ({spread})"
        )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("texts", type=Path)
    options.add_argument("--rows", type=int, default=400)
    options.add_argument("--rounds", type=int, default=5)
    asked = options.parse_args()
    with asked.texts.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in islice(lines, asked.rows)]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        measured("MiniLM", minilm(work), texts, asked.rounds)
        # As many multiplications as eight MiniLMs.
        measured("BERT-base", bert_base(work), texts[: max(1, len(texts) // 8)], asked.rounds)


if __name__ == "__main__":
    main()
