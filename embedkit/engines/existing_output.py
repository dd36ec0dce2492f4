"""Who may be told to overwrite an output that is there: whoever made it from the same input, nobody else.

Reads plans and schemas; writes nothing.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from json import loads
from pathlib import Path
from typing import Any

from embedkit.config import RunConfig
from embedkit.errors import EmbedkitError, OutputError
from embedkit.manifest.identity import files_digest
from embedkit.manifest.schema import Plan
from embedkit.output.commit import PLAN
from embedkit.output.open import made_by, read_versioned
from embedkit.sources import open_table
from embedkit.storage.filesystem import seems_file, seems_there

#: Folders beside an output that hold a run of it which is not finished.
_BEGUN = ("{}.partial", "{}.rows.partial", "{}.next", "{}.partial.next")


@contextmanager
def other_outputs_spared(config: RunConfig) -> Generator[None, None, None]:
    """Have no hint propose to overwrite the output of another input.

    Two inputs may meet in one name: `data/notes.csv` and `old/notes.csv` are both `notes.embeddings` by default.
    """
    try:
        yield
    except OutputError as error:
        if "overwrite" not in error.hint:
            raise
        same = _is_of_this_input(config)
        if same:
            raise
        if same is None:
            ways = error.hint.removesuffix(", or another place with -o")
            hint = f"choose another place with -o; or, if what is there is of this input, {ways}"
            raise OutputError(error.message, hint=hint) from None
        raise OutputError(
            f"{error.message}; it is of another input than this one",
            hint="choose another place with -o, or name the input that it is of to go on with it",
        ) from None


def _is_of_this_input(config: RunConfig) -> bool | None:
    """Whether the output that is there was made from the input that is asked for; None if it does not say."""
    there = _digests(Path(config.output.output))
    if not there or "-" in config.input.inputs:
        return None
    with suppress(EmbedkitError):
        return there == {files_digest((file.size, file.sha256) for file in open_table(config.input).files)}
    return None


def _digests(path: Path) -> set[Any]:
    """The hashes of the inputs of what is at a path, and of runs of it that are not finished."""
    plans = (folder / PLAN for folder in (path, *(path.with_name(name.format(path.name)) for name in _BEGUN)))
    found: set[Any] = set()
    for plan in plans:
        with suppress(EmbedkitError):
            if seems_there(plan):
                files = read_versioned(Plan, plan).input.files
                found.add(files_digest((file.size, file.sha256) for file in files))
    if seems_file(path):
        with suppress(EmbedkitError):
            found.add(loads(made_by(path).get("embedkit.read", "{}")).get("files_digest"))
    return found - {None}
