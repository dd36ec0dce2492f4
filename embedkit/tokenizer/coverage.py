"""How a vocabulary spells texts: which tokens it does not know, and how many it needs for a word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from embedkit.tokenizer.texts import TextTokenizer

#: Texts on which casings are compared.
SPELLED_TEXTS = 1000
#: How much smaller the share of unknown tokens has to be in the other casing to be worth a word.
_WORTH = 0.05


@dataclass(frozen=True, slots=True)
class Spelled:
    """How the vocabulary spells the first texts of the input, in one casing.

    Attributes:
        texts: tried.
        unknown_share: of their content tokens, 0 to 1; None where none can be unknown.
        tokens_per_word: content tokens by words, which blanks part.
    """

    texts: int
    unknown_share: float | None
    tokens_per_word: float


def spelled(tokenizer: TextTokenizer, texts: Sequence[str]) -> Spelled:
    """Spell texts as they are read."""
    found = tokenizer.tokenize(texts)
    content = int(found.n_content.sum())
    words = sum(len(text.split()) for text in texts)
    share = None if found.n_unknown is None else int(found.n_unknown.sum()) / max(1, content)
    return Spelled(len(texts), share, content / max(1, words))


def better_flipped(as_is: Spelled, other: Spelled, option: str) -> str | None:
    """What the user is told where the other casing knows many more tokens; else None.

    Args:
        as_is: the first texts as they are read.
        other: the same in the other casing.
        option: what switches to it.
    """
    here, there = as_is.unknown_share or 0.0, other.unknown_share or 0.0
    if here - there <= _WORTH:
        return None
    return (
        f"{here:.1%} of the tokens in the first {as_is.texts:,} texts are unknown to the model's vocabulary, "
        f"and {there:.1%} would be with {option}"
    )
