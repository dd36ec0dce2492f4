"""Finds the poolers that `--pool` names: files of `fit` and `sweep`, and those that installed packages declare.

Finding them and reading what they need takes no torch; they are made when the model is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedkit.config import ModelConfig, PoolingConfig
from embedkit.config.poolings import ENTRY_POINTS, POOLING_NAMES, WHOLE_NAMES, installed, is_file
from embedkit.errors import ModelError, UsageError
from embedkit.pooling.heads import PredictionHead
from embedkit.pooling.pooler_files import PROBE, PoolerFile, damaged, read_pooler

if TYPE_CHECKING:
    from embedkit.pooling.poolers import Pooler
    from embedkit.pooling.trained import TrainedPooler

#: Largest size in a file: a wrong number must not exhaust the memory.
_WIDEST = 2**20


@dataclass(frozen=True, slots=True)
class ChosenPooler:
    """A pooler that `--pool` names. Its methods raise ModelError if the file is damaged."""

    label: str  # its name in columns and recipes
    identity: Mapping[str, str]  # identifies it in the recipe, by hash or by package and version
    layers: str | None  # the layers it needs, as `--layers` takes them; None if any
    layer_agg: str | None  # their aggregation; None if any
    exclude_special: bool | None  # whether special tokens take no part; None if either
    file: PoolerFile | None  # a file of `fit` or `sweep`; None for a package's pooler
    made: Any  # a package's pooler; None for a file

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles a package's pooler by its name: the object may hold what cannot be pickled."""
        if self.file is None:
            return _of_package, (self.label,)
        return type(self), tuple(getattr(self, each.name) for each in fields(self))

    @property
    def is_idf(self) -> bool:
        """True if it is bound to a tokenizer instead of a model."""
        return self.file is not None and self.file.kind == "idf"

    @property
    def option(self) -> str:
        """Its value for `--pool`, valid in any folder."""
        if self.file is None:
            return self.label
        return f"{'idf:' if self.is_idf else ''}{Path(self.file.path).absolute()}"

    @property
    def poolings(self) -> tuple[str, ...]:
        """The built-in poolings whose vectors a probe takes; () unless it is a probe."""
        return tuple(self.file.recipe["pool"]) if self.file is not None and self.file.kind == PROBE else ()

    @property
    def needs(self) -> list[str]:
        """The options of `encode` on layers and poolings that it decides."""
        options = [] if self.layers is None else [f"--layers {self.layers}"]
        options += [f"--layer-agg {self.layer_agg}"] if self.layer_agg not in {None, "concat"} else []
        options += [f"--pool {','.join(self.poolings)}"] if self.poolings else []
        return options + ["--exclude-special"] * bool(self.exclude_special)

    def dtype_notice(self, dtype: str) -> str | None:
        """Returns a notice if it was fitted on states in another dtype than the model computes in."""
        fitted = None if self.file is None else self.file.recipe.get("input", {}).get("dtype", dtype)
        if self.file is None or fitted == dtype:
            return None
        return (
            f"{self.file.path} was fitted on states in {fitted}, and the model computes in {dtype}: vectors and "
            f"scores differ slightly from those that it was judged by; --dtype {fitted} gives these"
        )

    def head(self) -> PredictionHead | None:
        """Reads the head that was trained with it; None if there is none."""
        return None if self.file is None else self.file.head

    def pooler(self, device: Any) -> Pooler:
        """Makes the pooler for states on this device of torch."""
        if self.file is None:
            pooler: Pooler = self.made
            return pooler
        import torch

        from embedkit.pooling.poolers import IdfPooler, inverse_document_frequencies

        if self.file.kind != "idf":
            return _trained(self.file).to(device)
        frequencies = self.file.tensors.get("document_frequencies", np.zeros(0))
        frequencies = self.file.tensor("document_frequencies", (frequencies.size,))
        n_documents = int(self.file.recipe.get("n_documents", -1))
        if not len(frequencies) or frequencies.min() < 0 or frequencies.max() > n_documents:
            raise damaged(self.file.path, "its document frequencies are out of range")
        return IdfPooler(torch.from_numpy(inverse_document_frequencies(frequencies, n_documents)).to(device))

    def check_model(self, model: Mapping[str, Any], vocabulary: Mapping[str, int], *, lowercase: bool) -> None:
        """Raises ModelError unless it was made for this model, as in a recipe, and this tokenizer."""
        if self.file is None:
            return
        has_head = "task" in self.file.recipe
        if self.is_idf:
            from embedkit.pooling.poolers import vocabulary_hash

            if self.file.recipe.get("vocabulary") != vocabulary_hash(vocabulary, lowercase=lowercase):
                raise ModelError(
                    f"{self.file.path} has counts of another tokenizer, or of texts in another casing",
                    hint="count again with this model: embedkit fit INPUT --pooler idf -m MODEL -o FILE",
                )
        if (has_head or not self.is_idf) and self.file.recipe.get("model") != model:
            fitted_on = _named(self.file.recipe.get("model"))
            raise ModelError(
                f"{self.file.path} was fitted on another model: {fitted_on}, and not {_named(model)}",
                hint=f"name the model that it was fitted on with -m, by default {ModelConfig().model}, or fit "
                "it again on this model",
            )


