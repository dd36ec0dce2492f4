"""How far a vector moves with what it is batched with: real MiniLM weights, real texts, random batches.

    python -m benchmarks.invariance TEXTS.jsonl [-o RESULT.json] [--part PART]

TEXTS.jsonl has `text`; its first 1,000 are used. Each is computed by plain transformers alone, in fp32 and in
bf16, and then in ten random batchings: a random order, cut by random budgets, so that long and short texts are
beside each other; packed and padded in turn. Then in ten of them by embedkit's own code, in fp32, in bf16 and in
int8 where this CPU has what they need. Prints JSON; fails where fp32 is off by more than 1e-5, and where vectors
of compiled code are not the same to the bit in all batchings.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

from embedkit.config import ModelConfig
from embedkit.models import select_backend
from embedkit.models.base import LayerEncoder
from embedkit.models.native.cpu_encoder import CpuEncoder
from embedkit.models.native.kernels import why_no_kernels
from embedkit.models.native.linear import bf16_instructions, int8_instructions
from embedkit.models.native.native_model import NativeModel
from embedkit.models.repository.resolve import resolve_model
from embedkit.models.transformers.load import load_model
from embedkit.models.transformers.transformers_encoder import TransformersEncoder
from embedkit.pooling.batch_pooler import BatchPooler, TokenGroup
from embedkit.pooling.pooling_spec import PoolingSpec
from embedkit.tokenizer import TextTokenizer, load_tokenizer
from embedkit.types import Batch, Tokens

TEXTS, BATCHINGS, MAX_LENGTH, LARGEST_BUDGET = 1000, 10, 256, 8192
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
#: Those of embedkit's own code, with the type of numbers.
NATIVE = {f"native {dtype}": dtype for dtype in ("fp32", "bf16", "int8")}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("texts", type=Path)
    options.add_argument("-o", "--output", type=Path)
    possible = {"fp32": True, "bf16": bf16_instructions(), "int8": int8_instructions()}
    parts = [*DTYPES, *(part for part, dtype in NATIVE.items() if possible[dtype])]
    options.add_argument("--part", choices=parts, help="one of them alone")
    asked = options.parse_args()
    with asked.texts.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in islice(lines, TEXTS)]
    tokens = tokenized(texts)
    exact = alone(tokens, "fp32")
    found: dict[str, Any] = {
        "machine": f"{platform.processor() or platform.machine()}, {platform.system()}",
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")},
        "threads": torch.get_num_threads(),
        "model": "minilm: mean of the last layer, not normalised",
        "texts": len(tokens.lengths),
        "tokens": {"mean": round(float(tokens.lengths.mean()), 1), "most": int(tokens.lengths.max())},
        "largest_value": float(np.abs(exact).max()),
    }
    for part in [asked.part] if asked.part else parts:
        of_text = alone(tokens, part) if part == "bf16" else exact
        rows, vectors = zip(
            *(measured(tokens, part, number, of_text, exact) for number in range(BATCHINGS)), strict=True
        )
        found[part] = {
            "largest_difference_to_alone": max(row["largest_difference_to_alone"] for row in rows),
            "largest_difference_between_batchings": float(
                max(np.abs(some - vectors[0]).max() for some in vectors)
            ),
            "least_cosine_to_alone": min(row["least_cosine_to_alone"] for row in rows),
            "least_cosine_to_fp32_alone": min(row["least_cosine_to_fp32_alone"] for row in rows),
            "of_alone_least_cosine_to_fp32_alone": least_cosine(of_text, exact),
            "batchings": rows,
        }
    text = json.dumps(found, indent=2)
    if asked.output:
        asked.output.write_text(text + "\n", encoding="utf-8")
    print(text)
    for part in {"fp32", "native fp32"} & set(found):
        assert found[part]["largest_difference_to_alone"] <= 1e-5
    if why_no_kernels() is None:
        for part in NATIVE.keys() & set(found):
            assert found[part]["largest_difference_between_batchings"] == 0


def tokenized(texts: list[str]) -> Tokens:
    folder = str(resolve_model(ModelConfig("minilm")).folder)
    tokenizer, _ = load_tokenizer(folder, casing="auto", known_casing="uncased", states_casing=True)
    return TextTokenizer(tokenizer, max_length=MAX_LENGTH).tokenize(texts).tokens


@torch.inference_mode()
def alone(tokens: Tokens, dtype: str) -> np.ndarray:
    """Returns the mean of the last layer in fp32, float32 [N, D], by transformers, one text at a time."""
    model = AutoModel.from_pretrained(resolve_model(ModelConfig("minilm")).folder, dtype=DTYPES[dtype]).eval()
    vectors = []
    for ids in np.split(tokens.input_ids.astype(np.int64), np.cumsum(tokens.lengths)[:-1]):
        states = model(torch.from_numpy(ids)[None]).last_hidden_state
        vectors.append(states[0].float().mean(dim=0).numpy())
    return np.stack(vectors)


def measured(
    tokens: Tokens, part: str, number: int, of_text: np.ndarray, exact: np.ndarray
) -> tuple[dict[str, Any], np.ndarray]:
    """How far the vectors of one batching are from those of each text alone; and the vectors."""
    native = NATIVE.get(part)
    batches = "padded" if number % 2 and native is None else "packed"
    encoder = encoder_of_transformers(part, batches, exact.shape[1]) if native is None else native_encoder(native)
    random = np.random.default_rng(number)
    budget = int(random.integers(MAX_LENGTH, LARGEST_BUDGET))
    found = np.full_like(exact, np.nan)
    for batch in random_batches(tokens, random, budget, padded=batches == "padded"):
        found[batch.texts] = vectors_of(encoder, tokens, batch)
    row = {
        "batches": batches,
        "budget": budget,
        "largest_difference_to_alone": float(np.abs(found - of_text).max()),
        "least_cosine_to_alone": least_cosine(found, of_text),
        "least_cosine_to_fp32_alone": least_cosine(found, exact),
    }
    return row, found


def native_encoder(dtype: str) -> CpuEncoder:
    config = ModelConfig("minilm", device="cpu", dtype=dtype)
    loaded = select_backend.load_model(resolve_model(config), config)
    assert isinstance(loaded, NativeModel)
    return CpuEncoder(loaded, (loaded.n_layers,), for_pooler=False)


def encoder_of_transformers(dtype: str, batches: str, hidden_size: int) -> TransformersEncoder:
    config = ModelConfig("minilm", device="cpu", dtype=dtype)
    loaded = load_model(resolve_model(config), config)
    return TransformersEncoder(
        loaded.model,
        loaded.architecture,
        (loaded.n_layers,),
        n_layers=loaded.n_layers,
        hidden_size=hidden_size,
        batches=batches,
        hooked=True,
    )


def random_batches(tokens: Tokens, random: np.random.Generator, budget: int, *, padded: bool) -> Iterator[Batch]:
    """Divides texts, in a random order, into batches of as many as fit into the budget."""
    together: list[int] = []
    for text in [*random.permutation(len(tokens.lengths)).tolist(), None]:
        lengths = [int(tokens.lengths[one]) for one in (*together, text) if one is not None]
        cells = len(lengths) * max(lengths) if padded else sum(lengths)
        if together and (text is None or cells > budget):
            order = sorted(together, key=lambda one: tokens.lengths[one])
            yield Batch(np.array(order), tokens.lengths[order])
            together = []
        if text is not None:
            together.append(text)


@torch.inference_mode()
def vectors_of(encoder: LayerEncoder, tokens: Tokens, batch: Batch) -> np.ndarray:
    if encoder.packed:
        groups = [TokenGroup(group, None) for group in batch.length_groups()]
    else:
        mask = torch.from_numpy(np.arange(batch.lengths[-1]) < batch.lengths[:, None])
        groups = [TokenGroup(None, mask)]
    pooler = BatchPooler(PoolingSpec(encoder.layers, "concat", ("mean",)), groups)
    encoder.run(tokens, batch, pooler.take)
    return pooler.vectors()[""].numpy()


def least_cosine(some: np.ndarray, others: np.ndarray) -> float:
    a, b = some.astype(np.float64), others.astype(np.float64)
    return float(((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


if __name__ == "__main__":
    main()
