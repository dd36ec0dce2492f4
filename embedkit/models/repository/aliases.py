"""Short names for models, from a data file: hub id, casing, and where that casing is stated."""

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
        name: the alias as it is written in lists.
        hub: `owner/name` on the hub.
        casing: cased or uncased, as its authors trained it; unstated where they do not say.
        source: where the casing is stated.
        about: what it was trained on, in a line.
        also: other spellings.
        package: a Python package that carries the weights; None if there is none.
        package_folder: the model's folder inside that package, from site-packages.
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
        """Cased or uncased; None where its authors do not say, and the vocabulary has to."""
        return None if self.casing == "unstated" else self.casing


@cache
def all_aliases() -> Mapping[str, Alias]:
    """Every alias by its own name, in the data file's order."""
    return {
        name: Alias(**{"name": name, **entry, "also": tuple(entry.get("also", ()))})
        for name, entry in _data()["alias"].items()
    }


@cache
def canonical_ids() -> Mapping[str, str]:
    """Map the names that the hub once had without an owner, such as gpt2, to their ids of today."""
    return {name: f"{owner}/{name}" for owner, names in _data()["canonical"].items() for name in names}


def find_alias(name: str) -> Alias | None:
    """The alias that `name` means (letter case, `-` and `_` make no difference), or None.

    A hub id that an alias stands for finds it too, so that its casing is known.
    """
    return _by_spelling().get(_fold(name))


def hub_ids(name: str) -> tuple[str, ...]:
    """List the hub ids that mean the same model as `name`, the one of today first.

    A cache may hold it by any of them: `AutoModel.from_pretrained("gpt2")` leaves a folder of that name,
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
        # What sentence-transformers makes of a name without an owner.
        return (name, f"sentence-transformers/{name}")
    short = ids[0].rpartition("/")[2]
    return (*ids, short) if canonical.get(short) == ids[0] else ids


@cache
def _data() -> Mapping[str, Any]:
    data: Mapping[str, Any] = tomllib.loads(
        files("embedkit.models.repository").joinpath("aliases.toml").read_text(encoding="utf-8")
    )
    return data


@cache
def _by_spelling() -> Mapping[str, Alias]:
    return {
        _fold(spelling): alias
        for alias in all_aliases().values()
        for spelling in (alias.hub, *alias.also, alias.name)
    }


def _fold(name: str) -> str:
    return name.casefold().replace("_", "-")
