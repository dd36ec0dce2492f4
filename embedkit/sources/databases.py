"""Queries of databases in place of files: finds the kind of the database, and opens it.

postgres.py   by ADBC                      sqlite_file.py   by the standard library
duckdb_file.py   by its own package        query.py         what they share
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from embedkit.config import InputConfig
from embedkit.config.databases import is_postgres, place_of
from embedkit.errors import InputError
from embedkit.sources import duckdb_file, postgres, sqlite_file
from embedkit.sources.duckdb_file import DuckdbRows
from embedkit.sources.locate import SourceFile, shown_name, unreadable
from embedkit.sources.postgres import PostgresRows
from embedkit.sources.sqlite_file import SqliteRows
from embedkit.storage.filesystem import open_file, stat_file

#: First bytes of database files, and where they start.
_MAGIC = {"sqlite": (0, b"SQLite format 3\0"), "duckdb": (8, b"DUCK")}
_Rows = DuckdbRows | PostgresRows | SqliteRows
_OPENERS: dict[str, Callable[[SourceFile, InputConfig], AbstractContextManager[_Rows]]] = {
    "postgresql": postgres.opened,
    "sqlite": sqlite_file.opened,
    "duckdb": duckdb_file.opened,
}


def database_file(config: InputConfig) -> SourceFile:
    """Describes the database of `config.inputs`; its rows are unknown until they are read.

    Raises:
        InputError: it is a file that does not exist, cannot be read, or is not of a known database.
    """
    name = config.inputs[0]
    if is_postgres(name):
        return SourceFile(place_of(name), "postgresql")
    try:
        if stat_file(name).kind != "file":
            raise InputError(f"{shown_name(name)}: not a database file", hint="name a SQLite or DuckDB file")
        with open_file(name) as file:
            head = file.read(16)
    except OSError as error:
        raise unreadable(name, error) from None
    for kind, (start, magic) in _MAGIC.items():
        if head[start:].startswith(magic):
            return SourceFile(name, kind)
    raise InputError(
        f"{shown_name(name)}: neither a SQLite nor a DuckDB database",
        hint="--sql is for databases: leave it out for files of rows; PostgreSQL is postgresql://USER@HOST/DATABASE",
    )


def opened_query(file: SourceFile, config: InputConfig) -> AbstractContextManager[_Rows]:
    """Opens the query of `config.sql`.

    Raises:
        InputError: the database cannot be reached, or refuses the query.
    """
    return _OPENERS[file.format](file, config)
