"""DuckDB files, by DuckDB's own package."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

from embedkit.config import InputConfig
from embedkit.errors import InputError
from embedkit.sources.columns import Columns, Wanted, every
from embedkit.sources.locate import SourceFile
from embedkit.sources.query import checked_order, library, quoted, refused, selection, unknown_name
from embedkit.sources.record_batches import BATCH_ROWS, RecordBatches
from embedkit.types import Fault, Record

#: Rows that are sorted at a time.
_RANGE = 2**16
_UNKNOWN = re.compile(r"Table with name (\S+) does not exist|(?:column|Column) \"(?:\w+\.)?([^\"]+)\"")
_NAMES = {
    "table": "SELECT DISTINCT table_name FROM information_schema.tables ORDER BY 1",
    "column": "SELECT DISTINCT column_name FROM information_schema.columns ORDER BY 1",
}
_SELECT = "give a single SELECT, and try it in the duckdb program"
#: Hints by the exception of the package.
_KINDS = {
    "ParserException": ("the query is not SQL that DuckDB takes", _SELECT),
    "ConversionException": ("the query cannot convert a value", "use TRY_CAST for values of another type"),
    "OutOfMemoryException": (
        "too little memory for the query",
        "no text goes to a temporary file: select fewer rows, or store the result as a table first",
    ),
    "PermissionException": ("the query does what is not allowed", _SELECT),
    "IOException": (
        "DuckDB cannot open it",
        "it may be open in another program, of another version of DuckDB, or damaged",
    ),
}


@contextmanager
def opened(file: SourceFile, config: InputConfig) -> Iterator[DuckdbRows]:
    """Opens a query of a file, read-only; see `databases.opened_query`."""
    duckdb: Any = library("duckdb", "duckdb")
    with _as_input_error(duckdb, file, None):
        connection = duckdb.connect(
            file.name,
            read_only=True,
            # No temporary file, which would hold texts, and no download.
            config={"temp_directory": "", "autoinstall_known_extensions": "false"},
        )
    with closing(connection):
        yield DuckdbRows(duckdb, file, connection, config)


class DuckdbRows(RecordBatches):
    """See `Reader`."""

    def __init__(self, duckdb: Any, file: SourceFile, connection: Any, config: InputConfig) -> None:
        self._config = config
        self._reading = partial(_as_input_error, duckdb, file, connection)
        self._connection = connection
        with self._reading():
            relation = connection.sql(f"SELECT * FROM ({config.sql}\n) AS q LIMIT 0")  # noqa: S608 - the user's
            schema = relation.to_arrow_reader().schema
        super().__init__(schema, self._selected, file.shown)

    def rows(self, columns: Columns, first: int, wanted: Wanted = every) -> Iterator[Record | Fault]:  # noqa: ARG002
        """See `Reader`."""
        return checked_order(super().rows(columns, first), self._file, columns.id or "")

    def _selected(self, columns: Columns) -> Iterator[Any]:
        """Yields the rows range by range of their ids: a sort of all rows would need memory for all texts."""
        identity, sql = quoted(columns.id or ""), self._config.sql or ""
        kind = next(column.kind for column in self.columns if column.name == columns.id)
        order = f'{identity} COLLATE "C"' if kind == "string" else identity
        # The first id of each range but the first one.
        numbered = f"SELECT {identity} AS id, row_number() OVER (ORDER BY {order}) AS n FROM ({sql}\n) AS q"  # noqa: S608
        starts = f"SELECT id FROM ({numbered}) WHERE n > 1 AND n % {_RANGE} = 1 AND id IS NOT NULL ORDER BY n"  # noqa: S608
        left = self._config.limit
        with self._reading():
            bounds = [bound for (bound,) in self._connection.sql(starts).fetchall()]
            for place in range(len(bounds) + 1):
                if left == 0:
                    return
                after, before = bounds[place - 1 : place], bounds[place : place + 1]
                conditions = [f"{identity} >= ?"] * len(after) + [f"{identity} < ?"] * len(before)
                # NULLs, which are an error, are in the last range.
                nulls = "" if before or not after else f" OR {identity} IS NULL"
                within = f"SELECT * FROM ({sql}\n) AS q WHERE {' AND '.join(conditions) or 'true'}{nulls}"  # noqa: S608
                statement = selection(within, columns, order, left)
                for batch in self._connection.sql(statement, params=[*after, *before]).to_arrow_reader(BATCH_ROWS):
                    left = None if left is None else left - batch.num_rows
                    yield batch


@contextmanager
def _as_input_error(duckdb: Any, file: SourceFile, connection: Any) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (duckdb.Error, OSError) as error:  # the second from a stream of batches
        kind, message = type(error).__name__, str(error)
    else:
        return
    unknown = _UNKNOWN.search(message) if kind in {"CatalogException", "BinderException"} else None
    if unknown is not None and connection is not None:
        what = "table" if unknown[1] else "column"
        known = [name for (name,) in connection.execute(_NAMES[what]).fetchall()]
        raise unknown_name(file.shown, what, unknown[1] or unknown[2], known)
    raise refused(file.shown, *_KINDS.get(kind, ("DuckDB cannot run the query", _SELECT)))
