"""The poolers behind `--pool`: a file of `fit`, or what an installed package declares.

Finds them, and says what they ask for, without torch; makes them when the model is there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedkit.config import PoolingConfig
from embedkit.config.poolings import ENTRY_POINTS, POOLING_NAMES, WHOLE_NAMES, installed, is_file
from embedkit.errors import ModelError, UsageError
from embedkit.pooling.classifier_head import Head
from embedkit.pooling.pooler_files import PoolerFile, damaged, read_pooler

if TYPE_CHECKING:
    from embedkit.pooling.poolers import Pooler
    from embedkit.pooling.trained import TrainedPooler

#: The widest a pooler may be: a wrong number in a file must not take all memory.
_WIDEST = 2**20


@dataclass(frozen=True, slots=True)
class ChosenPooler:
    """A pooler that `--pool` names.

    Attributes:
        label: what it is called in columns and recipes.
        identity: what it is exactly, for the recipe.
        layers: the layers it needs, as `--layers` spells them; None: whatever that says.
        layer_agg: how they are aggregated; None: as `--layer-agg` says.
        exclude_special: whether special tokens take no part; None: as `--exclude-special` says.
        file: a file of `fit`; None for a package's.
        made: a package's pooler, made; None for a file.
    """

    label: str
    identity: Mapping[str, str]
    layers: str | None
    layer_agg: str | None
    exclude_special: bool | None
    file: PoolerFile | None
    made: Any

    @property
    def is_idf(self) -> bool:
        """Whether it belongs to a tokenizer, not to a model."""
        return self.file is not None and self.file.kind == "idf"

    @property
    def spelled(self) -> str:
        """What `--pool` takes for it, from any folder."""
        if self.file is None:
            return self.label
        return f"{'idf:' if self.is_idf else ''}{Path(self.file.path).absolute()}"

    def head(self) -> Head | None:
        """The head that was trained with it, if any was.

        Raises:
            ModelError: the file is damaged.
        """
        if self.file is None or "task" not in self.file.recipe:
            return None
        try:
            classes = tuple(str(name) for name in self.file.recipe["classes"])
            size = int(self.file.recipe["dims"])
        except (KeyError, TypeError, ValueError):
            raise damaged(self.file.path, "its recipe is not whole") from None
        outputs = len(classes) or 1
        weight, bias = self.file.tensor("head.weight", (outputs, size)), self.file.tensor("head.bias", (outputs,))
        return Head(weight, bias, classes)

    def pooler(self, device: Any) -> Pooler:
        """Make it.

        Args:
            device: of torch, where the model's states are.

        Raises:
            ModelError: the file is damaged.
        """
        if self.file is None:
            pooler: Pooler = self.made
            return pooler
        import torch

        from embedkit.pooling.idf import IdfPooler, inverse_document_frequencies

        if self.file.kind != "idf":
            return _trained(self.file).to(device)
        frequencies = self.file.tensors.get("document_frequencies", np.zeros(0))
        frequencies = self.file.tensor("document_frequencies", (frequencies.size,))
        n_documents = int(self.file.recipe.get("n_documents", -1))
        if not len(frequencies) or frequencies.min() < 0 or frequencies.max() > n_documents:
            raise damaged(self.file.path, "its document frequencies are out of range")
        return IdfPooler(torch.from_numpy(inverse_document_frequencies(frequencies, n_documents)).to(device))

    def refuse_other_model(
        self, model: Mapping[str, Any], vocabulary: Mapping[str, int], *, lowercase: bool
    ) -> None:
        """See that it was made for this model.

        Args:
            model: `model` of a recipe: type, and hashes of files.
            vocabulary: the tokenizer's entries.
            lowercase: whether texts are lowercased.

        Raises:
            ModelError: it was made for another one.
        """
        if self.file is None:
            return
        if self.is_idf:
            from embedkit.pooling.idf import vocabulary_hash

            if self.file.recipe.get("vocabulary") != vocabulary_hash(vocabulary, lowercase=lowercase):
                raise ModelError(
                    f"{self.file.path} counts the tokens of another tokenizer, or of texts of another casing",
                    hint="count again with this model: embedkit fit INPUT --pooler idf -m MODEL -o FILE",
                )
        elif self.file.recipe.get("model") != model:
            theirs = self.file.recipe.get("model") or {}
            raise ModelError(
                f"{self.file.path} was fitted on another model: its files are not those of this one "
                f"(a {theirs.get('type', 'nameless')} model there, {model['type']} here)",
                hint="name the model that it was fitted on with -m, or fit it again on this one",
            )


def choose(names: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, ChosenPooler]]:
    """The poolers among the names of `--pool`.

    Returns:
        The names, those of poolers replaced by their labels; and the poolers by label.

    Raises:
        UsageError: a package's pooler has a name of embedkit's, or two packages have one of this name.
        ModelError: a file is damaged, or a package's pooler cannot be made.
    """
    labels: list[str] = []
    poolers: dict[str, ChosenPooler] = {}
    for name in names:
        entries = installed(name)
        if name in POOLING_NAMES or name in WHOLE_NAMES:
            if entries:
                raise UsageError(
                    f"{_package(entries[0])} declares a pooler '{name}', which is a pooling of embedkit's",
                    hint="uninstall that package, or have its pooler renamed",
                )
            labels.append(name)
            continue
        chosen = _of_file(name) if is_file(name) else _of_package(name, entries)
        label, number = chosen.label, 1
        while label in poolers:
            number += 1
            label = f"{chosen.label}_{number}"
        poolers[label] = chosen
        labels.append(label)
    return tuple(labels), poolers


def settled_by(poolers: Mapping[str, ChosenPooler], pooling: PoolingConfig) -> PoolingConfig:
    """`--layers`, `--layer-agg` and `--exclude-special` as poolers settle them.

    Their defaults (`-1`, `concat`, not given) count as not said.

    Raises:
        UsageError: two poolers need other ones, or other ones are asked for.
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


