"""Reads the weights of a checkpoint by the names that each family gives them.

Checks all names and shapes in the files' headers before any weight is read. Anything unexpected leaves the model
to transformers, which can report it or load it another way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from embedkit.models.native.config import NativeConfig
from embedkit.models.native.config_reader import NotNativeError
from embedkit.models.native.families.family import Layout, NormNames
from embedkit.models.repository.model_folder import ModelFolder
from embedkit.models.repository.unused_weights import is_known_head
from embedkit.models.repository.weight_files import PLAIN_DTYPES

#: Names of norms' weights and biases in checkpoints from before 2019.
_OLD = {"weight": "gamma", "bias": "beta"}
#: First parts of names that only an encoder's own tensors have.
_PARTS = {"embeddings", "embeddings_project", "encoder", "layers", "transformer"}


class Checkpoint:
    """A model's weights, read one at a time.

    Attributes:
        layout: the names of its tensors.
        has_pooler: whether it has weights of the family's pooling head.

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
            self._prefix, self.layout = self._find_names()
            pooler = self.layout.pooler
            self.has_pooler = pooler is not None and all(self._has(pooler + end) for end in (".weight", ".bias"))
            expected = self._expected()
            for name, shape in expected.items():
                self._check(name, shape)
            used = {self._full_name(name) for name in (*expected, *self._not_needed())}
            ignored = {f"{self._prefix}{name}.weight" for name in self.layout.ignored}
            self._check_unused(used | self._copies() | ignored)
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

    def linear(self, *names: str, bias: bool = True) -> tuple[Tensor, Tensor]:
        """Reads weight and bias of linear layers, one below the other; zeros for a bias that it has not.

        Those of one layer may be mapped from the file, see `tensor`; those of several may be written to.
        """
        weights = [self.tensor(f"{name}.weight") for name in names]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        if not bias:
            return weight, weight.new_zeros(len(weight))
        biases = [self.tensor(f"{name}.bias") for name in names]
        return weight, biases[0] if len(biases) == 1 else torch.cat(biases)

    def norm(self, name: str) -> tuple[Tensor, Tensor | None]:
        """Reads weight and bias of a norm; see `tensor`."""
        bias = self.tensor(f"{name}.bias") if "norm" in self._config.biased else None
        return self.tensor(f"{name}.weight"), bias

    def attention_norms(self, number: int) -> NormNames:
        """Returns the names of the norms around the attention of layer `number`."""
        names = self.layout.attention_norms
        return replace(names, before=None) if number == 0 and self._config.family.skips_first_norm else names

    def _expected(self) -> dict[str, tuple[int, ...]]:
        """Returns the names and shapes of all weights of the encoder."""
        config, layout = self._config, self.layout
        width, embedded = config.hidden_size, config.embedding_size
        expected = _Expected(config)
        expected.table(layout.words, config.vocab_size, embedded)
        if config.has_positions and config.max_position_embeddings is not None:
            expected.table(layout.positions, config.max_position_embeddings, embedded)
        expected.table(layout.types if config.type_vocab_size else None, config.type_vocab_size, embedded)
        expected.norm(layout.embedding_norm, width if config.family.projects_first else embedded)
        expected.norm(layout.final_norm, width)
        if embedded != width:
            expected.linear(layout.projection, width, embedded, part="projection")
        if layout.pooler is not None and self.has_pooler:
            expected.linear(layout.pooler, width, width)
        if config.convolution is not None and layout.convolution is not None:
            expected.convolution(layout.convolution, width, config.convolution.size)
            expected.norm(layout.convolution_norm, width)
        for number in range(config.n_layers):
            self._expect_layer(expected, number)
        return expected.shapes

    def _not_needed(self) -> Iterator[str]:
        """Yields the names of weights that may be there and are not used."""
        for number in range(self._config.n_layers):
            for name in self.layout.unused:
                at = self.layout.layer.format(number) + name
                yield from (f"{at}.weight", f"{at}.bias")

    def _expect_layer(self, expected: _Expected, number: int) -> None:
        config, layout = self._config, self.layout
        width, inner, heads = config.hidden_size, config.intermediate_size, config.n_heads * config.head_width
        at = layout.layer.format(number)
        for name, rows in zip(layout.qkv, _shares(layout.qkv, config), strict=True):
            expected.linear(at + name, rows, width, part="qkv")
        expected.linear(at + layout.attention_out, width, heads, part="out")
        halves = 2 if config.gated else 1
        for name in layout.up:
            expected.linear(at + name, halves * inner // len(layout.up), width, part="up")
        expected.linear(at + layout.down, width, inner, part="down")
        for names in (self.attention_norms(number), layout.ffn_norms):
            for part in (names.before, names.inner, names.after):
                expected.norm(part, width, at)
        for part in (layout.query_norm, layout.key_norm):
            expected.norm(part, config.head_width, at)
        self._expect_relative(expected, number)

    def _expect_relative(self, expected: _Expected, number: int) -> None:
        config, layout, of_layer = self._config, self.layout, self._config.attention[number]
        if of_layer.bias is not None and layout.relative_bias is not None:
            expected.table(layout.relative_bias.format(number), of_layer.bias.buckets, config.n_heads)
        positions = of_layer.disentangled
        if positions is None:
            return
        width, heads = config.hidden_size, config.n_heads * config.head_width
        expected.table(layout.distances, positions.rows, width)
        expected.norm(layout.distances_norm if positions.normed else None, width)
        for name, is_used in (
            (layout.distances_key, positions.has_keys),
            (layout.distances_query, positions.has_queries),
        ):
            if name is not None and is_used and not positions.shares_projections:
                expected.linear(layout.layer.format(number) + name, heads, width)

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        if not self._has(name):
            raise NotNativeError(f"its checkpoint lacks {name}")
        stored = self._tensors[self._full_name(name)]
        if stored.shape != shape:
            raise NotNativeError(f"{name} is {list(stored.shape)} where config.json says {list(shape)}")
        if stored.dtype not in PLAIN_DTYPES - {"F64", "float64"}:
            raise NotNativeError(f"{name} is stored as {stored.dtype}")

    def _check_unused(self, used: set[str]) -> None:
        prefix = (self._prefix or self._config.family.prefixes[0]).removesuffix(".")
        parts = {name.removeprefix(self._prefix).split(".")[0] for name in used}
        for name in self._tensors.keys() - used:
            if not is_known_head(name, prefix, parts | _PARTS):
                raise NotNativeError(f"its checkpoint has {name[:120]}, which it would not use")

    def _copies(self) -> set[str]:
        """Returns the other names that the checkpoint has the embeddings under."""
        names = {self._prefix + f"{name}.weight" for name in self.layout.copies} & self._tensors.keys()
        words = self.tensor(f"{self.layout.words}.weight") if names else None
        for name in names:
            # transformers uses both if they differ.
            if words is None or not torch.equal(self.tensor(name.removeprefix(self._prefix)), words):
                raise NotNativeError(f"{name[:120]} differs from {self.layout.words}.weight")
        return names

    def _find_names(self) -> tuple[str, Layout]:
        """Finds the prefix of all names, and the first layout whose first layer the checkpoint has."""
        layouts = self._config.family.layouts

        def has(prefix: str, layout: Layout) -> bool:
            first = f"{prefix}{layout.layer.format(0)}{layout.up[0]}.weight"
            return f"{prefix}{layout.words}.weight" in self._tensors and (
                len(layouts) == 1 or first in self._tensors
            )

        found = [
            (prefix, matching[0])
            for prefix in ("", *self._config.family.prefixes)
            if (matching := [layout for layout in layouts if has(prefix, layout)])
        ]
        if len(found) != 1:
            raise NotNativeError(f"its checkpoint has {layouts[0].words}.weight {len(found)} times")
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


class _Expected:
    """Collects the shapes of weights by their names."""

    def __init__(self, config: NativeConfig) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._biased = config.biased

    def table(self, name: str | None, rows: int, columns: int) -> None:
        if name is not None:
            self.shapes[f"{name}.weight"] = (rows, columns)

    def norm(self, name: str | None, width: int, at: str = "") -> None:
        if name is not None:
            self.shapes[f"{at}{name}.weight"] = (width,)
            if "norm" in self._biased:
                self.shapes[f"{at}{name}.bias"] = (width,)

    def convolution(self, name: str, width: int, size: int) -> None:
        self.shapes[f"{name}.weight"] = (width, width, size)
        self.shapes[f"{name}.bias"] = (width,)

    def linear(self, name: str, rows: int, columns: int, *, part: str | None = None) -> None:
        """Adds a linear layer; `part` is that of the family's biases, None if it always has one."""
        self.shapes[f"{name}.weight"] = (rows, columns)
        if part is None or part in self._biased:
            self.shapes[f"{name}.bias"] = (rows,)


def _shares(names: tuple[str, ...], config: NativeConfig) -> tuple[int, ...]:
    """Returns the rows of queries, keys and values, in three tensors or in one."""
    query, key = config.n_heads * config.head_width, config.n_key_heads * config.head_width
    return (query, key, key) if len(names) == 3 else (query + 2 * key,)


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
