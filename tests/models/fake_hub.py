"""A hub on this machine: answers what huggingface_hub asks, and misbehaves on request."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """Serves folders as models.

    Attributes:
        models: folder by hub id.
        moved: hub ids that are redirected to another one.
        commit: that of every model's branch main.
        requests: "METHOD path" of each request so far.
        answer: called with a handler before anything else; True if it has answered.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, Path] = {}
        self.moved: dict[str, str] = {}
        self.commit = COMMIT
        self.requests: list[str] = []
        self.answer: Callable[[_Handler], bool] = lambda _: False
        self.over = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *_: object) -> None:
        """Logs nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        if self.server.answer(self):
            return
        path = unquote(urlsplit(self.path).path)
        api, _, rest = path.removeprefix("/").partition("models/")
        if api == "api/":
            self._list(rest)
        else:
            self._file(path.removeprefix("/"))

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Answer; `_` in the names of headers becomes `-`."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def hang(self) -> None:
        """Accept and never answer."""
        self.server.over.wait(60)
        self.close_connection = True

    def trickle(self, body: bytes, seconds: float) -> None:
        """Answers with a byte each so many seconds."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(OSError):
            for at in range(len(body)):
                self.wfile.write(body[at : at + 1])
                self.wfile.flush()
                if self.server.over.wait(seconds):
                    break
        self.close_connection = True

    def _list(self, rest: str) -> None:
        repo, _, revision = rest.partition("/revision/") if "/revision/" in rest else rest.partition("/tree/")
        if repo in self.server.moved:
            new = self.path.replace(f"/{repo}", f"/{self.server.moved[repo]}", 1)
            return self.reply(307, Location=new)
        folder = self.server.models.get(repo)
        if folder is None:
            return self.reply(401, X_Error_Message="Invalid username or password.")
        if revision not in {"", "main", self.server.commit}:
            return self.reply(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        names = [file.relative_to(folder).as_posix() for file in files]
        if "/tree/" in rest:
            found: object = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": _oid(file)}
                for name, file in zip(names, files, strict=True)
            ]
        else:
            siblings = [
                {"rfilename": name, "size": file.stat().st_size, "blobId": _oid(file)}
                for name, file in zip(names, files, strict=True)
            ]
            found = {
                "id": repo,
                "modelId": repo,
                "sha": self.server.commit,
                "private": False,
                "siblings": siblings,
            }
        return self.reply(200, json.dumps(found).encode(), Content_Type="application/json")

    def _file(self, path: str) -> None:
        repo, _, rest = path.partition("/resolve/")
        commit, _, name = rest.partition("/")
        folder = self.server.models.get(self.server.moved.get(repo, repo))
        if folder is None or not (folder / name).is_file():
            return self.reply(404, X_Error_Code="EntryNotFound")
        body = (folder / name).read_bytes()
        return self.reply(200, body, ETag=f'"{_oid(folder / name)}"', X_Repo_Commit=commit)


def _oid(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Yields a hub in a thread, until the block ends."""
    hub = FakeHub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.over.set()
        hub.shutdown()
        hub.server_close()