def _named(model: Mapping[str, Any] | None) -> str:
    """Names a model of a recipe by its type and the file of its weights, as `embedkit inspect` shows it."""
    files = (model or {}).get("files", {})
    weights = [
        f", {name} {sha256[:12]}" for name, sha256 in files.items() if name.endswith((".safetensors", ".bin"))
    ]
    return f"{(model or {}).get('type', 'a nameless one')}{''.join(weights[:1])}"


def choose(names: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, ChosenPooler]]:
    """Finds the poolers among the names of `--pool`; returns the names, with labels for poolers, and the poolers.

    A probe is among the poolers, and in place of its name are those of its poolings.

    Raises:
        UsageError: a package's pooler has the name of a pooling, two packages declare the same name, or a probe is
            one of several names.
        ModelError: a file is damaged, or a package's pooler cannot be made.
    """
    labels: list[str] = []
    poolers: dict[str, ChosenPooler] = {}
    for name in names:
        entries = installed(name)
        if name in POOLING_NAMES or name in WHOLE_NAMES:
            if entries:
                raise UsageError(
                    f"{_package(entries[0])} declares a pooler '{name}', which is the name of a built-in pooling",
                    hint="uninstall that package, or rename its pooler",
                )
            labels.append(name)
            continue
        chosen = _of_file(name) if is_file(name) else _of_package(name)
        if chosen.poolings and len(names) > 1:
            raise UsageError(
                f"--pool {name}: the file has a probe, which takes the vectors of its own poolings alone",
                hint=f"use --pool {name} without other poolings, or name the poolings themselves",
            )
        if chosen.poolings:
            return chosen.poolings, {chosen.label: chosen}
        label, number = chosen.label, 1
        while label in poolers:
            number += 1
            label = f"{chosen.label}_{number}"
        poolers[label] = chosen
        labels.append(label)
    return tuple(labels), poolers


def with_needs_of(poolers: Mapping[str, ChosenPooler], pooling: PoolingConfig) -> PoolingConfig:
    """Sets `--layers`, `--layer-agg` and `--exclude-special` to what poolers need.

    Options at their defaults (`-1`, `concat`, off) count as not set.

    Raises:
        UsageError: two poolers need different ones, or the user asks for others.
    """
    layers, layer_agg, exclude = pooling.layers, pooling.layer_agg, pooling.exclude_special
    for label, pooler in poolers.items():
        if pooler.layers is not None:
            layers = _same(label, "--layers", "-1", layers, pooler.layers)
        if pooler.layer_agg is not None:
            layer_agg = _same(label, "--layer-agg", "concat", layer_agg, pooler.layer_agg)
        if pooler.exclude_special is not None and pooler.exclude_special != exclude:
            if exclude:
                raise UsageError(
                    f"--exclude-special: the pooler '{label}' was fitted with special tokens",
                    hint="leave it out, or fit the pooler with --exclude-special",
                )
            exclude = True
    return replace(pooling, layers=layers, layer_agg=layer_agg, exclude_special=exclude)


def make_poolers(poolers: Mapping[str, ChosenPooler], device: Any) -> dict[str, Pooler]:
    """Makes the poolers for states on this device of torch; a probe has none."""
    return {name: chosen.pooler(device) for name, chosen in poolers.items() if not chosen.poolings}


def pool_option(names: tuple[str, ...], poolers: Mapping[str, ChosenPooler]) -> str:
    """Returns a value of `--pool` that names the same poolings, or the same probe, in any folder."""
    if probe := next((chosen for chosen in poolers.values() if chosen.poolings), None):
        return probe.option
    return ",".join(poolers[name].option if name in poolers else name for name in names)


def head_of(names: tuple[str, ...], poolers: Mapping[str, ChosenPooler]) -> PredictionHead:
    """Reads the head of the only pooling in `--pool`.

    Raises:
        UsageError: there are several poolings, or one without a head.
    """
    chosen = next(iter(poolers.values()), None) if len(poolers) == 1 else None
    head = chosen.head() if chosen is not None and (chosen.poolings or len(names) == 1) else None
    if head is None:
        raise UsageError(
            "--with-head: there is no head for the pooling in --pool",
            hint="name a single file of `embedkit fit --label` or `embedkit sweep`, such as "
            "--pool pooler.safetensors",
        )
    return head


