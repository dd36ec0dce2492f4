"""Reads the weights of a checkpoint by the names that each family gives them.

Checks all names and shapes in the files' headers before any weight is read. Anything unexpected leaves the model
to transformers, which can report it or load it another way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from embedkit.models.native.config import NativeConfig, NotNativeError
from embedkit.models.repository.model_folder import ModelFolder
from embedkit.models.repository.unused_weights import is_known_head
from embedkit.models.repository.weight_files import PLAIN_DTYPES

#: Names of norms' weights and biases in checkpoints from before 2019.
_OLD = {"weight": "gamma", "bias": "beta"}
_WORDS = "embeddings.word_embeddings.weight"
#: The first parts of the names of an encoder's own tensors.
_PARTS = ("embeddings", "embeddings_project", "encoder", "transformer")
#: Buckets of a relative position bias.
RELATIVE_BUCKETS = 32


class Checkpoint:
    """A model's weights, read one at a time.

    Raises:
        NotNativeError: a weight is missing, has another shape or dtype, or would not be used; or a file cannot be
            read.
    """

    def __init__(self, folder: ModelFolder, config: NativeConfig) -> None:
        self._files = ExitStack()
        self._config = config
        self._tensors: Mapping[str, _Stored] = {}
        try:
            self._tensors = self._read_headers(folder)
            self._prefix = self._find_prefix()
            self.has_pooler = self._has("pooler.dense.weight") and self._has("pooler.dense.bias")
            expected = self._expected()
            for name, shape in expected.items():
                self._check(name, shape)
            self._check_unused({self._full_name(name) for name in expected})
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the files."""
        self._tensors = {}
        self._files.close()

    def tensor(self, name: str) -> Tensor:
        """Reads a tensor in fp32. It may be mapped from the file: copy it before the file is closed."""
        try:
            return self._tensors[self._full_name(name)].read().to(torch.float32).contiguous()
        except (OSError, RuntimeError, ValueError) as fault:
            raise NotNativeError(f"{name} cannot be read ({type(fault).__name__})") from None

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """Reads weight and bias of a linear layer or a norm; see `tensor`."""
        return self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias")

    def _expected(self) -> dict[str, tuple[int, ...]]:
        """Returns the names and shapes of all weights of the encoder."""
        config, family = self._config, self._config.family
        width, inner, embedded = config.hidden_size, config.intermediate_size, config.embedding_size
        expected: dict[str, tuple[int, ...]] = {
            _WORDS: (config.vocab_size, embedded),
            "embeddings.position_embeddings.weight": (config.max_position_embeddings, embedded),
            "embeddings.LayerNorm.weight": (embedded,),
            "embeddings.LayerNorm.bias": (embedded,),
        }
        if config.type_vocab_size:
            expected["embeddings.token_type_embeddings.weight"] = (config.type_vocab_size, embedded)
        if family.relative_bias:
            expected[f"{family.relative_bias}.weight"] = (RELATIVE_BUCKETS, config.n_heads)
        linear = {"embeddings_project": (width, embedded)} if embedded != width else {}
        if self.has_pooler:
            linear["pooler.dense"] = (width, width)
        for number in range(config.n_layers):
            layer = family.layer.format(number)
            for part in (family.query, family.key, family.value, family.attention_out):
                linear[layer + part] = (width, width)
            linear[layer + family.up] = (inner, width)
            linear[layer + family.down] = (width, inner)
            for norm in (family.attention_norm, family.output_norm):
                expected |= {f"{layer}{norm}.weight": (width,), f"{layer}{norm}.bias": (width,)}
        for name, (rows, columns) in linear.items():
            expected |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
        return expected

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        if not self._has(name):
            raise NotNativeError(f"its checkpoint lacks {name}")
        stored = self._tensors[self._full_name(name)]
        if stored.shape != shape:
            raise NotNativeError(f"{name} is {list(stored.shape)} where config.json says {list(shape)}")
        if stored.dtype not in PLAIN_DTYPES - {"F64", "float64"}:
            raise NotNativeError(f"{name} is stored as {stored.dtype}")

    def _check_unused(self, used: set[str]) -> None:
        prefix = self._config.family.prefix.removesuffix(".")
        for name in self._tensors.keys() - used:
            if not is_known_head(name, prefix, _PARTS):
                raise NotNativeError(f"its checkpoint has {name[:120]}, which it would not use")

    def _find_prefix(self) -> str:
        prefixes = {"", self._config.family.prefix}
        found = [prefix for prefix in prefixes if prefix + _WORDS in self._tensors]
        if len(found) != 1:
            raise NotNativeError(f"its checkpoint has {_WORDS} {len(found)} times")
        return found[0]

    def _has(self, name: str) -> bool:
        return self._full_name(name) in self._tensors

    def _full_name(self, name: str) -> str:
        full = self._prefix + name
        stem, _, last = full.rpartition(".")
        if full not in self._tensors and "LayerNorm" in name:
            return f"{stem}.{_OLD[last]}"
        return full

    def _read_headers(self, folder: ModelFolder) -> Mapping[str, _Stored]:
        path = folder.folder / folder.weights
        try:
            if path.name in {"model.safetensors", "model.safetensors.index.json"}:
                return _merged([self._of_safetensors(part) for part in folder.weight_files()])
            if path.name == "pytorch_model.bin":
                return _of_pickle(path)
        except NotNativeError:
            raise
        except Exception as fault:  # noqa: BLE001 - damaged files raise anything, and transformers reports them
            raise NotNativeError(f"{folder.weights} cannot be read ({type(fault).__name__})") from None
        raise NotNativeError(f"its weights are {folder.weights}")

    def _of_safetensors(self, path: Path) -> Mapping[str, _Stored]:
        file: Any = self._files.enter_context(safe_open(path, framework="pt"))
        if (file.metadata() or {}).get("format", "pt") != "pt":
            raise NotNativeError("its safetensors are not of torch")

        def stored(name: str) -> _Stored:
            part = file.get_slice(name)
            return _Stored(tuple(part.get_shape()), part.get_dtype(), lambda: file.get_tensor(name))

        return {name: stored(name) for name in file.keys()}  # noqa: SIM118 - a file, not a dict


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor in a file, which `read` reads."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]


def _merged(parts: list[Mapping[str, _Stored]]) -> Mapping[str, _Stored]:
    merged = {name: stored for part in parts for name, stored in part.items()}
    if len(merged) < sum(map(len, parts)):
        raise NotNativeError("two of its files have the same weight")
    return merged


def _of_pickle(path: Path) -> Mapping[str, _Stored]:
    """Reads tensors alone, with a torch that does so safely: see `check_torch_version`."""
    found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)

    def stored(tensor: Tensor) -> _Stored:
        return _Stored(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), lambda: tensor)

    if not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise NotNativeError("its checkpoint holds more than tensors")
    return {name: stored(tensor) for name, tensor in found.items()}
