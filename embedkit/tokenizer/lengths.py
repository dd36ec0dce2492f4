"""How long a text may be: what the model can take, and what becomes of the rest.

Pure arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.errors import InputError, UsageError

#: Above this, a tokenizer's `model_max_length` is a placeholder (transformers writes 1e30), not a limit.
_NO_LIMIT = 1_000_000
#: For models that take any length and whose tokenizer states none: most were trained on 512 tokens.
_FALLBACK_LENGTH = 512


@dataclass(frozen=True, slots=True)
class Windows:
    """The pieces in which a text is read: content tokens [start, stop), each but the last of full size.

    Attributes:
        starts, stops: int64 [W].
        added: int64 [W], tokens of each that are in no earlier one.
    """

    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    added: NDArray[np.int64]


def windows(content: int, room: int, overlap: int) -> Windows:
    """Cut `content` tokens into windows of at most `room`, each sharing `overlap` with the one before it.

    Raises:
        ValueError: windows that overlap by their whole size would never come to an end.
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
    """Most tokens of a text, special tokens counted.

    Args:
        asked: `--max-length`, or None for the most that the model can take.
        positions: how many positions the model has; None = any number.
        stated: the tokenizer's `model_max_length`, or the limit in the model's own recipe, where that is followed;
            a placeholder counts as none.
        trained: how many positions a model was trained with that computes any number of them; None = unknown, or
            of no matter because its authors' recipe states more.

    Raises:
        UsageError: more is asked than the model has positions.
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


def refuse_long(n_tokens: NDArray[np.int32], max_length: int, rows: Sequence[int]) -> None:
    """Carry out `--on-long error`.

    Raises:
        InputError: a text has more than `max_length` tokens; names the first such row.
    """
    long = np.flatnonzero(n_tokens > max_length)
    if len(long):
        raise InputError(
            f"row {rows[long[0]]} has {n_tokens[long[0]]} tokens; --on-long error allows {max_length}",
            hint="use --on-long truncate, or a model that takes longer texts",
        )


def stated_length(tokenizer: Any, config: Any, shipped: int | None) -> int:
    """Most tokens of a text, by the recipe or else by the tokenizer and the encoder's configuration."""
    if shipped is not None:
        return shipped
    positions = getattr(config, "max_position_embeddings", None)
    stated = int(tokenizer.model_max_length)
    return stated if positions is None or positions <= 0 else min(stated, int(positions))


def prompt_length(tokenizer: Any, prompt: str, max_length: int) -> int:
    """How many tokens of each text are the prompt's, for a pooling that leaves them out.

    Counted as sentence-transformers does: those of the prompt alone, without a special token at its end. Where the
    last word of the prompt and the first of a text make one token, it is counted as if they did not.

    Raises:
        UsageError: the prompt leaves no room for a text.
    """
    if not prompt:
        return 0
    ids = tokenizer(prompt)["input_ids"]
    count = len(ids) - bool(ids and ids[-1] in tokenizer.all_special_ids)
    if len(ids) >= max_length:
        raise UsageError(
            f"the prompt has {len(ids)} tokens, and leaves no room for a text in {max_length}",
            hint="give a shorter --prompt, or a larger --max-length",
        )
    return count
