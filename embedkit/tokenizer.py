"""Texts → token ids, with a receipt for each text.

Settles the casing and the length limit of a model, and cuts long texts so that the special tokens stay.
Tokenizes in the Rust library, whole shards at a time, in all its threads and without the GIL. Knows
nothing of batches or tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from embedkit.errors import InputError, ModelError, UsageError
from embedkit.records import Tokens

#: Above this, a tokenizer's `model_max_length` is a placeholder (transformers writes 1e30), not a limit.
_NO_LIMIT = 1_000_000
#: For models that take any length and whose tokenizer states none: most were trained on 512 tokens.
_FALLBACK_LENGTH = 512
#: Characters tokenized at once: an Encoding costs some 100 bytes a token until its ids are taken out.
_CHARACTERS_AT_ONCE = 500_000


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """A shard's texts as tokens, and what happened to each.

    Attributes:
        tokens: of the texts that have any content, in input order.
        texts: int64 [N], which of the texts given those are.
        n_tokens: int32 [all texts given], tokens before any cut, special tokens included; 0 where empty.
        n_used: int32 [all texts given], tokens that go through the model; 0 where empty.
    """

    tokens: Tokens
    texts: NDArray[np.int64]
    n_tokens: NDArray[np.int32]
    n_used: NDArray[np.int32]


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


class TextTokenizer:
    """A model's tokenizer with its casing, prompt and length limit settled.

    Args:
        tokenizer: of transformers, as AutoTokenizer gives it.
        max_length: most tokens of a text, special tokens counted.
        prompt: put before each text that has any content.
        skipped: tokens of the prompt that the pooling leaves out; a text without any other is empty.
        lowercase_first: lowercase texts before the tokenizer sees them.
    """

    def __init__(
        self, tokenizer: Any, *, max_length: int, prompt: str = "", skipped: int = 0, lowercase_first: bool = False
    ) -> None:
        self.max_length = max_length
        self.skipped = skipped
        self.prompt = prompt
        self.lowercase_first = lowercase_first
        self.takes_token_types = "token_type_ids" in tokenizer.model_input_names
        self._cuts_left = getattr(tokenizer, "truncation_side", "right") == "left"
        self._encode = _encoder_of(tokenizer)
        self._learn_special_tokens(tokenizer)

    def _learn_special_tokens(self, tokenizer: Any) -> None:
        """Find out what the tokenizer puts around a text, from a text of its own."""
        probe = self._encode(["a b"])[0]
        special = probe.special_tokens_mask
        content = [place for place, mark in enumerate(special) if not mark]
        if not content or any(special[content[0] : content[-1] + 1]):
            raise ModelError(
                "the tokenizer does not keep a plain text in one piece",
                hint="embedkit cannot use this model; check the tokenizer's files",
            )
        self.prefix, self.suffix = content[0], len(special) - content[-1] - 1
        self.opens_with_cls = self.prefix > 0
        self.closes_with_cls = self.suffix > 0 and probe.ids[-1] == getattr(tokenizer, "cls_token_id", None)
        if self.max_length <= self.prefix + self.suffix:
            raise UsageError(
                f"--max-length {self.max_length} leaves no room beside {self.prefix + self.suffix} special tokens",
                hint=f"use at least {self.prefix + self.suffix + 1}",
            )

    def tokenize(self, texts: Sequence[str | None]) -> TokenizedTexts:
        """Token ids of a shard's texts.

        A text is empty if it is None, blank, or comes to no token but the special ones. Longer ones than
        `max_length` lose content tokens at the end (or the start, if the tokenizer is set so).

        Args:
            texts: [R] texts; None for a null.
        """
        n_tokens = np.zeros(len(texts), np.int32)
        n_used = np.zeros(len(texts), np.int32)
        ids: list[NDArray[np.int32]] = []
        types: list[NDArray[np.int32]] = []
        kept: list[int] = []
        for numbers in _portions(texts):
            encoded = self._encode([self._prepared(texts[number]) for number in numbers])
            for number, text in zip(numbers, encoded, strict=True):
                of_text = text.ids
                total = len(of_text)
                if total <= max(self.prefix + self.suffix, self.skipped):
                    continue
                cut = self._cut(total)
                n_tokens[number] = total
                n_used[number] = min(total, self.max_length)
                kept.append(number)
                ids.append(np.asarray(of_text, np.int32)[cut])
                if self.takes_token_types:
                    types.append(np.asarray(text.type_ids, np.int32)[cut])
        tokens = Tokens(
            input_ids=_joined(ids),
            token_type_ids=_joined(types) if self.takes_token_types else None,
            lengths=n_used[kept].astype(np.int64),
            prefix=self.prefix,
            suffix=self.suffix,
        )
        return TokenizedTexts(tokens, np.asarray(kept, np.int64), n_tokens, n_used)

    def _prepared(self, text: str | None) -> str:
        prepared = self.prompt + (text or "")
        return prepared.lower() if self.lowercase_first else prepared

    def _cut(self, total: int) -> slice | NDArray[np.int64]:
        """Which of a text's tokens are used: all, or the special ones and as much content as fits."""
        if total <= self.max_length:
            return slice(None)
        room = self.max_length - self.prefix - self.suffix
        places = np.arange(total)
        first = total - self.suffix - room if self._cuts_left else self.prefix
        return np.concatenate([places[: self.prefix], places[first : first + room], places[total - self.suffix :]])


