"""Suggests names for mistyped ones: options, columns, poolings, dtypes, config keys, aliases.

Suggestions are printed, so callers must not pass names that may contain row content, such as a dubious header.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

#: Similarity above which a name is suggested, 0 to 1.
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
    """Finds the known names closest to a mistyped word.

    Case, hyphens, underscores and blanks are ignored. A synonym (common alternative → known name) wins over
    similarity: `float16` gives `fp16`, although it is closer to `float32`.

    Returns:
        At most `most` names of at least the similarity `likeness`, 0 to 1, the closest first.
    """
    known = list(names)
    plain = _plain(word)
    for alternative, name in synonyms.items():
        if _plain(alternative) == plain and name in known:
            return (name,)
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
    """Returns the hint for an unknown name: "did you mean --pool mean?", or `otherwise` if none is close.

    `prefix`, such as "--pool ", is put before each name.
    """
    near = closest_names(word, names, synonyms=synonyms)
    return f"did you mean {' or '.join(prefix + name for name in near)}?" if near else otherwise


def _plain(word: str) -> str:
    return "".join(word.lower().replace("-", " ").replace("_", " ").split())
