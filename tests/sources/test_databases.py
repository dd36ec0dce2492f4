"""Queries of PostgreSQL, SQLite and DuckDB, against the same rows in a Parquet file."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import embedkit
from benchmarks.torture.calls import watched
from benchmarks.torture.kills import contents, ended, forked, run
from embedkit.config import InputConfig
from embedkit.config.databases import one_select, split_url
from embedkit.errors import EmbedkitError, InputError, UsageError
from embedkit.sources import open_table
from embedkit.types import Fault, Record
from tests.conftest import Ran
from tests.sources.postgres_server import PASSWORD, Server, programs, running

pytestmark = pytest.mark.usefixtures("models_loaded_once")
Cli = Callable[..., Ran]

CANARY = "Quillfeather"
#: Ids whose order differs between languages, bytes and numbers.
IDS = ("b", "A", "a", "B", "ä", "Z", "10", "9", "é", "_")
ROWS = [(name, f"{CANARY} number {place} came in", place % 3) for place, name in enumerate(IDS)]
QUERY = "SELECT note_id, text, label FROM note -- all of them"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    folder = programs()
    if folder is None:
        pytest.skip("no PostgreSQL: install Debian's package postgresql, or the extra dev")
    with running(folder) as server:
        server.run(
            "CREATE TABLE note(note_id text, text text, label int)",
            *(f"INSERT INTO note VALUES {row}" for row in ROWS),  # noqa: S608
        )
        yield server


@pytest.fixture
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)


@pytest.fixture
def sqlite_file(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "notes.db") as database:
        database.execute("CREATE TABLE note(note_id, text, label)")
        database.executemany("INSERT INTO note VALUES (?, ?, ?)", ROWS)
    database.close()
    return tmp_path / "notes.db"


@pytest.fixture
def duckdb_file(tmp_path: Path) -> Path:
    import duckdb

    with duckdb.connect(tmp_path / "notes.duckdb") as database:
        database.execute("CREATE TABLE note(note_id text, text text, label int)")
        database.executemany("INSERT INTO note VALUES (?, ?, ?)", ROWS)
    return tmp_path / "notes.duckdb"


def stored(out: Path) -> tuple[list[str], bytes, list[int]]:
    read = embedkit.read(out)
    table = pq.read_table(sorted((out / "embeddings").glob("*.parquet")))
    return table["id"].to_pylist(), np.asarray(read.vectors).tobytes(), table["label"].to_pylist()


@pytest.mark.parametrize("kind", ["postgres", "sqlite_file", "duckdb_file"])
def test_a_query_gives_the_vectors_of_the_same_rows_in_a_file_and_resumes(
    encode: Cli,
    embedkit_cli: Cli,
    tmp_path: Path,
    kind: str,
    request: pytest.FixtureRequest,
    password: None,
    bert: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("embedkit.sources.duckdb_file._RANGE", 4)
    place = request.getfixturevalue(kind)
    database = place.url if kind == "postgres" else place
    in_order = sorted(ROWS, key=lambda row: row[0].encode())
    names = ("note_id", "text", "label")
    pq.write_table(pa.table(dict(zip(names, zip(*in_order, strict=True), strict=True))), tmp_path / "t.parquet")
    asked = ("--keep", "label", "--shard-rows", 3, "--pool", "mean")
    assert encode(tmp_path / "t.parquet", "--id-column", "note_id", *asked, "-o", tmp_path / "file").code == 0
    out = tmp_path / "out"
    ran = encode(database, "--sql", QUERY, *asked, "-o", out)
    assert ran.code == 0, ran.err
    assert stored(out) == stored(tmp_path / "file")
    first = list(open_table(InputConfig((str(database),), sql=QUERY, limit=5)).records())
    assert [item.id for item in first if isinstance(item, Record)] == [name for name, *_ in in_order[:5]]
    # A crash after two of four shards.
    for name in ("manifest.json", "commits/00002.json", "commits/00003.json"):
        (out / name).unlink()
    ran = encode(database, "--sql", QUERY, *asked, "-o", out, "--on-exists", "resume")
    assert ran.code == 0, ran.err
    assert stored(out) == stored(tmp_path / "file")
    checked = embedkit_cli("verify", out, "--resample", 10, "--sql", QUERY, "--input", database, "-m", bert)
    assert checked.code == 0, checked.err
    told = json.loads((out / "plan.json").read_text())["input"]["files"][0]
    assert "tester" not in told["name"]
    assert "SELECT" not in (out / "plan.json").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="tells paths of open files by /proc")
@pytest.mark.parametrize("kind", ["postgres", "sqlite_file"])
def test_a_killed_run_is_resumed_to_the_same_bytes(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest, password: None, bert: Path
) -> None:
    place = request.getfixturevalue(kind)
    words = ["encode", place.url if kind == "postgres" else place, "--sql", QUERY, "-m", bert, "--pool", "mean"]
    words += ["-q", "--shard-rows", 3, "--on-exists", "resume", "-o"]
    whole, broken, said = tmp_path / "whole", tmp_path / "broken", tmp_path / "said"

    def encoded(folder: Path) -> int:
        return run([*map(str, words), str(folder / "out")])

    def killed() -> int:
        def on_call(_: str, path: str) -> None:
            if "00002" in path:
                os.kill(os.getpid(), signal.SIGKILL)

        with watched(broken, on_call):
            return encoded(broken)

    whole.mkdir()
    broken.mkdir()
    assert ended(forked(partial(encoded, whole), said)) == 0, said.read_text()
    assert ended(forked(killed, said)) == -signal.SIGKILL, said.read_text()
    assert len(list(broken.glob("out/commits/*.json"))) == 2
    assert ended(forked(partial(encoded, broken), said)) == 0, said.read_text()
    assert contents(broken) == contents(whole)


def test_a_changed_row_is_refused_by_resume_and_by_verify(
    encode: Cli, embedkit_cli: Cli, tmp_path: Path, sqlite_file: Path
) -> None:
    out = tmp_path / "out"
    asked = (sqlite_file, "--sql", QUERY, "--keep", "label", "-o", out)
    assert encode(*asked).code == 0
    (out / "manifest.json").unlink()
    for column, value in (("label", 9), ("text", "x")):
        with sqlite3.connect(sqlite_file) as database:
            database.execute(f"UPDATE note SET {column} = ? WHERE note_id = 'b'", (value,))  # noqa: S608
        database.close()
        ran = encode(*asked, "--on-exists", "resume")
        assert ran.code == 5
        assert "cannot resume: input.files[0]" in ran.err
        assert CANARY not in ran.err


def test_a_row_that_changes_while_it_is_read_is_told(sqlite_file: Path) -> None:
    table = open_table(InputConfig((str(sqlite_file),), sql=QUERY))
    table.scan()
    with sqlite3.connect(sqlite_file) as database:
        database.execute("DELETE FROM note WHERE note_id = 'b'")
    database.close()
    with pytest.raises(InputError, match="was changed while it was read"):
        table.check_unchanged()


WRONG = {
    "SELECT note_idd, text FROM note": "did you mean note_id?",
    "SELECT note_id, text FROM notes": "did you mean note?",
    "SELECT text FROM note": "no column is named id",
    "SELECT label AS id, text FROM note": "have the same id",
    "SELECT NULL AS id, text FROM note": "row 0 of the query has no id",
    "SELECT note_id, label AS text FROM note": "text",
    "DELETE FROM note": "not a SELECT",
    "WITH gone AS (DELETE FROM note RETURNING *) SELECT * FROM gone": "error: ",
    "SELECT 1) AS q; DELETE FROM note; SELECT * FROM (SELECT 1": "several statements",
    "SELECT note_id, FROM WHERE": "SQL",
}


@pytest.mark.parametrize("kind", ["postgres", "sqlite_file", "duckdb_file"])
def test_a_wrong_query_is_one_error_that_shows_no_row_and_changes_none(
    encode: Cli, tmp_path: Path, kind: str, request: pytest.FixtureRequest, password: None
) -> None:
    place = request.getfixturevalue(kind)
    database = place.url if kind == "postgres" else place
    for query, message in {**WRONG, "SELECT note_id, CAST(text AS int) || '' AS text FROM note": ""}.items():
        ran = encode(database, "--sql", query, "-o", tmp_path / "out", "--on-exists", "overwrite")
        if query not in WRONG and kind == "sqlite_file":  # where any text is a number
            continue
        assert ran.code in {2, 3}, query
        assert message in "\n".join(ran.told), (query, ran.err)
        assert len(ran.told) == 2, ran.err
        assert CANARY not in ran.err
    assert len(list(open_table(InputConfig((str(database),), sql=QUERY)).records())) == len(ROWS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda server: server.url.replace("tester@", "tester:wrong-secret@"), "refuses the user or the password"),
        (lambda server: server.url.replace(str(server.port), "1"), "no server answers there"),
        (lambda server: server.url.replace("127.0.0.1", "nowhere.invalid"), "the host is unknown"),
        (lambda server: server.url + "x", "no such database"),
        (lambda server: server.url + "?options=-c%20statement_timeout%3D1", "statement_timeout"),
    ],
)
def test_a_connection_that_fails_says_why_without_the_password(
    encode: Cli, tmp_path: Path, postgres: Server, password: None, change: Callable[[Server], str], message: str
) -> None:
    slow = "SELECT i::text AS id, repeat('x', 50) || pg_sleep(0)::text AS text FROM generate_series(1, 500000) i"
    ran = encode(change(postgres), "--sql", slow, "-o", tmp_path / "out")
    assert ran.code == 3
    assert message in ran.err
    assert len(ran.told) == 2
    assert "secret" not in ran.err


def test_a_lost_connection_is_an_input_error(postgres: Server, password: None) -> None:
    many = "SELECT i AS id, repeat('x', 1000) AS text FROM generate_series(1, 200000) i"
    rows = open_table(InputConfig((postgres.url,), sql=many)).records()
    assert isinstance(next(rows), Record)
    postgres.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'embedkit'")
    with pytest.raises(InputError, match="connection"):
        for _ in rows:
            pass


def test_neither_password_nor_text_is_left_anywhere(
    encode: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres: Server
) -> None:
    for name in ("tmp", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    url = postgres.with_password()
    wrong = url.replace("@127", "@x@127")
    said = ""
    for asked in (
        (url, "--sql", QUERY, "-v", "--progress", "json", "-o", "out"),
        (url, "--sql", QUERY),
        (url, "--sql", f"SELECT note_id, text::int::text AS text FROM note WHERE text > '{CANARY}'"),  # noqa: S608
        (url, "--sql", "SELECT 1"),
        (url,),
        (wrong, "--sql", QUERY),
        (url, "x.csv", "--sql", QUERY),
        ("x.csv", "-o", url),
        (url.replace("postgresql", "mysql"),),
    ):
        ran = encode(*asked)
        said += ran.err + ran.out
    assert (tmp_path / "postgres.embeddings").is_dir()
    files = "".join(
        f"{path} {path.read_bytes().decode('latin-1') if path.is_file() else ''}" for path in tmp_path.rglob("*")
    )
    assert "postgresql://127.0.0.1" in files
    for content in (said, files):
        assert PASSWORD not in content
        assert CANARY not in content


def test_types_of_postgres_are_kept_and_order_ids(postgres: Server, password: None) -> None:
    rows = {
        "i::int8": ["1", "2", "10"],
        "(i * 1.50)::numeric": ["1.50", "15.00", "3.00"],  # by the bytes of their text
        "lpad(to_hex(i), 32, '0')::uuid": [f"{i:032x}" for i in (1, 2, 10)],
    }
    for cast, expected in rows.items():
        kept = "i::numeric AS n, jsonb '[{\"a\": 1}]' AS j"
        query = f"SELECT {cast} AS id, 'x' AS text, {kept} FROM unnest(ARRAY[2, 10, 1]) i"  # noqa: S608
        table = open_table(InputConfig((postgres.url,), sql=query, keep=("n", "j")))
        records = [item for item in table.records() if isinstance(item, Record)]
        assert [(item.id or "").replace("-", "") for item in records] == expected
        assert [item.kept[1] for item in records] == ['[{"a": 1}]'] * 3


def test_texts_are_unicode_whatever_the_encoding_of_the_database(postgres: Server, password: None) -> None:
    postgres.run("CREATE DATABASE old ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    query = "SELECT 1 AS id, convert_from('\\x63e974e9', 'LATIN1') AS text"
    for more in ("", "?client_encoding=LATIN1"):
        (row,) = open_table(InputConfig((postgres.url.replace("/postgres", "/old") + more,), sql=query)).records()
        assert isinstance(row, Record)
        assert row.text == "c\u00e9t\u00e9"


def test_cells_of_sqlite_may_be_of_any_type(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "t") as database:
        database.execute("CREATE TABLE t(id, text, k)")
        cells: list[tuple[Any, ...]] = [
            (10, "ten", 1), (9, "nine", "x"), ("9", "text nine", 1.5), (b"blob", b"bytes", None),
            (1, 5, 0), (2.5, "real", 0), (3, None, b"\xff"),
        ]  # fmt: skip
        database.executemany("INSERT INTO t VALUES (?, ?, ?)", cells)
        database.execute("INSERT INTO t VALUES (4, CAST(x'ff41' AS TEXT), 0)")
    database.close()
    table = open_table(InputConfig((f"sqlite:///{tmp_path}/t",), sql="SELECT * FROM t", keep=("k",)))
    found = [(i.code if isinstance(i, Fault) else (i.id, i.text, i.kept[0])) for i in table.records()]
    assert found == [
        "text_not_string",
        "id_not_string",
        "not_utf8",
        "not_utf8",
        ("9", "nine", "x"),
        ("10", "ten", 1),
        ("9", "text nine", 1.5),
        ("blob", "bytes", None),
    ]
    assert table.scan().n_faults == 4


@given(
    password=st.text(min_size=1).filter(lambda text: text.isprintable()), user=st.sampled_from(["", "me", "m%40e"])
)
def test_a_url_is_split_into_what_is_shown_and_the_password(password: str, user: str) -> None:
    written = quote(password, safe="")
    for url in (
        f"postgres://{user}:{written}@host:1/db?sslmode=require",
        f"postgresql://{user}@host:1/db?password={written}&sslmode=require",
    ):
        shown, secrets = split_url(url)
        assert shown == f"postgresql://{user}@host:1/db?sslmode=require"
        assert unquote(secrets) == f"password={password}"
    assert repr(InputConfig((url,), sql="SELECT 1")) == repr(InputConfig((shown,), sql="SELECT 1"))


@pytest.mark.parametrize(
    ("sql", "kept"),
    [
        ("select 1;", "select 1"),
        ("  (select ';' -- a;b\n) ; ;", "  (select ';' -- a;b\n)"),
        ("with a as (select $x$;$x$) select * from a", "with a as (select $x$;$x$) select * from a"),
        ("/* DELETE */ select 1", "/* DELETE */ select 1"),
        ("select 1; select 2", None),
        ("update t set a = 1", None),
        (" ; -- nothing", None),
        ("SELECT id FROM note WHERE label = 'a;'", "SELECT id FROM note WHERE label = 'a;'"),
        ('SELECT * FROM "my note" ; -- all', 'SELECT * FROM "my note"'),
    ],
)
def test_one_select_is_taken_and_nothing_else(sql: str, kept: str | None) -> None:
    if kept is None:
        with pytest.raises(UsageError, match="--sql"):
            one_select(sql)
    else:
        assert one_select(sql) == kept


def test_what_is_no_database_is_told(tmp_path: Path, encode: Cli) -> None:
    (tmp_path / "t.csv").write_text("id,text\n1,x\n")
    for asked, message in {
        (tmp_path / "t.csv", "--sql", QUERY): "neither a SQLite nor a DuckDB database",
        (tmp_path / "none.db", "--sql", QUERY): "No such file",
        (tmp_path / "t.csv", tmp_path / "t.csv", "--sql", QUERY): "--sql reads one database",
        ("postgresql+psycopg2://h/d", "--sql", QUERY): "the driver",
        ("sqlite:///a.db",): 'add --sql "SELECT',
        (tmp_path / "t.csv", "--sql", "@none.sql"): "--sql @none.sql: No such file",
    }.items():
        ran = encode(*asked, "-o", tmp_path / "out")
        assert ran.code in {2, 3}
        assert message in ran.err
    error = EmbedkitError("see http://u:pw@h", hint="postgresql://h?password=pw&a=b")
    assert (error.message, error.hint) == ("see http://u:***@h", "postgresql://h?password=***&a=b")