def spelled(names: tuple[str, ...], poolers: Mapping[str, ChosenPooler]) -> str:
    """What `--pool` could be given to find the same again from anywhere, as long as files stay where they are."""
    return ",".join(poolers[name].spelled if name in poolers else name for name in names)


def head_of(names: tuple[str, ...], poolers: Mapping[str, ChosenPooler]) -> Head:
    """The head of the pooling that stands alone in `--pool`.

    Raises:
        UsageError: several poolings are asked for, or one that has no head.
        ModelError: the file is damaged.
    """
    head = poolers[names[0]].head() if len(names) == 1 and names[0] in poolers else None
    if head is None:
        raise UsageError(
            "--with-head: there is no head for what --pool names",
            hint="name one file alone that `embedkit fit --label` has made, such as --pool pooler.safetensors",
        )
    return head


def _same(label: str, option: str, default: str, asked: str, needed: str) -> str:
    if asked not in {default, needed}:
        raise UsageError(
            f"{option} {asked}: the pooler '{label}' takes {option} {needed} and no other",
            hint=f"leave {option} out, and name poolers that need the same layers",
        )
    return needed


def _of_file(name: str) -> ChosenPooler:
    path = name.removeprefix("idf:")
    file = read_pooler(path)
    if (file.kind == "idf") != (name != path):
        raise UsageError(
            f"--pool {name}: that file is of the kind '{file.kind}'",
            hint=f"write --pool {'idf:' if file.kind == 'idf' else ''}{path}",
        )
    identity = {"kind": file.kind, "sha256": file.sha256}
    if file.kind == "idf":
        return ChosenPooler("idf", identity, None, None, None, file, None)
    try:
        given = file.recipe["input"]
        layers, layer_agg = ",".join(str(int(layer)) for layer in given["layers"]), str(given["layer_agg"])
        exclude_special = bool(given["exclude_special"])
    except (KeyError, TypeError, ValueError):
        raise damaged(path, "its recipe is not whole") from None
    _trained_shape(file)
    # Not the kind alone: `mean` is a pooling of its own.
    return ChosenPooler(
        f"fit_{file.kind.replace('-', '_')}", identity, layers, layer_agg, exclude_special, file, None
    )


def _of_package(name: str, entries: list[EntryPoint]) -> ChosenPooler:
    if len(entries) > 1:
        raise UsageError(
            f"two packages declare a pooler '{name}': {' and '.join(_package(entry) for entry in entries)}",
            hint="uninstall one of them",
        )
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise UsageError(
            f"the pooler '{name}' of {_package(entries[0])} cannot be the name of a column",
            hint="names of poolers are of letters, digits, - and _",
        )
    try:
        made = entries[0].load()()
        layers = made.layers
        fits = callable(made) and callable(made.dims) and (layers is None or isinstance(layers, str))
    except Exception as fault:  # noqa: BLE001 - it is others' code, and may raise anything
        raise ModelError(
            f"the pooler '{name}' of {_package(entries[0])} cannot be made ({type(fault).__name__})",
            hint=f"its entry point in {ENTRY_POINTS} must be a class, or a function, that takes no arguments",
        ) from None
    if not fits:
        raise ModelError(
            f"the pooler '{name}' of {_package(entries[0])} is none: it needs layers, dims() and to be callable",
            hint="see 'Poolers of your own' in README.md",
        )
    package, _, version = _package(entries[0]).partition(" ")
    return ChosenPooler(name, {"package": package, "version": version}, layers, None, None, None, made)


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unnamed package"


def _trained_shape(file: PoolerFile) -> Mapping[str, Any]:
    """The fields of a PoolerShape as the file has them, checked."""
    try:
        shape = {**file.recipe["shape"], "kind": file.kind}
        numbers = [shape[name] for name in ("n_layers", "hidden_size", "width", "heads")]
        whole = all(type(number) is int and 0 <= number <= _WIDEST for number in numbers)
        known = len(shape) == 6 and shape["of_tokens"] in {"", "cls", "mean"}
    except (KeyError, TypeError):
        whole = known = False
    if not (whole and known):
        raise damaged(file.path, "its recipe is not whole")
    return shape


def _trained(file: PoolerFile) -> TrainedPooler:
    """The module of a file, with its weights; shapes are held against the recipe before any memory is taken."""
    import torch

    from embedkit.pooling.trained import PoolerShape, make_pooler

    shape = _trained_shape(file)
    try:
        with torch.device("meta"):
            module: TrainedPooler = make_pooler(PoolerShape(**shape))
    except (KeyError, ValueError, RuntimeError, AssertionError, ZeroDivisionError):
        raise damaged(file.path, "its recipe does not make a pooler that this embedkit knows") from None
    weights = {
        name: torch.from_numpy(file.tensor(name, tuple(tensor.shape)))
        for name, tensor in module.state_dict().items()
    }
    module.load_state_dict(weights, assign=True)
    return module.eval().requires_grad_(requires_grad=False)
