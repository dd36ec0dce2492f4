"""Fixtures of `make test-cluster`: servers of object stores and a Ray cluster, one of each a session.

    def test_x(seaweed, monkeypatch):
        bucket = seaweed.make_bucket()
        for name, value in seaweed.environment.items(): monkeypatch.setenv(name, value)

A test that needs no server that is missing runs; the others are skipped and say which.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import faulty_proxy as faulty
from tests.cluster import gcs_stub as stub
from tests.cluster import ray_cluster as ray
from tests.cluster import servers


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks all tests of this folder `cluster`, so that `make test` leaves them out."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def seaweed(server_folder: Path) -> Iterator[servers.S3Server]:
    with servers.seaweed(server_folder / "seaweed") as server:
        yield server


@pytest.fixture(scope="session")
def moto(server_folder: Path) -> Iterator[servers.S3Server]:
    with servers.moto(server_folder / "moto") as server:
        yield server


@pytest.fixture(scope="session")
def rclone_s3(server_folder: Path) -> Iterator[servers.S3Server]:
    with servers.rclone_s3(server_folder / "rclone") as server:
        yield server


@pytest.fixture(scope="session")
def s3rver(server_folder: Path) -> Iterator[servers.S3Server]:
    with servers.s3rver(server_folder / "s3rver") as server:
        yield server


@pytest.fixture(scope="session")
def azurite(server_folder: Path) -> Iterator[servers.AzureServer]:
    with servers.azurite(server_folder / "azurite") as server:
        yield server


@pytest.fixture(scope="session")
def gcs_reading(server_folder: Path) -> Iterator[servers.GcsServer]:
    with servers.fake_gcs_server(server_folder / "gcs") as server:
        yield server


@pytest.fixture
def gcs() -> Iterator[stub.GcsStub]:
    with stub.gcs_stub() as server:
        yield server


@pytest.fixture
def faulty_proxy(seaweed: servers.S3Server) -> Iterator[faulty.FaultyProxy]:
    """A proxy before `seaweed`."""
    with faulty.faulty_proxy(seaweed.endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[ray.RayCluster]:
    """A head and two raylets of two processors each."""
    with ray.ray_cluster() as cluster:
        yield cluster
