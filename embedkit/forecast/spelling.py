"""How a vocabulary spells texts: unknown tokens and tokens a word, as they are read and in the other casing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from embedkit.config import ModelConfig
from embedkit.drafting import Draft
from embedkit.errors import ModelError
from embedkit.tokenizer.spelling import Spelled, spelled


def flipped(
    drafted: Callable[[ModelConfig], Draft], model: ModelConfig, texts: Sequence[str], *, lowercase: bool
) -> Spelled | None:
    """Spell texts in the other casing; None where the tokenizer cannot be switched.

    Args:
        drafted: settles a run for a model's configuration.
        model: the configuration that was asked for.
        texts: to spell.
        lowercase: whether they are lowercased as it is.
    """
    try:
        other = drafted(replace(model, lowercase="no" if lowercase else "yes"))
    except ModelError:
        return None
    return spelled(other.tokenizer, texts)
