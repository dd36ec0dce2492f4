"""One contender in a process of its own, in the environment that it needs: python -m benchmarks.peers.contender
KIND MODEL DTYPE.

Loads its model, says so, then takes orders, a line of JSON each: {"texts": FILE.json, "out": FILE.npy or null}.
Says how long it took, and how much memory it has had at most. Knows nothing of the others.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Encode = Callable[[list[str]], np.ndarray]
BATCH = 32


def embedkit(folder: str, dtype: str) -> Encode:
    from embedkit import Encoder

    return Encoder(folder, pool="mean", normalize=True, max_length=256, dtype=dtype, device="cpu").encode


def sentence_transformers(folder: str, dtype: str) -> Encode:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu")
    model.max_seq_length = 256
    assert dtype == "fp32"
    return lambda texts: model.encode(texts, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)


def onnx(folder: str, dtype: str) -> Encode:
    """Optimum's export through sentence-transformers; int8 is its dynamic quantisation for AVX-512 VNNI."""
    from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

    made = Path(folder) / "onnx"
    if not (made / "model.onnx").exists():
        SentenceTransformer(folder, device="cpu", backend="onnx").save_pretrained(folder)
    name = "model.onnx"
    if dtype == "int8":
        name = "model_qint8_avx512_vnni.onnx"
        if not (made / name).exists():
            plain = SentenceTransformer(folder, device="cpu", backend="onnx")
            export_dynamic_quantized_onnx_model(plain, "avx512_vnni", folder)
    options = {"file_name": f"onnx/{name}", "provider": "CPUExecutionProvider"}
    model = SentenceTransformer(folder, device="cpu", backend="onnx", model_kwargs=options)
    model.max_seq_length = 256
    return lambda texts: model.encode(texts, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)


def ctranslate2(folder: str, dtype: str) -> Encode:
    """Sorted by length, batches of the same size as the others', masked mean in numpy."""
    import ctranslate2 as ct2
    from tokenizers import Tokenizer

    made = Path(folder) / f"ct2-{dtype}"
    compute = {"fp32": "float32", "int8": "int8"}[dtype]
    if not made.exists():
        ct2.converters.TransformersConverter(folder).convert(str(made), quantization=compute)
    encoder = ct2.Encoder(
        str(made), device="cpu", compute_type=compute, intra_threads=len(os.sched_getaffinity(0))
    )
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)

    def encode(texts: list[str]) -> np.ndarray:
        ids = [encoded.ids for encoded in tokenizer.encode_batch(texts)]
        order = sorted(range(len(ids)), key=lambda text: len(ids[text]), reverse=True)
        vectors = [np.zeros(0)] * len(ids)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            states = np.array(encoder.forward_batch([ids[text] for text in batch]).last_hidden_state)
            for place, text in enumerate(batch):
                pooled = states[place, : len(ids[text])].mean(axis=0)
                vectors[text] = pooled / np.linalg.norm(pooled)
        return np.stack(vectors)

    return encode


def gemm(folder: str, dtype: str) -> Encode:
    """No encoder: the matrix products that one is made of, which nothing can be faster than."""
    from tokenizers import Tokenizer

    from benchmarks.peers.limit import batch_tokens, products

    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    prepared: dict[int, Callable[[], None]] = {}

    def encode(texts: list[str]) -> np.ndarray:
        of_texts = hash(tuple(texts))
        if of_texts not in prepared:
            lengths = np.array([len(encoded.ids) for encoded in tokenizer.encode_batch(texts)])
            prepared[of_texts], way = products(config, batch_tokens(lengths), dtype)
            encode.way = way  # type: ignore[attr-defined]
        prepared[of_texts]()
        return np.zeros((len(texts), 1))

    return encode


def main() -> None:
    kind, folder, dtype = sys.argv[1:]
    encode = {
        "embedkit": embedkit,
        "sentence-transformers": sentence_transformers,
        "onnx": onnx,
        "ctranslate2": ctranslate2,
        "gemm": gemm,
    }[kind](folder, dtype)
    # What a library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        texts = json.loads(Path(order["texts"]).read_text(encoding="utf-8"))
        began = time.perf_counter()
        vectors = encode(texts)
        seconds = time.perf_counter() - began
        if order["out"]:
            np.save(order["out"], np.asarray(vectors, np.float32))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        told = {"seconds": seconds, "peak_mib": peak, "way": getattr(encode, "way", "")}
        print(json.dumps(told), file=answers, flush=True)


if __name__ == "__main__":
    main()
