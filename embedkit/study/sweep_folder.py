"""The folder of a sweep: whether it may be written to, and where in it the vectors of each model are."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from embedkit.errors import EmbedkitError, OutputError
from embedkit.inference.model_spec import ModelSpec
from embedkit.manifest.recipe import as_text
from embedkit.manifest.schema import Plan
from embedkit.output.commit import PLAN, OutputFolder
from embedkit.output.safe_reading import read_versioned
from embedkit.output.sweep_summary import NAMES, SUMMARY, VECTORS, is_of_vectors
from embedkit.storage.atomic import STATES, is_former_mark, temporary_files
from embedkit.storage.disk_errors import as_output_error, as_read_error, check_no_link
from embedkit.storage.filesystem import exists, file_names, is_folder, remove_empty, remove_file, remove_tree
from embedkit.storage.replace_folder import Replacement


def prepare_folder(folder: Path, on_exists: str, replacement: Replacement) -> Path:
    """Checks that the folder is free, or holds a sweep that may be resumed or replaced; changes nothing in it.

    Returns:
        The folder to write to: the sweep's own, or a temporary one that replaces it at the end.

    Raises:
        OutputError: it holds other files, or another sweep and `on_exists` is error.
    """
    check_no_link(folder)
    check_no_link(replacement.next)
    replacement.recover()
    existing, next_names = _names(folder), _names(replacement.next)
    for place, names in ((folder, existing), (replacement.next, next_names)):
        others = {name for name in names if name not in NAMES and not is_of_vectors(name)}
        if others and (place == folder or on_exists == "overwrite"):
            raise OutputError(
                f"{place} holds files that are not a sweep's", hint="choose an empty or new folder with -o"
            )
    for name in existing & set(NAMES):
        check_no_link(folder / name)
    is_begun = any(map(is_of_vectors, next_names))
    if (existing or is_begun) and on_exists == "error":
        raise OutputError(
            f"{folder} holds another sweep",
            hint="use --on-exists resume (which reuses its vectors) or overwrite, or another -o",
        )
    if on_exists == "resume" and is_begun:
        return replacement.next
    if on_exists == "overwrite" and (existing or next_names):
        replacement.check_movable()
        return replacement.next
    return folder


def clear(folder: Path) -> None:
    """Removes a sweep's own files from a folder."""
    with as_output_error(folder):
        for name in (SUMMARY, *NAMES):
            remove_file(folder / name)
        for left in temporary_files(folder):
            if not is_former_mark(left.name):
                remove_file(left)
        # Of a sweep that was stopped while poolers were fitted.
        for name in file_names(folder):
            if name.startswith(f".{VECTORS}") and name.endswith(STATES):
                remove_tree(folder / name)
        for vectors in (folder / name for name in _names(folder) if is_of_vectors(name)):
            OutputFolder(vectors).clear()
            remove_empty(vectors)


def vector_folders(folder: Path, names: Sequence[str], specs: Sequence[ModelSpec]) -> list[Path]:
    """Returns where the vectors of each model are, or will be.

    An existing folder is recognised by the model in its plan, so that models can be added to a finished sweep.

    Args:
        folder: of the sweep.
        names: of the models.
        specs: of the models, found.
    """
    begun: dict[Path, Plan] = {}
    for path in (folder / name for name in sorted(_names(folder)) if is_of_vectors(name)):
        with suppress(EmbedkitError):
            if exists(path / PLAN):
                begun[path] = read_versioned(Plan, path / PLAN)
    if len(specs) == 1 and begun.keys() <= {folder / VECTORS}:
        return [folder / VECTORS]
    places = []
    for name, spec in zip(names, specs, strict=True):
        found = next((path for path, plan in begun.items() if _is_of(plan, spec)), None)
        fresh = folder / (VECTORS if len(specs) == 1 else f"{VECTORS}-{name}")
        while found is None and fresh in begun and len(specs) > 1:
            fresh = fresh.with_name(f"{fresh.name}-2")
        places.append(found or fresh)
    return places


def _is_of(plan: Plan, spec: ModelSpec) -> bool:
    """Checks whether a plan's model is this one: by its name, or its files if they were moved."""
    folder = spec.folder
    if plan.source.name == as_text(folder.name if folder.hub else str(folder.folder)):
        return True
    return bool(plan.recipe["model"].get("files") == folder.hashes())


def _names(folder: Path) -> set[str]:
    """Returns the names in a folder without hidden files; none if there is no folder."""
    with as_read_error(folder):
        if not exists(folder):
            return set()
        if not is_folder(folder):
            raise OutputError(f"{folder} is a file, not a folder", hint="choose another place with -o")
        return {name for name in file_names(folder) if not name.startswith(".")}
