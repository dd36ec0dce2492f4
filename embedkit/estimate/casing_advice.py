"""How a vocabulary spells texts: unknown tokens and tokens a word, as they are read and in the other casing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from embedkit.config import ModelConfig
from embedkit.errors import ModelError
from embedkit.inference.tokenizer_setup import TokenizerSetup
from embedkit.tokenizer.vocabulary import VocabularyCoverage, measure_coverage


def other_casing(
    setup: Callable[[ModelConfig], TokenizerSetup], model: ModelConfig, texts: Sequence[str], *, lowercase: bool
) -> VocabularyCoverage | None:
    """Spell texts in the other casing; None where the tokenizer cannot be switched.

    Args:
        setup: settles a run for a model's configuration.
        model: the configuration that was asked for.
        texts: to spell.
        lowercase: whether they are lowercased as it is.
    """
    try:
        other = setup(replace(model, lowercase="no" if lowercase else "yes"))
    except ModelError:
        return None
    return measure_coverage(other.tokenizer, texts)
