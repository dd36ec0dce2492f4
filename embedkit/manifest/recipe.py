"""The recipe: all that decides the numbers of a run, as one JSON object, and its fingerprint.

Devices, workers, batch budgets and progress are not part of it: they change the speed, not the vectors. Nor are
names and paths: the same files under another path are the same model.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedkit.storage.filesystem import seems_folder


def make_recipe(
    *,
    model_type: str,
    files: Mapping[str, str],
    lowercase: bool,
    max_length: int,
    on_long: str,
    stride: int,
    chunk_pool: str,
    prompt: str,
    level: str,
    groups: Mapping[str, Any] | None,
    layers: tuple[int, ...],
    layer_agg: str,
    pool: tuple[str, ...],
    poolers: Mapping[str, Mapping[str, str]],
    exclude_special: bool,
    normalize: bool,
    truncate_dim: int | None,
    precision: str,
    dtype: str,
    shipped: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Returns the recipe of a run, with everything resolved: no `auto`, no negative layer, no open default.

    Args:
        model_type: architecture's name in transformers.
        files: SHA-256 of each of the model's files, by name.
        lowercase: True if texts are lowercased.
        max_length: most tokens of a text, special tokens counted.
        on_long: truncate, chunk or error.
        stride: tokens that two windows share; used only with chunk.
        chunk_pool: how the vectors of windows are combined; used only with chunk.
        prompt: text before each text.
        level: unit of a vector: text, chunk, word, token or span.
        groups: how rows become one vector per group, or None.
        layers: resolved layer numbers, in order.
        layer_agg: how they are aggregated.
        pool: poolings, in order: of texts and windows, or of the tokens of words and spans; () for token vectors.
        poolers: identity of each trained pooler in `pool`, by its name there.
        exclude_special: True if special tokens are left out of the pooling.
        normalize: True if vectors are scaled to length 1.
        truncate_dim: dimensions kept; None if all.
        precision: how vectors are stored.
        dtype: of the model's computation.
        shipped: the modules of the recipe that the model ships, in order, and the similarity that it names (which
            decides no number); None if that recipe is not followed.
    """
    windows = {"stride": stride, "chunk_pool": None if level == "chunk" else chunk_pool}
    return {
        "version": 1,
        "model": {"type": model_type, "files": dict(files)},
        "text": {
            "lowercase": lowercase,
            "prompt": prompt,
            "max_length": max_length,
            "on_long": on_long,
            **(windows if on_long == "chunk" else {}),
        },
        "level": level,
        **({"groups": dict(groups)} if groups else {}),
        "layers": list(layers),
        "layer_agg": layer_agg,
        "pool": list(pool) or ["none"],
        "exclude_special": exclude_special,
        "normalize": normalize,
        "truncate_dim": truncate_dim,
        "precision": precision,
        "dtype": dtype,
        **({"poolers": {name: dict(identity) for name, identity in poolers.items()}} if poolers else {}),
        "shipped": dict(shipped) if shipped else None,
    }


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
