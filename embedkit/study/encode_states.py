"""Encoding of the states that a fit learns from, into a private temporary folder.

The folder is hidden, next to the fitted file, and readable by its owner only, since token states reveal nearly all
of a text. It is removed at the end, unless a signal or the disk ended the fit: the same command then continues
from it. The next fit next to a kept folder names it in a notice; that of a killed fit is removed by any later run
that writes a file next to it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedkit.config import OutputConfig, RunConfig
from embedkit.config.fit_config import OF_VECTORS, OVER_LAYERS, FitConfig
from embedkit.engines.base import Callbacks
from embedkit.engines.run import run
from embedkit.engines.summary import Summary
from embedkit.errors import OutputError, Stopped, UsageError
from embedkit.inference.model_spec import ModelSpec
from embedkit.inference.tokenizer_setup import set_up_without_weights
from embedkit.manifest.identity import AnotherPlanError
from embedkit.output.commit import PLAN, DamagedPlanError, OutputFolder
from embedkit.sources import open_table
from embedkit.storage.atomic import (
    STATES,
    is_leftover,
    remove_abandoned_states,
    temporary_files,
    temporary_name,
)
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
from embedkit.study.labelled_rows import TEXTS_AT_ONCE, with_test_files
from embedkit.tokenizer import TextTokenizer
from embedkit.types import Record, TokenizedTexts

#: Size of the files by the size of their vectors: ids, kept columns and headers come on top.
_OVERHEAD = 1.05


def states_config(config: FitConfig, run_config: RunConfig) -> RunConfig:
    """Returns the user's `run_config` with the output and pooling of the encoding for a fit.

    Raises:
        UsageError: an option is not possible for this pooler.
    """
    layers, layer_agg = run_config.pooling.layers, run_config.pooling.layer_agg
    if layer_agg == "separate":
        raise UsageError(
            "--layer-agg separate makes several vectors, and a pooler needs one", hint="use concat or mean"
        )
    if run_config.text.on_long == "chunk":
        raise UsageError(
            "--on-long chunk makes several windows of a text, and a label is for the whole text",
            hint="fit with truncate or error; the pooler can be used with chunk afterwards",
        )
    if config.kind in OVER_LAYERS:
        if layer_agg != "concat":
            raise UsageError(
                f"--pooler {config.pooler} weighs the layers itself", hint=f"leave out --layer-agg {layer_agg}"
            )
        if config.layer_start is not None and layers != "-1":
            raise UsageError("--layers and --layer-start exclude each other", hint="give only one of them")
        start = 1 if config.layer_start is None else config.layer_start
        layers = f"{start}:" if layers == "-1" else layers
    of_tokens = config.kind not in OF_VECTORS
    pool = "none" if of_tokens else config.kind if config.kind in {"mean", "cls"} else config.layer_pool
    path = Path(config.output)
    return replace(
        run_config,
        input=replace(with_test_files(run_config.input, config.labels), keep=()),
        pooling=replace(
            run_config.pooling,
            pool=pool,
            layers=layers,
            layer_agg=layer_agg,
            normalize=False,
            precision=config.states if of_tokens else "float32",
        ),
        output=OutputConfig(
            str(states_folder(path)), "arrow", on_exists="resume", on_bad_row=bad_rows_kept(run_config)
        ),
    )


def token_states_config(config: RunConfig, folder: Path, layers: Sequence[int]) -> RunConfig:
    """Returns the configuration that encodes the token states of these layers into a folder.

    Every row of the input is in the output, with null for one without states.
    """
    pooling = replace(
        config.pooling,
        pool="none",
        layers=",".join(map(str, layers)),
        layer_agg="concat",
        normalize=False,
        precision="float16",
    )
    output = OutputConfig(str(folder), "arrow", on_exists="resume", on_bad_row=bad_rows_kept(config))
    return replace(config, input=replace(config.input, keep=()), pooling=pooling, output=output)


def states_folder(path: Path) -> Path:
    """Returns where states are while something is fitted: hidden, beside the file or folder that they are for."""
    return path.with_name(f".{path.name}{STATES}")


def bad_rows_kept(config: RunConfig) -> str:
    """Returns `--on-bad-row` for an output with a row for each row of the input."""
    return "null" if config.output.on_bad_row == "skip" else config.output.on_bad_row


def read_token_ids(config: RunConfig, spec: ModelSpec) -> list[NDArray[np.int32]]:
    """Reads the input and returns for each row the ids of the tokens that are pooled, int32 [tokens].

    Raises:
        InputError: the input cannot be read.
    """
    setup, _ = set_up_without_weights(spec)
    records = open_table(config.input).records()
    found: list[NDArray[np.int32]] = []
    texts = (item.text if isinstance(item, Record) else None for item in records)
    for batch in tokenize_all(texts, setup.tokenizer):
        tokens = batch.tokens
        special = (tokens.prefix, tokens.suffix) if config.pooling.exclude_special else (0, 0)
        start, end = max(special[0], setup.tokenizer.skipped), special[1]
        of_text = {
            text: ids[start : len(ids) - end]
            for text, ids in zip(
                batch.texts.tolist(), np.split(tokens.input_ids, np.cumsum(tokens.lengths)[:-1]), strict=False
            )
        }
        found += [of_text.get(text, tokens.input_ids[:0]) for text in range(len(batch.n_tokens))]
    return found


def tokenize_all(texts: Iterable[str | None], tokenizer: TextTokenizer) -> Iterator[TokenizedTexts]:
    """Tokenizes texts in batches."""
    remaining = iter(texts)
    while batch := list(islice(remaining, TEXTS_AT_ONCE)):
        yield tokenizer.tokenize(batch)


def check_disk_space(config: RunConfig, rows: int, values: int) -> None:
    """Checks that the states of so many rows, which have so many values, fit on the disk.

    Raises:
        OutputError: the disk has too little free space.
    """
    folder = Path(config.output.output)
    with as_output_error(folder):
        existing = sum(size or 0 for _, size in list_files(folder))
        free = free_bytes(folder.parent)
    needed = int(values * (2 if config.pooling.precision == "float16" else 4) * _OVERHEAD) - existing
    if needed > free:
        raise OutputError(
            f"the states of {rows:,} rows take {needed / 1e9:,.1f} GB on disk while the fit runs, and "
            f"{folder.parent} has {free / 1e9:,.1f} GB free",
            hint="choose another disk with -o, fewer rows (--limit) or a smaller --max-length",
        )


@contextmanager
def encoded_states(
    config: RunConfig, spec: ModelSpec, callbacks: Callbacks, stop: threading.Event
) -> Iterator[tuple[Path, Summary]]:
    """Encodes the states, and yields their folder and the run's summary; removes the folder afterwards.

    The folder is kept if a signal or the disk ended the run, so that the same command continues from it.

    Raises:
        OutputError: another fit into the same file is running, or the disk cannot be read or written.
        EmbedkitError: as `run`.
    """
    folder = Path(config.output.output)
    with as_read_error(folder):
        _check_not_in_use(folder)
        remove_abandoned_states(folder.parent)
        for other in _abandoned(folder):
            callbacks.notice(
                f"{other} holds states that an interrupted fit computed from its texts: run that fit again, or "
                "remove the folder"
            )
    with ExitStack() as stack:
        in_use = new_files(folder.parent)
        stack.callback(in_use.discard)
        with as_output_error(folder):
            make_folder(folder, private=True)
        try:
            with as_output_error(folder):
                in_use.create(folder.name.removeprefix(".")).close()
            yield folder, _encoded(config, spec, callbacks, stop)
        except (Stopped, KeyboardInterrupt, OutputError, OSError):
            if _is_begun(folder):
                callbacks.notice(f"{folder} keeps the computed states, from which the run can continue")
            else:
                _remove(folder, callbacks)
            raise
        except BaseException:
            _remove(folder, callbacks)
            raise
        else:
            _remove(folder, callbacks)


def _encoded(config: RunConfig, spec: ModelSpec, callbacks: Callbacks, stop: threading.Event) -> Summary:
    """Computes the missing states; removes those of another fit first."""
    output = OutputFolder(Path(config.output.output))
    try:
        with suppress(AnotherPlanError, DamagedPlanError):
            if output.has_plan() or not output.has_shards():
                return run(config, callbacks, stop, spec)
        output.clear()
        return run(config, callbacks, stop, spec)
    except Stopped:
        raise Stopped(
            "stopped by a signal while the states were computed", hint="run the same command again to continue"
        ) from None


def _is_begun(folder: Path) -> bool:
    """Checks whether a folder may hold states, or cannot be read."""
    return _exists(folder / PLAN)


def _exists(path: Path) -> bool:
    """Checks whether there is a file or folder, or the disk does not tell."""
    try:
        return exists(path)
    except OSError:
        return True


def _check_not_in_use(folder: Path) -> None:
    """Checks that no live process writes states to this folder."""
    for user in temporary_files(folder.parent, folder.name.removeprefix(".")):
        if user.name != temporary_name(folder.name.removeprefix(".")):
            if not is_leftover(user):
                raise OutputError(
                    f"another fit into the same file is running: {user} belongs to it",
                    hint="wait for it, or choose another file with -o",
                )
            remove_file(user)


def _abandoned(folder: Path) -> Iterator[Path]:
    """Yields other folders of states here that no live process uses; a file next to each names its process."""
    names = (name for name in file_names(folder.parent) if name.startswith(".") and name.endswith(STATES))
    for other in sorted(folder.with_name(name) for name in names):
        users = temporary_files(folder.parent, other.name.removeprefix("."))
        if other != folder and is_folder(other) and all(is_leftover(user) for user in users):
            yield other


def _remove(folder: Path, callbacks: Callbacks) -> None:
    """Removes the states; a failure is a notice, and neither undoes the fit nor hides the error that ended it."""
    try:
        remove_tree(folder)
    except Exception as fault:  # noqa: BLE001 - see above
        if isinstance(fault, FileNotFoundError) and not _exists(folder):
            return
        reason = os.strerror(fault.errno) if isinstance(fault, OSError) and fault.errno else type(fault).__name__
        callbacks.notice(
            f"{folder} holds states computed from the texts and could not be removed ({reason}): remove it"
        )