def _same(label: str, option: str, default: str, asked: str, needed: str) -> str:
    if asked not in {default, needed}:
        raise UsageError(
            f"{option} {asked}: the pooler '{label}' needs {option} {needed}",
            hint=f"leave {option} out, and name poolers that need the same layers",
        )
    return needed


def _of_file(name: str) -> ChosenPooler:
    path = name.removeprefix("idf:")
    file = read_pooler(path)
    if (file.kind == "idf") != (name != path):
        raise UsageError(
            f"--pool {name}: the file's pooler is of kind '{file.kind}'",
            hint=f"write --pool {'idf:' if file.kind == 'idf' else ''}{path}",
        )
    identity = {"kind": file.kind, "sha256": file.sha256}
    if file.kind == "idf" and "task" not in file.recipe:
        return ChosenPooler("idf", identity, None, None, None, file, None)
    try:
        states = file.recipe["input"]
        layers, layer_agg = ",".join(str(int(layer)) for layer in states["layers"]), str(states["layer_agg"])
        exclude_special = bool(states["exclude_special"])
    except (KeyError, TypeError, ValueError):
        raise damaged(path, "its recipe is incomplete") from None
    if file.kind == "idf":  # its head is for these layers
        return ChosenPooler("idf", identity, layers, layer_agg, exclude_special, file, None)
    if file.kind == PROBE:
        known = {*POOLING_NAMES} - {"pooler"}
        poolings = file.recipe.get("pool")
        if not isinstance(poolings, list) or not poolings or any(each not in known for each in map(str, poolings)):
            raise damaged(path, "its recipe names no poolings of this version")
        if file.head is None:
            raise damaged(path, "its recipe is incomplete")
        return ChosenPooler(PROBE, identity, layers, layer_agg, exclude_special, file, None)
    _trained_shape(file)
    # The kind alone may be the name of a pooling, such as `mean`.
    label = f"fit_{file.kind.replace('-', '_')}"
    return ChosenPooler(label, identity, layers, layer_agg, exclude_special, file, None)


def _of_package(name: str) -> ChosenPooler:
    entries = installed(name)
    if len(entries) > 1:
        raise UsageError(
            f"two packages declare a pooler '{name}': {' and '.join(_package(entry) for entry in entries)}",
            hint="uninstall one of them",
        )
    package = _package(entries[0])
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise UsageError(
            f"the pooler '{name}' of {package} cannot name a column",
            hint="a pooler's name has letters, digits, - and _ only",
        )
    try:
        made = entries[0].load()()
        layers = made.layers
        fits = callable(made) and callable(made.dims) and (layers is None or isinstance(layers, str))
    except Exception as fault:  # noqa: BLE001 - a package's code may raise anything
        raise ModelError(
            f"the pooler '{name}' of {package} cannot be made ({type(fault).__name__})",
            hint=f"its entry point in {ENTRY_POINTS} must be a class, or a function, that takes no arguments",
        ) from None
    if not fits:
        raise ModelError(
            f"the pooler '{name}' of {package} must be callable and have layers and dims()",
            hint="see embedkit.pooling.poolers.Pooler",
        )
    distribution, _, version = package.partition(" ")
    return ChosenPooler(name, {"package": distribution, "version": version}, layers, None, None, None, made)


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unnamed package"


def _trained_shape(file: PoolerFile) -> Mapping[str, Any]:
    """Reads and checks the fields of a PoolerShape."""
    try:
        shape = {**file.recipe["shape"], "kind": file.kind}
        numbers = [shape[name] for name in ("n_layers", "hidden_size", "width", "heads")]
        valid = all(type(number) is int and 0 <= number <= _WIDEST for number in numbers)
        valid &= len(shape) == 6 and shape["of_tokens"] in {"", "cls", "mean"}
    except (KeyError, TypeError):
        valid = False
    if not valid:
        raise damaged(file.path, "its recipe is incomplete")
    return shape


def _trained(file: PoolerFile) -> TrainedPooler:
    """Makes the module of a file with its weights; shapes are checked before any memory is allocated."""
    import torch

    from embedkit.pooling.trained import PoolerShape, make_pooler

    shape = _trained_shape(file)
    try:
        with torch.device("meta"):
            module: TrainedPooler = make_pooler(PoolerShape(**shape))
    except (KeyError, ValueError, RuntimeError, AssertionError, ZeroDivisionError):
        raise damaged(file.path, "its recipe is of a pooler that this embedkit does not know") from None
    weights = {
        name: torch.from_numpy(file.tensor(name, tuple(tensor.shape)))
        for name, tensor in module.state_dict().items()
    }
    module.load_state_dict(weights, assign=True)
    return module.eval().requires_grad_(requires_grad=False)
