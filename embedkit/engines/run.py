"""One `embedkit encode`, of rows or of groups of rows. No hint proposes to overwrite another input's output."""

from __future__ import annotations

import re
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from json import loads
from pathlib import Path
from typing import Any

from embedkit.config import RunConfig
from embedkit.engines.base import Callbacks
from embedkit.engines.encode_rows import encode_rows
from embedkit.engines.grouping import encode_groups
from embedkit.engines.summary import Summary
from embedkit.errors import EmbedkitError, OutputError
from embedkit.inference.model_spec import ModelSpec
from embedkit.manifest.identity import files_digest
from embedkit.manifest.schema import InputFacts, Plan
from embedkit.output.commit import PLAN
from embedkit.output.open import schema_metadata
from embedkit.output.safe_reading import read_versioned
from embedkit.sources import open_table
from embedkit.storage.filesystem import seems_file, seems_there
from embedkit.storage.protocol import FilePath
from embedkit.storage.remote_path import as_path

#: Folders next to an output that hold an unfinished run of it.
_UNFINISHED = ("{}.partial", "{}.rows.partial", "{}.next", "{}.partial.next")
#: A data set of the hub, and its commit if the name has one.
_DATA_SET = re.compile(r"^(hf://datasets/[^/@]+/[^/@]+)(?:@([0-9a-f]{40}))?(?=/|$)")


def run(config: RunConfig, callbacks: Callbacks, stop: threading.Event, spec: ModelSpec | None = None) -> Summary:
    """Carries out one `embedkit encode`.

    Args:
        config: the user's options.
        callbacks: report the progress.
        stop: set from outside (by a signal) to end the run between two batches.
        spec: the model, if found already.

    Raises:
        EmbedkitError: any of its kinds; committed shards stay.
    """
    if config.output.on_exists == "resume":
        config = _at_stored_commits(config)
    with other_outputs_spared(config):
        return (encode_groups if config.groups.by else encode_rows)(config, callbacks, stop, spec)


@contextmanager
def other_outputs_spared(config: RunConfig) -> Generator[None, None, None]:
    """Rewords an error that proposes to overwrite an existing output, unless that was made from the same input.

    Two inputs may share a default name: `data/notes.csv` and `old/notes.csv` both go to `notes.embeddings`.
    """
    try:
        yield
    except OutputError as error:
        if "overwrite" not in error.hint:
            raise
        same = _has_this_input(config)
        if same:
            raise
        if same is None:
            ways = error.hint.removesuffix(", or another place with -o")
            hint = f"choose another place with -o; or, if the existing output is of this input, {ways}"
            raise OutputError(error.message, hint=hint) from None
        raise OutputError(
            f"{error.message}; it was made from another input",
            hint="choose another place with -o, or name the input of the existing output to continue it",
        ) from None


def _has_this_input(config: RunConfig) -> bool | None:
    """Checks whether the existing output was made from the requested input; None if unknown."""
    existing = _input_digests(as_path(config.output.output))
    if not existing or "-" in config.input.inputs or config.input.sql is not None:
        return None
    with suppress(EmbedkitError):
        return existing == {files_digest((file.size, file.sha256) for file in open_table(config.input).files)}
    return None


def _input_digests(path: FilePath) -> set[Any]:
    """Returns the digests of the inputs of an output and of its unfinished runs."""
    found: set[Any] = {
        files_digest((file.size, file.sha256) for file in read.files) for read in _stored_inputs(path)
    }
    if isinstance(path, Path) and seems_file(path):
        with suppress(EmbedkitError):
            found.add(loads(schema_metadata(path).get("embedkit.read", "{}")).get("files_digest"))
    return found - {None}


def _stored_inputs(path: FilePath) -> Iterator[InputFacts]:
    """Yields the inputs of the plans of an output and of its unfinished runs."""
    folders = [path]
    if isinstance(path, Path):
        folders += [path.with_name(name.format(path.name)) for name in _UNFINISHED]
    for folder in folders:
        with suppress(EmbedkitError):
            if seems_there(folder / PLAN):
                yield read_versioned(Plan, folder / PLAN).input


def _at_stored_commits(config: RunConfig) -> RunConfig:
    """Returns the options of a resumed run, with data sets of the hub at the commits that it began with."""
    stored = (file.name for read in _stored_inputs(as_path(config.output.output)) for file in read.files)
    commits = {found[1]: found[0] for name in stored if (found := _DATA_SET.match(name)) and found[2]}
    inputs = (_DATA_SET.sub(lambda found: commits.get(found[0], found[0]), name) for name in config.input.inputs)
    return replace(config, input=replace(config.input, inputs=tuple(inputs)))
