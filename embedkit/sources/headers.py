"""Detects headers, so that names of columns can be shown.

Without a header, the first row of a CSV file is a patient's row, and a table that was converted from such a file
has it as the names of its columns. So a name that the user did not type is shown, or chosen, only if the row of
names looks like a header: all are short and formed like names, and some are words that are usual in headers.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from string import ascii_lowercase

from embedkit.suggest import closest_names

#: Most names in a message, and most characters of a name that is shown.
LISTED, NAME_LENGTH = 50, 64


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Words that do not occur in cells: one of them makes a header. Names are split into words.
_SURE = _words(
    """
    id ids uid uuid guid idx rowid txt text texts label labels mrn pid hadm icustay charttime chartdate storetime
    storedate cgid iserror filename doi pmid pmcid
    """
)
#: Words that are usual in headers and rare in cells: they make a header if they are half of it.
_HEADING = _words(
    """
    key index number num nr target category class classes score value count date datetime time timestamp year age
    sex gender name names type kind role status patients split fold cluster author file path url source origin lang
    language code codes icd offset length len embedding vector birth dob identifier span column field col var
    variable ref version created updated rating
    """
)
#: Words that may also be values (the kind of a document): one of them proves nothing.
_AMBIGUOUS = _words(
    """
    note notes sentence sentences content contents body title abstract summary description desc comment comments
    report reports document documents doc docs question answer query passage paragraph section review
    message subject patient encounter visit admission stay chart start end begin stop month day weight sample
    specimen group row no y diagnosis discharge history findings impression narrative free clinical raw full
    main of the in for from to by at per
    """
)

_NAME = re.compile(r"[^\W\d][\w.:/\-]*(?: [\w.:/\-]+){0,3}")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_NUMBERED = re.compile(r"(.*?)(\d+)")


def is_header(names: Sequence[str], typed: Collection[str] = ()) -> bool:
    """Checks whether a row of names is a header.

    Args:
        names: of all columns of a table.
        typed: names that the user typed: if one of them is present, the rest are names too.
    """
    known = {name.casefold() for name in typed}
    others = [name for name in names if name.casefold() not in known]
    filled = [name for name in others if name]
    if len(filled) < len(others) - 1 or len(set(filled)) < len(filled):
        return False  # pandas leaves the name of its index empty
    if not all(len(name) <= NAME_LENGTH and _NAME.fullmatch(name) for name in filled):
        return False
    if len(others) < len(names):
        return True
    ranks = [_rank(name) for name in filled]
    if _is_numbered([name for name, rank in zip(filled, ranks, strict=True) if not rank]):
        return True
    if max(ranks) == 1:
        return 0 not in ranks
    return 3 in ranks or (2 in ranks and ranks.count(0) <= len(ranks) // 2)


def shown(name: str) -> str:
    """Formats a column's name for a message, if the user typed it or it is from a header."""
    if not name:
        return "(no name)"
    return name if len(name) <= NAME_LENGTH and name.isprintable() else f"({len(name)} characters)"


def listed(names: Iterable[str], typed: Collection[str] = ()) -> str:
    """Formats the columns of a table for a message: their names if they are a header, else their number."""
    every = list(names)
    if not is_header(every, typed):
        return f"{len(every)}, not shown because the names do not look like a header"
    names = [_shown_in_list(name, typed) for name in every]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def hint_for(name: str, names: Sequence[str], typed: Collection[str] = ()) -> str:
    """Returns the hint of an error about a missing column."""
    if not is_header(names, typed):
        return (
            "if there is a header, name its columns, as with --text-column; if a csv or tsv has none, add a first "
            "line such as id,text; if it is one of several parts of a file, join them: only the first has a header"
        )
    near = [other for other in closest_names(name, names) if _shown_in_list(other, typed) == other]
    if not near:
        return "name one of the existing columns"
    return f"did you mean {' or '.join(_with_odd_letters(other) for other in near)}?"


def lookalike(name: str, names: Iterable[str]) -> tuple[str, str] | None:
    """Finds a column whose name differs only by invisible characters, and names these."""
    for other in names:
        if other != name and _visible(other) == _visible(name):
            odd = [letter for letter in other if letter not in name]
            named = ", ".join(dict.fromkeys(_character(letter) for letter in odd)) or "another spelling in Unicode"
            return other, named
    return None


def _rank(name: str) -> int:
    """Ranks a name: 3 surely one, 2 usual in headers, 1 ambiguous, 0 any other word."""
    words = [word.casefold() for word in _WORDS.findall(name)]
    if words and words[-1] in _SURE and " " not in name:
        return 3  # tweet_id, commentText
    ranks = [3 if word in _SURE else 2 if word in _HEADING else int(word in _AMBIGUOUS) for word in words]
    return max(ranks) if ranks and 0 not in ranks else 0


def _is_numbered(names: Sequence[str]) -> bool:
    """Checks for generated names: three or more that count up, such as c0, c1, c2 or a, b, c."""
    if len(names) > 2 and "".join(names) in ascii_lowercase:
        return True
    parts = [(match[1], int(match[2])) for name in names if (match := _NUMBERED.fullmatch(name))]
    runs = sum(after == (before[0], before[1] + 1) for before, after in pairwise(parts))
    return runs >= 2 and runs == len(names) - 1


def _shown_in_list(name: str, typed: Collection[str]) -> str:
    """Formats a name; one of several words may be a cell, and is shown only if they are usual in headers."""
    plain = name in typed or " " not in name or _rank(name)
    return shown(name) if plain else f"({len(name)} characters)"


def _visible(name: str) -> str:
    """Removes invisible characters: of width zero, control characters, blanks at the ends."""
    composed = unicodedata.normalize("NFKC", name)
    return "".join(letter for letter in composed if unicodedata.category(letter) not in {"Cf", "Cc"}).strip()


def _with_odd_letters(name: str) -> str:
    odd = ", ".join(_character(letter) for letter in name if not letter.isascii())
    return f"{shown(name)} (with {odd})" if odd else shown(name)


def _character(letter: str) -> str:
    return f"U+{ord(letter):04X} {unicodedata.name(letter, 'CONTROL')}"
