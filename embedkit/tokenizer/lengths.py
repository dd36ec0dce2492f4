"""Settles the most tokens of a text, and splits longer texts into windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.errors import InputError, UsageError

#: Above this, a tokenizer's `model_max_length` is a placeholder (transformers writes 1e30), not a limit.
_NO_LIMIT = 1_000_000
#: For models that take any length and state none: most were trained on 512 tokens.
_FALLBACK_LENGTH = 512


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of a text: content tokens [start, stop), and those added to the previous window; each int64 [W]."""

    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    added: NDArray[np.int64]


def windows(content: int, room: int, overlap: int) -> Windows:
    """Splits `content` tokens into windows of at most `room`, each sharing `overlap` with the previous one.

    Raises:
        ValueError: `overlap` is negative, or not smaller than `room`.
    """
    if not 0 <= overlap < room:
        raise ValueError(f"windows of {room} tokens cannot overlap by {overlap}")
    step = room - overlap
    count = 1 + max(0, -(-(content - room) // step))
    starts = np.arange(count, dtype=np.int64) * step
    stops = np.minimum(starts + room, content)
    return Windows(starts, stops, np.diff(stops, prepend=0))


def usable_length(
    asked: int | None, *, positions: int | None, stated: int | None, trained: int | None = None
) -> int:
    """Returns the most tokens of a text, special tokens included.

    Args:
        asked: `--max-length`; None for the most that the model can take.
        positions: number of positions of the model; None if any.
        stated: the limit of the tokenizer or of the model's recipe; a placeholder counts as none.
        trained: number of positions in training of a model that computes any number; None if unknown, or if its
            recipe sets the limit.

    Raises:
        UsageError: `asked` is more than the model has positions.
    """
    if asked is not None:
        if positions is not None and asked > positions:
            raise UsageError(
                f"--max-length {asked} is more than the model's {positions} positions",
                hint=f"use at most {positions}, or auto",
            )
        return asked
    limits = [limit for limit in (positions, stated, trained) if limit is not None and limit < _NO_LIMIT]
    return min(limits, default=_FALLBACK_LENGTH)


def check_length(n_tokens: NDArray[np.int32], max_length: int, rows: Sequence[int]) -> None:
    """Checks that no text is too long, for `--on-long error`.

    Raises:
        InputError: a text has more than `max_length` tokens; names the first row with one.
    """
    long = np.flatnonzero(n_tokens > max_length)
    if len(long):
        raise InputError(
            f"row {rows[long[0]]} has {n_tokens[long[0]]} tokens; --on-long error allows {max_length}",
            hint="use --on-long truncate, or a model that takes longer texts",
        )


def stated_length(tokenizer: Any, config: Any, shipped: int | None) -> int:
    """Returns the most tokens of a text, by the recipe, else by the tokenizer and the encoder's configuration."""
    if shipped is not None:
        return shipped
    positions = getattr(config, "max_position_embeddings", None)
    stated = int(tokenizer.model_max_length)
    return stated if positions is None or positions <= 0 else min(stated, int(positions))


def prompt_length(tokenizer: Any, prompt: str) -> int:
    """Counts the tokens of the prompt, for a pooling that leaves them out.

    As in sentence-transformers, these are the tokens of the prompt without a text and without a special token at
    its end, even if a token reaches from the prompt into a text.
    """
    if not prompt:
        return 0
    ids = tokenizer(prompt)["input_ids"]
    return len(ids) - bool(ids and ids[-1] in tokenizer.all_special_ids)
