"""Texts → token ids of windows, and where each token is from.

Tokenizes in the Rust library, whole shards at a time, in all its threads and without the GIL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, cycle, islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from embedkit.errors import ModelError, UsageError
from embedkit.tokenizer.lengths import windows
from embedkit.types import TokenizedTexts, TokenOffsets, Tokens

#: Characters tokenized at once: an Encoding costs some 100 bytes a token until its ids are taken out.
_CHARACTERS_AT_ONCE = 500_000
#: Letters of scripts that no vocabulary has all of: Glagolitic's multiocular O, cuneiform, runes, Ugaritic. What
#: makes tokens of them spells every character, by its bytes.
_RARE = "\ua66e \U00012031 \u16a0 \U00010380"
#: Codes of texts that the model cannot take: a token that it has no embedding for, and a character that the
#: vocabulary has no token for, nor one that stands for all such characters.
NO_EMBEDDING, UNKNOWN_CHARACTER = "no_embedding", "unknown_character"
#: Entries of a vocabulary that are tried for a text that comes to a token, and how many texts are wanted.
_ENTRIES_TRIED, _OWN_TEXTS = 300, 4


class TextTokenizer:
    """A model's tokenizer with its casing, prompt and length limit settled.

    Args:
        tokenizer: of transformers, as AutoTokenizer gives it.
        max_length: most tokens of a window, special tokens counted.
        prompt: put before each text that has any content, and into each of its windows.
        skipped: tokens of the prompt that the pooling leaves out; a text without any other is empty.
        lowercase_first: lowercase texts before the tokenizer sees them.
        overlap: tokens that a window shares with the one before it; None = longer texts are cut, not windowed.
        locates: tell where each token is from.
        n_embeddings: tokens that the model has an embedding for, from id 0; None = of every token.

    Raises:
        ModelError: the tokenizer takes texts apart, or cannot tell where its tokens are from and has to.
        UsageError: `max_length` leaves no room for a text.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_length: int,
        prompt: str = "",
        skipped: int = 0,
        lowercase_first: bool = False,
        overlap: int | None = None,
        locates: bool = False,
        n_embeddings: int | None = None,
    ) -> None:
        self.max_length = max_length
        self.skipped = skipped
        self.lowercase_first = lowercase_first
        self.prompt = prompt.lower() if lowercase_first else prompt
        self.overlap = overlap
        self.locates = locates
        self.n_embeddings = n_embeddings
        self.takes_token_types = "token_type_ids" in tokenizer.model_input_names
        self._cuts_left = getattr(tokenizer, "truncation_side", "right") == "left"
        # A prompt goes into every window, so it has to be told from the text.
        self._needs_places = locates or (overlap is not None and prompt != "")
        self._encode = _encoder_of(tokenizer, with_places=self._needs_places)
        self._entries = partial(_entries, tokenizer)
        self._spelled = ""
        self._learn_special_tokens(tokenizer)

    def _learn_special_tokens(self, tokenizer: Any) -> None:
        """Find out what the tokenizer puts around a text, from a text of its own."""
        probe, content = self._probe(tokenizer)
        special = [] if probe is None else probe.special_tokens_mask
        if probe is None or any(special[content[0] : content[-1] + 1]):
            raise ModelError(
                "the tokenizer does not keep a plain text in one piece",
                hint="embedkit cannot use this model; check the tokenizer's files",
            )
        self.prefix, self.suffix = content[0], len(special) - content[-1] - 1
        self.opens_with_cls = self.prefix > 0
        self.closes_with_cls = self.suffix > 0 and probe.ids[-1] == getattr(tokenizer, "cls_token_id", None)
        unknown = getattr(tokenizer, "unk_token_id", None)
        rare, fault = self._encoded_alone(_RARE)
        content_of_rare = rare.ids[self.prefix : len(rare.ids) - self.suffix] if rare is not None else []
        #: What becomes of a character that the vocabulary has no token for, where there is no token for that.
        self.without_unknown: str | None = "refused" if fault else None if content_of_rare else "left out"
        #: The id of what the vocabulary has no entry for; None where it spells every character.
        self.unknown_id: int | None = unknown if unknown in content_of_rare else None
        n_special = self.prefix + self.suffix
        if self.max_length <= n_special:
            raise UsageError(
                f"--max-length {self.max_length} leaves no room beside {n_special} special tokens",
                hint=f"use at least {n_special + 1}",
            )
        before = len(self._encode([self.prompt])[0].ids) if self.prompt else n_special
        if self.overlap is None and before >= self.max_length:
            raise UsageError(
                f"the prompt has {before} tokens, and leaves no room for a text in {self.max_length}",
                hint="give a shorter --prompt, or a larger --max-length",
            )
        if self.overlap is not None and self.max_length - before <= self.overlap:
            what = "special tokens and the prompt" if self.prompt else "special tokens"
            raise UsageError(
                f"--stride {self.overlap}: windows of {self.max_length} tokens have room for "
                f"{max(0, self.max_length - before)} beside {what}",
                hint=f"use a --stride below {max(1, self.max_length - before)}, or a larger --max-length",
            )

    def probe(self, texts: Sequence[str]) -> Tokens:
        """Tokens of some texts to try a model on; of entries of the vocabulary where it cannot spell the texts.

        Args:
            texts: at least two.

        Raises:
            ModelError: it cannot spell these either.
        """
        found = self.tokenize(texts)
        if found.n_chunks.all():
            return found.tokens
        own = islice((entry for entry in self._entries() if self.tokenize([entry]).n_chunks[0]), len(texts))
        words = [self._spelled, *own]
        lengths = (len(text.split()) for text in texts)
        rotated = (islice(cycle(words), place, place + length) for place, length in enumerate(lengths))
        found = self.tokenize([" ".join(chosen) for chosen in rotated])
        if found.n_chunks.all():
            return found.tokens
        lowered = " once they are lowercased" if self.lowercase_first else ""
        raise ModelError(
            f"the tokenizer makes no tokens of the entries of its own vocabulary{lowered}",
            hint="use --lowercase no" if lowered else "check the tokenizer's files",
        )

    def tokenize(self, texts: Sequence[str | None]) -> TokenizedTexts:
        """Token ids of a shard's texts.

        A text is empty if it is None, blank, or comes to no token but the special ones. Longer ones than
        `max_length` lose content tokens at the end (or the start, if the tokenizer is set so), or are read in
        windows of that length.

        Args:
            texts: [R] texts; None for a null.
        """
        found = _Found(len(texts))
        for numbers in _portions(texts):
            encoded = self._encoded([self._prepared(texts[number]) for number in numbers])
            for number, text in zip(numbers, encoded, strict=True):
                if isinstance(text, str):
                    found.faults[number] = text
                elif self.n_embeddings is not None and max(text.ids, default=0) >= self.n_embeddings:
                    found.faults[number] = NO_EMBEDDING
                elif len(text.ids) > max(self.prefix + self.suffix, self.skipped):
                    self._take(number, texts[number] or "", text, found)
        tokens = Tokens(
            input_ids=_joined(found.ids),
            token_type_ids=_joined(found.types) if self.takes_token_types else None,
            lengths=np.array([len(ids) for ids in found.ids], np.int64),
            prefix=self.prefix,
            suffix=self.suffix,
        )
        places = TokenOffsets(*(_joined(parts) for parts in found.places)) if self.locates else None
        return TokenizedTexts(
            tokens,
            np.asarray(found.texts, np.int64),
            np.asarray(found.added, np.int64),
            *(found.n_tokens, found.n_used, found.n_chunks),
            places,
            found.n_unknown if self.unknown_id is not None else None,
            found.faults,
        )

    def _encoded(self, texts: list[str]) -> Sequence[_Encoded | str]:
        """Each text's tokens, or the code of why it has none."""
        try:
            return self._encode(texts)
        except Exception:  # noqa: BLE001 - of the Rust library, and of tokenizers in Python; it does not say which
            alone = [self._encoded_alone(text) for text in texts]
            return [UNKNOWN_CHARACTER if encoded is None else encoded for encoded, _ in alone]

    def _encoded_alone(self, text: str) -> tuple[_Encoded | None, bool]:
        """A text's tokens, and whether it cannot be spelled."""
        try:
            return self._encode([text])[0], False
        except Exception:  # noqa: BLE001 - as above
            return None, True

    def _probe(self, tokenizer: Any) -> tuple[_Encoded | None, list[int]]:
        """A text that comes to tokens of its own, and where these are; None where there is none.

        A vocabulary may have no plain letter: entries of its own are tried, too.
        """
        special_ids = set(getattr(tokenizer, "all_special_ids", ()))
        unknown: tuple[_Encoded | None, list[int]] = (None, [])
        for text in chain(("a b", "A B", "0 1"), self._entries()):
            encoded, _ = self._encoded_alone(text)
            if encoded is None:
                continue
            content = [place for place, mark in enumerate(encoded.special_tokens_mask) if not mark]
            if not content:
                continue
            if not special_ids.intersection(encoded.ids[place] for place in content):
                self._spelled = text
                return encoded, content
            if unknown[0] is None:
                self._spelled, unknown = text, (encoded, content)
        return unknown

    def _prepared(self, text: str | None) -> str:
        return self.prompt + ((text or "").lower() if self.lowercase_first else text or "")

    def _take(self, number: int, text: str, encoded: _Encoded, found: _Found) -> None:
        """Add the windows of a text to what was found."""
        ids, total = np.asarray(encoded.ids, np.int32), len(encoded.ids)
        types = np.asarray(encoded.type_ids, np.int32) if self.takes_token_types else None
        where = np.asarray(encoded.offsets, np.int32).reshape(-1, 2) if self._needs_places else None
        opens = self.prefix if where is None else self._opening(where[: total - self.suffix, 1])
        if where is not None:
            where = _in_text(where - len(self.prompt), text, lowered=self.lowercase_first)
        if self.unknown_id is not None:
            found.n_unknown[number] = np.count_nonzero(ids[self.prefix : total - self.suffix] == self.unknown_id)
        pieces = self._pieces(total, opens)
        found.n_tokens[number] = total
        found.n_chunks[number] = len(pieces)
        found.n_used[number] = total if self.overlap is not None else len(ids[pieces[0][0]])
        for cut, added in pieces:
            found.texts.append(number)
            found.added.append(added)
            found.ids.append(ids[cut])
            if types is not None:
                found.types.append(types[cut])
            if self.locates and where is not None:
                own = np.arange(total, dtype=np.int32) - opens
                own[(own < 0) | (own >= total - self.suffix - opens)] = -1
                for parts, of_text in zip(found.places, (own, *where.T), strict=True):
                    parts.append(of_text[cut])

    def _opening(self, stops: NDArray[np.int32]) -> int:
        """How many tokens open every window: special tokens and the prompt.

        A token that reaches from the prompt into the text is the text's: GPT-2 puts the blank between them before
        the text's first word.
        """
        if not self.prompt:
            return self.prefix
        own = np.flatnonzero(stops[self.prefix :] > len(self.prompt))
        found = self.prefix + int(own[0]) if len(own) else len(stops)
        # Some tokenizers make more tokens of a prompt before a text than of the prompt alone, which was measured.
        return found if self.overlap is None else min(found, self.max_length - self.suffix - self.overlap - 1)

    def _pieces(self, total: int, opens: int) -> list[tuple[slice | NDArray[np.int64], int]]:
        """Which of a text's tokens each window has, and how many of them are in no earlier one.

        Args:
            total: tokens of the text.
            opens: of these, the ones that open every window: special tokens and the prompt.
        """
        content = total - opens - self.suffix
        if total <= self.max_length:
            return [(slice(None), content)]
        if self.overlap is None:
            room = self.max_length - self.prefix - self.suffix
            first = total - self.suffix - room if self._cuts_left else self.prefix
            return [(self._framed(self.prefix, first, first + room, total), room)]
        cut = windows(content, self.max_length - opens - self.suffix, self.overlap)
        return [
            (self._framed(opens, opens + start, opens + stop, total), added)
            for start, stop, added in zip(*(of.tolist() for of in (cut.starts, cut.stops, cut.added)), strict=True)
        ]

    def _framed(self, opens: int, start: int, stop: int, total: int) -> NDArray[np.int64]:
        """The tokens [start, stop), with those that open and close every window around them."""
        return np.concatenate([np.arange(opens), np.arange(start, stop), np.arange(total - self.suffix, total)])


