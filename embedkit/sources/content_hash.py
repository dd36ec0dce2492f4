"""Hashes of files of a table, found while their rows are read: to see later that a file was changed.

Of most files they are of all bytes. Of Parquet they are of the columns in use, each by row groups: what planning
reads anyway. The rest of such a file, but for its end, is not read.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence

from embedkit.sources.columnar import Columnar
from embedkit.sources.locate import SourceFile
from embedkit.sources.readers import Reader
from embedkit.storage.hashing_reader import HashingReader

#: Of the stream over a HashingReader, each read of which takes some microseconds.
_BUFFER_BYTES = 2**18
#: The same of Parquet, whose reader asks for large pieces, and may leave out what is between them.
_PARQUET_BUFFER_BYTES = 2**13


def hashes_columns(file: SourceFile) -> bool:
    """Returns True for a file of which the columns in use are hashed, and not all bytes."""
    is_hashed = file.sha256 is not None and file.content_sha256 is None and file.etag is None
    return is_hashed and file.format == "parquet" and file.compression is None


class PassHash:
    """Hashes a file while it is read once.

    Args:
        file: as it was located.
        names: of the columns in use.
    """

    def __init__(self, file: SourceFile, names: Sequence[str]) -> None:
        self._file = file
        self._names = names
        self._reader: HashingReader | None = None  # None if the file is not on a disk

    def wrap(self, stream: io.BufferedReader) -> io.BufferedReader:
        """Returns a stream whose bytes are hashed as they are read; nothing of `stream` has been."""
        raw = stream.raw
        if not isinstance(raw, io.FileIO):
            return stream
        stream.detach()
        self._reader = HashingReader(raw)
        return io.BufferedReader(
            self._reader, _PARQUET_BUFFER_BYTES if hashes_columns(self._file) else _BUFFER_BYTES
        )

    def begin(self, reader: Reader, piece: tuple[int, int] | None) -> None:
        """Begins to hash the file, or a piece of it; called before its rows are read."""
        if self._reader is not None:
            self._reader.watch(hashed_ranges(self._file, reader, piece, self._names))

    def digest(self) -> str | None:
        """Returns the hash once all rows have been read; None if the file is not on a disk."""
        return None if self._reader is None else joined_digest(self._file, self._reader.digests())


def hashed_ranges(
    file: SourceFile, reader: Reader, piece: tuple[int, int] | None, names: Sequence[str]
) -> list[tuple[int, int]]:
    """Returns the bytes [start, stop) that the hash of a file is of, or that of a piece of it."""
    whole = (0, file.size or 0)
    if hashes_columns(file) and isinstance(reader, Columnar):
        return reader.chunks(*(piece or whole), names)
    return [piece or whole]


def joined_digest(file: SourceFile, digests: Sequence[str]) -> str:
    """Returns one hash of those of all ranges of a file."""
    return hashlib.sha256("".join(digests).encode()).hexdigest() if hashes_columns(file) else digests[0]
