"""sentence-transformers on the same folder, the same texts and the same device, at its best batch size."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.gpu.ours import wait


class SentenceTransformers:
    """Its model in one type of number and with one attention.

    Args:
        folder: of the model.
        device: where.
        dtype: that it runs in.
        attention: as transformers calls it.
    """

    def __init__(self, folder: Path, device: str, dtype: torch.dtype, attention: str) -> None:
        from sentence_transformers import SentenceTransformer

        self.device, self.batch_size = device, 32
        self.model = SentenceTransformer(
            str(folder), device=device, model_kwargs={"dtype": dtype, "attn_implementation": attention}
        )

    def timed(self, texts: Sequence[str]) -> float:
        """Returns the seconds of encoding; the library sorts by length itself."""
        wait(self.device)
        began = time.perf_counter()
        self.model.encode(list(texts), batch_size=self.batch_size, show_progress_bar=False)
        return time.perf_counter() - began

    def search(self, texts: Sequence[str], sizes: Sequence[int]) -> dict[int, float]:
        """Chooses the fastest of some batch sizes; returns the seconds of each that fits into memory."""
        self.timed(texts[: sizes[0]])
        seconds: dict[int, float] = {}
        for size in sizes:
            self.batch_size = size
            try:
                seconds[size] = self.timed(texts)
            except torch.OutOfMemoryError:
                break
        self.batch_size = min(seconds, key=lambda size: seconds[size])
        return seconds


def why_not() -> str | None:
    """Returns why sentence-transformers cannot be measured; None if it can."""
    return None if find_spec("sentence_transformers") else "sentence-transformers is not installed"


def flash() -> str | None:
    """Returns the name in transformers of the flash attention that is installed; None where there is none."""
    from transformers.utils import import_utils

    checks = {
        "flash_attention_3": import_utils.is_flash_attn_3_available,
        "flash_attention_2": import_utils.is_flash_attn_2_available,
    }
    return next((name for name, is_available in checks.items() if is_available()), None)
