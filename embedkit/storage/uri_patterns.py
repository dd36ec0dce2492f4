"""Globs over the keys of a store, with the rules that local globs have.

`*`, `?` and `[...]` match within one name, `**` any folders; names that begin with a dot only match a pattern that
does, too.
"""

from __future__ import annotations

import re

_MAGIC = re.compile(r"[*?[]")
_VISIBLE = r"(?!\.)[^/]*"
_FOLDERS = r"(?:(?!\.)[^/]+/)*"


def fixed_part(pattern: str) -> str:
    """Returns the folders of a pattern before its first special character, with the slash after them."""
    found = _MAGIC.search(pattern)
    return pattern if found is None else pattern[: pattern.rfind("/", 0, found.start()) + 1]


def matches_key(pattern: str) -> re.Pattern[str]:
    """Translates a pattern to an expression that matches whole keys."""
    parts = pattern.split("/")
    translated = []
    for at, part in enumerate(parts):
        is_last = at == len(parts) - 1
        if part == "**":
            translated.append(_FOLDERS + (rf"(?=[^/]){_VISIBLE}" if is_last else ""))
        else:
            translated.append(_of_name(part) + ("" if is_last else "/"))
    return re.compile("".join(translated), re.DOTALL)


def _of_name(part: str) -> str:
    # A name that begins with a special character is not that of a hidden file.
    translated = [r"(?!\.)" if part[:1] in {"*", "?", "["} else ""]
    at = 0
    while at < len(part):
        letter = part[at]
        end = part.find("]", at + 2) if letter == "[" else -1
        if letter == "*":
            translated.append("[^/]*")
        elif letter == "?":
            translated.append("[^/]")
        elif end > 0:
            inside = part[at + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            negated = inside.startswith("!")
            translated.append(f"(?!/)[{'^' * negated}{inside[negated:]}]" if inside != "!" else re.escape("[!]"))
            at = end
        else:
            translated.append(re.escape(letter))
        at += 1
    return "".join(translated)
