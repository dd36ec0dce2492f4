"""JSON files that tell whether they are as they were written: the last line is the SHA-256 of all before it.

Whatever bit of such a file changes, white space too, its seal no longer fits. Knows nothing of what is in them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import orjson

_KEY = "sha256"
_BEFORE, _BEHIND = f',\n"{_KEY}": "'.encode(), b'"}\n'
_LENGTH = len(_BEFORE) + 2 * hashlib.sha256().digest_size + len(_BEHIND)


def sealed(content: Mapping[str, Any], *, indent: int | None = None) -> bytes:
    """The bytes of a JSON object whose last member is the SHA-256 of the bytes before it.

    Args:
        content: at least one member, none of them called `sha256`.
        indent: as `json.dumps` takes it.
    """
    body = json.dumps(content, indent=indent, ensure_ascii=False).removesuffix("}").rstrip().encode()
    return body + _seal(body)


def unsealed(data: bytes) -> dict[str, Any]:
    """The content of a sealed file, without its seal.

    Raises:
        ValueError: the seal does not fit, or there is none.
    """
    if data[-_LENGTH:] != _seal(data[:-_LENGTH]):
        raise ValueError("the seal does not fit")
    content: dict[str, Any] = orjson.loads(data)  # of 100,000 records in 0.5 s; json: 1.1
    del content[_KEY]
    return content


def unsealed_if_sealed(data: bytes) -> Any:
    """The content of a JSON file; one that names a seal must fit it.

    Raises:
        ValueError: it is no JSON, or its seal does not fit.
    """
    content = json.loads(data)
    return unsealed(data) if isinstance(content, dict) and _KEY in content else content


def _seal(body: bytes) -> bytes:
    return _BEFORE + hashlib.sha256(body).hexdigest().encode() + _BEHIND
