"""Canonical JSON and fingerprints of recipes, and names of files and models as text."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedkit.storage.filesystem import seems_folder


def canonical_json(content: Mapping[str, Any]) -> str:
    """Returns JSON with sorted keys and no spaces, so that equal content gives equal text."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(content: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a recipe (or a plan) as canonical JSON: 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def as_text(name: str) -> str:
    """Returns a file's name as text that JSON and schemas can hold: bytes that are not UTF-8 are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def model_name(typed: str, folder: Path, hub: str | None) -> str:
    """Returns the name of a model for people; it is not part of the recipe.

    Args:
        typed: the value of --model.
        folder: of its files.
        hub: its id on the hub, if it has one.

    Returns:
        An alias or a hub id as typed; of a folder its last part alone, since paths name people and machines.
    """
    if hub is not None and not seems_folder(typed):
        return as_text(typed)
    cached = next((part for part in folder.parts if part.startswith("models--")), None)
    return cached.removeprefix("models--").replace("--", "/", 1) if cached else as_text(folder.name)
