"""Reads the keys of a config.json one by one, and remembers them; imports no torch.

A key that nothing has read is one that nothing follows: such a model is left to transformers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


class NotNativeError(Exception):
    """A model is left to transformers; the message completes "because"."""


class ConfigReader:
    """The content of a config.json.

    Args:
        config: the content.
        names: this family's own names of keys, by the usual name.
        defaults: what this family takes for a key that is not there, by the usual name.
    """

    def __init__(self, config: Mapping[str, Any], names: Mapping[str, str], defaults: Mapping[str, Any]) -> None:
        self._config = config
        self._names = names
        self._defaults = defaults
        self._read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the value of a key; else the family's default, else `default`."""
        own = self._names.get(key, key)
        self._read.add(own)
        return self._config.get(own, self._defaults.get(key, default))

    def size(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """Returns a number of something, `least` or more."""
        number = self.get(key, default)
        # `type`, since True is an int too.
        if type(number) is not int or number < least:
            raise self._odd(key, number)
        return number

    def number(self, key: str, default: float | None = None) -> float:
        """Returns a positive number."""
        number = self.get(key, default)
        if type(number) not in {int, float} or not 0 < number < float("inf"):
            raise self._odd(key, number)
        return float(number)

    def flag(self, key: str) -> bool:
        """Returns a switch; False if it is not there."""
        value = self.get(key, default=False)
        if type(value) is not bool:
            raise self._odd(key, value)
        return value

    def check_others(self, fixed: Mapping[str, tuple[Any, ...]], harmless: Collection[str]) -> None:
        """Checks the keys that were not read.

        Args:
            fixed: the values with which the numbers are those computed here, by key.
            harmless: keys that change no number.

        Raises:
            NotNativeError: a key is in none of them, or has another value.
        """
        unknown = sorted(self._config.keys() - self._read - fixed.keys() - set(harmless))
        if unknown:
            raise NotNativeError(f"its config.json sets '{unknown[0][:80]}'")
        for key, allowed in fixed.items():
            if key not in self._read and key in self._config and self._config[key] not in allowed:
                raise NotNativeError(f"its config.json sets '{key}' to {str(self._config[key])[:80]!r}")

    def _odd(self, key: str, value: Any) -> NotNativeError:
        return NotNativeError(f"its config.json has {str(value)[:80]!r} as '{self._names.get(key, key)}'")
