"""An HTTP proxy between a program and a server, that fails by rule and counts requests.

It passes the header Host on as it came, so that signatures stay valid. Faults:

- "503": answers SlowDown.
- "403": answers AccessDenied.
- "hang": reads the request and never answers.
- "cut": closes the connection without having passed the request on.
- "lost answer": passes the request on and closes the connection in place of the answer: it was done, and the
  program does not know.
- "half answer": closes the connection in the middle of the answer's body.
- "stuck": passes half of the request's body on and then waits until the program or the test is gone: a writer
  in the middle of a put.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import threading
import urllib.parse
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.cluster.servers import s3_client, s3_environment

ERRORS = {"503": (503, "SlowDown"), "403": (403, "AccessDenied")}
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "proxy-connection", "expect"}


@dataclass
class Rule:
    """What happens to requests.

    Attributes:
        fault: one of the module's docstring.
        verb, path: regular expressions for all of the verb and some of the path with its query.
        skip: how many of the matching requests pass first.
        times: how many then fail; None for all.
    """

    fault: str
    verb: str = ".*"
    path: str = ""
    skip: int = 0
    times: int | None = None
    seen: int = 0

    def applies(self, verb: str, path: str) -> bool:
        if not (re.fullmatch(self.verb, verb) and re.search(self.path, path)):
            return False
        self.seen += 1
        return self.skip < self.seen <= (self.skip + self.times if self.times is not None else self.seen)


@dataclass
class FaultyProxy:
    """The proxy; `endpoint` is what the program is given.

    Attributes:
        requests: verb, path with query and fault ("" if none) of each request, in the order of arrival.
        stuck: set when a request is "stuck" or "hang"s.
    """

    endpoint: str
    target: str
    rules: list[Rule] = field(default_factory=list)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    stuck: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead embedkit, boto3 and obstore to the server behind, by this proxy."""
        return s3_environment(self.endpoint)

    def make_bucket(self) -> str:
        """Makes an empty bucket on the server behind, without a request to this proxy."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        s3_client(self.target).create_bucket(Bucket=name)
        return name

    def fail(
        self, fault: str, *, verb: str = ".*", path: str = "", skip: int = 0, times: int | None = None
    ) -> Rule:
        """Adds a rule; of several that apply, the first counts."""
        rule = Rule(fault, verb, path, skip, times)
        with self.lock:
            self.rules.append(rule)
        return rule

    def reset(self) -> None:
        """Forgets rules and requests, and lets go of requests that wait."""
        with self.lock:
            self.rules.clear()
            self.requests.clear()
        self.closing.set()
        self.closing = threading.Event()
        self.stuck.clear()

    def counts(self, path: str = "") -> Counter[str]:
        """Requests by verb, of those whose path has a match of a regular expression."""
        with self.lock:
            return Counter(verb for verb, asked, _ in self.requests if re.search(path, asked))

    def fault_of(self, verb: str, path: str) -> str:
        with self.lock:
            fault = next((rule.fault for rule in self.rules if rule.applies(verb, path)), "")
            self.requests.append((verb, path, fault))
            return fault


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each body waits for the acknowledgement of its headers: 40 ms
    proxy: FaultyProxy

    def log_message(self, *_: object) -> None:
        """Prints nothing."""

    def pass_on(self) -> None:
        fault = self.proxy.fault_of(self.command, self.path)
        if self.headers.get("Expect", "").lower() == "100-continue" and fault not in ERRORS:
            self.send_response_only(100)
            self.end_headers()
        if fault == "stuck":
            self.get_stuck()
            return
        body = self.body()
        if fault in ERRORS:
            status, code = ERRORS[fault]
            self.answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())
        elif fault == "hang":
            self.wait_for_the_end()
        elif fault == "cut":
            self.cut()
        else:
            self.forward(body, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on  # noqa: N815

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return b"".join(self.chunks())
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def passed_headers(self, length: int) -> dict[str, str]:
        kept = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        return kept | ({"Content-Length": str(length)} if length or "Content-Length" in kept else {})

    def upstream(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urllib.parse.urlsplit(self.proxy.target).netloc, timeout=120)

    def forward(self, body: bytes, fault: str) -> None:
        with contextlib.closing(self.upstream()) as connection:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.passed_headers(len(body)).items():
                connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            data = answer.read()
        if fault == "lost answer":
            self.cut()
            return
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in HOP_BY_HOP | {"content-length"}:
                self.send_header(name, value)
        # The answer to HEAD has the length of a body that does not come.
        self.send_header("Content-Length", str(answer.getheader("Content-Length") or len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if fault == "half answer" else data)
        if fault == "half answer":
            self.cut()

    def answer(self, status: int, body: bytes) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def get_stuck(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        half = self.rfile.read(length // 2)
        with contextlib.closing(self.upstream()) as connection:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.passed_headers(length).items():
                connection.putheader(name, value)
            connection.endheaders(half)
            self.wait_for_the_end()

    def wait_for_the_end(self) -> None:
        """Waits until the program has gone or the test is over."""
        self.proxy.stuck.set()
        closing = self.proxy.closing
        self.connection.settimeout(0.1)
        while not closing.is_set():
            try:
                # What the program still sends stays unread; its end is an empty read.
                if not self.connection.recv(1, socket.MSG_PEEK):
                    break
                closing.wait(0.1)
            except TimeoutError:
                continue
            except OSError:
                break
        self.cut()


@contextlib.contextmanager
def faulty_proxy(target: str) -> Iterator[FaultyProxy]:
    """Yields a proxy on a free port before the server at `target`."""
    proxy = FaultyProxy("", target)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"proxy": proxy}))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that went away is no fault
    proxy.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.closing.set()
        server.shutdown()
        server.server_close()
