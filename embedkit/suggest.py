"""Finds what a mistyped name was meant to be: an option, a column, a pooling, a dtype, a key, an alias.

Knows nothing of what the names are for. Names that come from a table are the caller's business: a header that
may hold a patient's row is not to be given to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

#: How alike two names are that are taken for one, of 0 to 1.
LIKENESS = 0.6
_NO_SYNONYMS: Mapping[str, str] = {}


def closest_names(
    word: str,
    names: Iterable[str],
    *,
    synonyms: Mapping[str, str] = _NO_SYNONYMS,
    most: int = 3,
    likeness: float = LIKENESS,
) -> tuple[str, ...]:
    """Find the known names that a mistyped word is most like.

    Case, hyphens, underscores and blanks do not count. A synonym wins over a likeness: `float16` is `fp16`
    although it is spelled more like `float32`.

    Args:
        word: what was typed.
        names: what is known.
        synonyms: usual words of the field → the known name.
        most: most names to return.
        likeness: how alike a name has to be.

    Returns:
        At most `most` names, the likeliest first; () if none is like it.
    """
    known = list(names)
    plain = _plain(word)
    for usual, meant in synonyms.items():
        if _plain(usual) == plain and meant in known:
            return (meant,)
    by_plain: dict[str, str] = {}
    for name in known:
        by_plain.setdefault(_plain(name), name)
    if plain in by_plain:
        return (by_plain[plain],)
    return tuple(by_plain[match] for match in get_close_matches(plain, by_plain, n=most, cutoff=likeness))


def did_you_mean(
    word: str,
    names: Iterable[str],
    otherwise: str,
    *,
    prefix: str = "",
    synonyms: Mapping[str, str] = _NO_SYNONYMS,
) -> str:
    """Write the hint of an error about an unknown name.

    Args:
        word: what was typed.
        names: what is known.
        otherwise: the hint if nothing is like it.
        prefix: put before each name, such as "--pool ".
        synonyms: see `closest_names`.

    Returns:
        "did you mean --pool mean?", or `otherwise`.
    """
    near = closest_names(word, names, synonyms=synonyms)
    return f"did you mean {' or '.join(prefix + name for name in near)}?" if near else otherwise


def _plain(word: str) -> str:
    return "".join(word.lower().replace("-", " ").replace("_", " ").split())
