"""The oracle: plain transformers, one text at a time, and poolings written out in numpy.

Shares no code with embedkit. No batch, no padding, no packing: what a user would get by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModel, AutoTokenizer, T5EncoderModel


@dataclass(frozen=True)
class States:
    """One text alone: `layers[k]` float64 [T, D] is hidden_states[k]; the last is what the model hands out."""

    layers: list[np.ndarray]
    special: np.ndarray  # bool [T], put there by the tokenizer
    pooler: np.ndarray | None  # [D]


class Oracle:
    def __init__(self, folder: Path, *, max_length: int | None, **tokenizer_options: object) -> None:
        transformers.logging.set_verbosity_error()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, **tokenizer_options)
        kind = T5EncoderModel if "t5" in type(self.tokenizer).__name__.lower() else AutoModel
        self.model = kind.from_pretrained(folder, dtype=torch.float32).eval()
        self.max_length = max_length

    @torch.no_grad()
    def states(self, text: str) -> States:
        encoded = self.tokenizer(
            text,
            return_tensors="pt",
            truncation=self.max_length is not None,
            max_length=self.max_length,
            return_special_tokens_mask=True,
        )
        special = encoded.pop("special_tokens_mask")[0].numpy().astype(bool)
        output = self.model(**encoded, output_hidden_states=True)
        layers = [states[0].double().numpy() for states in output.hidden_states]
        layers[-1] = output.last_hidden_state[0].double().numpy()
        pooler = getattr(output, "pooler_output", None)
        return States(layers, special, None if pooler is None else pooler[0].double().numpy())


def pool(name: str, states: np.ndarray) -> np.ndarray:
    """Tokens [T, D] that take part → [D]."""
    n = len(states)
    match name:
        case "cls":
            return states[0]
        case "lasttoken":
            return states[n - 1]
        case "mean":
            return states.sum(axis=0) / n
        case "mean_sqrt_len":
            return states.sum(axis=0) / n**0.5
        case "weightedmean":
            return sum((i + 1) * states[i] for i in range(n)) / (n * (n + 1) / 2)
        case "max":
            return np.array([max(column) for column in states.T])
        case "min":
            return np.array([min(column) for column in states.T])
    raise ValueError(name)
