"""Hashes of files of a table, found while their rows are read: to see later that a file was changed.

Of most files they are of all bytes. Of Parquet they are of the columns in use, each by row groups: what planning
reads anyway. The rest of such a file, but for its end, is not read. A file has the same hash on a disk and in a
store, so that outputs made from it are equal.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence

from embedkit.sources.columnar import Columnar
from embedkit.sources.locate import SourceFile
from embedkit.sources.readers import Reader
from embedkit.storage.hashing_reader import HashingRangedReader, HashingReader
from embedkit.storage.ranged_reader import RangedReader

#: Of the stream over a HashingReader, each read of which takes some microseconds.
_BUFFER_BYTES = 2**18
#: The same of Parquet, whose reader asks for large pieces, and may leave out what is between them.
_PARQUET_BUFFER_BYTES = 2**13


def hashes_columns(file: SourceFile) -> bool:
    """Returns True for a file of which the columns in use are hashed, and not all bytes."""
    return file.sha256 is not None and file.format == "parquet" and file.compression is None


class PassHash:
    """Hashes a file, or a piece of it, while it is read once.

    Args:
        file: as it was located.
        names: of the columns in use.
        piece: bytes [start, stop) of the piece.
    """

    def __init__(self, file: SourceFile, names: Sequence[str], piece: tuple[int, int] | None) -> None:
        self._file = file
        self._names = names
        self._piece = piece or (0, file.size or 0)
        self._reader: HashingReader | HashingRangedReader | None = None  # None if it cannot be read by ranges

    def wrap(self, stream: io.BufferedReader) -> io.BufferedReader:
        """Returns a stream whose bytes are hashed as they are read; nothing of `stream` has been."""
        raw = stream.raw
        if not isinstance(raw, io.FileIO | RangedReader):
            return stream
        stream.detach()
        self._reader = HashingReader(raw) if isinstance(raw, io.FileIO) else HashingRangedReader(raw)
        if hashes_columns(self._file):
            return io.BufferedReader(self._reader, _PARQUET_BUFFER_BYTES)
        self._reader.watch([self._piece])
        return io.BufferedReader(self._reader, _BUFFER_BYTES)

    def begin(self, reader: Reader) -> None:
        """Begins to hash columns; called before rows are read."""
        if self._reader is not None and isinstance(reader, Columnar) and hashes_columns(self._file):
            self._reader.watch(reader.chunks(*self._piece, self._names))

    def digest(self) -> str | None:
        """Returns the hash once all rows have been read; None if the file cannot be read by ranges."""
        return None if self._reader is None else joined_digest(self._file, self._reader.digests())


def joined_digest(file: SourceFile, digests: Sequence[str]) -> str:
    """Returns one hash of those of all ranges of a file."""
    return hashlib.sha256("".join(digests).encode()).hexdigest() if hashes_columns(file) else digests[0]
