"""`embedkit fit`: from the configuration to the file of a pooler."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from embedkit.config import RunConfig
from embedkit.config.fit_config import OF_VECTORS, WITHOUT_LABELS, FitConfig
from embedkit.engines.base import Callbacks
from embedkit.errors import OutputError, UsageError
from embedkit.inference.model_spec import find_model
from embedkit.inference.tokenizer_setup import set_up_without_weights
from embedkit.manifest.versions import library_versions
from embedkit.pooling.fitted_model import source_recipe
from embedkit.pooling.pooler_files import pooler_bytes
from embedkit.sources import open_table
from embedkit.sources.locate import check_not_read, expanded
from embedkit.storage.disk_errors import as_read_error, check_no_link
from embedkit.storage.filesystem import exists, file_names, is_folder, seems_folder, write_file
from embedkit.study.encode_states import check_disk_space, encoded_states, states_config
from embedkit.study.labelled_rows import InputRows, LabelledRows, labelled_rows, read_rows
from embedkit.study.labels import Labels
from embedkit.study.near_duplicates import pairs_across
from embedkit.study.splits import Split, split_rows

if TYPE_CHECKING:  # torch is imported after the input and its labels are checked
    from embedkit.pooling.trained import PoolerShape
    from embedkit.study.hidden_states import States
    from embedkit.study.train_pooler import Epoch, Fitted

#: What the file says of the states that the pooler was fitted on.
INPUT = ("layers", "layer_agg", "exclude_special", "dtype")
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
    inputs = (
        [] if "-" in run_config.input.inputs else expanded([*run_config.input.inputs, *config.labels.test], [])
    )
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
    spec = find_model(states)
    setup, facts = set_up_without_weights(spec)
    rows: InputRows | None = None
    if config.kind in WITHOUT_LABELS:
        n_rows = n_states = sum(1 for _ in open_table(states.input).records())
    else:
        rows = read_rows(run_config.input, config.labels, [setup])
        n_rows, n_states = len(rows), len(rows) if config.kind in OF_VECTORS else rows.tokens
        # Errors in the labels are raised before an hour of encoding.
        found = labelled_rows(rows, rows.has_text, config.labels)
        for sentence in (*found.labels.notes, *found.warnings, *_near_duplicates(found, _split(found, config))):
            callbacks.notice(sentence)
    n_layers = len(setup.layers) if setup.layer_agg == "concat" else 1
    check_disk_space(states, n_rows, n_states * facts.hidden_size * n_layers)
    with encoded_states(states, spec, callbacks, stop) as (folder, summary):
        encoded = time.monotonic()
        from embedkit.models.device import pick_device
        from embedkit.study.hidden_states import open_states

        with as_read_error(folder):
            opened, has_states = open_states(folder, n_layers=n_layers)
        if rows is None:
            recipe, tensors = rotated(config, opened, states.pooling.pool)
        else:
            rows.table.check_unchanged()
            found = labelled_rows(rows, has_states, config.labels)
            device = pick_device(states.model.devices[0])
            fitted = trained(config, opened, found, states.pooling.pool, device, on_epoch, stop)
            for sentence in fitted.notes:
                callbacks.notice(sentence)
            recipe, tensors = fitted.recipe, fitted.tensors
            left_out = {"no text": len(rows) - len(opened), **found.labels.left_out}
            recipe["rows"] |= {"input": len(rows), "without_label": len(opened) - len(found.labels.rows)}
            recipe["left_out"] = {reason: count for reason, count in left_out.items() if count}
        pooler_input = {name: summary.recipe[name] for name in INPUT}
        recipe |= {"model": summary.recipe["model"], "text": summary.recipe["text"], "input": pooler_input}
        recipe |= source_recipe(spec.folder.name, spec.folder.revision)
        return _written(path, recipe, tensors, encoded - began, time.monotonic() - encoded)


@dataclass(frozen=True, slots=True)
class TrainedPoolerFile:
    """A trained pooler with its head, as a file holds them."""

    recipe: dict[str, Any]
    tensors: Mapping[str, NDArray[Any]]
    fitted: Fitted
    split: Split
    notes: tuple[str, ...]  # sentences for the user


def trained(
    config: FitConfig,
    states: States,
    found: LabelledRows,
    layer_pool: str,
    device: Any,
    on_epoch: Callable[[Epoch], None],
    stop: threading.Event,
) -> TrainedPoolerFile:
    """Trains a pooler on the labelled rows among those of `states`.

    Args:
        config: of the fit.
        states: of the rows with a text.
        found: the labelled rows; `labels.rows` are positions in `states`.
        layer_pool: pooling of each layer, if the states are not of tokens.
        device: to train on.
        on_epoch: called after each epoch.
        stop: ends the training when it is set.

    Raises:
        EmbedkitError: as `fit_pooler`.
    """
    from embedkit.study.train_pooler import fit_pooler, pooler_shape

    labels, split = found.labels, _split(found, config)
    shape = pooler_shape(config, states, layer_pool)
    fitted = fit_pooler(shape, states, labels, split, config, device, on_epoch, stop)
    tensors = {name: tensor.cpu().numpy() for name, tensor in fitted.pooler.state_dict().items()}
    recipe = {
        **_shape_recipe(shape, fitted.pooler.size),
        "task": labels.task,
        "label": config.labels.label,
        "group": config.labels.group,
        "classes": list(fitted.head.classes),
        "scores": fitted.scores,
        "rows": {"train": len(split.train), "validation": len(split.validation), "test": len(split.test)},
        "near_duplicates": {
            "texts": found.n_near_duplicates,
            "pairs_across_parts": pairs_across(found.cluster, _part_of_row(split)),
        },
        "training": {
            "epochs": fitted.epochs,
            "best_epoch": fitted.best_epoch,
            **{name: getattr(config, name) for name in _TRAINING_OPTIONS},
            "seed": config.labels.seed,
            "dedupe": config.labels.dedupe,
        },
    }
    head = {"head.weight": fitted.head.weight, "head.bias": fitted.head.bias}
    return TrainedPoolerFile(recipe, {**tensors, **head}, fitted, split, tuple(_untrained(labels, split, fitted)))


def _untrained(labels: Labels, split: Split, fitted: Fitted) -> Iterator[str]:
    """Yields a sentence about classes without a training row, if there are any."""
    if not labels.has_probabilities:
        return
    missing = np.setdiff1d(np.arange(len(labels.classes)), fitted.classes)
    judged = labels.targets[np.concatenate([split.validation, split.test])]
    rows = judged[:, missing].any(axis=1) if judged.ndim == 2 else np.isin(judged, missing)
    if len(missing):
        yield (
            f"{len(missing):,} of {len(labels.classes):,} classes have no training row: the head cannot predict "
            f"them, and their {int(rows.sum()):,} validation and test rows count as missed"
        )


def _split(found: LabelledRows, config: FitConfig) -> Split:
    return split_rows(
        found.labels, found.groups, validation=config.validation, test=config.test, seed=config.labels.seed
    )


def _part_of_row(split: Split) -> NDArray[np.int64]:
    part = np.zeros(len(split.train) + len(split.validation) + len(split.test), np.int64)
    part[split.validation], part[split.test] = 1, 2
    return part


def _near_duplicates(found: LabelledRows, split: Split) -> Iterator[str]:
    """Yields a sentence about near-duplicates in several parts of a split that embedkit has made."""
    pairs = pairs_across(found.cluster, _part_of_row(split))
    if pairs and found.labels.split is None:
        yield (
            f"{pairs:,} pairs of near-duplicate texts are in two of training, validation and test rows, so scores "
            "may be too high; --dedupe keeps near-duplicates together"
        )


def rotated(config: FitConfig, states: States, layer_pool: str) -> RecipeAndTensors:
    """Fits PCA or whitening to the vectors of all of these states, pooled by `layer_pool`.

    Raises:
        InputError: as `fit_rotation`.
    """
    from embedkit.study.train_pooler import pooler_shape
    from embedkit.study.unsupervised import fit_rotation

    found = fit_rotation(states.blocks, config.kept_dims, whiten=config.kind == "whiten")
    dims = found.rotation.shape[1]
    shape = pooler_shape(config, states, layer_pool, width=dims)
    recipe = {**_shape_recipe(shape, dims), "rows": len(states), "variance_kept": found.variance_kept}
    if config.kind == "whiten":
        recipe["shrinkage"] = found.shrinkage
    return recipe, {"center": found.center, "rotation": found.rotation}


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
