"""Readers of the formats, behind one protocol."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeAlias

from embedkit.config import InputConfig
from embedkit.sources.columnar import Columnar
from embedkit.sources.columns import Column, Columns, Wanted, every
from embedkit.sources.databases import opened_query
from embedkit.sources.delimited import Delimited
from embedkit.sources.jsonl import JsonLines
from embedkit.sources.locate import SourceFile, unreadable
from embedkit.sources.opening import Wrap, opened
from embedkit.sources.plain_text import PlainText
from embedkit.types import Fault, Record


class Reader(Protocol):
    """A reader of one file of some format."""

    @property
    def columns(self) -> tuple[Column, ...] | None:
        """The file's columns; None if there is no row to infer them from."""

    def rows(self, columns: Columns, first: int, wanted: Wanted = every) -> Iterator[Record | Fault]:
        """Reads every row, numbered from `first`; one that is not wanted may be the fault `unread`."""


#: Readers of files that begin anywhere in them: at an offset, which is a byte, or in a columnar file a row.
Seeking: TypeAlias = JsonLines | Delimited | PlainText | Columnar


@contextmanager
def as_input_error(name: str) -> Iterator[None]:
    """Raises an `OSError` as the error of a file that cannot be read."""
    try:
        yield
    except OSError as error:
        raise unreadable(name, error) from None


@contextmanager
def reading(
    file: SourceFile,
    names: Sequence[str],
    config: InputConfig,
    wrap: Wrap | None = None,
    *,
    sound: Collection[str] = (),
) -> Iterator[Reader]:
    """Opens a file or a query for one pass.

    Args:
        file: as it was located.
        names: of the columns that the user named.
        config: of the input.
        wrap: see `opened`.
        sound: see `Columnar`.
    """
    if config.sql is not None:
        with opened_query(file, config) as rows:
            yield rows
        return
    with opened(file, config, wrap) as stream, as_input_error(file.shown):
        yield reader_of(file, stream, names, config, sound=sound)


def reader_of(
    file: SourceFile,
    stream: io.BufferedReader,
    names: Sequence[str],
    config: InputConfig,
    *,
    sound: Collection[str] = (),
) -> Reader:
    """Returns the reader of an open file; `names` are the columns that the user named."""
    match file.format:
        case "csv" | "tsv":
            delimiter = config.delimiter or ("\t" if file.format == "tsv" else ",")
            return Delimited(stream, file.shown, delimiter=delimiter, quoting=config.quoting)
        case "jsonl":
            return JsonLines(stream, file.shown, wanted=frozenset(names))
        case "txt":
            return PlainText(stream, file.shown)
        case _:
            return Columnar(stream, file.shown, file_format=file.format, config=config, sound=sound)
