"""Opens files for the readers of pyarrow and numpy: local ones by their own code, others through the seam.

Local files can be memory-mapped, so that only what is accessed is read. Of an object store, a file that is to be
mapped is read whole, and any other by ranges.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedkit.storage.filesystem import open_file, read_file, sha256_of_file
from embedkit.storage.protocol import AnyPath


class FileOpener:
    """Opens files by their paths.

    Args:
        fetched: content of files that were read already, such as to compare their hashes.
    """

    def __init__(self, fetched: Mapping[AnyPath, bytes] | None = None) -> None:
        self._fetched = fetched or {}

    def stream(self, path: AnyPath) -> BinaryIO:
        """Opens a file to read its bytes; the caller closes it.

        Raises:
            OSError: it is missing, or cannot be read; so do the other methods.
        """
        return io.BytesIO(self._fetched[path]) if path in self._fetched else open_file(path)

    def native(self, path: AnyPath) -> pa.NativeFile:
        """Opens a file for pyarrow; the caller closes it."""
        if path in self._fetched:
            return pa.BufferReader(self._fetched[path])
        return pa.OSFile(str(path)) if isinstance(path, Path) else pa.PythonFile(open_file(path), "r")

    def mapped(self, path: AnyPath) -> pa.NativeFile:
        """Maps a file into memory, read-only; it is closed when nothing refers to it any more."""
        if path in self._fetched:
            return pa.BufferReader(self._fetched[path])
        return pa.memory_map(str(path)) if isinstance(path, Path) else pa.BufferReader(read_file(path))

    def array(self, path: AnyPath) -> NDArray[Any]:
        """Opens an .npy file as an array: memory-mapped and read-only, or in memory.

        Raises:
            EOFError, SyntaxError, ValueError, tokenize.TokenError: its header is damaged.
        """
        if isinstance(path, Path) and path not in self._fetched:
            mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            return mapped
        with self.stream(path) as file:
            loaded: NDArray[Any] = np.load(file, allow_pickle=False)
        return loaded


#: Opens every file at its place.
IN_PLACE = FileOpener()


def sha256_of(path: AnyPath, fetched: dict[AnyPath, bytes]) -> str:
    """Returns the SHA-256 of a file as 64 hexadecimal digits; one of an object store is fetched, and kept.

    Raises:
        OSError: it is missing, or cannot be read.
    """
    if isinstance(path, Path):
        return sha256_of_file(path)
    fetched[path] = read_file(path)
    return hashlib.sha256(fetched[path]).hexdigest()
