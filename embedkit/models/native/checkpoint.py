"""The weights of a checkpoint, by the names that each kind of model gives them.

Reads headers first: whether all weights are there, in the right shapes, is known before any is read. What
is not as it should be leaves the model to transformers, which says what is wrong with it or mends it.
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


@dataclass(frozen=True, slots=True)
class Names:
    """Where a kind of model keeps the parts of a layer: names without `.weight` and `.bias`.

    Attributes:
        prefix: what stands before every name where the checkpoint has heads as well.
        layer: of layer {}, from 0.
        query, key, value, out, norm, up, down, last_norm: parts of a layer.
    """

    prefix: str
    layer: str = "encoder.layer.{}."
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    out: str = "attention.output.dense"
    norm: str = "attention.output.LayerNorm"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    last_norm: str = "output.LayerNorm"


_ROBERTA = Names("roberta.")
NAMES = {
    "bert": Names("bert."),
    "camembert": _ROBERTA,
    "distilbert": Names(
        "distilbert.",
        layer="transformer.layer.{}.",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        out="attention.out_lin",
        norm="sa_layer_norm",
        up="ffn.lin1",
        down="ffn.lin2",
        last_norm="output_layer_norm",
    ),
    "electra": Names("electra."),
    "mpnet": Names(
        "mpnet.",
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        out="attention.attn.o",
        norm="attention.LayerNorm",
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}
#: What norms of checkpoints from before 2019 call their weight and bias.
_OLD = {"weight": "gamma", "bias": "beta"}
_WORDS = "embeddings.word_embeddings.weight"
#: What the names of an encoder's own tensors begin with.
_PARTS = ("embeddings", "embeddings_project", "encoder", "transformer")


class Checkpoint:
    """A model's weights, read one at a time.

    Args:
        folder: the model.
        shape: what config.json says.

    Raises:
        NotNativeError: a weight is missing, of another shape or kind, or there is one that would not be used, or a
            file cannot be read.
    """

    def __init__(self, folder: ModelFolder, shape: NativeConfig) -> None:
        self._open = ExitStack()
        self._shape = shape
        self._tensors: Mapping[str, _Stored] = {}
        try:
            self._tensors = self._opened(folder)
            self._prefix = self._found_prefix()
            self.has_pooler = self._has("pooler.dense.weight") and self._has("pooler.dense.bias")
            wanted = self._wanted()
            for name, shape_of_it in wanted.items():
                self._check(name, shape_of_it)
            self._check_unused({self._found(name) for name in wanted})
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the files."""
        self._tensors = {}
        self._open.close()

    def embedding(self, name: str) -> Tensor:
        """A table of embeddings: fp32 [rows, width]."""
        # A copy: a file that is written to while it is mapped would change the numbers.
        return self._read(f"{name}.weight").clone()

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """Weight and bias of a norm: fp32 [width] each."""
        return self._read(f"{name}.weight").clone(), self._read(f"{name}.bias").clone()

    def mapped(self, name: str) -> tuple[Tensor, Tensor]:
        """Weight and bias of a linear layer, fp32 [out, in] and [out]; to be copied, they may lie in the file."""
        return self._read(f"{name}.weight"), self._read(f"{name}.bias")

    def _read(self, name: str) -> Tensor:
        try:
            return self._tensors[self._found(name)].read().to(torch.float32).contiguous()
        except (OSError, RuntimeError, ValueError) as fault:
            raise NotNativeError(f"{name} cannot be read ({type(fault).__name__})") from None

    def _wanted(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all weights that the encoder has."""
        shape, names = self._shape, NAMES[self._shape.model_type]
        width, inner, embedded = shape.hidden_size, shape.intermediate_size, shape.embedding_size
        wanted: dict[str, tuple[int, ...]] = {
            _WORDS: (shape.vocab_size, embedded),
            "embeddings.position_embeddings.weight": (shape.max_position_embeddings, embedded),
            "embeddings.LayerNorm.weight": (embedded,),
            "embeddings.LayerNorm.bias": (embedded,),
        }
        if shape.type_vocab_size:
            wanted["embeddings.token_type_embeddings.weight"] = (shape.type_vocab_size, embedded)
        if shape.model_type == "mpnet":
            wanted["encoder.relative_attention_bias.weight"] = (32, shape.n_heads)
        linear = {"embeddings_project": (width, embedded)} if embedded != width else {}
        if self.has_pooler:
            linear["pooler.dense"] = (width, width)
        for number in range(shape.n_layers):
            layer = names.layer.format(number)
            for part in (names.query, names.key, names.value, names.out):
                linear[layer + part] = (width, width)
            linear[layer + names.up] = (inner, width)
            linear[layer + names.down] = (width, inner)
            for norm in (names.norm, names.last_norm):
                wanted |= {f"{layer}{norm}.weight": (width,), f"{layer}{norm}.bias": (width,)}
        for name, (rows, columns) in linear.items():
            wanted |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
        return wanted

    def _check(self, name: str, wanted: tuple[int, ...]) -> None:
        if not self._has(name):
            raise NotNativeError(f"its checkpoint lacks {name}")
        stored = self._tensors[self._found(name)]
        if stored.shape != wanted:
            raise NotNativeError(f"{name} is {list(stored.shape)} where config.json says {list(wanted)}")
        if stored.dtype not in PLAIN_DTYPES - {"F64", "float64"}:
            raise NotNativeError(f"{name} is stored as {stored.dtype}")

    def _check_unused(self, used: set[str]) -> None:
        prefix = NAMES[self._shape.model_type].prefix.removesuffix(".")
        for name in self._tensors.keys() - used:
            if not is_known_head(name, prefix, _PARTS):
                raise NotNativeError(f"its checkpoint has {name[:120]}, which it would not use")

    def _found_prefix(self) -> str:
        prefixes = {"", NAMES[self._shape.model_type].prefix}
        found = [prefix for prefix in prefixes if prefix + _WORDS in self._tensors]
        if len(found) != 1:
            raise NotNativeError(f"its checkpoint has {_WORDS} {len(found)} times")
        return found[0]

    def _has(self, name: str) -> bool:
        return self._found(name) in self._tensors

    def _found(self, name: str) -> str:
        full = self._prefix + name
        stem, _, last = full.rpartition(".")
        if full not in self._tensors and "LayerNorm" in name:
            return f"{stem}.{_OLD[last]}"
        return full

    def _opened(self, folder: ModelFolder) -> Mapping[str, _Stored]:
        path = folder.folder / folder.weights
        try:
            if path.name == "model.safetensors":
                return self._of_safetensors(path)
            if path.name == "model.safetensors.index.json":
                return _merged([self._of_safetensors(part) for part in folder.weight_files()])
            if path.name == "pytorch_model.bin":
                return _of_pickle(path)
        except NotNativeError:
            raise
        except Exception as fault:  # noqa: BLE001 - damaged files raise anything; transformers tells which it is
            raise NotNativeError(f"{folder.weights} cannot be read ({type(fault).__name__})") from None
        raise NotNativeError(f"its weights are {folder.weights}")

    def _of_safetensors(self, path: Path) -> Mapping[str, _Stored]:
        file: Any = self._open.enter_context(safe_open(path, framework="pt"))
        if (file.metadata() or {}).get("format", "pt") != "pt":
            raise NotNativeError("its safetensors are not of torch")

        def stored(name: str) -> _Stored:
            part = file.get_slice(name)
            return _Stored(tuple(part.get_shape()), part.get_dtype(), lambda: file.get_tensor(name))

        return {name: stored(name) for name in file.keys()}  # noqa: SIM118 - a file, not a dict


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor in a file: its shape, its kind of number, and how to read it."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]


def _merged(parts: list[Mapping[str, _Stored]]) -> Mapping[str, _Stored]:
    merged = {name: stored for part in parts for name, stored in part.items()}
    if len(merged) < sum(map(len, parts)):
        raise NotNativeError("two of its files have the same weight")
    return merged


def _of_pickle(path: Path) -> Mapping[str, _Stored]:
    """Tensors alone are read from it, in a torch that does so safely: see `refuse_old_torch`."""
    found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)

    def stored(tensor: Tensor) -> _Stored:
        return _Stored(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), lambda: tensor)

    if not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise NotNativeError("its checkpoint holds more than tensors")
    return {name: stored(tensor) for name, tensor in found.items()}
