"""Finds the units of a shard's texts (windows, words, tokens, spans), and the tokens of each.

A word or a span has the tokens that overlap it. A token in several windows counts in the one where it has most
context: the most tokens on its nearer side, where an end of the text itself counts as unlimited context.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.types import Record, Span, TokenizedTexts, TokenOffsets, ranges

#: Characters that belong to the preceding letter or symbol, like combining marks: joiners of Indic and Persian
#: letters, and skin tones of emoji.
_NON_JOINERS, _SKIN_TONES = "\u200c\u200d", "\U0001f3fb-\U0001f3ff"
#: More than the characters of any text, to code (text, character) as one number.
_TEXT = 2**32


@dataclass(frozen=True, slots=True)
class Members:
    """The tokens of units: M pairs, ordered by unit, then by position in the text."""

    unit: NDArray[np.int64]
    place: NDArray[np.int64]  # the token's index among the shard's tokens

    def only(self, how: str) -> Members:
        """Returns the `first` or the `last` token of each unit."""
        if how == "first":
            keep = np.flatnonzero(np.diff(self.unit, prepend=-1))
        else:
            keep = np.flatnonzero(np.diff(self.unit, append=-1))
        return Members(self.unit[keep], self.place[keep])


@dataclass(frozen=True, slots=True)
class Units:
    """The units of a shard, in the order of the texts and within them."""

    texts: NDArray[np.int64]  # int64 [U], the text of each, ascending
    columns: Mapping[str, NDArray[Any] | list[str | None]]  # name → [U] values, the unit's columns in the output
    members: Members | None  # their tokens; None if they are windows

    @property
    def empty(self) -> NDArray[np.bool_]:
        """True for units without a token: bool [U]."""
        if self.members is None:
            return np.zeros(len(self.texts), np.bool_)
        empty: NDArray[np.bool_] = np.bincount(self.members.unit, minlength=len(self.texts)) == 0
        return empty


#: level → a unit's columns in the output, and their types.
COLUMNS: Mapping[str, Mapping[str, str]] = {
    "text": {},
    "chunk": {"chunk": "int32", "start": "int32", "end": "int32"},
    "word": {"word": "int32", "start": "int32", "end": "int32"},
    "token": {"token": "int32", "token_id": "int32", "start": "int32", "end": "int32"},
    "span": {"span": "int32", "start": "int32", "end": "int32", "label": "string"},
}


def units_of(level: str, tokenized: TokenizedTexts, records: Sequence[Record]) -> Units:
    """Finds the units of a shard's texts: its chunks, words, tokens or spans.

    `tokenized` has the offsets of the tokens, and `records` the R rows of the texts, with their spans.
    """
    offsets = tokenized.offsets
    if offsets is None:
        raise ValueError("units need the offsets of the tokens")
    if level == "chunk":
        return _windows(tokenized, offsets)
    of_texts = _tokens_of_texts(tokenized, offsets)
    if level == "token":
        return _tokens(tokenized, offsets, of_texts)
    with_tokens = np.unique(tokenized.texts).tolist()
    if level == "word":
        found = _spans((text, words_of(records[text].text or "")) for text in with_tokens)
    else:
        found = _spans((text, records[text].spans) for text in with_tokens)
    members = _overlapping(found, offsets, of_texts)
    if level == "word":
        # Words without tokens have no row; the others keep their number in the text, whatever the model.
        found, members = _without_empty(found, members)
        return Units(found.texts, {"word": found.number, "start": found.start, "end": found.stop}, members)
    columns: dict[str, NDArray[Any] | list[str | None]]
    columns = {"span": found.number, "start": found.start, "end": found.stop, "label": found.labels}
    return Units(found.texts, columns, members)


@dataclass(frozen=True, slots=True)
class _Ranges:
    """Character ranges of texts: arrays [U], in the order of the texts."""

    texts: NDArray[np.int64]
    number: NDArray[np.int32]
    start: NDArray[np.int32]
    stop: NDArray[np.int32]
    labels: list[str | None]


def _windows(tokenized: TokenizedTexts, offsets: TokenOffsets) -> Units:
    lengths = tokenized.tokens.lengths
    opens = np.cumsum(lengths) - lengths
    own = offsets.number >= 0
    far = np.iinfo(np.int32).max
    start = np.minimum.reduceat(np.where(own, offsets.start, far), opens) if len(opens) else opens
    stop = np.maximum.reduceat(np.where(own, offsets.stop, 0), opens) if len(opens) else opens
    columns: dict[str, NDArray[Any] | list[str | None]] = {
        "chunk": _numbers(tokenized.texts),
        "start": np.minimum(start, stop).astype(np.int32),
        "end": stop.astype(np.int32),
    }
    return Units(tokenized.texts, columns, None)


def _tokens(tokenized: TokenizedTexts, offsets: TokenOffsets, of_texts: Members) -> Units:
    columns: dict[str, NDArray[Any] | list[str | None]] = {
        "token": offsets.number[of_texts.place],
        "token_id": tokenized.tokens.input_ids[of_texts.place],
        "start": offsets.start[of_texts.place],
        "end": offsets.stop[of_texts.place],
    }
    return Units(of_texts.unit, columns, Members(np.arange(len(of_texts.place)), of_texts.place))


def _tokens_of_texts(tokenized: TokenizedTexts, offsets: TokenOffsets) -> Members:
    """Returns each text's tokens without special tokens, each from the window where it has most context."""
    lengths = tokenized.tokens.lengths
    window = np.repeat(np.arange(len(lengths)), lengths)
    place = np.flatnonzero(offsets.number >= 0)
    window, number = window[place], offsets.number[place].astype(np.int64)
    text = tokenized.texts[window]
    if not len(place) or len(np.unique(tokenized.texts)) == len(tokenized.texts):
        return Members(text, place)
    opens = np.flatnonzero(np.diff(window, prepend=-1))
    of_window = np.cumsum(np.diff(window, prepend=-1) != 0) - 1
    first, last = number[opens][of_window], number[np.append(opens[1:], len(number)) - 1][of_window]
    ends = np.zeros(int(text[-1]) + 1, np.int64)
    np.maximum.at(ends, text, number)
    unbounded = np.iinfo(np.int64).max
    left = np.where(first == 0, unbounded, number - first)
    right = np.where(last == ends[text], unbounded, last - number)
    order = np.lexsort((window, -np.minimum(left, right), number, text))
    best = order[np.flatnonzero(np.diff(text[order] * _TEXT + number[order], prepend=-1))]
    return Members(text[best], place[best])


