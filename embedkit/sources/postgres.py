"""PostgreSQL, by ADBC: rows are streamed by COPY as record batches."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any

import pyarrow as pa

from embedkit.config import InputConfig
from embedkit.errors import EmbedkitError, Stopped
from embedkit.sources.columns import Columns, Wanted, every
from embedkit.sources.locate import SourceFile
from embedkit.sources.query import checked_order, library, quoted, refused, selection, unknown_name
from embedkit.sources.record_batches import RecordBatches, sliced
from embedkit.types import Fault, Record

_BATCH_BYTES = 4 * 2**20
#: Seconds to wait for a connection, unless the URL or PGCONNECT_TIMEOUT says otherwise.
_CONNECT_SECONDS = 15
#: Types of ids that are ordered by value; ids of all others are ordered by the bytes of their text.
_ORDERED = frozenset(b"int2 int4 int8 oid uuid date timestamp timestamptz time bytea".split())

_NAMES = {
    "table": "SELECT DISTINCT table_name FROM information_schema.tables WHERE {} ORDER BY 1",
    "column": "SELECT DISTINCT column_name FROM information_schema.columns WHERE {} ORDER BY 1",
}
_OURS = "table_schema NOT IN ('pg_catalog', 'information_schema')"
#: A function that lists the tables or the columns of a database.
Names = Callable[[str], list[str]]
_UNKNOWN = {"42P01": "table", "42703": "column"}
_RESUME = "run the same command again, an encode or sweep with --on-exists resume"
_SELECT = "give a single SELECT, and try it in psql"
#: The problem and its remedy, by SQLSTATE or its class.
_BY_STATE = {
    "42501": ("the user may not read this table", "ask for GRANT SELECT, or name another user in the URL"),
    "25006": ("the query does more than read, and the transaction is read-only", _SELECT),
    "42": ("the query is not SQL that PostgreSQL takes", _SELECT),
    "22": (
        "the query cannot convert or compute a value",
        "look for casts in the query, and for divisions by zero",
    ),
    "57014": (
        "the server ended the query, as statement_timeout does",
        "the query is read while the model runs: PGOPTIONS='-c statement_timeout=0' lifts the limit",
    ),
    "53": ("the server lacks connections, memory or disk", _RESUME),
    "57": ("the server closed the connection", _RESUME),
    "08": ("the connection was lost", _RESUME),
}
#: The same by patterns of the message: failures to connect, or while rows are streamed, have no SQLSTATE.
_BY_MESSAGE = {
    r"password authentication failed|no password supplied|fe_sendauth": (
        "the server refuses the user or the password",
        "check the user in the URL; the password is taken from the URL, PGPASSWORD or ~/.pgpass",
    ),
    r"could not translate host name": ("the host is unknown", "check the host in the URL"),
    r"Connection refused|No such file or directory|Network is unreachable|No route to host": (
        "no server answers there",
        "check host and port, and that the server runs",
    ),
    r"timeout expired|timed out": ("the server does not answer in time", "check host, port and firewall"),
    r"database \"[^\"]*\" does not exist": (
        "the server has no such database",
        "list the databases: psql -l",
    ),
    r"role \"[^\"]*\" does not exist": ("the server has no such user", "name it: postgresql://USER@HOST/DATABASE"),
    r"pg_hba.conf|SSL|certificate": (
        "the server refuses this kind of connection",
        "check sslmode in the URL, and pg_hba.conf of the server",
    ),
    r"URI|connection option|service": ("the URL cannot be used", "use postgresql://USER@HOST:PORT/DATABASE"),
    r"statement timeout": _BY_STATE["57014"],
    r"terminating connection|server closed the connection|SSL SYSCALL|connection not open": _BY_STATE["08"],
    r"invalid input syntax|out of range|division by zero|cannot cast": _BY_STATE["22"],
}


@contextmanager
def opened(file: SourceFile, config: InputConfig) -> Iterator[PostgresRows]:
    """Opens a query in a read-only transaction; see `databases.opened_query`."""
    dbapi: Any = library("adbc_driver_postgresql.dbapi", "adbc-driver-postgresql")
    with _as_input_error(dbapi, file):
        connection = dbapi.connect(_url(config), autocommit=True)
    with closing(connection), _finished(connection.cursor()) as cursor:
        with _as_input_error(dbapi, file):
            cursor.adbc_statement.set_options(**{"adbc.postgresql.batch_size_hint_bytes": str(_BATCH_BYTES)})
            cursor.execute("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield PostgresRows(dbapi, file, cursor, config)


@contextmanager
def _finished(cursor: Any) -> Iterator[Any]:
    """Closes a cursor, whether its rows were all read or not."""
    try:
        yield cursor
    finally:
        with suppress(Exception):  # of an unfinished stream
            cursor.close()


def _url(config: InputConfig) -> str:
    """Returns the URL for libpq, with the password."""
    url = config.inputs[0]
    more = [config.secrets] if config.secrets else []
    if "connect_timeout" not in url and "PGCONNECT_TIMEOUT" not in os.environ:
        more.append(f"connect_timeout={_CONNECT_SECONDS}")
    # Without it, texts come in the encoding of the database.
    more += ["client_encoding=UTF8", "fallback_application_name=embedkit"]
    return url + ("&" if "?" in url else "?") + "&".join(more)


class PostgresRows(RecordBatches):
    """See `Reader`."""

    def __init__(self, dbapi: Any, file: SourceFile, cursor: Any, config: InputConfig) -> None:
        self._config = config
        self._cursor = cursor
        self._reading = partial(_as_input_error, dbapi, file, partial(_names, dbapi, config))
        with self._reading():
            schema = cursor.adbc_execute_schema(f"SELECT * FROM ({config.sql}\n) AS q")  # noqa: S608 - the user's
        self._types = {field.name: (field.metadata or {}).get(b"POSTGRESQL:type", b"") for field in schema}
        fields = [pa.field(field.name, _plain(field.type)) for field in schema]
        super().__init__(fields, self._selected, file.shown)

    def rows(self, columns: Columns, first: int, wanted: Wanted = every) -> Iterator[Record | Fault]:  # noqa: ARG002
        """See `Reader`."""
        return checked_order(super().rows(columns, first), self._file, columns.id or "")

    def _selected(self, columns: Columns) -> Iterator[Any]:
        name = columns.id or ""
        order = quoted(name) if self._types[name] in _ORDERED else f'{quoted(name)}::text COLLATE "C"'
        statement = selection(self._config.sql or "", columns, order, self._config.limit)
        with self._reading():
            self._cursor.execute(statement)
            yield from sliced(map(_of_plain, self._cursor.fetch_record_batch()))


def _plain(kind: pa.DataType) -> pa.DataType:
    """Returns the type of the text by which ADBC passes values of types that Arrow lacks, such as numeric."""
    return kind.storage_type if isinstance(kind, pa.OpaqueType | pa.JsonType) else kind


def _of_plain(batch: Any) -> Any:
    columns = [column if _plain(column.type) == column.type else column.storage for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _names(dbapi: Any, config: InputConfig, what: str) -> list[str]:
    """Lists the tables or columns of the database, by a new connection: the transaction has failed."""
    with suppress(Exception), closing(dbapi.connect(_url(config))) as connection, connection.cursor() as cursor:
        cursor.execute(_NAMES[what].format(_OURS))
        return [name for (name,) in cursor.fetchall()]
    return []


@contextmanager
def _as_input_error(dbapi: Any, file: SourceFile, names: Names | None = None) -> Iterator[None]:
    try:
        yield
    except EmbedkitError:
        raise
    except (dbapi.Error, OSError) as error:  # the second from a stream of batches
        state, message = getattr(error, "sqlstate", None) or "", str(error)
    else:
        return
    # Raised outside of the handler, and the message is not kept: it may quote cells and the query.
    raise _error(file.shown, state, message, names)


def _error(file: str, state: str, message: str, names: Names | None) -> EmbedkitError:
    """Returns the error of a connection, or of a query if there are `names`."""
    if "due to user request" in message:  # ADBC cancels the query when the user presses Ctrl-C
        return Stopped(f"{file}: the query was cancelled", hint=_RESUME)
    if names is not None and (what := _UNKNOWN.get(state)):
        # The name in quotes; a qualified one has none.
        named = re.search(r"[\"«„“](?:\w+\.)?([^\"»“”]+)[\"»“”]|\b\w+\.(\w+)\b", message)
        return unknown_name(file, what, named and (named[1] or named[2]), names(what))
    known = _BY_STATE.get(state) or _BY_STATE.get(state[:2])
    if known is None:
        known = next((words for part, words in _BY_MESSAGE.items() if re.search(part, message)), None)
    if known is not None:
        return refused(file, *known)
    if names is None:
        return refused(file, "PostgreSQL cannot be reached", "check host, port, user and database of the URL")
    return refused(file, f"PostgreSQL cannot run the query{f' (SQLSTATE {state})' if state else ''}", _SELECT)
