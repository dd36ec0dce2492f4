"""Hashes of the files of a table, to see later that one was changed; see content_hash.py."""

from __future__ import annotations

from embedkit.sources.columnar import Columnar
from embedkit.sources.content_hash import hashed_ranges, hashes_columns, joined_digest
from embedkit.sources.locate import unreadable
from embedkit.sources.table import Table
from embedkit.storage.filesystem import open_file, sha256_of_file
from embedkit.storage.hashing_reader import HashingReader


def content_sha256(table: Table, number: int, piece: tuple[int, int] | None = None) -> str | None:
    """Returns the hash of all bytes of a file, or of a piece: of Parquet, of the columns in use in it.

    Returns:
        64 hexadecimal digits; None for stdin, for a query that was not read, and for a large object of a store,
        whose ETag says as much.

    Raises:
        InputError: it cannot be read.
    """
    file = table.files[number]
    if file.sha256 is None or file.content_sha256 is not None or file.etag is not None:
        return file.content_sha256
    if not hashes_columns(file) and (number, piece) in table.digests:
        return table.digests[number, piece]
    ranges = None if piece is None else [piece]
    if piece is not None and file.format == "parquet":
        with table.reader(number) as reader:
            ranges = reader.chunks(*piece, table.columns.named) if isinstance(reader, Columnar) else ranges
    try:
        return sha256_of_file(file.name, ranges)
    except OSError as error:
        raise unreadable(file.shown, error) from None


def columns_sha256(table: Table, number: int, piece: tuple[int, int] | None = None) -> str:
    """Returns the hash of the columns in use of a Parquet file, or of a piece of it; see `hashes_columns`.

    Raises:
        InputError: it cannot be read.
    """
    file = table.files[number]
    known = table.digests.get((number, piece))
    if known is not None:
        return known
    with table.reader(number) as reader:
        ranges = hashed_ranges(file, reader, piece, table.columns.named)
    try:
        with HashingReader(open_file(file.name)) as hashing:
            hashing.watch(ranges)
            return joined_digest(file, hashing.digests())
    except OSError as error:
        raise unreadable(file.shown, error) from None
