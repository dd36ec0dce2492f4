"""The two checks that most values need, each with its way out."""

from __future__ import annotations

from embedkit.errors import UsageError


def one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not among those allowed, with UsageError."""
    if value not in allowed:
        raise UsageError(f"{option} cannot be '{value}'", hint=f"use one of: {', '.join(allowed)}")


def at_least(option: str, value: int | None, least: int) -> None:
    """Refuse a number below `least`, with UsageError; None passes."""
    if value is not None and value < least:
        raise UsageError(f"{option} cannot be {value}", hint=f"use a whole number from {least}")
