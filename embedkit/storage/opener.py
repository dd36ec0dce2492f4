"""Opens files for the readers of pyarrow and numpy: local ones by their own code, others through the seam.

Local files can be memory-mapped, so that only what is accessed is read. Of an object store, a file that is to be
mapped is read whole, and any other by ranges.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedkit.storage.filesystem import open_file, read_file, sha256_of_file
from embedkit.storage.partial_copy import PartialCopy
from embedkit.storage.protocol import AnyPath

#: What was fetched of a remote file: its bytes, or those that are needed.
Fetched: TypeAlias = "bytes | PartialCopy"


class FileOpener:
    """Opens files by their paths.

    Args:
        fetched: of files that were read already, such as to compare their hashes.
    """

    def __init__(self, fetched: Mapping[AnyPath, Fetched] | None = None) -> None:
        self._fetched = fetched or {}

    def stream(self, path: AnyPath) -> BinaryIO:
        """Opens a file to read its bytes; the caller closes it.

        Raises:
            OSError: it is missing, or cannot be read; so do the other methods.
        """
        held = self._held(path)
        return io.BytesIO(held) if isinstance(held, bytes) else open_file(held)

    def native(self, path: AnyPath) -> pa.NativeFile:
        """Opens a file for pyarrow; the caller closes it."""
        held = self._held(path)
        if isinstance(held, bytes):
            return pa.BufferReader(held)
        return pa.OSFile(str(held)) if isinstance(held, Path) else pa.PythonFile(open_file(held), "r")

    def mapped(self, path: AnyPath) -> pa.NativeFile:
        """Maps a file into memory, read-only; it is closed when nothing refers to it any more."""
        held = self._held(path)
        if isinstance(held, bytes):
            return pa.BufferReader(held)
        return pa.memory_map(str(held)) if isinstance(held, Path) else pa.BufferReader(read_file(held))

    def _held(self, path: AnyPath) -> bytes | AnyPath:
        """Returns what was fetched of a file, or where it is."""
        held = self._fetched.get(path, path)
        return Path(held.path) if isinstance(held, PartialCopy) else held

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


def sha256_of(path: AnyPath, fetched: MutableMapping[AnyPath, Fetched]) -> str:
    """Returns the SHA-256 of a file as 64 hexadecimal digits; one of an object store is fetched, and kept.

    Raises:
        OSError: it is missing, or cannot be read.
    """
    if isinstance(path, Path):
        return sha256_of_file(path)
    content = read_file(path)
    fetched[path] = content
    return hashlib.sha256(content).hexdigest()
