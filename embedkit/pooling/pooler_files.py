"""Files that `embedkit fit` writes and `--pool` reads: a pooler, and the head trained on its vectors.

They are safetensors with a recipe as JSON in the metadata; nothing is unpickled. Imports no torch, so that a wrong
file is found before a model is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from embedkit.errors import ModelError
from embedkit.storage.filesystem import read_file, stat_file

#: The only key of the metadata: several would be written in random order, and change the file's bytes.
_KEY = "embedkit"
_VERSION = 1
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
        """Returns the pooler's kind, such as `attention` or `idf`."""
        return str(self.recipe["kind"])

    def tensor(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """Returns an array of the file, float32 or int64.

        Raises:
            ModelError: it is missing, has another shape, or a value that is not finite.
        """
        array = self.tensors.get(name)
        if array is None or array.shape != shape or array.dtype not in (np.float32, np.int64):
            raise damaged(self.path, f"'{name}' is not an array of shape {list(shape)}")
        if not np.isfinite(array).all():
            raise damaged(self.path, f"'{name}' has values that are not finite")
        return array


@dataclass(frozen=True, slots=True)
class PredictionHead:
    """The linear layer that `fit` trains on pooled vectors: W v + b, one logit a class or the predicted value."""

    weight: NDArray[np.float32]  # float32 [C, D]; C is 1 for regression
    bias: NDArray[np.float32]  # float32 [C]
    classes: tuple[str, ...]  # names of the C classes; () for regression

    @property
    def columns(self) -> dict[str, str]:
        """Returns the columns that it adds to an output, with their types."""
        if not self.classes:
            return {"prediction": "float32"}
        return {**{f"score_{name}": "float32" for name in self.classes}, "predicted": "string"}

    def scores(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the classes' probabilities (softmax), [N, D] → float32 [N, C]; or the values, [N, 1]."""
        logits = vectors @ self.weight.T + self.bias
        if not self.classes:
            return logits
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: NDArray[np.float32] = odds / odds.sum(axis=1, keepdims=True)
        return probabilities

    def cells(self, vectors: NDArray[np.float32]) -> dict[str, list[Any]]:
        """Returns N values for each column."""
        scores = self.scores(vectors)
        # Rounded to the shortest text that gives the same float32, for JSON Lines.
        values = [[float(str(score)) for score in column] for column in scores.T]
        if not self.classes:
            return {"prediction": values[0]}
        best = [self.classes[number] for number in scores.argmax(axis=1)]
        return {**dict(zip(self.columns, values, strict=False)), "predicted": best}


def damaged(path: str, what: str) -> ModelError:
    """Returns the error for a damaged file."""
    return ModelError(f"{path}: {what}", hint="make the file again with `embedkit fit`")


def pooler_bytes(recipe: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """Returns the bytes of a file; the same recipe and tensors give the same bytes."""
    text = json.dumps({"version": _VERSION, **recipe}, sort_keys=True, ensure_ascii=False, allow_nan=False)
    content: bytes = save({name: np.ascontiguousarray(array) for name, array in tensors.items()}, {_KEY: text})
    return content


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
            hint="check the path, or make it with `embedkit fit`",
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
            f"{path} has no recipe of a pooler: `embedkit fit` did not write it",
            hint="name a file written by `embedkit fit -o FILE`",
        ) from None
    if version != _VERSION or not isinstance(kind, str):
        raise ModelError(
            f"{path} is of version {version}, and this embedkit reads version {_VERSION}",
            hint="update embedkit, or make the file again with `embedkit fit`",
        )
    return PoolerFile(path, hashlib.sha256(content).hexdigest(), recipe, tensors)
