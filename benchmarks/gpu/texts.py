"""Made-up texts with the lengths of real ones, and the vocabulary that they are written in.

Lengths are those of 66,484 package descriptions of Debian (bench/texts.py) in tokens of BERT's uncased vocabulary,
special ones counted; so are the shares of whole words, of pieces and of punctuation, about, and the characters a
token. Everything follows from a seed: nothing is downloaded, and no file is needed.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: Every hundredth of the lengths' quantiles, then closer ones. The longest of all, 19,483, is left out: a table
#: draws no text that comes once in 66,484.
_HUNDREDTHS = (
    *(7, 21, 25, 28, 31, 33, 35, 37, 38, 39, 41, 42, 43, 44, 45, 46, 47, 48, 48, 49),
    *(50, 51, 52, 52, 53, 54, 55, 56, 56, 57, 58, 59, 60, 61, 61, 62, 63, 64, 65, 65),
    *(66, 67, 68, 69, 70, 71, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81, 82, 84, 85, 86),
    *(87, 89, 90, 91, 93, 94, 95, 97, 98, 100, 102, 103, 105, 107, 109, 111, 113, 115, 117, 120),
    *(123, 125, 128, 131, 134, 137, 141, 145, 150, 155, 160, 166, 173, 181, 189, 199, 213, 230, 256, 308),
)
_TAIL = {0.992: 327, 0.994: 355, 0.996: 403, 0.998: 492, 0.999: 678, 1.0: 1065}
QUANTILES = {**{place / 100: length for place, length in enumerate(_HUNDREDTHS)}, **_TAIL}

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PUNCTUATION = ",.()-/:'\""
_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwz", "aeiou"
#: Of 1,000 words: with one and with two more pieces; with a mark behind it.
_PIECES, _MARKS = (190, 20), 220
_DIGITS = "0123456789"
#: Texts drawn at once.
_AT_ONCE = 4096


def vocabulary(size: int) -> list[str]:
    """Makes so many entries: special ones, characters, words, and pieces that begin with an x, as no word does."""
    letters = sorted({*_CONSONANTS, *_VOWELS, "x"})
    characters = [*letters, *_DIGITS, *_PUNCTUATION]
    syllables = ["".join(pair) for pair in itertools.product(_CONSONANTS, _VOWELS)]
    pieces = [f"##x{vowel}{end}" for vowel in _VOWELS for end in ("", *_CONSONANTS)]
    entries = [*_SPECIAL, *characters, *(f"##{letter}" for letter in (*letters, *_DIGITS)), *pieces]
    generator = np.random.default_rng(0)
    # The commonest words are the shortest, as in any language.
    two = ["".join(pair) for pair in itertools.product(syllables, syllables, ("", "n"))]
    three = ["".join(parts) for parts in itertools.product(syllables, repeat=3)]
    in_order = [of[place] for of in (two, three) for place in generator.permutation(len(of))[:size].tolist()]
    return [*entries, *in_order][:size]


@dataclass(frozen=True)
class Words:
    """What texts are made of: words as they are written, and the tokens of each."""

    written: list[str]
    tokens: np.ndarray
    whole: list[str]


def words(entries: Sequence[str]) -> Words:
    """Draws 100,000 words of this vocabulary; those at its start are the most frequent."""
    n_draws = 100_000
    generator = np.random.default_rng(1)
    single = [entry for entry in entries if entry.isalpha() and len(entry) > 1]
    pieces = [entry.removeprefix("##") for entry in entries if entry.startswith("##x")]
    rank = np.arange(len(single))
    common = 1 / (rank + 2.7)
    stems = generator.choice(len(single), n_draws, p=common / common.sum())
    kinds = generator.integers(0, 1000, n_draws)
    marks = generator.integers(0, 1000, n_draws) < _MARKS
    ends = generator.integers(0, len(pieces), (n_draws, 2))
    written, tokens = [], np.ones(n_draws, np.int64)
    for draw in range(n_draws):
        more = 1 if kinds[draw] < _PIECES[0] else 2 if kinds[draw] < sum(_PIECES) else 0
        word = single[stems[draw]] + "".join(pieces[end] for end in ends[draw, :more])
        mark = _PUNCTUATION[draw % len(_PUNCTUATION)] if marks[draw] else ""
        written.append(word + mark)
        tokens[draw] += more + len(mark)
    return Words(written, tokens, [single[stem] for stem in stems[:1000].tolist()])


def lengths(rows: int, seed: int = 0) -> np.ndarray:
    """Returns the lengths in tokens of so many texts, special ones counted: int64 [rows]."""
    drawn = np.random.default_rng(seed).random(rows)
    return np.interp(drawn, list(QUANTILES), list(QUANTILES.values())).round().astype(np.int64)


def texts(entries: Sequence[str], wanted: np.ndarray, seed: int = 0) -> Iterator[str]:
    """Makes a text of each of these lengths in tokens, [CLS] and [SEP] counted."""
    made = words(entries)
    generator = np.random.default_rng(seed)
    for first in range(0, len(wanted), _AT_ONCE):
        lefts = wanted[first : first + _AT_ONCE] - 2
        # Each word is one token at least, so as many words as tokens are enough.
        places = generator.integers(0, len(made.written), lefts.sum())
        sums = np.concatenate([[0], made.tokens[places].cumsum()])
        starts = lefts.cumsum() - lefts
        stops = np.searchsorted(sums, sums[starts] + lefts, side="right") - 1
        shorts = lefts - (sums[stops] - sums[starts])
        drawn = places.tolist()
        for start, stop, short in zip(starts.tolist(), stops.tolist(), shorts.tolist(), strict=True):
            chosen = [made.written[place] for place in drawn[start:stop]]
            chosen += [made.whole[place % len(made.whole)] for place in drawn[stop : stop + short]]
            yield " ".join(chosen)


def write(path: Path, entries: Sequence[str], wanted: np.ndarray) -> None:
    """Writes JSON Lines of `id` and `text`."""
    with path.open("w", encoding="utf-8") as out:
        for row, text in enumerate(texts(entries, wanted)):
            out.write(json.dumps({"id": str(row), "text": text}) + "\n")
