"""Files that `embedkit fit` and `embedkit sweep` write and `--pool` reads: a pooler, or a probe.

A pooler may have a head, which was trained on its vectors. A probe is a head on the vectors of built-in poolings.
They are safetensors with a recipe as JSON in the metadata; nothing is unpickled. Imports no torch, so that a wrong
file is found before a model is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from embedkit.errors import ModelError, UsageError
from embedkit.pooling.heads import HEAD_TASKS, VALUE_TASKS, PredictionHead
from embedkit.storage.filesystem import read_file, stat_file

#: The only key of the metadata: several would be written in random order, and change the file's bytes.
_KEY = "embedkit"
_VERSION = 1
#: In the recipe: the SHA-256 of the arrays' bytes. Files of earlier versions lack it.
_CHECKSUM = "tensors_sha256"
#: The kind of a file with a head alone.
PROBE = "probe"
#: Types of a head's numbers.
_OF_HEAD = (np.float32, np.float64)
#: A larger file is not a pooler.
_MOST_BYTES = 2 * 2**30


@dataclass(frozen=True, slots=True)
class PoolerFile:
    """The content of a file."""

    path: str  # as the user named it
    sha256: str
    recipe: Mapping[str, Any]  # the pooler's kind, and what it was trained on
    tensors: Mapping[str, NDArray[Any]]

    @property
    def kind(self) -> str:
        """Returns the pooler's kind, such as `attention` or `idf`; `probe` for a head alone."""
        return str(self.recipe["kind"])

    @property
    def head(self) -> PredictionHead | None:
        """Reads the head; None if there is none.

        Raises:
            ModelError: it is damaged, or of a task that this version does not know.
        """
        if "task" not in self.recipe:
            return None
        try:
            task, classes = str(self.recipe["task"]), tuple(str(name) for name in self.recipe["classes"])
            size = int(self.recipe["dims"])
            for name in classes:
                name.encode()
        except (KeyError, TypeError, ValueError):
            raise damaged(self.path, "its recipe is incomplete") from None
        if task not in HEAD_TASKS or len(set(classes)) < len(classes) or (not classes) != (task == "regression"):
            raise damaged(self.path, f"its head for the task '{task[:20]}' has {len(classes)} classes")
        outputs = 1 if task in VALUE_TASKS else len(classes)
        weight = self.tensor("head.weight", (outputs, size), _OF_HEAD)
        bias = self.tensor("head.bias", (outputs,), _OF_HEAD)
        return PredictionHead(weight, bias, classes, task, self.recipe)

    def tensor(
        self, name: str, shape: tuple[int, ...], dtypes: tuple[type[Any], ...] = (np.float32, np.int64)
    ) -> NDArray[Any]:
        """Returns an array of the file.

        Raises:
            ModelError: it is missing, has another shape or dtype, or a value that is not finite.
        """
        array = self.tensors.get(name)
        if array is None or array.shape != shape or array.dtype not in dtypes:
            raise damaged(self.path, f"'{name}' is not an array of shape {list(shape)}")
        if not np.isfinite(array).all():
            raise damaged(self.path, f"'{name}' has values that are not finite")
        return array


def damaged(path: str, what: str) -> ModelError:
    """Returns the error for a damaged file."""
    return ModelError(f"{path}: {what}", hint="make the file again with `embedkit fit` or `embedkit sweep`")


def pooler_bytes(recipe: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """Returns the bytes of a file; the same recipe and tensors give the same bytes."""
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    whole = {"version": _VERSION, **recipe, _CHECKSUM: _data_sha256(save(arrays))}
    text = json.dumps(whole, sort_keys=True, ensure_ascii=False, allow_nan=False)
    content: bytes = save(arrays, {_KEY: text})
    return content


def _data_sha256(content: bytes) -> str:
    """Returns the SHA-256 of what follows the header of a safetensors file."""
    return hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()


def probe_bytes(
    head: PredictionHead,
    recipe: Mapping[str, Any],
    *,
    layers: Sequence[int],
    layer_agg: str,
    poolings: Sequence[str],
    facts: Mapping[str, Any],
) -> bytes:
    """Returns the bytes of a probe's file.

    Args:
        head: trained on vectors of these layers and poolings, neither scaled to length 1 nor cut.
        recipe: of the run that computed the vectors: its model and texts are those of the head.
        layers: resolved numbers, in the order in which they are concatenated.
        layer_agg: their aggregation, such as concat or mean.
        poolings: names of built-in poolings, in the order in which their vectors are concatenated.
        facts: what else a reader of the file should know, as JSON: label, scores, rows, seed, versions.
    """
    states = {"layers": list(layers), "layer_agg": layer_agg}
    content = {
        **facts,
        "kind": PROBE,
        "task": head.task,
        "classes": list(head.classes),
        "dims": head.weight.shape[1],
        "pool": list(poolings),
        "model": recipe["model"],
        "text": recipe["text"],
        "input": {**states, **{name: recipe[name] for name in ("exclude_special", "dtype")}},
    }
    return pooler_bytes(content, {"head.weight": head.weight, "head.bias": head.bias})


def read_head(path: str | os.PathLike[str]) -> PredictionHead:
    """Reads the head of a file of `embedkit fit --label` or `embedkit sweep`.

    Raises:
        UsageError: `path` is neither a str nor a Path, or the file has no head.
        ModelError: the file cannot be read, is damaged, or is another kind of file.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise UsageError(f"path cannot be a {type(path).__name__}", hint="give the file's path as a str or Path")
    file = read_pooler(os.fspath(path))
    if file.head is None:
        raise UsageError(
            f"{file.path} has a pooler of kind '{file.kind}' without a head",
            hint="name a file that was trained on labels: of `embedkit fit --label`, or a winner.safetensors",
        )
    return file.head


def read_pooler(path: str) -> PoolerFile:
    """Reads a file of `embedkit fit`.

    Raises:
        ModelError: it cannot be read, is damaged, or is another kind of file.
    """
    try:
        if stat_file(path).size > _MOST_BYTES:
            raise damaged(path, "too large for a pooler")
        content = read_file(path)
    except OSError as fault:
        raise ModelError(
            f"cannot read {path}: {os.strerror(fault.errno or 0)}",
            hint="check the path, or make it with `embedkit fit` or `embedkit sweep`",
        ) from None
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (SafetensorError, ValueError, KeyError, TypeError):
        raise damaged(path, "no safetensors file, or a damaged one") from None
    try:
        recipe = json.loads(header["__metadata__"][_KEY])
        version, kind = recipe["version"], recipe["kind"]
    except (ValueError, KeyError, TypeError):
        raise ModelError(
            f"{path} has no recipe of a pooler: neither `embedkit fit` nor `embedkit sweep` wrote it",
            hint="name a file of `embedkit fit -o FILE`, or winner.safetensors of a sweep",
        ) from None
    if version != _VERSION or not isinstance(kind, str):
        raise ModelError(
            f"{path} is of version {version}, and this embedkit reads version {_VERSION}",
            hint="update embedkit, or make the file again with this version",
        )
    if recipe.pop(_CHECKSUM, None) not in {None, _data_sha256(content)}:
        raise damaged(path, "damaged: its numbers are not those that were written")
    return PoolerFile(path, hashlib.sha256(content).hexdigest(), recipe, tensors)
