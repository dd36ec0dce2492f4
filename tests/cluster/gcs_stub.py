"""A stand-in for the XML API of Google Cloud Storage, in memory: what obstore writes with.

Knows whole puts with `x-goog-if-generation-match`, multipart uploads, ranged reads, listing and deleting. No
server that can be installed has this API, so writes to `gs://` are held against this file's reading of
https://cloud.google.com/storage/docs/xml-api/reference-methods and not against Google's servers.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from xml.sax.saxutils import escape

from tests.cluster.servers import gcs_environment


@dataclass(frozen=True)
class Stored:
    """One version of an object."""

    data: bytes
    generation: int
    headers: dict[str, str]
    when: float = field(default_factory=time.time)

    @property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.data).hexdigest()}"'  # noqa: S324 - as Google's ETags are


@dataclass
class GcsStub:
    """The objects of all buckets, by "bucket/key"; any bucket named in `buckets` exists."""

    scheme: ClassVar[str] = "gs"

    endpoint: str = ""
    buckets: set[str] = field(default_factory=set)
    stored: dict[str, Stored] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    generations: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def environment(self) -> dict[str, str]:
        return gcs_environment(self.endpoint)

    def make_bucket(self) -> str:
        name = f"bucket-{len(self.buckets)}"
        self.buckets.add(name)
        return name

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """Returns all objects below a prefix, by their keys without it."""
        start = f"{bucket}/{prefix}"
        return {
            path.removeprefix(start).lstrip("/"): one.data
            for path, one in sorted(self.stored.items())
            if path.startswith(start)
        }

    def write(self, bucket: str, key: str, data: bytes) -> None:
        """Puts an object, as another program does."""
        self.put(f"{bucket}/{key}", data, {}, None)

    def remove(self, bucket: str, *keys: str) -> None:
        """Removes objects."""
        for key in keys:
            del self.stored[f"{bucket}/{key}"]

    def put(self, path: str, data: bytes, headers: dict[str, str], expected: str | None) -> Stored | None:
        """Stores an object, or returns None where the generation is not the one expected."""
        with self.lock:
            there = self.stored.get(path)
            if expected is not None and int(expected) != (there.generation if there else 0):
                return None
            self.stored[path] = Stored(data, next(self.generations), headers)
            return self.stored[path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each body waits for the acknowledgement of its headers: 40 ms
    stub: GcsStub

    def log_message(self, *_: object) -> None:
        """Prints nothing."""

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, status: int, code: str) -> None:
        self.answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def parts(self) -> tuple[str, str, dict[str, str]]:
        """Returns the bucket, "bucket/key" and the query."""
        split = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(split.path).lstrip("/")
        query = dict(urllib.parse.parse_qsl(split.query, keep_blank_values=True))
        return path.split("/")[0], path, query

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_PUT(self) -> None:
        data = self.body()
        bucket, path, query = self.parts()
        if bucket not in self.stub.buckets:
            self.fail(404, "NoSuchBucket")
        elif "uploadId" in query:
            self.stub.uploads[query["uploadId"]][int(query["partNumber"])] = data
            self.answer(200, headers={"ETag": f'"{hashlib.md5(data).hexdigest()}"'})  # noqa: S324
        else:
            self.finish_put(path, data)

    def finish_put(self, path: str, data: bytes, body: str = "") -> None:
        kept = {name: value for name, value in self.headers.items() if name.lower().startswith("x-goog-meta-")}
        stored = self.stub.put(path, data, kept, self.headers.get("x-goog-if-generation-match"))
        if stored is None:
            self.fail(412, "PreconditionFailed")
        else:
            headers = {"ETag": stored.etag, "x-goog-generation": str(stored.generation)}
            self.answer(200, body.format(etag=escape(stored.etag)).encode(), headers)

    def do_POST(self) -> None:
        data = self.body()
        bucket, path, query = self.parts()
        if bucket not in self.stub.buckets:
            self.fail(404, "NoSuchBucket")
        elif "uploads" in query:
            upload = f"upload-{next(self.stub.generations)}"
            self.stub.uploads[upload] = {}
            xml = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            self.answer(200, xml.encode())
        else:
            numbers = [int(number) for number in re.findall(rb"<PartNumber>(\d+)", data)]
            parts = self.stub.uploads.pop(query["uploadId"])
            done = "<CompleteMultipartUploadResult><ETag>{etag}</ETag></CompleteMultipartUploadResult>"
            self.finish_put(path, b"".join(parts[number] for number in numbers), done)

    def do_GET(self) -> None:
        bucket, path, query = self.parts()
        if bucket not in self.stub.buckets:
            self.fail(404, "NoSuchBucket")
        elif path in (bucket, f"{bucket}/"):
            self.list(bucket, query)
        else:
            self.read(path)

    do_HEAD = do_GET  # noqa: N815

    def read(self, path: str) -> None:
        stored = self.stub.stored.get(path)
        if stored is None:
            self.fail(404, "NoSuchKey")
            return
        headers = {
            "ETag": stored.etag,
            "x-goog-generation": str(stored.generation),
            "Last-Modified": formatdate(stored.when, usegmt=True),
            "Content-Length": str(len(stored.data)),
            **stored.headers,
        }
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if self.headers.get("If-Match", stored.etag) != stored.etag:
            self.fail(412, "PreconditionFailed")
        elif wanted and self.command == "GET":
            size = len(stored.data)
            start = int(wanted[1]) if wanted[1] else max(size - int(wanted[2]), 0)
            end = min(int(wanted[2]) + 1, size) if wanted[1] and wanted[2] else size
            if start >= size:
                self.fail(416, "InvalidRange")
                return
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
            headers["Content-Length"] = str(end - start)
            self.answer(206, stored.data[start:end], headers)
        else:
            self.answer(200, stored.data, headers)

    def list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        keys = sorted(key.removeprefix(f"{bucket}/") for key in self.stub.stored if key.startswith(f"{bucket}/"))
        found, folders = [], set()
        for key in keys:
            rest = key.removeprefix(prefix)
            if not key.startswith(prefix) or key <= query.get("start-after", ""):
                continue
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
                continue
            one = self.stub.stored[f"{bucket}/{key}"]
            when = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(one.when))
            found.append(
                f"<Contents><Key>{escape(key)}</Key><Size>{len(one.data)}</Size><ETag>{escape(one.etag)}</ETag>"
                f"<LastModified>{when}</LastModified></Contents>"
            )
        common = "".join(
            f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in sorted(folders)
        )
        xml = f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(found)}{common}</ListBucketResult>"
        self.answer(200, xml.encode())

    def do_DELETE(self) -> None:
        _, path, query = self.parts()
        if "uploadId" in query:
            self.stub.uploads.pop(query["uploadId"], None)
            self.answer(204)
        elif self.stub.stored.pop(path, None) is None:
            self.fail(404, "NoSuchKey")
        else:
            self.answer(204)


@contextlib.contextmanager
def gcs_stub() -> Iterator[GcsStub]:
    """Yields the stub on a free port."""
    stub = GcsStub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"stub": stub}))
    server.daemon_threads = True
    stub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
