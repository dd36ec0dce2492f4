"""Short names for models, from a data file: hub id, casing, and where that casing is stated."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


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
    data = tomllib.loads(files("embedkit.models").joinpath("aliases.toml").read_text(encoding="utf-8"))
    return {
        name: Alias(**{"name": name, **entry, "also": tuple(entry.get("also", ()))})
        for name, entry in data["alias"].items()
    }


def find_alias(name: str) -> Alias | None:
    """The alias that `name` means (letter case, `-` and `_` make no difference), or None.

    A hub id that an alias stands for finds it too, so that its casing is known.
    """
    return _by_spelling().get(_fold(name))


@cache
def _by_spelling() -> Mapping[str, Alias]:
    return {
        _fold(spelling): alias
        for alias in all_aliases().values()
        for spelling in (alias.hub, *alias.also, alias.name)
    }


def _fold(name: str) -> str:
    return name.casefold().replace("_", "-")
