"""The states of the frozen encoder that a fit needs: how they are asked for, what they take, where they lie.

They are computed by the ordinary engine into a hidden folder beside the fitted file, for its owner alone: token
states tell nearly all of a text. A fit that was stopped finds them there again; else the folder goes at the end.
If it is never run again, the next fit in that place says that they are there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from embedkit.arrow_values import array_of, plain_values
from embedkit.config import OutputConfig, RunConfig
from embedkit.config.fit_config import OF_VECTORS, OVER_LAYERS, FitConfig
from embedkit.engines.callbacks import Callbacks
from embedkit.engines.run import run
from embedkit.engines.summary import Summary
from embedkit.errors import OutputError, Stopped, UsageError
from embedkit.inference.model_spec import find_model
from embedkit.inference.tokenizer_setup import set_up_without_weights
from embedkit.manifest.identity import AnotherPlanError
from embedkit.output.commit import PLAN, DamagedPlanError, OutputFolder
from embedkit.sources import open_table
from embedkit.storage.atomic import is_leftover, temporary_files, temporary_name
from embedkit.storage.disk_errors import as_output_error, as_read_error
from embedkit.storage.filesystem import (
    exists,
    file_names,
    free_bytes,
    is_folder,
    list_files,
    make_folder,
    new_files,
    remove_file,
    remove_tree,
)
from embedkit.types import Record

_STATES = ".states"
#: Texts that are tokenized at once where they are only counted.
_TEXTS_AT_ONCE = 4096
#: Files take this much more than the numbers in them: ids, kept columns, headers.
_MARGIN = 1.05


def states_config(config: FitConfig, asked: RunConfig) -> RunConfig:
    """How the states for a fit are encoded.

    Args:
        config: what is fitted.
        asked: the user's options; where states go and how tokens are pooled is settled here.

    Raises:
        UsageError: layers that are no input of a pooler's.
    """
    layers, layer_agg = asked.pooling.layers, asked.pooling.layer_agg
    if layer_agg == "separate":
        raise UsageError("--layer-agg separate makes several vectors, and a pooler one", hint="use concat or mean")
    if asked.text.on_long == "chunk":
        raise UsageError(
            "--on-long chunk makes several windows of a text, and a label belongs to all of it",
            hint="fit with truncate or error; the pooler may be used with chunk afterwards",
        )
    if config.kind in OVER_LAYERS:
        if layer_agg != "concat":
            raise UsageError(
                f"--pooler {config.pooler} weighs the layers itself", hint=f"leave out --layer-agg {layer_agg}"
            )
        if config.layer_start is not None and layers != "-1":
            raise UsageError("--layers and --layer-start exclude each other", hint="give one of the two")
        start = 1 if config.layer_start is None else config.layer_start
        layers = f"{start}:" if layers == "-1" else layers
    of_tokens = config.kind not in OF_VECTORS
    pool = "none" if of_tokens else config.kind if config.kind in {"mean", "cls"} else config.layer_pool
    path = Path(config.output)
    return replace(
        asked,
        input=replace(asked.input, keep=tuple(name for name in (config.label, config.group) if name is not None)),
        pooling=replace(
            asked.pooling,
            pool=pool,
            layers=layers,
            layer_agg=layer_agg,
            normalize=False,
            precision=config.states if of_tokens else "float32",
        ),
        output=OutputConfig(
            str(path.with_name(f".{path.name}{_STATES}")),
            "arrow" if of_tokens else "npy",
            on_exists="resume",
            on_bad_row=asked.output.on_bad_row,
        ),
    )


@dataclass(frozen=True, slots=True)
class FirstPass:
    """What a look at the input tells before a model is loaded.

    Attributes:
        rows: how many there are.
        tokens: of all texts as the model will see them; 0 where they were not asked for.
        width: values of a token's state, or of a row's, by the model's config.json.
        kept: the kept columns of the rows with a text.
    """

    rows: int
    tokens: int
    width: int
    kept: pa.Table


def first_pass(config: RunConfig, *, count_tokens: bool) -> FirstPass:
    """Read the input once, without the model: rows, labels, and tokens as `encode` would make them.

    Raises:
        InputError: the input cannot be read as asked.
    """
    table = open_table(config.input)
    settled, shape = set_up_without_weights(find_model(config))
    tokenizer = settled.tokenizer if count_tokens else None
    rows = tokens = 0
    texts: list[str] = []
    kept: list[list[object]] = [[] for _ in config.input.keep]
    for item in table.records():
        rows += 1
        if not isinstance(item, Record) or not (item.text or "").strip():
            continue
        for column, value in zip(kept, item.kept, strict=True):
            column.append(value)
        if tokenizer is not None:
            texts.append(item.text or "")
            if len(texts) == _TEXTS_AT_ONCE:
                tokens += int(tokenizer.tokenize(texts).n_used.sum())
                texts.clear()
    if tokenizer is not None and texts:
        tokens += int(tokenizer.tokenize(texts).n_used.sum())
    columns = {name: _column(values) for name, values in zip(config.input.keep, kept, strict=True)}
    width = shape.hidden_size * (len(settled.layers) if settled.layer_agg == "concat" else 1)
    return FirstPass(rows, tokens, width, pa.table(columns))


def refuse_full_disk(config: RunConfig, found: FirstPass) -> None:
    """See that there is room for the states before any is computed.

    Args:
        config: of the states.
        found: what the input holds.

    Raises:
        OutputError: the disk has not so much room.
    """
    folder = Path(config.output.output)
    with as_output_error(folder):
        there = sum(size or 0 for _, size in list_files(folder))
        free = free_bytes(folder.parent)
    value = 2 if config.pooling.precision == "float16" else 4
    needed = int((found.tokens or found.rows) * found.width * value * _MARGIN) - there
    if needed > free:
        raise OutputError(
            f"the states of {found.rows:,} rows take {needed / 1e9:,.1f} GB on disk while the fit runs, and "
            f"{folder.parent} has {free / 1e9:,.1f} GB free",
            hint="name another disk with -o, or take fewer rows (--limit), or a smaller --max-length",
        )


@contextmanager
def encoded_states(config: RunConfig, watcher: Callbacks, stop: threading.Event) -> Iterator[tuple[Path, Summary]]:
    """The folder of the states, and what came of computing them; gone afterwards.

    It stays where a signal or the disk ended the run: what is committed is used again by the same command.

    Raises:
        OutputError: another fit into the same file is under way, or the disk refuses.
        EmbedkitError: as `run`.
    """
    folder = Path(config.output.output)
    with as_read_error(folder):
        _refuse_another_fit(folder)
        for other in _left_by_others(folder):
            watcher.notice(
                f"{other} holds what another fit computed from its texts and did not get to remove: run that fit "
                "again, or remove the folder"
            )
    in_use = new_files(folder.parent)
    with as_output_error(folder):
        make_folder(folder, private=True)
        in_use.create(folder.name.removeprefix(".")).close()
    try:
        yield folder, _encoded(config, folder, watcher, stop)
    except (Stopped, KeyboardInterrupt, OutputError, OSError):
        if _is_begun(folder):
            watcher.notice(f"{folder} keeps the states that are computed: the same command goes on with them")
        else:
            _remove(folder, watcher)
        raise
    except BaseException:
        _remove(folder, watcher)
        raise
    else:
        _remove(folder, watcher)
    finally:
        in_use.discard()


def _encoded(config: RunConfig, folder: Path, watcher: Callbacks, stop: threading.Event) -> Summary:
    """Compute the states that are not there. Those of another fit, which is over, make room for them."""
    output = OutputFolder(folder)
    try:
        if output.has_plan():
            with suppress(AnotherPlanError, DamagedPlanError):
                return run(config, watcher, stop)
            output.clear()
        elif output.has_shards():  # nobody can say of what any more
            output.clear()
        return run(config, watcher, stop)
    except Stopped:
        raise Stopped(
            "stopped by a signal while the states were computed", hint="the same command goes on from there"
        ) from None


def _is_begun(folder: Path) -> bool:
    """Whether there may be states in a folder; a disk that does not say so may hold them."""
    try:
        return exists(folder / PLAN)
    except OSError:
        return True


def _refuse_another_fit(folder: Path) -> None:
    """See that no live process computes states in this place."""
    for user in temporary_files(folder.parent, folder.name.removeprefix(".")):
        if user.name != temporary_name(folder.name.removeprefix(".")):
            if not is_leftover(user):
                raise OutputError(
                    f"another fit into the same file is under way: {user} is its own",
                    hint="wait for it, or name another file with -o",
                )
            remove_file(user)


def _left_by_others(folder: Path) -> Iterator[Path]:
    """Folders of states beside this one that no process is at: a file beside each says whose it is."""
    names = (name for name in file_names(folder.parent) if name.startswith(".") and name.endswith(_STATES))
    for other in sorted(folder.with_name(name) for name in names):
        users = temporary_files(folder.parent, other.name.removeprefix("."))
        if other != folder and is_folder(other) and all(is_leftover(user) for user in users):
            yield other


def _remove(folder: Path, watcher: Callbacks) -> None:
    """Remove the states; where that fails, whoever may read them is told, and what came of them stays."""
    try:
        remove_tree(folder)
    except FileNotFoundError:
        return
    except OSError as fault:
        watcher.notice(
            f"{folder} holds what was computed from the texts, and could not be removed "
            f"({os.strerror(fault.errno or 0)}): remove it"
        )


def _column(values: list[object]) -> pa.Array:
    """The values as one Arrow type, or their texts: labels of mixed kinds are told apart by name anyhow."""
    try:
        return array_of(values)
    except (pa.ArrowException, TypeError, OverflowError):
        return pa.array([None if value is None else str(value) for value in plain_values(values)], pa.string())
