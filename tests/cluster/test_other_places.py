"""Inputs that fsspec opens: a web server with passwords, signatures and faults, as a user meets them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedkit
from benchmarks.torture.kills import contents
from tests.conftest import Ran

pytest.importorskip("aiohttp", reason="aiohttp is not installed: `make test-cluster` does it")

PASSWORD, SIGNATURE = "Zq-canary-p", "Zq-canary-s"
AUTHORIZATION = "Basic " + base64.b64encode(f"ann:{PASSWORD}".encode()).decode()


@dataclass
class WebServer:
    """Files of a web server, those below /private/ for one user, those below /signed/ for holders of a signature.

    Attributes:
        knows_ranges: False if it sends whole files alone.
        says_size: False if it does not say how large they are.
        says_version: True if it sends their ETags.
        requests: path and range of each request.
    """

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    knows_ranges: bool = True
    says_size: bool = True
    says_version: bool = False
    requests: list[tuple[str, str | None]] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: WebServer

    def log_message(self, *_: object) -> None:
        """Prints nothing."""

    def do_GET(self) -> None:
        web, (path, _, query) = self.server_of, self.path.partition("?")
        web.requests.append((self.path, self.headers.get("Range")))
        if path.startswith("/private/") and self.headers.get("Authorization") != AUTHORIZATION:
            self.answer(401)
        elif path.startswith("/signed/") and f"sig={SIGNATURE}" not in query:
            self.answer(403)
        elif path.endswith("/"):
            names = (name.removeprefix(path) for name in sorted(web.files) if name.startswith(path))
            self.answer(200, "".join(f'<a href="{name}">{name}</a>\n' for name in names).encode())
        elif path not in web.files:
            self.answer(404)
        else:
            self.send_file(web.files[path])

    do_HEAD = do_GET  # noqa: N815

    def send_file(self, data: bytes) -> None:
        asked = self.headers.get("Range", "")
        version = {"ETag": f'"{hashlib.md5(data).hexdigest()}"'} if self.server_of.says_version else {}  # noqa: S324
        if self.server_of.knows_ranges and asked.startswith("bytes="):
            start, stop = (int(text) for text in asked.removeprefix("bytes=").split("-"))
            part = data[start : stop + 1]
            whole = {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(data)}"}
            self.answer(206, part, whole | version)
        else:
            self.answer(200, data, version | ({"Accept-Ranges": "bytes"} if self.server_of.knows_ranges else {}))

    def answer(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response_only(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if self.server_of.says_size or not data:
            self.send_header("Content-Length", str(len(data)))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@pytest.fixture
def web() -> Iterator[WebServer]:
    found = WebServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"server_of": found}))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that went away is no fault
    found.address = f"127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with contextlib.closing(server.socket):
        yield found
        server.shutdown()


ROWS = [{"id": str(row), "text": f"no fever on day {row}"} for row in range(30)]


@pytest.fixture
def formats(tmp_path: Path, web: WebServer) -> list[str]:
    """Writes the rows to local files and to the server, and returns the names of the files."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "a.csv").write_text("id,text\n" + "".join(f"{row['id']},{row['text']}\n" for row in ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=7)
    names = ["a.jsonl", "a.csv", "a.parquet"]
    for folder in ("", "/private", "/signed"):
        web.files |= {f"{folder}/{name}": (tmp_path / name).read_bytes() for name in names}
    return names


