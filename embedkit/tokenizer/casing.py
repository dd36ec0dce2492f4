"""Decides whether texts are lowercased, and makes the tokenizer do it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from embedkit.errors import ModelError
from embedkit.tokenizer.rust_tokenizer import rust_tokenizer


@dataclass(frozen=True, slots=True)
class Casing:
    """The decision on the casing of texts.

    Attributes:
        lowercase: True if texts are lowercased.
        by_us: True if they are lowercased before the tokenizer, which does not do it.
        notice: a remark for the user; None if nothing was in doubt.
    """

    lowercase: bool
    by_us: bool = False
    notice: str | None = None


def settle_casing(
    tokenizer: Any, casing: str, known_casing: str | None, stated: Any, *, states_casing: bool
) -> Casing:
    """Decides on the casing, and sets the switch of BERT's normalizer; see `load_tokenizer` for the arguments.

    Raises:
        ModelError: `casing` is no, and the tokenizer lowercases without a switch.
    """
    normalizer: Any = getattr(rust_tokenizer(tokenizer), "normalizer", None)
    if not hasattr(normalizer, "lowercase"):
        return _settle_without_switch(tokenizer, casing, stated)
    lowers = normalizer.lowercase
    if casing != "auto":
        settled = Casing(casing == "yes")
    elif known_casing is not None:
        settled = Casing(known_casing == "uncased")
    else:
        settled = _settle_by_vocabulary(tokenizer.get_vocab(), states=states_casing, lowers=lowers)
    if settled.lowercase != lowers:
        normalizer.lowercase = settled.lowercase
        tokenizer.backend_tokenizer.normalizer = normalizer
    return settled


def _settle_by_vocabulary(vocab: dict[str, int], *, states: bool, lowers: bool) -> Casing:
    entries = [entry for entry in vocab if not (entry.startswith("[") and entry.endswith("]"))]
    # `islower`, of which most entries are, is one call for all letters: it is False where there is a capital.
    capitals = sum(not entry.islower() and any(map(str.isupper, entry)) for entry in entries)
    # Of an uncased BERT vocabulary, no entry has a capital; of a cased one, about a third.
    cased_vocab = capitals > len(entries) / 100
    if cased_vocab != lowers:
        return Casing(lowers)
    numbers = f"{capitals:,} of the vocabulary's {len(entries):,} entries have capitals"
    if states:
        does, other = ("lowercases", "no") if lowers else ("keeps capitals", "yes")
        return Casing(
            lowers, notice=f"{numbers}, yet the model's tokenizer {does}; --lowercase {other} changes that"
        )
    if cased_vocab:
        notice = f"{numbers} and no file states the casing: texts keep their capitals (or --lowercase yes)"
        return Casing(lowercase=False, notice=notice)
    return Casing(lowers)


def _settle_without_switch(tokenizer: Any, casing: str, stated: Any) -> Casing:
    """Settles the casing of a tokenizer without BERT's switch: lowercasing can be added, not removed."""
    lowers = _lowercases(tokenizer)
    if casing == "no" and lowers:
        raise ModelError(
            "--lowercase no: this model's tokenizer lowercases in a way that cannot be switched off",
            hint="leave --lowercase out",
        )
    notice = None
    if casing == "auto" and isinstance(stated, bool) and stated != lowers:
        does = "lowercases" if lowers else "keeps capitals (--lowercase yes changes that)"
        notice = f"tokenizer_config.json has do_lower_case {str(stated).lower()}, and its tokenizer {does}"
    return Casing(lowers or casing == "yes", by_us=casing == "yes" and not lowers, notice=notice)


def _lowercases(tokenizer: Any) -> bool:
    """Checks whether a tokenizer lowercases texts.

    Vocabularies of letters, such as those of proteins, may lack the letters of the probe in both casings.
    """
    probe = "Abc DEF"
    backend = rust_tokenizer(tokenizer)
    if backend is not None:
        return backend.normalizer is not None and backend.normalizer.normalize_str(probe).islower()
    try:
        texts = (probe, probe.lower())
        as_is, lowered = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    except Exception:  # noqa: BLE001 - a tokenizer in Python may raise anything at an unknown letter
        return False
    return as_is == lowered and set(as_is) != {getattr(tokenizer, "unk_token_id", None)}


def prepend_lowercase(tokenizer: Any) -> bool:
    """Makes the tokenizer lowercase a text first, as `do_lower_case` of sentence-transformers does.

    Unlike lowercasing before the tokenizer, this keeps special tokens in a text as they are.

    Returns:
        False if the tokenizer is written in Python, which has no such step.
    """
    backend = rust_tokenizer(tokenizer)
    if backend is None:
        return False
    from tokenizers import normalizers

    steps = [normalizers.Lowercase()] + ([backend.normalizer] if backend.normalizer is not None else [])
    backend.normalizer = normalizers.Sequence(steps)
    return True
