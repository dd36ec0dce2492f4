"""A table from bytes, as a user would have it: written to a file, opened by name."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from embedkit.config import InputConfig
from embedkit.errors import EmbedkitError
from embedkit.sources import Table, open_table
from embedkit.types import Fault, Record

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["piped", "refused", "rows", "table", "texts", "zstd"]


def table(folder: Path, name: str, data: bytes, **options: Any) -> Table:
    path = folder / name
    path.write_bytes(data)
    return open_table(InputConfig((str(path),), **options))


def rows(folder: Path, name: str, data: bytes, **options: Any) -> list[Record | Fault]:
    return list(table(folder, name, data, **options).records())


def texts(found: Sequence[Record | Fault]) -> list[str | None]:
    """Returns the text of each record; of a fault its code, in brackets."""
    return [item.text if isinstance(item, Record) else f"<{item.code}>" for item in found]


def piped(data: bytes, **options: Any) -> Table:
    return open_table(InputConfig(("-",), **options), stdin=io.BytesIO(data))


def refused(
    folder: Path, name: str, data: bytes, *, match: str, kind: type[EmbedkitError], **options: Any
) -> EmbedkitError:
    """Returns the error that reading this file to its end gives."""
    with pytest.raises(kind) as caught:
        rows(folder, name, data, **options)
    assert re.search(match, caught.value.message)
    return caught.value
