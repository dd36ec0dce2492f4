"""Shares in per cent, as the documentation writes them: `19.4 %`."""

from __future__ import annotations


def percent(share: float, digits: int = 1) -> str:
    """Returns `19.4 %` for 0.194."""
    return f"{100 * share:.{digits}f} %"
