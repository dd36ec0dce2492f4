"""embedkit on one device: from JSON Lines to committed Parquet, the forward passes alone, and and checks."""

from __future__ import annotations

import hashlib
import json
import resource
import threading
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import embedkit
from embedkit.cli.progress import make_callbacks
from embedkit.config import (
    InputConfig,
    ModelConfig,
    OutputConfig,
    PoolingConfig,
    RunConfig,
    ShareConfig,
    VectorConfig,
)
from embedkit.engines.base import RunStart
from embedkit.engines.run import run
from embedkit.engines.summary import Summary
from embedkit.inference.batching import make_batches
from embedkit.inference.build import ReadyModel, build
from embedkit.inference.model_spec import find_model
from embedkit.models.base import Inputs, tensors
from embedkit.types import Batch


def wait(device: str) -> None:
    """Waits until the device has done all that it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


class Ours:
    """embedkit with one model, on one device.

    Args:
        folder: of the model.
        texts: JSON Lines.
        device: as `--device` takes it.
        work: a folder for outputs.
    """

    def __init__(self, folder: Path, texts: Path, device: str, work: Path) -> None:
        self.folder, self.texts, self.device, self.work = folder, texts, device, work
        self.summaries: list[Summary] = []
        self.peak_bytes = 0

    def encode(
        self,
        name: str,
        *,
        limit: int | None = None,
        workers: int | None = None,
        at_start: Callable[[], object] = lambda: None,
    ) -> Summary:
        """Runs `embedkit encode TEXTS --pool mean -o NAME` in this process.

        Args:
            name: of the output.
            limit: rows.
            workers: processes.
            at_start: called when the model is loaded and the first batch is about to run.
        """
        config = RunConfig(
            input=InputConfig((str(self.texts),), limit=limit),
            output=OutputConfig(str(self.work / name), "parquet", on_exists="overwrite"),
            model=ModelConfig(str(self.folder), device=self.device),
            pooling=PoolingConfig(pool="mean"),
            share=ShareConfig(workers=workers),
        )
        callbacks = make_callbacks("none", quiet=True)
        started = callbacks.started

        def started_and_timed(start: RunStart) -> None:
            started(start)
            at_start()

        callbacks.started = started_and_timed  # type: ignore[method-assign]
        return run(config, callbacks, threading.Event())

    def timed_encode(self) -> float:
        """Returns the seconds from the model's first batch to the manifest."""
        on_gpu = torch.device(self.device).type == "cuda"
        # The others that take their turns keep memory, too.
        before = torch.cuda.memory_allocated(self.device) if on_gpu else 0
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        self.summaries.append(self.encode(f"out-{len(self.summaries) % 2}"))
        if on_gpu:
            self.peak_bytes = max(self.peak_bytes, torch.cuda.max_memory_allocated(self.device) - before)
        return self.summaries[-1].encoding_seconds

    def load(self) -> Forward:
        """Loads the model as `encode` does, for forward passes alone."""
        model = ModelConfig(str(self.folder), device=self.device)
        config = VectorConfig(model=model, pooling=PoolingConfig(pool="mean"))
        return Forward(build(find_model(config)), self.device)

    def same_bytes(self, one: str, other: str) -> bool:
        """Checks that two outputs have the same files of vectors."""
        return _digests(self.work / one) == _digests(self.work / other) != {}

    def vectors(self, name: str, rows: int) -> np.ndarray:
        """Returns the first vectors of an output: float32 [rows, D]."""
        return np.asarray(embedkit.read(self.work / name).vectors[:rows], np.float32)


class Forward:
    """A loaded model, and batches for it that are on the device already."""

    def __init__(self, ready: ReadyModel, device: str) -> None:
        self.model, self.device = ready, device

    def take(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Tokenizes texts and batches them, as a shard is; returns their lengths in tokens."""
        self.ready = self.batched(texts, self.model.embedder.budget.tokens)
        return np.concatenate([batch.lengths for _, batch in self.ready])

    def batched(self, texts: Sequence[str], max_tokens: int) -> list[tuple[Inputs, Batch]]:
        """Batches of so many tokens, on the device."""
        encoder = self.model.embedder.encoder
        tokens = self.model.embedder.tokenizer.tokenize(texts).tokens
        batches = make_batches(tokens.lengths, max_tokens=max_tokens, padded=not encoder.packed)
        return [(tensors(encoder.prepare(tokens, batch), encoder.device), batch) for batch in batches]

    def timed(self, ready: list[tuple[Inputs, Batch]] | None = None) -> float:
        """Returns the seconds of all forward passes: of the batches that `take` made, unless others are given."""
        encoder = self.model.embedder.encoder
        wait(self.device)
        began = time.perf_counter()
        for inputs, batch in ready or self.ready:
            encoder.forward(inputs, batch, lambda *_: None)
        wait(self.device)
        return time.perf_counter() - began


def first_texts(texts: Path, rows: int) -> list[str]:
    with texts.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in islice(lines, rows)]


def plainly(folder: Path, texts: Sequence[str], until: float) -> np.ndarray:
    """Returns the mean of the last layer's states by plain transformers in fp32 on the CPU, each text alone.

    Args:
        folder: of the model.
        texts: as many as there is time for.
        until: by time.monotonic().
    """
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    pooled: list[np.ndarray] = []
    with torch.no_grad():
        for text in texts:
            if time.monotonic() > until:
                break
            encoded = tokenizer(text, truncation=True, max_length=512, return_tensors="pt")
            pooled.append(model(**encoded).last_hidden_state[0].mean(dim=0).numpy())
    return np.stack(pooled)


def cosines(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Returns cosines between vectors of the same rows and, for comparison, between those of different rows."""
    one, other = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (found, expected))
    same = (one.astype(np.float64) * other).sum(axis=1)
    different = (one[1:].astype(np.float64) * other[:-1]).sum(axis=1)
    return {
        "rows": len(same),
        "least": float(same.min()),
        "mean": float(same.mean()),
        "median_of_different_rows": float(np.median(different)),
    }


def host_gib() -> float:
    """Returns the peak memory of this process on the host, of all that ran in it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _digests(output: Path) -> dict[str, str]:
    return {
        str(file.relative_to(output)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((output / "embeddings").rglob("*.parquet"))
    }
