"""Small pieces of HTML: every text that goes in is escaped here, and nowhere else.

Knows nothing of what they tell.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any


class Markup(str):
    """HTML that is ready to be shown; any other string is text."""

    __slots__ = ()


def html(value: object) -> str:
    """Text, escaped; markup as it is."""
    return value if isinstance(value, Markup) else escape(str(value))


def element(name: str, *inside: object, **attributes: object) -> Markup:
    """`<name attributes>inside</name>`; `class_` is class, and `_` in a name is `-`."""
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items()
    )
    if name == "input":  # it has no inside, and no end
        return Markup(f"<input{told}>")
    return Markup(f"<{name}{told}>{''.join(map(html, inside))}</{name}>")


def joined(parts: Iterable[object]) -> Markup:
    """The parts one after another."""
    return Markup("\n".join(map(html, parts)))


def table(headers: Sequence[object], rows: Iterable[Sequence[object]], *, caption: str | None = None) -> Markup:
    """A table whose numbers stand on the right; without headers, the first cell of each row heads the row."""
    lines = []
    if caption:
        lines.append(element("caption", caption))
    if headers:
        lines.append(element("thead", element("tr", *(element("th", cell, scope="col") for cell in headers))))
    body = [
        element("tr", *(_cell(cell, heads=not headers and not place) for place, cell in enumerate(row)))
        for row in rows
    ]
    return element("div", element("table", *lines, element("tbody", *body)), class_="scroll", tabindex="0")


def _cell(cell: object, *, heads: bool) -> Markup:
    if heads:
        return element("th", cell, scope="row")
    if isinstance(cell, int | float):
        return element("td", f"{cell:,}", class_="number")
    return element("td", cell)


def folded(title: str, *inside: object) -> Markup:
    """Something that opens when its title is clicked on, or entered."""
    return element("details", element("summary", title), *inside)


def script_json(content: Any) -> Markup:
    """JSON inside a script element: no `<` in it can end the element, or begin a comment."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def chart(name: str, told: str, content: Any, *, tall: bool = False) -> Markup:
    """A figure of Plotly's, which page.js draws; `told` is what it shows, in words."""
    data = Markup(f'<script type="application/json" id="{name}-data">{script_json(content)}</script>')
    drawn = element(
        "div",
        class_="chart tall" if tall else "chart",
        id=name,
        role="img",
        aria_label=told,
    )
    return element("figure", drawn, element("figcaption", told), data)
