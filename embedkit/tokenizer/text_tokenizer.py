"""Turns texts into token ids, cut or split into windows, with counts and offsets.

The Rust library tokenizes many texts at a time, in all its threads and without the GIL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, cycle, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.errors import ModelError, UsageError
from embedkit.tokenizer.lengths import windows
from embedkit.tokenizer.rust_tokenizer import disable_truncation, rust_tokenizer
from embedkit.types import TokenizedTexts, TokenOffsets, Tokens

#: Characters tokenized at once: an Encoding takes about 100 bytes a token until its ids are copied.
_CHARACTERS_AT_ONCE = 500_000
#: Letters of Glagolitic, cuneiform, runes, Ugaritic: a tokenizer that has tokens for these covers every character,
#: by its bytes.
_RARE = "\ua66e \U00012031 \u16a0 \U00010380"
#: Codes of texts that the model cannot take: a token without an embedding; a character without a token if
#: the vocabulary has no token for unknown characters.
NO_EMBEDDING, UNKNOWN_CHARACTER = "no_embedding", "unknown_character"
#: Entries of a vocabulary to try as a probe text.
_ENTRIES_TRIED = 300


class TextTokenizer:
    """A model's tokenizer with its casing, prompt and length limit settled.

    Args:
        tokenizer: of transformers, or a FileTokenizer.
        max_length: most tokens of a window, special tokens included.
        prompt: put before each text that is not blank, and into each of its windows.
        skipped: tokens of the prompt that the pooling leaves out; a text without other tokens is empty.
        lowercase_first: True to lowercase texts before the tokenizer.
        overlap: tokens that a window shares with the previous one; None to truncate longer texts.
        with_offsets: True to return the origin of each token.
        n_embeddings: number of tokens that the model has an embedding for, from id 0; None if all.

    Attributes:
        prefix: number of special tokens before a text.
        suffix: number of special tokens after it.
        opens_with_cls: True if there are special tokens before a text.
        closes_with_cls: True if the last special token after a text is [CLS].
        unknown_id: id of the token for unknown characters; None if every character has a token.
        without_unknown: if a character has no token and there is no `unknown_id`, "refused" if a text with it
            fails, "left out" if it is dropped; else None.

    Raises:
        ModelError: the tokenizer puts special tokens inside of a text, or has no offsets where they are needed.
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
        with_offsets: bool = False,
        n_embeddings: int | None = None,
    ) -> None:
        self.max_length = max_length
        self.skipped = skipped
        self.lowercase_first = lowercase_first
        self.prompt = prompt.lower() if lowercase_first else prompt
        self.overlap = overlap
        self.with_offsets = with_offsets
        self.n_embeddings = n_embeddings
        self.takes_token_types = "token_type_ids" in tokenizer.model_input_names
        self._cuts_left = getattr(tokenizer, "truncation_side", "right") == "left"
        # A prompt goes into every window, so its tokens have to be distinguished from the text's.
        self._needs_offsets = with_offsets or (overlap is not None and prompt != "")
        self._encode = _encode_function(tokenizer, with_offsets=self._needs_offsets)
        self._entries = partial(_entries, tokenizer)
        self._find_special_tokens(tokenizer)
        self._check_room()

    def _find_special_tokens(self, tokenizer: Any) -> None:
        self._probe_text, probe, content = self._probe(tokenizer)
        special = [] if probe is None else probe.special_tokens_mask
        if probe is None or any(special[content[0] : content[-1] + 1]):
            raise ModelError(
                "the tokenizer makes no tokens of a plain text, or puts special tokens inside of it",
                hint="embedkit cannot use this model; check the tokenizer's files",
            )
        self.prefix, self.suffix = content[0], len(special) - content[-1] - 1
        self.opens_with_cls = self.prefix > 0
        self.closes_with_cls = self.suffix > 0 and probe.ids[-1] == getattr(tokenizer, "cls_token_id", None)
        unknown = getattr(tokenizer, "unk_token_id", None)
        rare = self._encode_one(_RARE)
        rare_ids = rare.ids[self.prefix : len(rare.ids) - self.suffix] if rare is not None else []
        self.without_unknown: str | None = "refused" if rare is None else None if rare_ids else "left out"
        self.unknown_id: int | None = unknown if unknown in rare_ids else None

    def _check_room(self) -> None:
        n_special = self.prefix + self.suffix
        if self.max_length <= n_special:
            raise UsageError(
                f"--max-length {self.max_length} leaves no room for a text: there are {n_special} special tokens",
                hint=f"use at least {n_special + 1}",
            )
        before = len(self._encode([self.prompt])[0].ids) if self.prompt else n_special
        if self.overlap is None and before >= self.max_length:
            raise UsageError(
                f"the prompt has {before} tokens, and leaves no room for a text in {self.max_length}",
                hint="give a shorter --prompt, or a larger --max-length",
            )
        if self.overlap is not None and self.max_length - before <= self.overlap:
            room = max(0, self.max_length - before)
            prompt = " and the prompt" if self.prompt else ""
            raise UsageError(
                f"--stride {self.overlap}: windows of {self.max_length} tokens have room for {room} besides "
                f"special tokens{prompt}",
                hint=f"use a --stride below {max(1, room)}, or a larger --max-length",
            )

    def probe(self, texts: Sequence[str]) -> Tokens:
        """Tokenizes two or more texts to try a model on, or entries of the vocabulary if these have no tokens.

        Of a text that is longer than `max_length`, only the first window is returned.

        Raises:
            ModelError: it makes no tokens of these entries either.
        """
        found = self.tokenize(texts)
        if found.n_chunks.all():
            return _first_windows(found)
        own = islice((entry for entry in self._entries() if self.tokenize([entry]).n_chunks[0]), len(texts))
        words = [self._probe_text, *own]
        lengths = (len(text.split()) for text in texts)
        rotated = (islice(cycle(words), start, start + length) for start, length in enumerate(lengths))
        found = self.tokenize([" ".join(chosen) for chosen in rotated])
        if found.n_chunks.all():
            return _first_windows(found)
        lowered = " when they are lowercased" if self.lowercase_first else ""
        raise ModelError(
            f"the tokenizer makes no tokens of the entries of its own vocabulary{lowered}",
            hint="use --lowercase no" if lowered else "check the tokenizer's files",
        )

    def tokenize(self, texts: Sequence[str | None]) -> TokenizedTexts:
        """Tokenizes the texts of a shard.

        A text is empty if it is None, blank, or has no tokens but special ones. A text longer than `max_length`
        loses tokens at its end (or start, by the tokenizer's truncation side), or is split into windows.

        Args:
            texts: [R] texts; None for a null.
        """
        found = _Windows(len(texts))
        for numbers in _portions(texts):
            prepared = [texts[number] or "" for number in numbers]
            prepared = [self.prompt + (text.lower() if self.lowercase_first else text) for text in prepared]
            encodings = self._encode_all(prepared)
            for number, encoding in zip(numbers, encodings, strict=True):
                if encoding is None:
                    found.faults[number] = UNKNOWN_CHARACTER
                elif self.n_embeddings is not None and max(encoding.ids, default=0) >= self.n_embeddings:
                    found.faults[number] = NO_EMBEDDING
                elif len(encoding.ids) > max(self.prefix + self.suffix, self.skipped):
                    self._add_windows(number, texts[number] or "", encoding, found)
        tokens = Tokens(
            input_ids=_concatenate(found.ids),
            token_type_ids=_concatenate(found.types) if self.takes_token_types else None,
            lengths=np.array([len(ids) for ids in found.ids], np.int64),
            prefix=self.prefix,
            suffix=self.suffix,
        )
        return TokenizedTexts(
            tokens=tokens,
            texts=np.asarray(found.texts, np.int64),
            added=np.asarray(found.added, np.int64),
            n_tokens=found.n_tokens,
            n_used=found.n_used,
            n_chunks=found.n_chunks,
            offsets=TokenOffsets(*map(_concatenate, found.offsets)) if self.with_offsets else None,
            n_unknown=found.n_unknown if self.unknown_id is not None else None,
            faults=found.faults,
        )

    def _encode_all(self, texts: list[str]) -> Sequence[_Encoding | None]:
        """Encodes texts; None for one with a character that has no token."""
        try:
            return self._encode(texts)
        except Exception:  # noqa: BLE001 - neither the Rust library nor tokenizers in Python say which text it was
            return [self._encode_one(text) for text in texts]

    def _encode_one(self, text: str) -> _Encoding | None:
        try:
            return self._encode([text])[0]
        except Exception:  # noqa: BLE001 - as above
            return None

    def _probe(self, tokenizer: Any) -> tuple[str, _Encoding | None, list[int]]:
        """Returns a text that has tokens, preferably known ones, perhaps an entry; and their indices."""
        special_ids = set(getattr(tokenizer, "all_special_ids", ()))
        fallback: tuple[str, _Encoding | None, list[int]] = ("", None, [])
        for text in chain(("a b", "A B", "0 1"), self._entries()):
            encoding = self._encode_one(text)
            mask = [] if encoding is None else encoding.special_tokens_mask
            content = [index for index, is_special in enumerate(mask) if not is_special]
            if encoding is None or not content:
                continue
            if not special_ids.intersection(encoding.ids[index] for index in content):
                return text, encoding, content
            if fallback[1] is None:
                fallback = (text, encoding, content)
        return fallback

    def _add_windows(self, number: int, text: str, encoding: _Encoding, found: _Windows) -> None:
        ids, total = np.asarray(encoding.ids, np.int32), len(encoding.ids)
        types = np.asarray(encoding.type_ids, np.int32) if self.takes_token_types else None
        offsets = np.asarray(encoding.offsets, np.int32).reshape(-1, 2) if self._needs_offsets else None
        opening = self.prefix if offsets is None else self._opening(offsets[: total - self.suffix, 1])
        if offsets is not None:
            offsets = _to_original(offsets - len(self.prompt), text, lowered=self.lowercase_first)
        if self.unknown_id is not None:
            found.n_unknown[number] = np.count_nonzero(ids[self.prefix : total - self.suffix] == self.unknown_id)
        windows = self._split(total, opening)
        found.n_tokens[number] = total
        found.n_chunks[number] = len(windows)
        found.n_used[number] = total if self.overlap is not None else len(ids[windows[0][0]])
        for cut, added in windows:
            found.texts.append(number)
            found.added.append(added)
            found.ids.append(ids[cut])
            if types is not None:
                found.types.append(types[cut])
            if self.with_offsets and offsets is not None:
                index = np.arange(total, dtype=np.int32) - opening
                index[(index < 0) | (index >= total - self.suffix - opening)] = -1
                for parts, values in zip(found.offsets, (index, *offsets.T), strict=True):
                    parts.append(values[cut])

    def _opening(self, stops: NDArray[np.int32]) -> int:
        """Counts the tokens at the start of every window: special tokens and the prompt.

        A token that reaches from the prompt into the text belongs to the text: GPT-2 puts the blank between them
        before the text's first word.
        """
        if not self.prompt:
            return self.prefix
        after_prompt = np.flatnonzero(stops[self.prefix :] > len(self.prompt))
        count = self.prefix + int(after_prompt[0]) if len(after_prompt) else len(stops)
        # Before a text, a prompt may have more tokens than alone, which is what `_check_room` counts.
        return count if self.overlap is None else min(count, self.max_length - self.suffix - self.overlap - 1)

    def _split(self, total: int, opening: int) -> list[tuple[slice | NDArray[np.int64], int]]:
        """Splits the `total` tokens of a text into windows that all start with its first `opening` tokens.

        Returns:
            For each window, the indices of its tokens and the number of them that are in no earlier window.
        """
        content = total - opening - self.suffix
        if total <= self.max_length:
            return [(slice(None), content)]
        if self.overlap is None:
            room = self.max_length - self.prefix - self.suffix
            first = total - self.suffix - room if self._cuts_left else self.prefix
            return [(self._window(self.prefix, first, first + room, total), room)]
        cut = windows(content, self.max_length - opening - self.suffix, self.overlap)
        return [
            (self._window(opening, opening + start, opening + stop, total), added)
            for start, stop, added in zip(cut.starts.tolist(), cut.stops.tolist(), cut.added.tolist(), strict=True)
        ]

    def _window(self, opening: int, start: int, stop: int, total: int) -> NDArray[np.int64]:
        """Returns the indices of a window's first tokens, the content tokens [start, stop), and the suffix."""
        return np.concatenate([np.arange(opening), np.arange(start, stop), np.arange(total - self.suffix, total)])