def words_of(text: str) -> Iterator[Span]:
    """Splits a text into words: numbers with points, letters with inner hyphens and apostrophes, or single marks.

    By characters, not by the tokenizer, so that all models agree. Combining marks stay with the letter before them
    (Python's `re` does not count them as letters), and an emoji with all its joined parts is one word.
    """
    return (Span(*found.span()) for found in _word_pattern().finditer(text))


@cache
def _word_pattern() -> re.Pattern[str]:
    # Every combining mark of Unicode is in the first two planes, or among the variation selectors of the last.
    planes = (*range(0x20000), *range(0xE0100, 0xE01F0))
    marks = "".join(map(chr, filter(lambda code: unicodedata.category(chr(code))[0] == "M", planes)))
    letters = rf"\w[\w{marks}{_NON_JOINERS}]*"
    symbol = rf"[^\w\s][{marks}{_SKIN_TONES}]*"
    return re.compile(
        rf"\d+(?:[.,:/]\d+)+(?![{marks}])|{letters}(?:['\u2019-]{letters})*|{symbol}(?:\u200d{symbol})*"
    )


def _spans(spans: Iterable[tuple[int, Iterable[Span]]]) -> _Ranges:
    flat = [(text, span) for text, of_text in spans for span in of_text]
    texts = np.array([text for text, _ in flat], np.int64)
    return _Ranges(
        texts,
        _numbers(texts),
        np.array([span.start for _, span in flat], np.int32),
        np.array([span.stop for _, span in flat], np.int32),
        [span.label for _, span in flat],
    )


def _overlapping(spans: _Ranges, offsets: TokenOffsets, of_texts: Members) -> Members:
    """Finds the tokens that share a character with each span."""
    opens = of_texts.unit * _TEXT + offsets.start[of_texts.place]
    closes = of_texts.unit * _TEXT + offsets.stop[of_texts.place]
    # Offsets ascend in nearly every tokenizer; where one does not, its neighbours are candidates too.
    first = np.searchsorted(np.maximum.accumulate(closes), spans.texts * _TEXT + spans.start, side="right")
    ordered = np.minimum.accumulate(opens[::-1])[::-1]
    last = np.searchsorted(ordered, spans.texts * _TEXT + spans.stop, side="left")
    counts = np.maximum(last - first, 0)
    unit = np.repeat(np.arange(len(counts)), counts)
    near = ranges(first, counts)
    base = spans.texts[unit] * _TEXT
    # They overlap if the later start is before the earlier end; a token of no characters overlaps nothing.
    shares = np.maximum(opens[near], base + spans.start[unit]) < np.minimum(closes[near], base + spans.stop[unit])
    return Members(unit[shares], of_texts.place[near[shares]])


def _without_empty(words: _Ranges, members: Members) -> tuple[_Ranges, Members]:
    kept = np.bincount(members.unit, minlength=len(words.texts)) > 0
    renumbered = np.cumsum(kept) - 1
    with_tokens = _Ranges(words.texts[kept], words.number[kept], words.start[kept], words.stop[kept], [])
    return with_tokens, Members(renumbered[members.unit], members.place)


def _numbers(texts: NDArray[np.int64]) -> NDArray[np.int32]:
    """Numbers the units of each text from 0."""
    opens = np.flatnonzero(np.diff(texts, prepend=-1))
    counts = np.diff(opens, append=len(texts))
    return ranges(np.zeros_like(opens), counts).astype(np.int32)
