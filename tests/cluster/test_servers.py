"""The servers do what the tests of embedkit take for granted: who honours conditions, how the proxy fails."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.cluster.faulty_proxy import FaultyProxy
from tests.cluster.gcs_stub import GcsStub
from tests.cluster.servers import AzureServer, GcsServer, S3Server, gcs_account

obstore = pytest.importorskip("obstore")
from obstore.exceptions import AlreadyExistsError, BaseError  # noqa: E402
from obstore.store import GCSStore, S3Store  # noqa: E402

#: Short, so that a fault is an error at once.
NO_RETRY: Any = {"max_retries": 0}


def s3_store(server: S3Server | FaultyProxy, bucket: str, timeout: str = "60s") -> S3Store:
    environment = server.environment
    return S3Store(
        bucket,
        endpoint=environment["AWS_ENDPOINT_URL"],
        access_key_id=environment["AWS_ACCESS_KEY_ID"],
        secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region="us-east-1",
        client_options={"allow_http": True, "timeout": timeout},
        retry_config=NO_RETRY,
    )


def gcs_store(server: GcsStub | GcsServer, bucket: str) -> GCSStore:
    config: Any = {"service_account_key": gcs_account(server.endpoint)}
    return GCSStore(bucket, config=config, client_options={"allow_http": True}, retry_config=NO_RETRY)


def wins(store: Any, key: str, writers: int = 8) -> int:
    """How many of several writers put one key if absent, at once."""
    start = threading.Barrier(writers)

    def put(number: int) -> bool:
        start.wait()
        try:
            obstore.put(store, key, b"%d" % number, mode="create")
        except AlreadyExistsError:
            return False
        return True

    with ThreadPoolExecutor(writers) as pool:
        return sum(pool.map(put, range(writers)))


def test_seaweed_has_one_winner_of_eight_writers(seaweed: S3Server) -> None:
    store = s3_store(seaweed, seaweed.make_bucket())
    assert [wins(store, f"contested/{number}") for number in range(8)] == [1] * 8


@pytest.mark.parametrize("name", ["rclone_s3", "s3rver"])
def test_stores_that_ignore_conditions_take_a_second_put(name: str, request: pytest.FixtureRequest) -> None:
    server: S3Server = request.getfixturevalue(name)
    store = s3_store(server, server.make_bucket())
    obstore.put(store, "key", b"first", mode="create")
    obstore.put(store, "key", b"second", mode="create")
    assert bytes(obstore.get(store, "key").bytes()) == b"second"


def test_moto_refuses_a_second_put(moto: S3Server) -> None:
    store = s3_store(moto, moto.make_bucket())
    obstore.put(store, "key", b"first", mode="create")
    with pytest.raises(AlreadyExistsError):
        obstore.put(store, "key", b"second", mode="create")


def test_azurite_has_one_winner_of_eight_writers(azurite: AzureServer) -> None:
    store = azurite.store(azurite.make_bucket())
    assert [wins(store, f"contested/{number}") for number in range(10)] == [1] * 10


def test_the_stub_of_google_has_one_winner_and_stores_ranges_and_parts(gcs: GcsStub) -> None:
    bucket = gcs.make_bucket()
    store = gcs_store(gcs, bucket)
    assert [wins(store, f"contested/{number}") for number in range(10)] == [1] * 10
    parts = bytes(range(256)) * 50_000
    obstore.put(store, "a/parts", parts, chunk_size=6_000_000)
    assert bytes(obstore.get(store, "a/parts").bytes()) == parts
    assert bytes(obstore.get_range(store, "a/parts", start=255, end=258)) == b"\xff\x00\x01"
    assert [one["path"] for one in obstore.list(store, "a").collect()] == ["a/parts"]
    obstore.delete(store, "a/parts")
    assert "a/parts" not in gcs.objects(bucket)


def test_fake_gcs_server_is_read(gcs_reading: GcsServer) -> None:
    bucket = gcs_reading.make_bucket()
    gcs_reading.write(bucket, "notes/a.jsonl", b"0123456789")
    store = gcs_store(gcs_reading, bucket)
    assert bytes(obstore.get_range(store, "notes/a.jsonl", start=3, end=5)) == b"34"


@pytest.mark.parametrize("fault", ["503", "403", "hang", "cut", "lost answer"])
def test_the_proxy_fails_the_put_that_a_rule_names_and_no_other(
    faulty_proxy: FaultyProxy, seaweed: S3Server, fault: str
) -> None:
    bucket = seaweed.make_bucket()
    store = s3_store(faulty_proxy, bucket, "3s" if fault == "hang" else "60s")
    faulty_proxy.fail(fault, verb="PUT", path="data/2", times=1)
    obstore.put(store, "data/1", b"one")
    with pytest.raises(BaseError):
        obstore.put(store, "data/2", b"two")
    assert seaweed.objects(bucket) == {"data/1": b"one"} | ({"data/2": b"two"} if fault == "lost answer" else {})
    obstore.put(store, "data/2", b"two")
    assert seaweed.objects(bucket, "data") == {"1": b"one", "2": b"two"}
    assert faulty_proxy.counts("data/") == {"PUT": 3}


def test_the_proxy_cuts_an_answer_in_half(faulty_proxy: FaultyProxy, seaweed: S3Server) -> None:
    bucket = seaweed.make_bucket()
    store = s3_store(faulty_proxy, bucket)
    obstore.put(store, "key", b"0123456789")
    faulty_proxy.fail("half answer", verb="GET", times=1)
    with pytest.raises(BaseError):
        obstore.get(store, "key").bytes()
    assert bytes(obstore.get(store, "key").bytes()) == b"0123456789"


def test_a_put_that_is_stuck_leaves_nothing_when_its_writer_goes(
    faulty_proxy: FaultyProxy, seaweed: S3Server
) -> None:
    bucket = seaweed.make_bucket()
    faulty_proxy.fail("stuck", verb="PUT", times=1)
    with pytest.raises(BaseError):
        obstore.put(s3_store(faulty_proxy, bucket, "2s"), "key", b"x" * 1_000_000)
    assert faulty_proxy.stuck.is_set()
    time.sleep(0.5)
    assert seaweed.objects(bucket) == {}
