"""The model that files of `--pool` were fitted on, as a default of `--model`.

A file says by what name the model was found, whether that was a folder, and of a model on the hub its commit.
Whether it is the same model is decided by the hashes of its files, as for a model that the user names.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from embedkit.config import VectorConfig
from embedkit.config.poolings import is_file, parse_poolings
from embedkit.errors import ModelError
from embedkit.pooling.pooler_files import damaged, read_pooler
from embedkit.storage.filesystem import is_folder

Config = TypeVar("Config", bound=VectorConfig)
#: In the recipe of a file.
_KEY = "source"


def source_recipe(name: str, revision: str | None) -> dict[str, Any]:
    """Returns the part of a file's recipe that finds its model again.

    Args:
        name: of the model, as the user gave it.
        revision: the hub's commit; None for a folder or a package.
    """
    return {_KEY: {"model": name, "revision": revision, "is_folder": revision is None and _is_folder(name)}}


def model_of_poolers(pool: str) -> tuple[str, str | None] | None:
    """Returns the name and the commit of the model that all files of `--pool` name.

    Returns:
        None without files, and if they name no model (as those of old versions) or several.

    Raises:
        UsageError: `pool` has an unknown name.
        ModelError: a file cannot be read or is damaged, or names a folder that is not here.
    """
    found = set()
    for name in filter(is_file, parse_poolings(pool)):
        path = name.removeprefix("idf:")
        source = read_pooler(path).recipe.get(_KEY)
        if source is None:
            return None
        fields = map(source.get, ("model", "revision", "is_folder")) if isinstance(source, dict) else (None,) * 3
        model, revision, was_folder = fields
        if not isinstance(model, str) or not isinstance(revision, str | None):
            raise damaged(path, "its recipe has a wrong name of the model")
        if was_folder and not _is_folder(model):
            raise ModelError(
                f"{path} was fitted on the model in the folder '{model}', as it was named then, and there is none",
                hint="name the model's folder with -m (from Python: model=...)",
            )
        found.add((model, revision))
    return found.pop() if len(found) == 1 else None


def _is_folder(name: str) -> bool:
    """Checks whether the name of a model is a folder's, as seen from here."""
    with suppress(RuntimeError):  # ~nobody/model
        return is_folder(Path(name).expanduser())
    return False


def with_model_of_poolers(config: Config) -> tuple[Config, tuple[str, ...]]:
    """Sets the model to the one that the files of `--pool` name, for a user who names none.

    Code of a model runs only if the user names the model, and a commit is one of a model that the user names.

    Returns:
        The options, and what the user should know, a sentence each.

    Raises:
        UsageError, ModelError: as `model_of_poolers`.
    """
    model = config.model
    found = None if model.trust_remote_code or model.revision else model_of_poolers(config.pooling.pool)
    if found is None or found == (model.model, None):
        return config, ()
    name, revision = found
    taken = f"--model is {name}{f' at {revision}' if revision else ''}, on which the pooler was fitted"
    return replace(config, model=replace(model, model=name, revision=revision)), (taken,)
