"""Rotary positions (Su et al. 2021, arXiv 2104.09864): how config.json describes them; imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from embedkit.models.native.config_reader import ConfigReader, NotNativeError

#: The settings of each kind besides its base, and what transformers takes for one that is not there; `...` if it
#: must be there.
_SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": ...},
    "llama3": {
        "factor": ...,
        "low_freq_factor": ...,
        "high_freq_factor": ...,
        "original_max_position_embeddings": None,
    },
    "yarn": {
        "factor": ...,
        "original_max_position_embeddings": None,
        "attention_factor": None,
        "beta_fast": None,
        "beta_slow": None,
        "truncate": True,
    },
}
_KIND, _OLD_KIND, _BASE = "rope_type", "type", "rope_theta"


@dataclass(frozen=True, slots=True)
class Rotation:
    """The angles by which queries and keys are rotated."""

    kind: str  # a key of `_SETTINGS`
    base: float  # of the geometric series of wavelengths
    width: int  # numbers of a head that are rotated: all
    settings: tuple[tuple[str, Any], ...] = ()  # those of its kind, by name


def read_rotation(reader: ConfigReader, width: int, base: float) -> Rotation:
    """Reads the one kind of rotary positions of a model.

    Args:
        reader: its config.json.
        width: numbers of a head.
        base: of this family, where config.json has none.
    """
    stated = reader.get("rope_scaling") or reader.get("rope_parameters") or {}
    reader.get("rope_parameters")
    return _rotation(stated, width, reader.get(_BASE, base), reader.size("max_position_embeddings"))


def read_rotations(
    reader: ConfigReader, width: int, bases: Mapping[str, tuple[str, float]], *, scaled: Collection[str]
) -> dict[str, Rotation]:
    """Reads those of a model in which they depend on the type of a layer.

    Args:
        reader: its config.json.
        width: numbers of a head.
        bases: for each type of layer the key of its base in older files, and the base of this family.
        scaled: the types of layers that the scaling in older files is for.
    """
    stated, scaling = reader.get("rope_parameters") or {}, reader.get("rope_scaling") or {}
    if not all(isinstance(part, Mapping) for part in (stated, scaling)) or not stated.keys() <= bases.keys():
        raise NotNativeError("its config.json has rotary positions that are not those of its layers")
    length, rotations = reader.size("max_position_embeddings"), {}
    for kind, (key, base) in bases.items():
        settings = {**(stated.get(kind) or {}), **(scaling if kind in scaled else {})}
        rotations[kind] = _rotation(settings, width, reader.get(key, base), length)
    return rotations


def _rotation(stated: Any, width: int, base: Any, length: int) -> Rotation:
    """Checks the settings of a rotation; `length` is the most tokens of a text."""
    if not isinstance(stated, Mapping):
        raise NotNativeError("its config.json has no settings of rotary positions")
    kind = stated.get(_KIND, stated.get(_OLD_KIND, "default"))
    known = _SETTINGS.get(str(kind))
    if known is None:
        raise NotNativeError(f"its rotary positions are {str(kind)[:80]!r}")
    unknown = sorted(stated.keys() - known.keys() - {_KIND, _OLD_KIND, _BASE})
    if unknown:
        raise NotNativeError(f"its rotary positions have the setting '{unknown[0][:80]}'")
    settings = {key: stated.get(key, default) for key, default in known.items()}
    if "original_max_position_embeddings" in settings:
        settings["original_max_position_embeddings"] = settings["original_max_position_embeddings"] or length
    base = stated.get(_BASE, base)
    numbers = [base, *(value for value in settings.values() if value is not None)]
    if width % 2 or not all(type(number) in {int, float, bool} and number >= 0 for number in numbers) or base <= 0:
        raise NotNativeError("its rotary positions have settings that are no numbers")
    return Rotation(str(kind), float(base), width, tuple(settings.items()))
