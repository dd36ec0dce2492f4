"""A model's tokenizer with its casing settled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedkit.errors import ModelError
from embedkit.tokenizer.files import tokenizer_of_files


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


def load_tokenizer(
    folder: str, *, casing: str, known_casing: str | None, states_casing: bool
) -> tuple[Any, Casing]:
    """The tokenizer of a folder, as AutoTokenizer gives it, with its casing settled.

    A checkpoint of `vocab.txt` alone is lowercased by transformers whatever its vocabulary holds
    (transformers issues 343 and 3823); here the vocabulary decides.

    Args:
        folder: of the model.
        casing: `--lowercase`: auto, yes or no.
        known_casing: cased or uncased, from the alias table; None = not known by name.
        states_casing: whether a file of the model states the casing.

    Raises:
        ModelError: the tokenizer cannot be loaded, or its casing cannot be changed.
    """
    tokenizer = tokenizer_of_files(Path(folder)) or _by_transformers(folder)
    normalizer: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if not hasattr(normalizer, "lowercase"):
        return tokenizer, _casing_outside(tokenizer, casing)
    lowers, vocab = normalizer.lowercase, tokenizer.get_vocab()
    decided = _decide(casing, known_casing, states=states_casing, lowers=lowers, vocab=vocab)
    if decided.lowercase != normalizer.lowercase:
        normalizer.lowercase = decided.lowercase
        tokenizer.backend_tokenizer.normalizer = normalizer
    return tokenizer, decided


def _by_transformers(folder: str) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as fault:  # noqa: BLE001 - the library raises anything here, and no row is involved
        raise ModelError(
            f"the tokenizer in {folder} cannot be loaded ({type(fault).__name__})",
            hint="check that tokenizer.json or the vocabulary's file is there and whole",
        ) from None
    files = {*getattr(tokenizer, "vocab_files_names", {}).values(), "tokenizer.json"}
    if len(files) > 1 and not any((Path(folder) / name).is_file() for name in files):
        # transformers makes up a vocabulary of five entries in this case, and says nothing.
        raise ModelError(
            f"{folder} has no tokenizer: none of {', '.join(sorted(files))}",
            hint="put tokenizer.json, or the files that the model was trained with, into its folder",
        )
    return tokenizer


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


def _casing_outside(tokenizer: Any, casing: str) -> Casing:
    """Casing of a tokenizer without BERT's switch: it can be added before it, not taken out of it."""
    probe = "Abc DEF"
    lowers = tokenizer(probe)["input_ids"] == tokenizer(probe.lower())["input_ids"]
    if casing == "no" and lowers:
        raise ModelError(
            "--lowercase no: this model's tokenizer lowercases in a way that cannot be switched off",
            hint="leave --lowercase out",
        )
    return Casing(lowers or casing == "yes", by_us=casing == "yes" and not lowers)
