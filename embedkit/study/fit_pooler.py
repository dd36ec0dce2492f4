"""`embedkit fit`: from the configuration to the file of a pooler."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from embedkit.arrow_values import plain_values
from embedkit.config import RunConfig
from embedkit.config.fit_config import OF_VECTORS, WITHOUT_LABELS, FitConfig
from embedkit.engines.base import Callbacks
from embedkit.errors import OutputError, UsageError
from embedkit.pooling.pooler_files import pooler_bytes
from embedkit.sources.locate import check_not_read, expanded
from embedkit.storage.disk_errors import as_read_error, check_no_link
from embedkit.storage.filesystem import exists, file_names, is_folder, seems_folder, write_file
from embedkit.study.encode_states import check_disk_space, encoded_states, first_pass, states_config
from embedkit.study.labels import Labels, read_labels
from embedkit.study.splits import Split, split_rows
from embedkit.study.versions import library_versions

if TYPE_CHECKING:  # torch is imported after the input and its labels are checked
    from embedkit.pooling.trained import PoolerShape
    from embedkit.study.hidden_states import States
    from embedkit.study.training import Epoch

#: What the file says of the states that the pooler was fitted on.
_INPUT = ("layers", "layer_agg", "exclude_special", "dtype")
#: Options that are stored in the file.
_TRAINING_OPTIONS = ("lr", "batch_size", "class_weight", "validation", "test", "patience", "states")


@dataclass(frozen=True, slots=True)
class FitSummary:
    """The result of a fit."""

    path: str
    sha256: str
    recipe: Mapping[str, Any]  # stored in the file
    seconds_encoding: float  # 0 if no states are needed
    seconds_fitting: float


#: The contents of the file.
RecipeAndTensors = tuple[dict[str, Any], Mapping[str, NDArray[Any]]]


def fit(
    config: FitConfig,
    run_config: RunConfig,
    callbacks: Callbacks,
    on_epoch: Callable[[Epoch], None],
    stop: threading.Event,
) -> FitSummary:
    """Carries out one `embedkit fit` on states encoded with `run_config`; `stop` ends it.

    Raises:
        EmbedkitError: of any kind.
    """
    path = Path(config.output)
    _check_output(path, overwrite=config.overwrite)
    if "-" in run_config.input.inputs and config.kind != "idf":
        raise UsageError("fit reads its input twice, and stdin can be read only once", hint="give a file")
    # The model's files are inputs, too: the pooler must not replace its model.safetensors.
    model = run_config.model.model
    model_files = [f"{model}/{name}" for name in file_names(model)] if seems_folder(model) else []
    inputs = [] if "-" in run_config.input.inputs else expanded(run_config.input.inputs, [])
    check_not_read([path], [*inputs, *model_files])
    began = time.monotonic()
    if config.kind == "idf":
        from embedkit.study.unsupervised import count_frequencies

        # With `auto` the model's own recipe may have a shorter --max-length.
        named = replace(run_config, pooling=replace(run_config.pooling, pool="mean"))
        recipe, frequencies = count_frequencies(named, stop, callbacks.notice)
        return _written(path, recipe, frequencies, 0.0, time.monotonic() - began)
    if config.kind not in WITHOUT_LABELS and find_spec("sklearn") is None:
        raise UsageError(
            "fit with labels needs scikit-learn, which is not installed", hint="pip install 'scikit-learn>=1.6'"
        )
    states = states_config(config, run_config)
    found = first_pass(states, count_tokens=config.kind not in OF_VECTORS)
    if config.kind not in WITHOUT_LABELS:
        # Errors in the labels are raised before an hour of encoding.
        _labels_and_split(found.kept, config)
    check_disk_space(states, found)
    with encoded_states(states, found.spec, callbacks, stop) as (folder, summary):
        encoded = time.monotonic()
        from embedkit.models.device import pick_device
        from embedkit.study.hidden_states import open_states

        layers = summary.recipe["layers"] if states.pooling.layer_agg == "concat" else [0]
        with as_read_error(folder):
            opened = open_states(folder, n_layers=len(layers))
        if config.kind in WITHOUT_LABELS:
            recipe, tensors = _rotated(config, opened, states.pooling.pool)
        else:
            device = pick_device(states.model.devices[0])
            recipe, tensors = _trained(config, opened, states.pooling.pool, device, on_epoch, stop)
        pooler_input = {name: summary.recipe[name] for name in _INPUT}
        recipe |= {"model": summary.recipe["model"], "text": summary.recipe["text"], "input": pooler_input}
        return _written(path, recipe, tensors, encoded - began, time.monotonic() - encoded)


def _trained(
    config: FitConfig,
    states: States,
    pool: str,
    device: Any,
    on_epoch: Callable[[Epoch], None],
    stop: threading.Event,
) -> RecipeAndTensors:
    from embedkit.study.training import fit_pooler, pooler_shape

    labels, split = _labels_and_split(states.facts, config)
    shape = pooler_shape(config, states, pool)
    fitted = fit_pooler(shape, states, labels, split, config, device, on_epoch, stop)
    tensors = {name: tensor.cpu().numpy() for name, tensor in fitted.pooler.state_dict().items()}
    recipe = {
        **_shape_recipe(shape, fitted.pooler.size),
        "task": labels.task,
        "label": config.labels.label,
        "group": config.labels.group,
        "classes": list(fitted.head.classes),
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
            **{name: getattr(config, name) for name in _TRAINING_OPTIONS},
            "seed": config.labels.seed,
        },
    }
    return recipe, {**tensors, "head.weight": fitted.head.weight, "head.bias": fitted.head.bias}


def _rotated(config: FitConfig, states: States, pool: str) -> RecipeAndTensors:
    from embedkit.study.training import pooler_shape
    from embedkit.study.unsupervised import fit_rotation

    center, rotation, share = fit_rotation(states.blocks(), config.kept_dims, whiten=config.kind == "whiten")
    shape = pooler_shape(config, states, pool, width=rotation.shape[1])
    recipe = {**_shape_recipe(shape, rotation.shape[1]), "rows": len(states), "variance_kept": share}
    return recipe, {"center": center, "rotation": rotation}


def _labels_and_split(facts: Any, config: FitConfig) -> tuple[Labels, Split]:
    labels = read_labels({name: plain_values(facts[name]) for name in config.labels.columns}, config.labels)
    split = split_rows(
        labels, labels.groups, validation=config.validation, test=config.test, seed=config.labels.seed
    )
    return labels, split


def _shape_recipe(shape: PoolerShape, dims: int) -> dict[str, Any]:
    fields = asdict(shape)
    return {"kind": fields.pop("kind"), "shape": fields, "dims": dims}


def _written(
    path: Path,
    recipe: dict[str, Any],
    tensors: Mapping[str, NDArray[Any]],
    seconds_encoding: float,
    seconds_fitting: float,
) -> FitSummary:
    """Writes the file atomically."""
    recipe["versions"] = library_versions()
    content = pooler_bytes(recipe, tensors)
    write_file(path.parent, path.name, content)
    digest = hashlib.sha256(content).hexdigest()
    return FitSummary(str(path), digest, recipe, seconds_encoding, seconds_fitting)


def _check_output(path: Path, *, overwrite: bool) -> None:
    check_no_link(path)
    with as_read_error(path):
        if not is_folder(path.parent):
            raise OutputError(
                f"there is no folder {path.parent}", hint="create it, or choose another place with -o"
            )
        is_taken = exists(path)
    if is_taken and not overwrite:
        raise OutputError(
            f"{path} exists already", hint="choose another name with -o, or replace it with --overwrite"
        )