@pytest.mark.parametrize(("knows_ranges", "says_version"), [(True, True), (True, False), (False, False)])
def test_files_of_a_web_server_give_the_bytes_of_local_ones_and_no_secret_is_kept(
    knows_ranges: bool,
    says_version: bool,
    web: WebServer,
    formats: list[str],
    encode: Callable[..., Ran],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("embedkit.sources.file_hashes.BYTES_OF_ENDS", 100)  # as large files are read
    web.knows_ranges, web.says_version = knows_ranges, says_version
    for name in formats:
        for at, source in enumerate(
            (
                tmp_path / name,
                f"http://{web.address}/{name}",
                f"http://ann:{PASSWORD}@{web.address}/private/{name}",
                f"http://{web.address}/signed/{name}?v=1&sig={SIGNATURE}",
            )
        ):
            out = tmp_path / "outs" / f"{name}-{at}"
            out.parent.mkdir(exist_ok=True)
            ran = encode(source, "-o", out, "--shard-rows", 10, "--verbose")
            assert ran.code == 0, ran.err
            found = {key: data for key, data in contents(out).items() if not key.endswith(".json")}
            assert found == {
                key: data
                for key, data in contents(tmp_path / "outs" / f"{name}-0").items()
                if not key.endswith(".json")
            }
            assert "Zq-canary" not in ran.err
            assert not [key for key, data in contents(out).items() if b"Zq-canary" in data]


def test_a_glob_of_a_web_server_finds_what_its_page_lists_and_names_it_without_the_password(
    web: WebServer, formats: list[str], encode: Callable[..., Ran], tmp_path: Path
) -> None:
    web.files["/private/b.csv"] = b"id,text\n1,b\n"
    ran = encode(f"http://ann:{PASSWORD}@{web.address}/private/*.csv", "-o", tmp_path / "out", "--verbose")
    assert ran.code == 0, ran.err
    assert PASSWORD not in ran.err
    assert not [key for key, data in contents(tmp_path / "out").items() if PASSWORD.encode() in data]
    plan = json.loads((tmp_path / "out" / "plan.json").read_bytes())
    names = [file["name"] for file in plan["input"]["files"]]
    assert names == [f"http://{web.address}/private/{name}.csv" for name in "ab"]


def test_what_a_web_server_refuses_is_one_error_without_the_secret(
    web: WebServer, formats: list[str], encode: Callable[..., Ran], tmp_path: Path
) -> None:
    for source, said in (
        (f"http://{web.address}/none.csv", "no such file"),
        (f"http://ann:Zq-canary-x@{web.address}/private/a.csv", "cannot be read (HTTP 401)"),
        (f"http://{web.address}/signed/a.csv?sig=Zq-canary-x", "cannot be read (HTTP 403)"),
        ("http://127.0.0.1:1/a.csv", "cannot be read"),
        (f"nope://ann:Zq-canary-x@{web.address}/a.csv", "nope:// is not known"),
        (f"simplecache::http://ann:Zq-canary-x@{web.address}/a.csv", "inside another one"),
        (f"s3a://{web.address}/a.csv", "s3a:// is unknown"),
        ("sftp://ann:Zq-canary-x@127.0.0.1/a.csv", "needs a package"),
    ):
        ran = encode(source, "-o", tmp_path / "out")
        assert ran.code in {2, 3}, ran.err
        assert len(ran.told) == 2
        assert said in ran.err, ran.err
        assert "Zq-canary" not in ran.err
        assert ran.told[1].startswith("hint: ")
    assert not (tmp_path / "out").exists()
    web.says_size = web.knows_ranges = False
    ran = encode(f"http://{web.address}/a.csv", "-o", tmp_path / "out")
    assert (ran.code, "download it first" in ran.err) == (3, True), ran.err
    refused = encode(tmp_path / "a.csv", "-o", f"http://{web.address}/out")
    assert (refused.code, "object stores (s3://, gs://, az://)" in refused.err) == (2, True)


def test_an_output_that_was_copied_to_a_web_server_is_read_there(
    web: WebServer,
    formats: list[str],
    encode: Callable[..., Ran],
    embedkit_cli: Callable[..., Ran],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out.parquet"
    assert encode(tmp_path / "a.csv", "-o", out).code == 0
    web.files["/signed/out.parquet"] = out.read_bytes()
    address = f"http://{web.address}/signed/out.parquet"
    read = embedkit.read(f"{address}?sig={SIGNATURE}")
    assert read.table.equals(embedkit.read(out).table)
    assert (read.vectors == embedkit.read(out).vectors).all()
    assert SIGNATURE not in repr(read)
    for words in (("inspect",), ("verify",), ("diff", out)):
        ran = embedkit_cli(*words, f"{address}?sig={SIGNATURE}")
        assert ran.code == 0, ran.err
        assert SIGNATURE not in ran.out + ran.err


def test_a_file_in_the_memory_of_this_process_is_read(encode: Callable[..., Ran], tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    with memory.open("/notes/a.csv", "w") as file:
        file.write("id,text\n1,no fever\n")
    try:
        for source in ("memory://notes/a.csv", "memory://notes/*.csv", "memory://notes"):
            ran = encode(source, "-o", tmp_path / "out", "--on-exists", "overwrite")
            assert ran.code == 0, ran.err
            assert embedkit.read(tmp_path / "out").ids == ["1"]
    finally:
        memory.rm("/notes", recursive=True)
