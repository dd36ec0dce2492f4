"""Hold a tokenizer's vocabulary against the embeddings of its model, and say what it cannot spell."""

from __future__ import annotations

from typing import Any

from embedkit.errors import ModelError
from embedkit.tokenizer.texts import NO_EMBEDDING, UNKNOWN_CHARACTER, TextTokenizer


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


def unspelled_notice(tokenizer: TextTokenizer) -> str | None:
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
