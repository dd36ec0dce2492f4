"""URLs of databases, without their passwords, and the one SELECT of `--sql`."""

from __future__ import annotations

import os
import re
from string import whitespace
from urllib.parse import unquote

from embedkit.errors import UsageError

#: Of the names of database files.
DATABASE_SUFFIXES = ("db", "db3", "sqlite", "sqlite3", "duckdb", "ddb")
_DATABASE = re.compile(r"(postgres(?:ql)?|sqlite|duckdb)(\+\w+)?:", re.IGNORECASE)
_POSTGRES = re.compile(r"postgres(?:ql)?://", re.IGNORECASE)
_USER = re.compile(r"(?P<user>[^:@]*)(?::(?P<password>[^@]*))?@")
#: Parameters of a URL that are secret.
_SECRETS = ("password", "sslpassword")

#: Comments, strings and quoted names, in which a semicolon ends no statement. An unclosed one is left for the
#: database to report.
_NOT_CODE = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|(\$\w*\$).*?\1|`[^`]*`", re.DOTALL)
_EXAMPLE = '--sql "SELECT id, text FROM note"'


def is_database(name: str) -> bool:
    """Checks for the URL of a database, as opposed to the name of a file."""
    return _DATABASE.match(name) is not None


def is_postgres(name: str) -> bool:
    """Checks for the URL of a PostgreSQL database."""
    return _POSTGRES.match(name) is not None


def no_query(name: str) -> UsageError:
    """Returns the error of a database without `--sql`."""
    return UsageError(f"{name}: a database, and no query says which rows to read", hint=f"add {_EXAMPLE}")


def split_url(url: str) -> tuple[str, str]:
    """Splits the URL of a database into a name that may be shown, and its secrets.

    Returns:
        The path of a SQLite or DuckDB file, or a `postgresql://` URL without secrets; and the secrets as
        parameters of such a URL, such as `password=...`; "" if there are none.

    Raises:
        UsageError: it is malformed.
    """
    found = _DATABASE.match(url)
    kind = found[1].lower() if found else ""
    if found is None or found[2]:
        raise UsageError(
            f"{kind}{found[2] if found else ''}: the driver of a database is not part of its URL here",
            hint="use postgresql://USER@HOST/DATABASE",
        )
    rest = url[found.end() :]
    if kind in {"sqlite", "duckdb"}:
        path = unquote(rest.removeprefix("//").removeprefix("/") if rest.startswith("//") else rest)
        if not path:
            raise UsageError(f"{kind}: names no file", hint=f"use {kind}:///notes.db, or {kind}:////data/notes.db")
        return path, ""
    if not rest.startswith("//"):
        raise UsageError(
            "the URL of a PostgreSQL database starts with postgresql://",
            hint="use postgresql://USER@HOST/DATABASE",
        )
    place, mark, query = rest[2:].partition("?")
    authority, slash, name = place.partition("/")
    if authority.count("@") > 1 or "@" in name + query:
        # Not shown: where the password ends is unknown.
        raise UsageError(
            "the URL of the database has an @ or a / in its user or password",
            hint="write it as %40 or %2F; or leave the password out, and set PGPASSWORD or ~/.pgpass",
        )
    parameters = query.split("&") if mark else []
    secrets = [each for each in parameters if each.partition("=")[0].lower() in _SECRETS]
    user = _USER.match(authority)
    if user is not None and user["password"] is not None:
        secrets.append(f"password={user['password']}")
        authority = f"{user['user']}@{authority[user.end() :]}"
    shown = "&".join(each for each in parameters if each not in secrets)
    return f"postgresql://{authority}{slash}{name}{'?' if shown else ''}{shown}", "&".join(secrets)


def place_of(url: str) -> str:
    """Returns the host and database of a URL by `split_url`, without user and parameters, for plans."""
    place = url.partition("?")[0]
    return f"postgresql://{place.removeprefix('postgresql://').rpartition('@')[2]}"


def base_name(url: str) -> str:
    """Returns the name of the database, or of its host, or of the file, from which an output gets its name."""
    shown = split_url(url)[0]
    if not is_postgres(shown):
        return os.path.basename(shown)  # noqa: PTH119 - as typed
    authority, _, name = place_of(shown).removeprefix("postgresql://").partition("/")
    return unquote(name or authority.partition(":")[0] or "postgresql")


def one_select(sql: str) -> str:
    """Returns a query without the semicolon at its end.

    Raises:
        UsageError: it is empty, has several statements, or is no SELECT. The database itself is opened read-only:
            this finds mistakes early, and does not replace that.
    """
    code = _NOT_CODE.sub(lambda found: (" " if found[0].startswith(("--", "/*")) else "'") * len(found[0]), sql)
    end = len(code.rstrip(f"{whitespace};"))
    words = code[:end].split(None, 1)
    if not words:
        raise UsageError("--sql is empty", hint=f"use {_EXAMPLE}")
    if ";" in code[:end]:
        raise UsageError("--sql has several statements", hint=f"give one, such as {_EXAMPLE}")
    first = re.match(r"\(*\s*(\w*)", code[:end].lstrip())
    if first is None or first[1].upper() not in {"SELECT", "WITH", "FROM", "TABLE", "VALUES"}:
        raise UsageError("--sql is not a SELECT: rows are only read", hint=f"use {_EXAMPLE}")
    return sql[:end]
