"""Short names for models, read from aliases.toml: hub id, casing, and the source of the casing."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True, slots=True)
class Alias:
    """A model that embedkit knows by name.

    Attributes:
        name: as lists show it.
        hub: `owner/name` on the hub.
        casing: cased or uncased, as its authors trained it; unstated if they do not say.
        source: where they state it.
        about: its training data, in one line.
        also: other spellings.
        package: a Python package with the weights; None if there is none.
        package_folder: the model's folder, relative to site-packages.
        sha256: of `model.safetensors` in that folder.
    """

    name: str
    hub: str
    casing: str
    source: str
    about: str
    also: tuple[str, ...] = ()
    package: str | None = None
    package_folder: str | None = None
    sha256: str | None = None

    @property
    def stated_casing(self) -> str | None:
        """Cased or uncased; None if its authors do not say, so that the vocabulary decides."""
        return None if self.casing == "unstated" else self.casing


@cache
def all_aliases() -> Mapping[str, Alias]:
    """Returns every alias by name, in the order of aliases.toml."""
    return {
        name: Alias(**{"name": name, **entry, "also": tuple(entry.get("also", ()))})
        for name, entry in _data()["alias"].items()
    }


@cache
def canonical_ids() -> Mapping[str, str]:
    """Maps former hub ids without an owner, such as gpt2, to their current ids."""
    return {name: f"{owner}/{name}" for owner, names in _data()["canonical"].items() for name in names}


def find_alias(name: str) -> Alias | None:
    """Finds an alias by its name or hub id, ignoring letter case and `-` versus `_`; None if there is none."""
    return _by_spelling().get(_fold(name))


def hub_ids(name: str) -> tuple[str, ...]:
    """Lists the hub ids of the model called `name`, the current one first.

    A cache may hold it under any of them: `AutoModel.from_pretrained("gpt2")` makes a folder of that name,
    `SentenceTransformer("all-MiniLM-L6-v2")` one with sentence-transformers as owner.
    """
    alias, canonical = find_alias(name), canonical_ids()
    if alias is not None:
        ids = (alias.hub, *(also for also in alias.also if "/" in also))
    elif name in canonical:
        ids = (canonical[name],)
    elif "/" in name:
        ids = (name,)
    else:
        # sentence-transformers adds its own name to one without an owner.
        return (name, f"sentence-transformers/{name}")
    short = ids[0].rpartition("/")[2]
    return (*ids, short) if canonical.get(short) == ids[0] else ids


@cache
def _data() -> Mapping[str, Any]:
    return tomllib.loads(files(__package__).joinpath("aliases.toml").read_text(encoding="utf-8"))


@cache
def _by_spelling() -> Mapping[str, Alias]:
    aliases = all_aliases().values()
    return {_fold(name): alias for alias in aliases for name in (alias.hub, *alias.also, alias.name)}


def _fold(name: str) -> str:
    return name.casefold().replace("_", "-")