class _Windows:
    """Collects windows, and the counts of their texts."""

    def __init__(self, n_texts: int) -> None:
        self.n_tokens, self.n_used, self.n_chunks, self.n_unknown = (np.zeros(n_texts, np.int32) for _ in range(4))
        self.faults: dict[int, str] = {}
        self.texts: list[int] = []
        self.added: list[int] = []
        self.ids: list[NDArray[np.int32]] = []
        self.types: list[NDArray[np.int32]] = []
        self.offsets: tuple[list[NDArray[np.int32]], ...] = ([], [], [])


@dataclass(frozen=True, slots=True)
class _Encoding:
    """The fields read of a tokenized text; the Rust library's Encoding has the same names."""

    ids: Sequence[int]
    type_ids: Sequence[int]
    special_tokens_mask: Sequence[int]
    offsets: Sequence[tuple[int, int]] = ()


def _encode_function(tokenizer: Any, *, with_offsets: bool) -> Callable[[list[str]], Sequence[_Encoding]]:
    backend = rust_tokenizer(tokenizer)
    if backend is None and with_offsets:
        raise ModelError(
            f"this model's tokenizer ({type(tokenizer).__name__}) does not say where its tokens are in the text",
            hint="it can give vectors of whole texts: --level text, and no --prompt with --on-long chunk",
        )
    if backend is None:
        return lambda texts: [_encode_in_python(tokenizer, text) for text in texts]
    disable_truncation(backend)
    # The fast function returns no offsets.
    encode: Callable[[list[str]], Sequence[_Encoding]] = (
        backend.encode_batch if with_offsets else backend.encode_batch_fast
    )
    return encode


