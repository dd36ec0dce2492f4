"""Fixtures of `make test-cluster`: servers of object stores and a Ray cluster, one of each a session.

    def test_x(seaweed, use, run):
        bucket = use(seaweed)
        assert run(f"s3://{bucket}/out").code == 0

A test that needs no server that is missing runs; the others are skipped and say which.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from benchmarks.torture.kills import contents
from embedkit.storage import object_store, ranged_reader
from embedkit.storage.store_options import configure_stores
from tests.cluster import faulty_proxy as faulty
from tests.cluster import gcs_stub as stub
from tests.cluster import ray_cluster as ray
from tests.cluster import servers
from tests.conftest import Ran

SHARD_ROWS, N_SHARDS = 50, 12
#: In each id, text and kept value of the table.
CANARY = "zebrafish-7c1d"
OPTIONS = ("--pool", "mean", "--keep", "note", "--id-column", "id", "--shard-rows", SHARD_ROWS)
#: Points this process, and those that it starts, to a server; returns a new bucket there.
Use: TypeAlias = Callable[[Any], str]
Run: TypeAlias = Callable[..., Ran]
ServerOf: TypeAlias = Callable[[str], Any]
Local: TypeAlias = Callable[..., dict[str, bytes]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks all tests of this folder `cluster`, so that `make test` leaves them out."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.cluster)


# Servers -------------------------------------------------------------------------------------------------


#: By the fixture of each.
SERVERS: dict[str, Callable[[Path], AbstractContextManager[Any]]] = {
    "seaweed": servers.seaweed,
    "moto": servers.moto,
    "rclone_s3": servers.rclone_s3,
    "s3rver": servers.s3rver,
    "azurite": servers.azurite,
    "gcs_reading": servers.fake_gcs_server,
}


@pytest.fixture(scope="session")
def server_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerOf]:
    """Starts the servers that the tests of this session need, all at once; returns one by its fixture's name."""
    folder = tmp_path_factory.mktemp("servers")
    needed = set[str]()
    for item in request.session.items:
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        needed.update(name for name in (*getattr(item, "fixturenames", ()), *values) if isinstance(name, str))
    with ExitStack() as stack, ThreadPoolExecutor(len(SERVERS)) as pool:
        starting = {
            name: pool.submit(stack.enter_context, start(folder / name))
            for name, start in SERVERS.items()
            if name in needed
        }
        # A server that is not installed skips the test that asks for it.
        yield lambda name: starting[name].result()


def _server(name: str) -> Callable[[ServerOf], Any]:
    @pytest.fixture(scope="session", name=name)
    def server(server_of: ServerOf) -> Any:
        return server_of(name)

    return server


seaweed, moto, rclone_s3, s3rver, azurite, gcs_reading = map(_server, SERVERS)


@pytest.fixture
def gcs() -> Iterator[stub.GcsStub]:
    with stub.gcs_stub() as server:
        yield server


@pytest.fixture
def faulty_proxy(seaweed: servers.S3Server) -> Iterator[faulty.FaultyProxy]:
    """Yields a proxy before `seaweed`."""
    with faulty.faulty_proxy(seaweed.endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[ray.RayCluster]:
    """Yields a head and two raylets of two processors each; with a dashboard, where what it needs is installed."""
    has_dashboard = importlib.util.find_spec("aiohttp_cors") is not None
    with ray.ray_cluster(dashboard=has_dashboard) as cluster:
        yield cluster


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Use]:
    """See `Use`. Nothing of an earlier test is left: no client, credential, option or range."""

    def forget() -> None:
        configure_stores(())
        object_store._bucket.cache_clear()
        monkeypatch.setattr(ranged_reader, "_KEPT", ranged_reader._Kept())

    def used(server: Any) -> str:
        forget()
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        bucket: str = server.make_bucket()
        return bucket

    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "no-file"))
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    yield used
    forget()


# Runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 rows, some without a text, with words that appear nowhere else."""
    path = tmp_path_factory.mktemp("table") / "rows.jsonl"
    draw = random.Random(0)
    words = ["patient", "has", "pain", "in", "the", "chest", "fever", "cough", "no", CANARY]
    lines = (
        {
            "id": f"{CANARY}-id-{row}",
            "text": " ".join(draw.choices(words, k=draw.randint(0, 40))),
            "note": f"{CANARY}-kept-{row}",
        }
        for row in range(SHARD_ROWS * N_SHARDS)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def run(encode: Callable[..., Ran], models_loaded_once: None, table: Path) -> Run:
    """Encodes the table, or another input, in this process."""

    def ran(output: object, *options: object, source: object = table) -> Ran:
        return encode(source, "-o", output, *OPTIONS, *options)

    return ran


@pytest.fixture(scope="module")
def _encoded() -> dict[tuple[object, ...], dict[str, bytes]]:
    return {}


@pytest.fixture
def local(run: Run, tmp_path: Path, _encoded: dict[tuple[object, ...], dict[str, bytes]]) -> Local:
    """Returns the files of a run with these options to a local folder, by name."""

    def files(*options: object) -> dict[str, bytes]:
        if options not in _encoded:
            assert run(tmp_path / "of-local", *options).code == 0
            _encoded[options] = contents(tmp_path / "of-local")
        return _encoded[options]

    return files


@pytest.fixture
def started(table: Path, bert: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts the encoding of the table in a process."""

    def process(output: object, *options: object, source: object = table) -> subprocess.Popen[str]:
        words = ["encode", source, "-m", bert, "-o", output, *OPTIONS, *options]
        command = [sys.executable, "-m", "embedkit", *map(str, words)]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, **pipes, env=os.environ)

    return process
