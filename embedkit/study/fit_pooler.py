"""One `embedkit fit`, from what was asked to a pooler's file. The story on one page."""

from __future__ import annotations

import hashlib
import platform
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from embedkit.config import RunConfig
from embedkit.config.fit_config import OF_VECTORS, WITHOUT_LABELS, FitConfig
from embedkit.engines.callbacks import Callbacks
from embedkit.errors import OutputError, UsageError
from embedkit.pooling.pooler_files import pooler_bytes
from embedkit.sources.locate import check_not_read, expanded
from embedkit.storage.disk_errors import as_read_error, check_no_link
from embedkit.storage.filesystem import exists, file_names, is_folder, seems_folder, write_file
from embedkit.study.encoding import encoded_states, first_pass, refuse_full_disk, states_config
from embedkit.study.labels import Labels, read_labels
from embedkit.study.split import Split, split_rows

if TYPE_CHECKING:  # torch is imported when states are there to be learned from
    from embedkit.pooling.trained import PoolerShape
    from embedkit.study.hidden_states import States
    from embedkit.study.training import Epoch

#: The widest layer inside of `attention-tanh`, where the user did not say.
_TANH_WIDTH = 512
_HEADS = 8


@dataclass(frozen=True, slots=True)
class FitSummary:
    """What came of a fit.

    Attributes:
        path: of the file.
        sha256: of its bytes.
        recipe: what is in it.
        seconds_encoding: for the states; 0 where none are needed.
        seconds_fitting: for what was learned from them.
    """

    path: str
    sha256: str
    recipe: Mapping[str, Any]
    seconds_encoding: float
    seconds_fitting: float


@dataclass(frozen=True, slots=True)
class _Made:
    """What goes into the file: its recipe, and its arrays."""

    recipe: dict[str, Any]
    tensors: Mapping[str, NDArray[Any]]


def fit(
    config: FitConfig,
    asked: RunConfig,
    watcher: Callbacks,
    on_epoch: Callable[[Epoch], None],
    stop: threading.Event,
) -> FitSummary:
    """Carry out one `embedkit fit`.

    Args:
        config: what is fitted.
        asked: how texts become states, as for `encode`.
        watcher: is told how the encoding goes.
        on_epoch: is told how the training goes.
        stop: set from outside (a signal) to end it.

    Raises:
        EmbedkitError: any of its kinds.
    """
    path = Path(config.output)
    _refuse_what_is_there(path, overwrite=config.overwrite)
    if "-" in asked.input.inputs and config.kind != "idf":
        raise UsageError("fit reads its input twice, and stdin can be read only once", hint="give a file")
    # A model's folder is read as the input is: its model.safetensors is no place for a pooler.
    model = asked.model.model
    model_files = [f"{model}/{name}" for name in file_names(model)] if seems_folder(model) else []
    inputs = [] if "-" in asked.input.inputs else expanded(asked.input.inputs, [])
    check_not_read([path], [*inputs, *model_files])
    began = time.monotonic()
    if config.kind == "idf":
        from embedkit.study.idf import count_frequencies

        # Under `auto` a model's own recipe may cut texts shorter than under a named pooling.
        named = replace(asked, pooling=replace(asked.pooling, pool="mean"))
        made = _Made(*count_frequencies(named, stop, watcher.notice))
        return _written(path, made, 0.0, time.monotonic() - began)
    if config.kind not in WITHOUT_LABELS:
        _need_scikit_learn()
    states = states_config(config, asked)
    found = first_pass(states, count_tokens=config.kind not in OF_VECTORS)
    if config.kind not in WITHOUT_LABELS:
        # What is wrong with the labels is known before an hour of encoding.
        _labels_and_split(found.kept, config)
    refuse_full_disk(states, found)
    with encoded_states(states, watcher, stop) as (folder, summary):
        encoded = time.monotonic()
        from embedkit.models.device import pick_device
        from embedkit.study.hidden_states import open_states

        layers = summary.recipe["layers"] if states.pooling.layer_agg == "concat" else [0]
        with as_read_error(folder):
            opened = open_states(folder, n_layers=len(layers))
        if config.kind in WITHOUT_LABELS:
            made = _rotated(config, opened, states.pooling.pool)
        else:
            device = pick_device(states.model.devices[0])
            made = _trained(config, opened, states.pooling.pool, device, on_epoch, stop)
        made.recipe.update(_of_encoding(summary.recipe))
        return _written(path, made, encoded - began, time.monotonic() - encoded)