class _Found:
    """Windows as they are made, and the receipts of their texts."""

    def __init__(self, n_texts: int) -> None:
        self.n_tokens, self.n_used, self.n_chunks, self.n_unknown = (np.zeros(n_texts, np.int32) for _ in range(4))
        self.faults: dict[int, str] = {}
        self.texts: list[int] = []
        self.added: list[int] = []
        self.ids: list[NDArray[np.int32]] = []
        self.types: list[NDArray[np.int32]] = []
        self.places: tuple[list[NDArray[np.int32]], ...] = ([], [], [])


class _Encoded(Protocol):
    """What is read of a tokenized text; the Rust library's Encoding has these names."""

    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def type_ids(self) -> Sequence[int]: ...
    @property
    def special_tokens_mask(self) -> Sequence[int]: ...
    @property
    def offsets(self) -> Sequence[tuple[int, int]]: ...


@dataclass(frozen=True, slots=True)
class _PythonEncoding:
    ids: Sequence[int]
    type_ids: Sequence[int]
    special_tokens_mask: Sequence[int]
    offsets: Sequence[tuple[int, int]] = ()


def _encoder_of(tokenizer: Any, *, with_places: bool) -> Callable[[list[str]], Sequence[_Encoded]]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None and with_places:
        raise ModelError(
            f"this model's tokenizer ({type(tokenizer).__name__}) does not tell where its tokens are in the text",
            hint="it can give vectors of whole texts: --level text, and no --prompt with --on-long chunk",
        )
    if backend is None:
        return lambda texts: [_encode_in_python(tokenizer, text) for text in texts]
    # Cutting and padding are ours: the tokenizer's own would hide how long a text was.
    backend.no_truncation()
    backend.no_padding()
    # The fast one leaves out where the tokens are.
    encode: Callable[[list[str]], Sequence[_Encoded]] = (
        backend.encode_batch if with_places else backend.encode_batch_fast
    )
    return encode


