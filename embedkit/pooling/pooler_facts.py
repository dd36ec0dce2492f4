"""Describes a pooler's or probe's file for `embedkit inspect` and the report; needs no model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from embedkit.pooling.pooler_files import PROBE, PoolerFile, damaged

#: Fields of a recipe that have a place of their own among the facts.
_PLACED = ("version", "kind", "dims", "input", "pool", "shape", "task", "classes", "scores", "text", "model")
#: Facts that have a line of their own.
_SHOWN = ("path", *_PLACED, "poolings", "parameters", "tensors", "layer_weights")
#: Most classes that are named, and the width of a weight's bar.
_MOST_CLASSES, _BAR = 20, 40


def layer_weights(file: PoolerFile) -> dict[int, float] | None:
    """Returns the learned weight of each layer, softmax(w); None for a kind that learns none.

    Raises:
        ModelError: the file is damaged.
    """
    if file.kind != "weighted-layers":
        return None
    layers = _part(file, "input").get("layers")
    if not isinstance(layers, list) or not layers:
        raise damaged(file.path, "its recipe is incomplete")
    logits = file.tensor("weights", (len(layers),)).astype(np.float64)
    odds = np.exp(logits - logits.max())
    return {int(layer): float(weight) for layer, weight in zip(layers, odds / odds.sum(), strict=True)}


def pooler_facts(file: PoolerFile) -> dict[str, Any]:
    """Returns what a file says of itself, as JSON.

    Raises:
        ModelError: the file is damaged.
    """
    recipe, head = file.recipe, file.head
    weights, model = layer_weights(file), _part(file, "model")
    hashes = model.get("files", {})
    return {
        "path": file.path,
        "sha256": file.sha256,
        "kind": file.kind,
        "dims": recipe.get("dims"),
        "input": _part(file, "input") or None,
        "poolings": recipe.get("pool"),
        "shape": _part(file, "shape") or None,
        "parameters": sum(int(array.size) for array in file.tensors.values()),
        "tensors": {name: list(array.shape) for name, array in sorted(file.tensors.items())},
        "layer_weights": None if weights is None else {str(layer): weight for layer, weight in weights.items()},
        "task": None if head is None else head.task,
        "classes": None if head is None else list(head.classes),
        "scores": recipe.get("scores"),
        "text": _part(file, "text") or None,
        "model": {"type": model.get("type"), "files": hashes} if model else None,
        **{name: value for name, value in recipe.items() if name not in _PLACED},
    }


def facts_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines that `embedkit inspect` prints for a file's facts."""
    what = "probe" if facts["kind"] == PROBE else f"pooler of kind {facts['kind']}"
    yield f"{facts['path']}: {what}{', with a head' if facts['task'] and facts['kind'] != PROBE else ''}"
    if facts["dims"] is not None:
        yield f"vectors    {facts['dims']:,} dimensions"
    yield from _named("input", facts["input"] or {})
    if facts["poolings"]:
        yield f"poolings   {', '.join(facts['poolings'])}"
    yield from _named("shape", {name: value for name, value in (facts["shape"] or {}).items() if value})
    arrays = [f"{name} [{', '.join(map(str, shape))}]" for name, shape in facts["tensors"].items()]
    yield f"size       {facts['parameters']:,} numbers: {', '.join(arrays)}"
    if facts["layer_weights"] is not None:
        yield "layers     learned weights, which add up to 1"
        largest = max(facts["layer_weights"].values())
        for layer, weight in facts["layer_weights"].items():
            yield f"  {layer:>7}  {weight:.4f} {'#' * round(_BAR * weight / largest)}"
    if facts["task"] is not None:
        classes = facts["classes"]
        names = ", ".join(json.dumps(name, ensure_ascii=False) for name in classes[:_MOST_CLASSES])
        more = f" and {len(classes) - _MOST_CLASSES:,} more" if len(classes) > _MOST_CLASSES else ""
        yield f"task       {facts['task']}" + (f", {len(classes):,} classes: {names}{more}" if classes else "")
    scores = facts["scores"] or {}
    for part, of in (scores if all(isinstance(of, dict) for of in scores.values()) else {"": scores}).items():
        yield from _named("scores", of, f"{part}: " if part else "")
    yield from _named("texts", facts["text"] or {})
    if facts["model"] is not None:
        files = facts["model"]["files"]
        hashes = [f"{name} {digest}" for name, digest in files.items() if name.endswith((".safetensors", ".bin"))]
        yield f"model      {facts['model']['type']}, {len(files)} files; {', '.join(hashes)}"
    for name, value in facts.items():
        if name not in _SHOWN and value is not None:
            yield f"{name:<10} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"


def _named(title: str, values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields a line of names and values; none if there are no values."""
    if values:
        shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in values.items()}
        texts = {name: of if isinstance(of, str) and of else json.dumps(of) for name, of in shown.items()}
        yield f"{title:<10} {prefix}" + ", ".join(f"{name} {of}" for name, of in texts.items())


def _part(file: PoolerFile, name: str) -> dict[str, Any]:
    """Returns an object of the recipe; {} if it has none."""
    part = file.recipe.get(name) or {}
    if not isinstance(part, dict):
        raise damaged(file.path, f"'{name}' of its recipe is not an object")
    return part