class _Encoded(Protocol):
    """What is read of a tokenized text; the Rust library's Encoding has these names."""

    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def type_ids(self) -> Sequence[int]: ...
    @property
    def special_tokens_mask(self) -> Sequence[int]: ...


@dataclass(frozen=True, slots=True)
class _PythonEncoding:
    ids: Sequence[int]
    type_ids: Sequence[int]
    special_tokens_mask: Sequence[int]


def _encoder_of(tokenizer: Any) -> Callable[[list[str]], Sequence[_Encoded]]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return lambda texts: [_encode_in_python(tokenizer, text) for text in texts]
    # Cutting and padding are ours: the tokenizer's own would hide how long a text was.
    backend.no_truncation()
    backend.no_padding()
    encode: Callable[[list[str]], Sequence[_Encoded]] = backend.encode_batch_fast
    return encode


def _encode_in_python(tokenizer: Any, text: str) -> _Encoded:
    encoded = tokenizer(text, return_special_tokens_mask=True, return_token_type_ids=True, truncation=False)
    return _PythonEncoding(encoded["input_ids"], encoded["token_type_ids"], encoded["special_tokens_mask"])


def _portions(texts: Sequence[str | None]) -> Sequence[list[int]]:
    """Numbers of the texts that are not blank, in portions of bounded size."""
    portions: list[list[int]] = []
    room = 0
    for number, text in enumerate(texts):
        if text is None or not text.strip():
            continue
        if room <= 0:
            portions.append([])
            room = _CHARACTERS_AT_ONCE
        portions[-1].append(number)
        room -= len(text)
    return portions


def _joined(parts: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)


def load_tokenizer(
    folder: str, *, casing: str, known_casing: str | None, states_casing: bool
) -> tuple[Any, Casing]:
    """AutoTokenizer of a folder, with its casing settled.

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
    normalizer: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if not hasattr(normalizer, "lowercase"):
        return tokenizer, _casing_outside(tokenizer, casing)
    lowers, vocab = normalizer.lowercase, tokenizer.get_vocab()
    decided = _decide(casing, known_casing, states=states_casing, lowers=lowers, vocab=vocab)
    if decided.lowercase != normalizer.lowercase:
        normalizer.lowercase = decided.lowercase
        tokenizer.backend_tokenizer.normalizer = normalizer
    return tokenizer, decided


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


def usable_length(asked: int | None, *, positions: int | None, stated: int | None) -> int:
    """Most tokens of a text, special tokens counted.

    Args:
        asked: `--max-length`, or None for the most that the model can take.
        positions: how many positions the model has; None = any number.
        stated: the tokenizer's `model_max_length`, or the limit in the model's own recipe, where that is followed;
            a placeholder counts as none.

    Raises:
        UsageError: more is asked than the model has positions.
    """
    if asked is not None:
        if positions is not None and asked > positions:
            raise UsageError(
                f"--max-length {asked} is more than the model's {positions} positions",
                hint=f"use at most {positions}, or auto",
            )
        return asked
    limits = [limit for limit in (positions, stated) if limit is not None and limit < _NO_LIMIT]
    return min(limits, default=_FALLBACK_LENGTH)


def refuse_long(n_tokens: NDArray[np.int32], max_length: int, rows: Sequence[int]) -> None:
    """Carry out `--on-long error`.

    Raises:
        InputError: a text has more than `max_length` tokens; names the first such row.
    """
    long = np.flatnonzero(n_tokens > max_length)
    if len(long):
        raise InputError(
            f"row {rows[long[0]]} has {n_tokens[long[0]]} tokens; --on-long error allows {max_length}",
            hint="use --on-long truncate, or a model that takes longer texts",
        )
