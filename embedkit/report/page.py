"""The whole page in one file: sections, style, script and Plotly itself, once.

Knows nothing of what the sections tell. The page's own policy forbids every connection, and every script
but its two, by their hashes: what got past the escaping could neither run nor send anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

import embedkit
from embedkit.errors import UsageError
from embedkit.report.markup import Markup, element, joined


def plotly_source() -> str:
    """plotly.js, as the package `plotly` carries it.

    Raises:
        UsageError: the package is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UsageError(
            "a report needs the package plotly, which is not installed",
            hint="pip install 'plotly>=6', or install embedkit with its extra: pip install '.[report]'",
        ) from None
    source: str = get_plotlyjs()
    return source


def outputs_mark(places: Sequence[str]) -> str:
    """What a page says of the outputs that it is of, so that the page of others is not taken for it."""
    digest = hashlib.sha256("\n".join(places).encode("utf-8", "surrogateescape")).hexdigest()
    return f'<meta name="embedkit-outputs" content="{digest}">'


def whole_page(
    title: str, sections: Sequence[Markup], links: Sequence[Markup], plotly: str, mark: str = ""
) -> str:
    """The page as HTML; equal arguments give an equal page."""
    assets = files("embedkit.report")
    style = assets.joinpath("page.css").read_text(encoding="utf-8")
    scripts = [plotly, assets.joinpath("page.js").read_text(encoding="utf-8")]
    # Plotly draws points with WebGL, and makes functions for that from strings: 'unsafe-eval'.
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    policy = (
        f"default-src 'none'; script-src {allowed} 'unsafe-eval'; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    # A script's text is not escaped in HTML, and its hash is of these very bytes.
    inlined = [Markup(f"<script>{script}</script>") for script in scripts]
    body = [
        element("a", "To the content", href="#content", class_="skip"),
        element("header", element("h1", title), element("p", *_separated(links)), id="top"),
        element("main", joined(sections), id="content"),
        element("footer", f"embedkit {embedkit.__version__}. This page loads nothing and sends nothing."),
        *inlined,
    ]
    head = [
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<meta name="referrer" content="no-referrer">'),
        Markup(mark),
        Markup('<link rel="icon" href="data:,">'),
        element("title", title),
        Markup(f"<style>{style}</style>"),
    ]
    inside = f"<head>\n{joined(head)}\n</head>\n<body>\n{joined(body)}\n</body>"
    return f'<!doctype html>\n<html lang="en">\n{inside}\n</html>\n'


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _separated(links: Sequence[Markup]) -> list[Markup]:
    return [part for link in links for part in (Markup(" · "), link)][1:]
