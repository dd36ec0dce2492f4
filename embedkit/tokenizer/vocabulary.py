"""Checks a tokenizer's vocabulary against the model's embeddings, and measures how well it covers texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from embedkit.errors import ModelError
from embedkit.percent import percent
from embedkit.tokenizer.rust_tokenizer import rust_tokenizer
from embedkit.tokenizer.text_tokenizer import NO_EMBEDDING, UNKNOWN_CHARACTER, TextTokenizer

#: Number of texts to compare casings on.
COVERAGE_TEXTS = 1000
#: Difference in the share of unknown tokens from which the other casing is suggested.
_NOTABLE = 0.05


def check_vocabulary(tokenizer: Any, n_embeddings: int | None) -> str | None:
    """Checks that the model has an embedding for each token; `n_embeddings` is None if their number is unknown.

    Returns:
        A notice if only tokens that were added later have no embedding; None if all have one.

    Raises:
        ModelError: tokens of the vocabulary itself, or special tokens around each text, have none.
    """
    if n_embeddings is None:
        return None
    vocab: dict[str, int] = tokenizer.get_vocab()
    missing = {number for number in vocab.values() if number >= n_embeddings}
    if not missing:
        return None
    low, high = min(missing), max(missing)
    ids = f"id {low}" if low == high else f"ids {low} to {high}"
    sentence = (
        f"tokens without an embedding: {len(missing):,} of the tokenizer's {len(vocab):,} ({ids}); "
        f"the model has {n_embeddings:,}"
    )
    backend = rust_tokenizer(tokenizer)
    added = (
        getattr(tokenizer, "added_tokens_decoder", {}) if backend is None else backend.get_added_tokens_decoder()
    )
    if not missing <= set(added) or missing & _special_ids(tokenizer):
        raise ModelError(
            sentence, hint="tokenizer and weights belong to different models: download both again, from one place"
        )
    return (
        f"{sentence}. They were added to the tokenizer alone: a text with one of them is a bad row "
        f"({NO_EMBEDDING}, see --on-bad-row)"
    )


def unknown_characters_notice(tokenizer: TextTokenizer) -> str | None:
    """Returns a notice if characters have no token and there is no token for unknown ones; else None."""
    if tokenizer.without_unknown is None:
        return None
    effect = "they are left out of a text and not counted"
    if tokenizer.without_unknown == "refused":
        effect = f"a text with one of them is a bad row ({UNKNOWN_CHARACTER}, see --on-bad-row)"
    return f"the tokenizer has no token for unknown characters, and some characters have no token: {effect}"


def _special_ids(tokenizer: Any) -> set[int]:
    """Returns the ids around every text."""
    try:
        return set(tokenizer("")["input_ids"])
    except Exception:  # noqa: BLE001 - a tokenizer in Python may take no empty text
        return set()


@dataclass(frozen=True, slots=True)
class VocabularyCoverage:
    """The coverage of the first texts of the input by a vocabulary, in one casing.

    Attributes:
        texts: their number.
        unknown_share: of their content tokens, 0 to 1; None if none can be unknown.
        tokens_per_word: content tokens for each word between blanks.
    """

    texts: int
    unknown_share: float | None
    tokens_per_word: float


def measure_coverage(tokenizer: TextTokenizer, texts: Sequence[str]) -> VocabularyCoverage:
    """Tokenizes texts and measures how well the vocabulary covers them."""
    found = tokenizer.tokenize(texts)
    content = int(found.n_content.sum())
    words = sum(len(text.split()) for text in texts)
    share = None if found.n_unknown is None else int(found.n_unknown.sum()) / max(1, content)
    return VocabularyCoverage(len(texts), share, content / max(1, words))


def suggest_other_casing(as_is: VocabularyCoverage, other: VocabularyCoverage, option: str) -> str | None:
    """Returns a notice if the vocabulary covers the other casing, which `option` sets, much better; else None."""
    unknown, unknown_in_other = as_is.unknown_share or 0.0, other.unknown_share or 0.0
    if unknown - unknown_in_other <= _NOTABLE:
        return None
    return (
        f"{percent(unknown)} of the tokens in the first {as_is.texts:,} texts are unknown to the model's "
        f"vocabulary, and {percent(unknown_in_other)} would be with {option}"
    )
