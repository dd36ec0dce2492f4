"""The HTML page: templates filled with the sections, style, scripts and Plotly, all in one file.

Jinja2 escapes every value. The page's own policy forbids connections, and all scripts but its two, by their
hashes: markup that escaped escaping could neither run nor send anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import embedkit
from embedkit.errors import UsageError


def plotly_source() -> str:
    """Returns plotly.js from the package `plotly`."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UsageError(
            "a report needs the package plotly, which is not installed",
            hint="pip install 'plotly>=6', or install embedkit with its extra: pip install '.[report]'",
        ) from None
    source: str = get_plotlyjs()
    return source


def outputs_mark(paths: Sequence[str]) -> str:
    """Returns the element that identifies the outputs of a page, by which the page of others is recognised."""
    digest = hashlib.sha256("\n".join(paths).encode("utf-8", "surrogateescape")).hexdigest()
    return f'<meta name="embedkit-outputs" content="{digest}">'


def render_page(
    title: str,
    sections: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    plotly: str,
    mark: str,
) -> str:
    """Returns the page as HTML; equal arguments give an equal page.

    Args:
        title: of the page.
        sections: outputs, comparisons, sweeps, poolers → the values of each section.
        plotly: its script.
        mark: from `outputs_mark`.
    """
    assets = files("embedkit.report")
    scripts = [plotly, assets.joinpath("page.js").read_text(encoding="utf-8")]
    # Plotly draws points with WebGL, and makes functions for that from strings: 'unsafe-eval'.
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=title,
            outputs=sections["outputs"],
            others=[
                (template, section)
                for template in ("comparison", "sweep", "pooler")
                for section in sections[f"{template}s"]
            ],
            mark=mark,
            scripts=scripts,
            style=assets.joinpath("page.css").read_text(encoding="utf-8"),
            version=embedkit.__version__,
            policy=(
                f"default-src 'none'; script-src {allowed} 'unsafe-eval'; style-src 'unsafe-inline'; "
                "img-src data: blob:; base-uri 'none'; form-action 'none'"
            ),
        )
    )


@cache
def _environment() -> Environment:
    """Returns the environment of the templates, each of which is compiled once."""
    environment = Environment(
        loader=PackageLoader("embedkit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    json_options = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    environment.policies["json.dumps_kwargs"] = json_options
    environment.filters |= {"thousands": "{:,}".format, "percent": percent, "digits": "{:.4g}".format}
    return environment


def percent(share: float) -> str:
    """Returns `12.3 %` for 0.123, with a space at which no line is broken."""
    return f"{share:.1%}".replace("%", "\N{NO-BREAK SPACE}%")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