def _encode_in_python(tokenizer: Any, text: str) -> _Encoding:
    encoding = tokenizer(text, return_special_tokens_mask=True, return_token_type_ids=True, truncation=False)
    return _Encoding(encoding["input_ids"], encoding["token_type_ids"], encoding["special_tokens_mask"])


def _to_original(offsets: NDArray[np.int32], text: str, *, lowered: bool) -> NDArray[np.int32]:
    """Maps offsets [T, 2] in what the tokenizer read to those in the text, without blanks at their ends."""
    offsets = np.maximum(offsets, 0)
    if lowered and len(text.lower()) != len(text):
        # A few letters become two when they are lowercased.
        origin = np.repeat(np.arange(len(text)), [len(letter.lower()) for letter in text])
        ends = np.concatenate([[0], origin + 1])
        starts = np.append(origin, len(text))[offsets[:, 0]]
        offsets = np.stack([starts, ends[offsets[:, 1]]], axis=1).astype(np.int32)
    blank = np.fromiter(map(str.isspace, text), np.bool_, len(text))
    if not blank.any():
        return offsets
    start, stop = offsets.T.copy()
    empty = start >= stop
    visible = np.flatnonzero(~blank)
    next_visible = np.append(visible, len(text))
    start = np.where(empty, start, next_visible[np.searchsorted(next_visible, start)])
    last_visible = np.concatenate([[-1], visible])
    stop = np.where(empty, stop, last_visible[np.searchsorted(last_visible, stop - 1, side="right") - 1] + 1)
    # A blank token keeps its offsets: it belongs to a span around it, and to no word.
    blank_token = (start >= stop)[:, None]
    return np.where(blank_token, offsets, np.stack([start, stop], axis=1)).astype(np.int32)


def _first_windows(found: TokenizedTexts) -> Tokens:
    """Returns the first window of each text that has one."""
    return found.tokens.select(np.unique(found.texts, return_index=True)[1])


def _portions(texts: Sequence[str | None]) -> Sequence[list[int]]:
    """Groups the numbers of the texts that are not blank into portions of bounded size."""
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
    """Yields the first entries of a vocabulary, without the marks of word pieces."""
    yield from (entry.strip("#\u2581\u0120 ") for entry in islice(tokenizer.get_vocab(), _ENTRIES_TRIED))


def _concatenate(parts: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)
