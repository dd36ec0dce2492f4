"""A model's tokenizer with its casing settled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from embedkit.errors import ModelError
from embedkit.tokenizer.consistency import against_code, held_to_files, stated_settings
from embedkit.tokenizer.missing_package import missing_package
from embedkit.tokenizer.tokenizer_files import tokenizer_of_files


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


class OwnTokenizer(Protocol):
    """A tokenizer's class that is code of the model's own."""

    @property
    def named_in(self) -> str:
        """The file that names it."""

    @property
    def reference(self) -> str:
        """Its module and class."""


def load_tokenizer(
    folder: str,
    *,
    casing: str,
    known_casing: str | None,
    states_casing: bool,
    code: OwnTokenizer | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Casing]:
    """The tokenizer of a folder, as AutoTokenizer gives it, with its casing settled.

    A checkpoint of `vocab.txt` alone is lowercased by transformers whatever its vocabulary holds
    (transformers issues 343 and 3823); here the vocabulary decides.

    Args:
        folder: of the model.
        casing: `--lowercase`: auto, yes or no.
        known_casing: cased or uncased, from the alias table; None = not known by name.
        states_casing: whether a file of the model states the casing.
        code: the tokenizer's class, where it is one of the model's own and may run; None = one of transformers.
        trust_remote_code: whether code of the model may run at all, such as its configuration's.

    Returns:
        The tokenizer, and its casing with what else the user should know of it.

    Raises:
        ModelError: the tokenizer cannot be loaded, or its casing cannot be changed.
    """
    tokenizer, told = _loaded(Path(folder), code, trust=trust_remote_code)
    stated = None if code is not None else stated_settings(Path(folder)).get("do_lower_case")
    tokenizer, decided = _cased(tokenizer, casing, known_casing, stated, states_casing=states_casing)
    notice = "; ".join(sentence for sentence in (*told, decided.notice) if sentence)
    return tokenizer, replace(decided, notice=notice or None)


def _loaded(folder: Path, code: OwnTokenizer | None, *, trust: bool) -> tuple[Any, tuple[str, ...]]:
    """The tokenizer, and what the user should know of how it came to be."""
    plain = None if code is not None else tokenizer_of_files(folder)
    if plain is not None:
        return plain, ()
    tokenizer, told = _by_transformers(folder, code, trust=trust)
    if code is not None:
        return tokenizer, against_code(tokenizer, folder)
    tokenizer, of_files = held_to_files(tokenizer, folder)
    return tokenizer, (*told, *of_files)


def _of_file_alone(folder: Path) -> Any | None:
    """The tokenizer in tokenizer.json, whatever class is declared for it; None where there is none."""
    if not (folder / "tokenizer.json").is_file():
        return None
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception:  # noqa: BLE001 - the library raises anything here; the first error is told
        return None


def _cased(
    tokenizer: Any, casing: str, known_casing: str | None, stated: Any, *, states_casing: bool
) -> tuple[Any, Casing]:
    normalizer: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if not hasattr(normalizer, "lowercase"):
        return tokenizer, _casing_outside(tokenizer, casing, stated)
    lowers, vocab = normalizer.lowercase, tokenizer.get_vocab()
    decided = _decide(casing, known_casing, states=states_casing, lowers=lowers, vocab=vocab)
    if decided.lowercase != normalizer.lowercase:
        normalizer.lowercase = decided.lowercase
        tokenizer.backend_tokenizer.normalizer = normalizer
    return tokenizer, decided


def _by_transformers(folder: Path, code: OwnTokenizer | None, *, trust: bool) -> tuple[Any, tuple[str, ...]]:
    from transformers import AutoTokenizer, logging

    logging.set_verbosity_error()

    # Said in every call: left out, transformers asks on stdin, and takes rows for answers.
    options = {"local_files_only": True, "trust_remote_code": trust}
    try:
        if code is not None and code.named_in == "config.json":
            # transformers 5 reads it in tokenizer_config.json alone.
            from transformers.dynamic_module_utils import get_class_from_dynamic_module

            own = get_class_from_dynamic_module(code.reference, str(folder), local_files_only=True)
            tokenizer = own.from_pretrained(folder, **options)
        else:
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except Exception as fault:  # noqa: BLE001 - the library raises anything here, and no row is involved
        missing = missing_package(fault, folder)
        if missing is not None:
            raise missing from None
        # The declared class may not take the kind of tokenizer that the file holds.
        alone = None if code is not None else _of_file_alone(folder)
        if alone is not None:
            return alone, (
                "tokenizer.json is used as it was saved: the class declared for it cannot be built of it",
            )
        raise ModelError(
            f"the tokenizer in {folder} cannot be loaded ({type(fault).__name__})",
            hint="check that tokenizer.json or the vocabulary's file is there and whole",
        ) from None
    files = {*getattr(tokenizer, "vocab_files_names", {}).values(), "tokenizer.json"}
    if code is None and len(files) > 1 and not any((folder / name).is_file() for name in files):
        # transformers makes up a vocabulary of five entries in this case, and says nothing.
        raise ModelError(
            f"{folder} has no tokenizer: none of {', '.join(sorted(files))}",
            hint="put tokenizer.json, or the files that the model was trained with, into its folder",
        )
    return tokenizer, ()


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
