"""Files of poolers: what `embedkit fit` writes and `--pool` reads. Safetensors, with a recipe in JSON beside.

Knows nothing of what the numbers in it are for. Imports no torch, so that a wrong file is found before a model is
loaded, and unpickles nothing.
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

#: The one key of the file's metadata. With two, their order, and so the file's bytes, would be by chance.
_KEY = "embedkit"
_VERSION = 1
#: No pooler is so large; a file that says it is, is another file.
_MOST_BYTES = 2 * 2**30


@dataclass(frozen=True, slots=True)
class PoolerFile:
    """A file of `embedkit fit`, read.

    Attributes:
        path: as the user named it.
        sha256: of its bytes.
        recipe: what it is and how it came about.
        tensors: arrays by name.
    """

    path: str
    sha256: str
    recipe: Mapping[str, Any]
    tensors: Mapping[str, NDArray[Any]]

    @property
    def kind(self) -> str:
        """The pooler's kind, such as `attention` or `idf`."""
        return str(self.recipe["kind"])

    def tensor(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """An array of the file, float32 or int64.

        Raises:
            ModelError: it is not there, has another shape, or a value that is not finite.
        """
        array = self.tensors.get(name)
        if array is None or array.shape != shape or array.dtype not in (np.float32, np.int64):
            raise damaged(self.path, f"'{name}' is not an array of shape {list(shape)}")
        if not np.isfinite(array).all():
            raise damaged(self.path, f"'{name}' has values that are not finite")
        return array


def damaged(path: str, what: str) -> ModelError:
    """What a file of a pooler is refused with."""
    return ModelError(f"{path}: {what}", hint="make the file again with `embedkit fit`")


def pooler_bytes(recipe: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """A file's bytes: the same recipe and tensors give the same ones."""
    text = json.dumps({"version": _VERSION, **recipe}, sort_keys=True, ensure_ascii=False, allow_nan=False)
    content: bytes = save({name: np.ascontiguousarray(array) for name, array in tensors.items()}, {_KEY: text})
    return content


def read_pooler(path: str) -> PoolerFile:
    """Read a file of `embedkit fit`.

    Raises:
        ModelError: it cannot be read, is damaged, or is none of them.
    """
    try:
        if stat_file(path).size > _MOST_BYTES:
            raise damaged(path, "is too large to be a pooler's")
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
        raise damaged(path, "is no safetensors file, or a damaged one") from None
    try:
        recipe = json.loads(header["__metadata__"][_KEY])
        version, kind = recipe["version"], recipe["kind"]
    except (ValueError, KeyError, TypeError):
        raise ModelError(
            f"{path} has no recipe of a pooler in it: `embedkit fit` did not make it",
            hint="give a file that `embedkit fit -o FILE` has written",
        ) from None
    if version != _VERSION or not isinstance(kind, str):
        raise ModelError(
            f"{path} is of version {version}, and this embedkit reads version {_VERSION}",
            hint="update embedkit, or make the file again with `embedkit fit`",
        )
    return PoolerFile(path, hashlib.sha256(content).hexdigest(), recipe, tensors)
