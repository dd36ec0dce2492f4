"""Native families beside sentence-transformers, and the time of a token in long texts.

    python -m benchmarks.families [--families NAME...] [--rows N] [--rounds N] [--no-long] [-o RESULTS.json]

Models have the real width of a layer, few layers, random weights and a small vocabulary: a ratio is that of the
layers. Each library has a process of its own, with its model loaded; in each round each encodes the same texts, in
turn, with its own defaults for batches: embedkit in fp32 and in int8. What is told is the median ratio of the
rounds, the largest difference of the vectors, and the smallest cosine of int8 to fp32. Then embedkit alone encodes
as many tokens in texts of 256, 1,024, 4,096 and 8,192. Takes nine minutes on two cores. Never fails for a time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.__main__ import Contender, cosines, machine, median_ratio, versions
from embedkit.models.native.linear import int8_instructions

WORDS = 2000
#: The sizes of a published model, but for its layers and vocabulary.
FAMILIES: dict[str, dict[str, Any]] = {
    # answerdotai/ModernBERT-base
    "modernbert": {
        "model_type": "modernbert",
        "hidden_size": 768,
        "intermediate_size": 1152,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "max_position_embeddings": 8192,
    },
    # nomic-ai/nomic-embed-text-v1.5
    "nomic": {
        "model_type": "nomic_bert",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 4,
        "num_attention_heads": 12,
        "max_position_embeddings": 2048,
    },
    # Qwen/Qwen3-Embedding-0.6B
    "qwen3": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 3,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 8192,
    },
    # google/embeddinggemma-300m
    "gemma3": {
        "model_type": "gemma3_text",
        "hidden_size": 768,
        "intermediate_size": 1152,
        "num_hidden_layers": 6,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "use_bidirectional_attention": True,
        "sliding_window": 512,
        "max_position_embeddings": 2048,
    },
    # UFNLP/gatortron-base
    "megatron": {
        "model_type": "megatron-bert",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 3,
        "num_attention_heads": 16,
        "max_position_embeddings": 512,
    },
    # yikuan8/Clinical-Longformer
    "longformer": {
        "model_type": "longformer",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 4,
        "num_attention_heads": 12,
        "attention_window": 512,
        "max_position_embeddings": 8194,
        "type_vocab_size": 1,
        "pad_token_id": 1,
    },
}
#: sentence-transformers pads every text to Longformer's window: fewer rows take as long.
FEWER = {"longformer": 4}
LONG = ("modernbert", "longformer")
LENGTHS = (256, 1024, 4096, 8192)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    options.add_argument("--rows", type=int, default=64)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--no-long", action="store_true", help="leave out the long texts")
    options.add_argument("-o", "--out", type=Path)
    asked = options.parse_args()
    found: dict[str, Any] = {"machine": machine(), "versions": versions(sys.executable), "families": {}}
    for name in asked.families:
        with tempfile.TemporaryDirectory() as work:
            folder = make(name, Path(work) / "model")
            of = found["families"][name] = beside(folder, asked.rows // FEWER.get(name, 1), asked.rounds)
            if name in LONG and not asked.no_long:
                of["seconds_per_1000_tokens"] = by_length(folder, asked.rounds)
        print(name, json.dumps(of), flush=True)
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def beside(folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    """Compares both libraries on texts of as many words as package descriptions: 93 on average, a few 256."""
    lengths = np.exp(np.random.default_rng(0).normal(4.3, 0.7, rows)).clip(8, 254).astype(int)
    texts = folder.parent / "texts.json"
    texts.write_text(json.dumps(made_up(lengths)), encoding="utf-8")
    ours, theirs = (Contender(kind, "fp32", sys.executable) for kind in ("embedkit", "sentence-transformers"))
    contenders = [ours, theirs]
    if int8_instructions() is not None:
        contenders.append(Contender("embedkit", "int8", sys.executable))
    vectors = []
    for contender in contenders:
        contender.start(folder)
        contender.encode(texts, folder.parent / "vectors.npy")
        vectors.append(np.load(folder.parent / "vectors.npy", allow_pickle=False))
    for _ in range(rounds):
        for contender in contenders:
            contender.seconds.append(contender.encode(texts))
    for contender in contenders:
        contender.stop()
    found = {
        "rows": rows,
        "tokens": int(lengths.sum()) + 2 * rows,
        "seconds": {one.name: round(statistics.median(one.seconds), 3) for one in contenders},
        "embedkit_is_faster_by": median_ratio(theirs, ours),
        "largest_difference": float(np.abs(vectors[0] - vectors[1]).max()),
    }
    for in_bytes, of_bytes in zip(contenders[2:], vectors[2:], strict=True):
        found["int8_is_faster_than_fp32_by"] = median_ratio(ours, in_bytes)
        found["int8"] = cosines(of_bytes, vectors[0])
    return found


def by_length(folder: Path, rounds: int) -> dict[str, float]:
    """Times 8,192 tokens in texts of each length, in turn."""
    from embedkit import Encoder

    encoder = Encoder(str(folder), pool="mean", device="cpu", max_length=LENGTHS[-1])
    texts = {length: made_up(np.full(LENGTHS[-1] // length, length - 2)) for length in LENGTHS}
    seconds: dict[int, list[float]] = {length: [] for length in LENGTHS}
    encoder.encode(texts[LENGTHS[0]])
    for _ in range(rounds):
        for length in LENGTHS:
            began = time.perf_counter()
            encoder.encode(texts[length])
            seconds[length].append(time.perf_counter() - began)
    middle = {str(length): statistics.median(times) / LENGTHS[-1] * 1000 for length, times in seconds.items()}
    pairs = zip(seconds[LENGTHS[-1]], seconds[LENGTHS[0]], strict=True)
    ratio = statistics.median(longest / shortest for longest, shortest in pairs)
    return {**{length: round(of, 5) for length, of in middle.items()}, "8192_over_256": round(ratio, 2)}


def made_up(lengths: np.ndarray) -> list[str]:
    """Texts of so many words, of which each is a token."""
    random = np.random.default_rng(1)
    return [" ".join(f"w{word}" for word in random.integers(0, WORDS, length)) for length in lengths]


def make(name: str, folder: Path) -> Path:
    """A model of random weights, with a tokenizer of whole words, as sentence-transformers saves it."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast, logging

    logging.set_verbosity_error()
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = {word: number for number, word in enumerate((*special.values(), *(f"w{at}" for at in range(WORDS))))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(token, words[token]) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    saved = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **special
    )
    saved.save_pretrained(folder)
    sizes = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, **FAMILIES[name], "vocab_size": len(words)}
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(sizes.pop("model_type"), **sizes)).save_pretrained(folder)
    kinds = (("Transformer", ""), ("Pooling", "1_Pooling"))
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (kind, path) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": sizes["hidden_size"], "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    limits = {"max_seq_length": 256, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(limits), encoding="utf-8")
    return folder


if __name__ == "__main__":
    main()