def _trained(
    config: FitConfig,
    states: States,
    pool: str,
    device: Any,
    on_epoch: Callable[[Epoch], None],
    stop: threading.Event,
) -> _Made:
    from embedkit.study.training import fit_pooler

    labels, split = _labels_and_split(states.facts, config)
    shape = _shape(config, states, pool)
    fitted = fit_pooler(shape, states, labels, split, config, device, on_epoch, stop)
    tensors = {name: tensor.cpu().numpy() for name, tensor in fitted.pooler.state_dict().items()}
    recipe = {
        **_of_shape(shape, fitted.pooler.size),
        "task": labels.task,
        "label": config.label,
        "group": config.group,
        "classes": list(labels.classes),
        "scores": fitted.scores,
        "rows": {
            "train": len(split.train),
            "validation": len(split.validation),
            "test": len(split.test),
            "without_label": len(states) - len(labels.rows),
        },
        "training": {
            "epochs": fitted.epochs,
            "best_epoch": fitted.best_epoch,
            **{
                name: getattr(config, name)
                for name in (
                    "lr",
                    "batch_size",
                    "class_weight",
                    "validation",
                    "test",
                    "patience",
                    "states",
                    "seed",
                )
            },
        },
    }
    return _Made(recipe, {**tensors, "head.weight": fitted.head.weight, "head.bias": fitted.head.bias})


def _rotated(config: FitConfig, states: States, pool: str) -> _Made:
    from embedkit.study.rotation import fit_rotation

    center, rotation, share = fit_rotation(states.blocks(), config.kept_dims, whiten=config.kind == "whiten")
    shape = _shape(config, states, pool, width=rotation.shape[1])
    recipe = {**_of_shape(shape, rotation.shape[1]), "rows": len(states), "variance_kept": share}
    return _Made(recipe, {"center": center, "rotation": rotation})


def _shape(config: FitConfig, states: States, pool: str, width: int = 0) -> PoolerShape:
    """The sizes of the pooler, where the user did not say."""
    from embedkit.pooling.trained import PoolerShape

    size = states.n_layers * states.hidden_size
    match config.kind:
        case "attention":
            width = config.hidden_size or size
        case "attention-tanh":
            width = config.hidden_size or _TANH_WIDTH
        case "lstm":
            width = config.hidden_size or states.hidden_size
        case "mean" | "cls":
            width = config.project or 0
    heads = 0
    if config.kind == "multihead-attention":
        heads = config.heads or next(heads for heads in range(_HEADS, 0, -1) if size % heads == 0)
        if size % heads:
            raise UsageError(f"--heads {heads} does not divide the {size} dimensions", hint="such as --heads 4")
    return PoolerShape(
        config.kind, states.n_layers, states.hidden_size, width, heads, "" if states.of_tokens else pool
    )


def _labels_and_split(facts: Any, config: FitConfig) -> tuple[Labels, Split]:
    labels = read_labels(facts, str(config.label), group=config.group, task=config.task)
    return labels, split_rows(labels, validation=config.validation, test=config.test, seed=config.seed)


def _of_shape(shape: PoolerShape, dims: int) -> dict[str, Any]:
    fields = asdict(shape)
    return {"kind": fields.pop("kind"), "shape": fields, "dims": dims}


def _of_encoding(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What the pooler is for: the model, and what of it the pooler gets."""
    given = {name: recipe[name] for name in ("layers", "layer_agg", "exclude_special")}
    return {"model": recipe["model"], "text": recipe["text"], "input": given}


def _written(path: Path, made: _Made, seconds_encoding: float, seconds_fitting: float) -> FitSummary:
    """Write the file whole, or not at all."""
    libraries = ("numpy", "torch", "tokenizers", "transformers", "scikit-learn")
    used = libraries if "task" in made.recipe else libraries[:4]
    recipe = {
        **made.recipe,
        "versions": {
            "embedkit": version("embedkit-cli"),
            "python": platform.python_version(),
            **{name: version(name) for name in used},
        },
    }
    content = pooler_bytes(recipe, made.tensors)
    write_file(path.parent, path.name, content)
    digest = hashlib.sha256(content).hexdigest()
    return FitSummary(str(path), digest, recipe, seconds_encoding, seconds_fitting)


def _refuse_what_is_there(path: Path, *, overwrite: bool) -> None:
    check_no_link(path)
    with as_read_error(path):
        if not is_folder(path.parent):
            raise OutputError(f"there is no folder {path.parent}", hint="make it, or choose another place with -o")
        there = exists(path)
    if there and not overwrite:
        raise OutputError(
            f"{path} is there already", hint="choose another name with -o; or --overwrite, if that pooler may go"
        )


def _need_scikit_learn() -> None:
    if find_spec("sklearn") is None:
        raise UsageError(
            "fit splits and judges with scikit-learn, and it is not installed",
            hint="pip install 'scikit-learn>=1.6'",
        )