def _encode_in_python(tokenizer: Any, text: str) -> _Encoded:
    encoded = tokenizer(text, return_special_tokens_mask=True, return_token_type_ids=True, truncation=False)
    return _PythonEncoding(encoded["input_ids"], encoded["token_type_ids"], encoded["special_tokens_mask"])


def _in_text(where: NDArray[np.int32], text: str, *, lowered: bool) -> NDArray[np.int32]:
    """Characters [T, 2] of the text itself: those of what the tokenizer saw, without the blanks at their ends."""
    where = np.maximum(where, 0)
    if lowered and len(text.lower()) != len(text):
        # A few letters become two when they are lowercased.
        origin = np.repeat(np.arange(len(text)), [len(letter.lower()) for letter in text])
        ends = np.concatenate([[0], origin + 1])
        where = np.stack([np.append(origin, len(text))[where[:, 0]], ends[where[:, 1]]], axis=1).astype(np.int32)
    blank = np.fromiter(map(str.isspace, text), np.bool_, len(text))
    if not blank.any():
        return where
    start, stop = where.T.copy()
    empty = start >= stop
    runs = np.append(np.flatnonzero(~blank), len(text))
    start = np.where(empty, start, runs[np.searchsorted(runs, start)])
    last = np.concatenate([[-1], np.flatnonzero(~blank)])
    stop = np.where(empty, stop, last[np.searchsorted(last, stop - 1, side="right") - 1] + 1)
    # What is blank altogether stays where it was: it is in a span around it, and in no word.
    lost = start >= stop
    return np.stack([np.where(lost, where[:, 0], start), np.where(lost, where[:, 1], stop)], axis=1).astype(
        np.int32
    )


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


def _entries(tokenizer: Any) -> Iterator[str]:
    """The first entries of a vocabulary, without the marks of pieces of words."""
    yield from (entry.strip("#\u2581\u0120 ") for entry in islice(tokenizer.get_vocab(), _ENTRIES_TRIED))


def _joined(parts: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)
