"""Hashes of the files of a table, to see later that one was changed; see content_hash.py."""

from __future__ import annotations

from embedkit.sources.columnar import Columnar
from embedkit.sources.content_hash import hashes_columns, joined_digest
from embedkit.sources.locate import SourceFile, unreadable
from embedkit.sources.table import Table
from embedkit.storage.filesystem import BYTES_OF_ENDS, open_file, sha256_of_file
from embedkit.storage.hashing_reader import HashingReader


def content_sha256(
    table: Table, number: int, piece: tuple[int, int] | None = None, *, is_fetched: bool = False
) -> str | None:
    """Returns the hash of all bytes of a file, or of a piece: of Parquet, of the columns in use in it.

    Args:
        table: the file's.
        number: of the file.
        piece: its bytes [start, stop); None for the whole file.
        is_fetched: also read a large object of a store. Its ETag says as much, so that few need this.

    Returns:
        64 hexadecimal digits; None for stdin, for a query that was not read, and for a large object that no pass
        has read to the end.

    Raises:
        InputError: it cannot be read.
    """
    file = table.files[number]
    if file.sha256 is None or file.content_sha256 is not None:
        return file.content_sha256
    if not hashes_columns(file) and (number, piece) in table.digests:
        return table.digests[number, piece]
    if piece is None and is_small(file):
        return file.sha256
    if file.etag is not None and not is_fetched:
        return None
    ranges = None if piece is None else _ranges(table, number, piece)
    try:
        return sha256_of_file(file.name, ranges)
    except OSError as error:
        raise unreadable(file.shown, error) from None


def columns_sha256(table: Table, number: int, piece: tuple[int, int] | None = None) -> str | None:
    """Returns the hash of the columns in use of a Parquet file, or of a piece of it; see `hashes_columns`.

    Returns:
        64 hexadecimal digits; None for a large object of a store that no pass has read to the end.

    Raises:
        InputError: it cannot be read.
    """
    file = table.files[number]
    known = table.digests.get((number, piece))
    if known is not None or (file.etag is not None and not is_small(file)):
        return known
    ranges = _ranges(table, number, piece or (0, file.size or 0))
    try:
        with HashingReader(open_file(file.name, file.known)) as hashing:
            hashing.watch(ranges)
            return joined_digest(file, hashing.digests())
    except OSError as error:
        raise unreadable(file.shown, error) from None


def _ranges(table: Table, number: int, piece: tuple[int, int]) -> list[tuple[int, int]]:
    """Returns the bytes [start, stop) of the columns in use in a piece of a Parquet file; of others, all of it."""
    if table.files[number].format != "parquet":
        return [piece]
    with table.reader(number) as reader:
        return reader.chunks(*piece, table.columns.named) if isinstance(reader, Columnar) else [piece]


def is_small(file: SourceFile) -> bool:
    """Returns True if the hash of a file's first and last MiB is of all of its bytes."""
    return file.size is not None and file.size <= BYTES_OF_ENDS
