"""Near-duplicate texts, such as notes copied forward, found by MinHash signatures; no text is stored.

MinHash (Broder, "On the resemblance and containment of documents", 1997): a text is the set of its runs of three
words, and two texts resemble each other by the share of runs that they have in common. The chance that the
smallest hash of two sets is equal is that share, so 64 smallest hashes estimate it. A second signature is made of
the tokens that a model reads: texts are near-duplicates, too, if these are equal, as where a model knows none of
the characters in which they differ, or nearly equal and the texts were cut at the maximum length.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from functools import cache
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

#: Texts that share this much of their runs of words are near-duplicates.
_SIMILAR = 0.8
_WORDS_PER_RUN = 3
#: Tokens of a run. Runs of three letters or bytes are in nearly every long text, so that small vocabularies need
#: longer ones.
_TOKENS_PER_RUN, _LETTERS_PER_RUN = 3, 10
_SMALL_VOCABULARY = 1000
_HASHES = 64
#: Texts are compared if four consecutive hashes agree, in any of 16 bands: at 0.8 that misses 2 pairs in 10,000.
_BAND = 4
_MULTIPLIERS, _SHIFTS = (
    np.random.default_rng(seed).integers(0, 2**63, _HASHES, np.uint64) * np.uint64(2) + np.uint64(1)
    for seed in (1, 2)
)
#: Scripts without spaces between words: Thai to Tibetan, Burmese, Khmer, kana, Chinese characters.
_SPACELESS = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
_ASCII_WORD = re.compile(r"\w+", re.ASCII)
#: No script has letters beyond this code, except Chinese.
_LAST_SCRIPT = 0x20000
#: Longer words, such as sequences of proteins, are compared by parts of this many letters.
_LONGEST_WORD, _LETTERS = 40, 8


def text_signature(text: str) -> NDArray[np.uint32]:
    """Returns uint32 [64], the smallest hashes of a text's runs of three words, without case and punctuation.

    Each letter of a script without spaces is a word. If there are no words at all, each character is one.
    """
    lowered = text.lower()
    words = _words(lowered) or list("".join(lowered.split()))
    return _smallest_hashes(np.array([zlib.crc32(word.encode()) for word in words], np.uint64), _WORDS_PER_RUN)


def token_signature(ids: NDArray[np.int32], vocabulary: int, *, is_cut: bool) -> NDArray[np.uint32]:
    """Returns uint32 [64], the smallest hashes of the runs of a text's token ids [T].

    A text that was not cut is one run: its near-duplicates are found by their words, and this finds equal ones.

    Args:
        ids: without special tokens.
        vocabulary: number of its entries.
        is_cut: True if the text has more tokens.
    """
    length = _LETTERS_PER_RUN if vocabulary < _SMALL_VOCABULARY else _TOKENS_PER_RUN
    length = length if is_cut else max(1, len(ids))
    return _smallest_hashes(ids.astype(np.uint64) + np.uint64(1), length)


def clusters(*signed: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Groups texts that are near-duplicates, directly or through other texts.

    Args:
        signed: uint32 [N, 64] each, the texts' signatures of one kind; to be alike in one kind is enough.

    Returns:
        int64 [N], cluster numbers; most clusters have one text.
    """
    rows = np.arange(len(signed[0]))
    pairs: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for of_kind in signed:
        for band in range(0, _HASHES, _BAND):
            _, first, bucket = np.unique(
                of_kind[:, band : band + _BAND], axis=0, return_index=True, return_inverse=True
            )
            # Each text against the first of its bucket: the cost grows with the bucket's size and not its square.
            other = first[bucket.reshape(-1)]
            near = (rows != other) & ((of_kind == of_kind[other]).mean(axis=1) >= _SIMILAR)
            pairs.append((rows[near], other[near]))
    starts, ends = (np.concatenate(of_bands) for of_bands in zip(*pairs, strict=True))
    return connected_components(starts, ends, len(rows))


def connected_components(starts: NDArray[np.int64], ends: NDArray[np.int64], n_nodes: int) -> NDArray[np.int64]:
    """Returns int64 [n_nodes], the number of each node's component in a graph of undirected edges."""
    from scipy.sparse import coo_array, csgraph

    edges = coo_array((np.ones(len(starts), np.bool_), (starts, ends)), shape=(n_nodes, n_nodes))
    return np.asarray(csgraph.connected_components(edges, directed=False)[1], np.int64)


def pairs_across(cluster: NDArray[np.int64], parts: NDArray[np.int64]) -> int:
    """Counts pairs of texts in one cluster and different parts, such as folds: near-copies of training texts."""
    size = np.bincount(cluster)
    _, together = np.unique(np.stack([cluster, parts]), axis=1, return_counts=True)
    return int(((size**2).sum() - (together**2).sum()) // 2)


def _words(text: str) -> list[str]:
    words: list[str] = (_ASCII_WORD if text.isascii() else _word()).findall(text)
    if max(map(len, words), default=0) <= _LONGEST_WORD:
        return words
    return [part for word in words for part in _parts(word)]


@cache
def _word() -> re.Pattern[str]:
    """Returns the pattern of a word: letters, digits and the marks on them, which "word" in `re` leaves out."""
    is_mark = groupby(range(_LAST_SCRIPT), lambda code: unicodedata.category(chr(code))[0] == "M")
    marks = [list(codes) for is_of, codes in is_mark if is_of]
    ranges = "".join(f"{chr(codes[0])}-{chr(codes[-1])}" for codes in marks)
    return re.compile(f"[{_SPACELESS}]|(?:(?![{_SPACELESS}])[\\w{ranges}])+")


def _parts(word: str) -> list[str]:
    if len(word) <= _LONGEST_WORD:
        return [word]
    return [word[start : start + _LETTERS] for start in range(len(word) - _LETTERS + 1)]


def _smallest_hashes(items: NDArray[np.uint64], length: int) -> NDArray[np.uint32]:
    """Returns uint32 [64] of the runs of `length` items, or of the one run of all items if there are fewer."""
    if not len(items):
        items = np.zeros(1, np.uint64)
    runs = np.zeros(max(1, len(items) - length + 1), np.uint64)
    for position in range(min(length, len(items))):
        # Multiplied (modulo 2^64) before the next item is added, so that the order counts.
        runs = (runs * np.uint64(0x9E3779B97F4A7C15)) ^ items[position : position + len(runs)]
    hashed = np.unique(runs)[:, None] * _MULTIPLIERS + _SHIFTS
    return np.asarray((hashed >> np.uint64(32)).min(axis=0), np.uint32)
