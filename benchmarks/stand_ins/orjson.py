"""What embedkit's folders need of orjson, by the standard library: for machines where only torch is installed.

Slower, and it writes no vectors as JSON Lines: that would give other bytes.
"""

from json import JSONDecodeError, loads

__all__ = ["OPT_SERIALIZE_NUMPY", "JSONDecodeError", "dumps", "loads"]

OPT_SERIALIZE_NUMPY = 0


def dumps(value: object, option: int = 0) -> bytes:
    raise NotImplementedError("JSON Lines of vectors need orjson")
