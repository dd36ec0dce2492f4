"""A model's tokenizer with its casing settled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from embedkit.errors import ModelError


@dataclass(frozen=True, slots=True)
class Casing:
    """Whether texts are lowercased, and why.

    Attributes:
        lowercase: what is done.
        by_us: whether it is done before the tokenizer, which would not do it.
        notice: what the user is told of it; None where nothing was in doubt.
    """

    lowercase: bool
    by_us: bool = False
    notice: str | None = None


def settle_casing(
    tokenizer: Any, casing: str, known_casing: str | None, stated: Any, *, states_casing: bool
) -> Casing:
    """Decides on the casing and sets BERT's switch accordingly.

    Args:
        tokenizer: of transformers; its normalizer is changed in place.
        casing: `--lowercase`: auto, yes or no.
        known_casing: cased or uncased, from the alias table; None if not listed.
        stated: `do_lower_case` of tokenizer_config.json, if it is there.
        states_casing: whether a file of the model states the casing.

    Raises:
        ModelError: the tokenizer lowercases, cannot be stopped from it, and `casing` is no.
    """
    normalizer: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if not hasattr(normalizer, "lowercase"):
        return _casing_outside(tokenizer, casing, stated)
    lowers, vocab = normalizer.lowercase, tokenizer.get_vocab()
    decided = _decide(casing, known_casing, states=states_casing, lowers=lowers, vocab=vocab)
    if decided.lowercase != normalizer.lowercase:
        normalizer.lowercase = decided.lowercase
        tokenizer.backend_tokenizer.normalizer = normalizer
    return decided


def _decide(casing: str, known: str | None, *, states: bool, lowers: bool, vocab: dict[str, int]) -> Casing:
    if casing != "auto":
        return Casing(casing == "yes")
    if known is not None:
        return Casing(known == "uncased")
    entries = [entry for entry in vocab if not (entry.startswith("[") and entry.endswith("]"))]
    capitals = sum(any(letter.isupper() for letter in entry) for entry in entries)
    # Uncased BERT vocabularies have no entry with a capital, cased ones about a third.
    cased_vocab = capitals > len(entries) / 100
    if cased_vocab != lowers:
        return Casing(lowers)
    numbers = f"{capitals:,} of the vocabulary's {len(entries):,} entries have capitals"
    if states:
        done = "lowercases" if lowers else "keeps capitals"
        other = "no" if lowers else "yes"
        notice = f"{numbers}, yet the model's tokenizer {done}; --lowercase {other} changes that"
        return Casing(lowers, notice=notice)
    if cased_vocab:
        notice = f"{numbers} and no file states the casing: texts keep their capitals (or --lowercase yes)"
        return Casing(lowercase=False, notice=notice)
    return Casing(lowers)


def _casing_outside(tokenizer: Any, casing: str, stated: Any) -> Casing:
    """Casing of a tokenizer without BERT's switch: it can be added before it, not taken out of it."""
    lowers = _lowercases(tokenizer)
    if casing == "no" and lowers:
        raise ModelError(
            "--lowercase no: this model's tokenizer lowercases in a way that cannot be switched off",
            hint="leave --lowercase out",
        )
    notice = None
    if casing == "auto" and isinstance(stated, bool) and stated != lowers:
        done = "lowercases" if lowers else "keeps capitals (--lowercase yes changes that)"
        notice = f"tokenizer_config.json has do_lower_case {str(stated).lower()}, and its tokenizer {done}"
    return Casing(lowers or casing == "yes", by_us=casing == "yes" and not lowers, notice=notice)


def _lowercases(tokenizer: Any) -> bool:
    """Whether a tokenizer does away with capitals.

    Vocabularies of letters alone, such as those of proteins, know no probe in either casing: what is unknown in
    both tells nothing.
    """
    probe = "Abc DEF"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return backend.normalizer is not None and backend.normalizer.normalize_str(probe).islower()
    try:
        texts = (probe, probe.lower())
        as_is, lowered = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    except Exception:  # noqa: BLE001 - a tokenizer in Python may raise anything at a letter that it does not know
        return False
    return as_is == lowered and set(as_is) != {getattr(tokenizer, "unk_token_id", None)}


def prepend_lowercase(tokenizer: Any) -> bool:
    """Put `do_lower_case` before all else that the tokenizer does to a text.

    Special tokens that a text spells out keep their letters so, and lowercasing is the Rust library's.

    Returns:
        Whether this tokenizer has a place for it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    from tokenizers import normalizers

    steps = [normalizers.Lowercase()] + ([backend.normalizer] if backend.normalizer is not None else [])
    backend.normalizer = normalizers.Sequence(steps)
    return True
