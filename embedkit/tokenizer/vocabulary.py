"""Hold a tokenizer's vocabulary against the embeddings of its model, and say what it cannot spell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from embedkit.errors import ModelError
from embedkit.tokenizer.text_tokenizer import NO_EMBEDDING, UNKNOWN_CHARACTER, TextTokenizer

#: Texts on which casings are compared.
COVERAGE_TEXTS = 1000
#: How much smaller the share of unknown tokens has to be in the other casing to be worth a word.
_WORTH = 0.05


def check_vocabulary(tokenizer: Any, n_embeddings: int | None) -> str | None:
    """Refuse a vocabulary that is larger than the model's, unless what was added to it is all there is too much.

    Args:
        tokenizer: of transformers, or a FileTokenizer.
        n_embeddings: of the model; None = nobody knows.

    Returns:
        What the user is told where some added tokens have no embedding; None where all have one.

    Raises:
        ModelError: tokens of the vocabulary itself, or tokens that go around each text, have none.
    """
    if n_embeddings is None:
        return None
    vocab: dict[str, int] = tokenizer.get_vocab()
    beyond = {number for number in vocab.values() if number >= n_embeddings}
    if not beyond:
        return None
    told = (
        f"tokens without an embedding: {len(beyond):,} of the tokenizer's {len(vocab):,} ({_range(beyond)}); the "
        f"model has {n_embeddings:,}"
    )
    if not beyond <= _added(tokenizer) or beyond & _always(tokenizer):
        raise ModelError(
            told, hint="tokenizer and weights are not of one model: fetch both again, from the same place"
        )
    return (
        f"{told}. They were added to the tokenizer alone: a text that has one is a bad row ({NO_EMBEDDING}, see "
        "--on-bad-row)"
    )


def unknown_characters_notice(tokenizer: TextTokenizer) -> str | None:
    """What the user is told of characters without a token, where no token stands for the unknown; else None."""
    if tokenizer.without_unknown is None:
        return None
    what = "the tokenizer has no token for unknown characters, and not all characters have a token:"
    if tokenizer.without_unknown == "refused":
        return f"{what} a text with another one is a bad row ({UNKNOWN_CHARACTER}, see --on-bad-row)"
    return f"{what} others are left out of a text and counted nowhere"


def _added(tokenizer: Any) -> set[int]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return set(backend.get_added_tokens_decoder())
    return set(getattr(tokenizer, "added_tokens_decoder", {}))


def _always(tokenizer: Any) -> set[int]:
    """Ids that go around every text."""
    try:
        return set(tokenizer("")["input_ids"])
    except Exception:  # noqa: BLE001 - a tokenizer in Python may take no empty text
        return set()


def _range(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"id {low}" if low == high else f"ids {low} to {high}"


@dataclass(frozen=True, slots=True)
class VocabularyCoverage:
    """How the vocabulary spells the first texts of the input, in one casing.

    Attributes:
        texts: tried.
        unknown_share: of their content tokens, 0 to 1; None where none can be unknown.
        tokens_per_word: content tokens by words, which blanks part.
    """

    texts: int
    unknown_share: float | None
    tokens_per_word: float


def measure_coverage(tokenizer: TextTokenizer, texts: Sequence[str]) -> VocabularyCoverage:
    """Spell texts as they are read."""
    found = tokenizer.tokenize(texts)
    content = int(found.n_content.sum())
    words = sum(len(text.split()) for text in texts)
    share = None if found.n_unknown is None else int(found.n_unknown.sum()) / max(1, content)
    return VocabularyCoverage(len(texts), share, content / max(1, words))


def suggest_other_casing(as_is: VocabularyCoverage, other: VocabularyCoverage, option: str) -> str | None:
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
