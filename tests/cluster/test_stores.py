"""Runs from and to real object stores: the bytes of a local run, whatever the store does; no text elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.torture.kills import contents
from tests.cluster.faulty_proxy import FaultyProxy
from tests.cluster.gcs_stub import GcsStub
from tests.cluster.servers import AzureServer, GcsServer, S3Server
from tests.conftest import Ran

SHARD_ROWS, N_SHARDS = 8, 12
CANARY = "zebrafish-7c1d"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with a text, an id and a kept value that appear nowhere else."""
    path = tmp_path_factory.mktemp("table") / "rows.jsonl"
    rows = range(SHARD_ROWS * N_SHARDS)
    lines = (
        {"id": f"{CANARY}-id-{row}", "text": f"{CANARY} number {row}", "note": f"{CANARY}-kept-{row}"}
        for row in rows
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def run(encode: Callable[..., Ran], table: Path) -> Callable[..., Ran]:
    """Encodes the table, or another input, in this process."""

    def ran(output: object, *options: object, source: object = table) -> Ran:
        return encode(source, "-o", output, "--shard-rows", SHARD_ROWS, "--keep", "note", *options)

    return ran


@pytest.fixture
def whole(run: Callable[..., Ran], tmp_path: Path) -> dict[str, bytes]:
    """The files of a local run."""
    assert run(tmp_path / "whole").code == 0
    return contents(tmp_path / "whole")


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Points this process, and those that it starts, to a server."""

    def used(environment: dict[str, str]) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return used


# Every store ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["seaweed", "moto", "rclone_s3", "s3rver"])
def test_a_run_into_s3_has_the_bytes_of_a_local_one_and_is_read_verified_and_resumed(
    name: str, run: Any, whole: Any, use: Any, embedkit_cli: Any, request: pytest.FixtureRequest
) -> None:
    import embedkit

    server: S3Server = request.getfixturevalue(name)
    bucket = server.make_bucket()
    use(server.environment)
    target = f"s3://{bucket}/out"
    ran = run(target)
    assert ran.code == 0, ran.err
    assert server.objects(bucket, "out/") == whole
    if name != "rclone_s3":  # it answers a part of an object with all of it
        assert len(embedkit.read(target).ids) == SHARD_ROWS * N_SHARDS
        assert embedkit_cli("inspect", target).code == 0
    server.client().delete_object(Bucket=bucket, Key="out/manifest.json")
    server.client().delete_object(Bucket=bucket, Key="out/commits/00003.json")
    resumed = run(target, "--on-exists", "resume")
    assert resumed.code == 0, resumed.err
    assert server.objects(bucket, "out/") == whole


def test_a_run_into_azure_has_the_bytes_of_a_local_one(
    azurite: AzureServer, run: Any, whole: Any, use: Any
) -> None:
    import obstore

    container = azurite.make_container()
    use(azurite.environment)
    ran = run(f"az://{container}/out")
    assert ran.code == 0, ran.err
    store = azurite.store(container)
    names = [one["path"] for one in obstore.list(store, "out").collect()]
    found = {name.removeprefix("out/"): bytes(obstore.get(store, name).bytes()) for name in names}
    assert found == whole


def test_a_run_into_the_stub_of_google_has_the_bytes_of_a_local_one(
    gcs: GcsStub, run: Any, whole: Any, use: Any
) -> None:
    bucket = gcs.make_bucket()
    use(gcs.environment)
    ran = run(f"gs://{bucket}/out")
    assert ran.code == 0, ran.err
    assert gcs.objects(bucket, "out/") == whole


def test_an_input_in_a_bucket_gives_the_vectors_of_a_local_one(
    seaweed: S3Server, table: Path, run: Any, whole: Any, use: Any, tmp_path: Path
) -> None:
    bucket = seaweed.make_bucket()
    seaweed.client().upload_file(str(table), bucket, "in/rows.jsonl")
    use(seaweed.environment)
    ran = run(tmp_path / "out", source=f"s3://{bucket}/in/rows.jsonl")
    assert ran.code == 0, ran.err
    found = contents(tmp_path / "out")
    data = {name for name in whole if name.endswith(".parquet")}
    assert len(data) == N_SHARDS
    assert {name: found[name] for name in data} == {name: whole[name] for name in data}


def test_an_input_in_googles_store_is_read(
    gcs_reading: GcsServer, table: Path, run: Any, whole: Any, use: Any, tmp_path: Path
) -> None:
    bucket = gcs_reading.make_bucket()
    gcs_reading.put(bucket, "in/rows.jsonl", table.read_bytes())
    use(gcs_reading.environment)
    ran = run(tmp_path / "out", source=f"gs://{bucket}/in/rows.jsonl")
    assert ran.code == 0, ran.err
    assert contents(tmp_path / "out").keys() == whole.keys()


# Faults --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "verb", "path"),
    [
        ("503", "PUT", "embeddings/"),
        ("503", "PUT", "commits/"),
        ("503", "GET", ""),
        ("cut", "PUT", "embeddings/"),
        ("lost answer", "PUT", "embeddings/"),
        ("lost answer", "PUT", "commits/"),
        ("lost answer", "PUT", "plan.json"),
        ("lost answer", "PUT", "manifest.json"),
        ("half answer", "GET", "rows.jsonl"),
        ("cut", "GET", "rows.jsonl"),
    ],
)
def test_faults_that_pass_leave_no_trace(
    fault: str, verb: str, path: str, faulty_proxy: FaultyProxy, seaweed: S3Server, table: Path, run: Any, use: Any
) -> None:
    bucket = seaweed.make_bucket()
    seaweed.client().upload_file(str(table), bucket, "in/rows.jsonl")
    use(faulty_proxy.environment)
    source = f"s3://{bucket}/in/rows.jsonl"
    faulty_proxy.fail(fault, verb=verb, path=path, times=3)
    ran = run(f"s3://{bucket}/out", source=source)
    assert ran.code == 0, ran.err
    assert [asked[2] for asked in faulty_proxy.requests].count(fault) >= 1
    faulty_proxy.reset()
    assert run(f"s3://{bucket}/whole", source=source).code == 0
    assert seaweed.objects(bucket, "out/") == seaweed.objects(bucket, "whole/")


def test_a_store_that_hangs_is_asked_again(
    faulty_proxy: FaultyProxy, seaweed: S3Server, run: Any, whole: Any, use: Any
) -> None:
    bucket = seaweed.make_bucket()
    use(faulty_proxy.environment)
    faulty_proxy.fail("hang", verb="PUT", path="embeddings/", times=1)
    ran = run(f"s3://{bucket}/out", "--store-option", "timeout=3s")
    assert ran.code == 0, ran.err
    assert seaweed.objects(bucket, "out/") == whole


def test_a_run_that_is_refused_midway_ends_with_5_and_is_resumed(
    faulty_proxy: FaultyProxy, seaweed: S3Server, run: Any, whole: Any, use: Any
) -> None:
    bucket = seaweed.make_bucket()
    use(faulty_proxy.environment)
    faulty_proxy.fail("403", verb="PUT", path="embeddings/", skip=5)
    ran = run(f"s3://{bucket}/out")
    assert ran.code == 5, ran.err
    assert CANARY not in ran.err
    there = seaweed.objects(bucket, "out/")
    assert "manifest.json" not in there
    assert there.items() <= whole.items()
    faulty_proxy.reset()
    assert run(f"s3://{bucket}/out", "--on-exists", "resume").code == 0
    assert seaweed.objects(bucket, "out/") == whole


def test_an_input_that_may_not_be_read_ends_with_3(
    faulty_proxy: FaultyProxy, seaweed: S3Server, table: Path, run: Any, use: Any, tmp_path: Path
) -> None:
    bucket = seaweed.make_bucket()
    seaweed.client().upload_file(str(table), bucket, "in/rows.jsonl")
    use(faulty_proxy.environment)
    faulty_proxy.fail("403", path="in/")
    ran = run(tmp_path / "out", source=f"s3://{bucket}/in/rows.jsonl")
    assert ran.code == 3, ran.err
    assert not (tmp_path / "out").exists()


def test_a_bucket_that_does_not_exist_is_told_before_a_model_is_looked_for(
    seaweed: S3Server, embedkit_cli: Any, table: Path, use: Any, tmp_path: Path
) -> None:
    use(seaweed.environment)
    no_model = ("-m", tmp_path / "no-such-model")
    ran = embedkit_cli("encode", table, "-o", "s3://no-such-bucket/out", *no_model)
    assert ran.code == 5, ran.err
    assert "no-such-bucket" in ran.err
    assert embedkit_cli("encode", "s3://no-such-bucket/in.jsonl", "-o", tmp_path / "out", *no_model).code == 3


def in_a_process(table: Path, model: Path, output: str, *options: object) -> subprocess.Popen[str]:
    words = ["encode", table, "-m", model, "-o", output, "--shard-rows", SHARD_ROWS, "--keep", "note", *options]
    command = [sys.executable, "-m", "embedkit", *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=os.environ)


@pytest.mark.parametrize("part", ["embeddings/", "commits/", "manifest.json"])
def test_a_writer_that_is_killed_in_a_put_leaves_nothing_half(
    part: str,
    faulty_proxy: FaultyProxy,
    seaweed: S3Server,
    table: Path,
    bert: Path,
    run: Any,
    whole: Any,
    use: Any,
) -> None:
    bucket = seaweed.make_bucket()
    use(faulty_proxy.environment)
    faulty_proxy.fail("stuck", verb="PUT", path=part, skip=0 if "manifest" in part else 4, times=1)
    with in_a_process(table, bert, f"s3://{bucket}/out") as writer:
        assert faulty_proxy.stuck.wait(240)
        writer.kill()
    faulty_proxy.reset()
    there = seaweed.objects(bucket, "out/")
    assert there.keys() < whole.keys()
    assert there.items() <= whole.items()
    assert run(f"s3://{bucket}/out", "--on-exists", "resume").code == 0
    assert seaweed.objects(bucket, "out/") == whole


def test_an_object_that_was_changed_is_found_by_verify(
    seaweed: S3Server, run: Any, use: Any, embedkit_cli: Any
) -> None:
    bucket = seaweed.make_bucket()
    use(seaweed.environment)
    assert run(f"s3://{bucket}/out").code == 0
    name = next(name for name in seaweed.objects(bucket, "out/") if name.endswith("00002.parquet"))
    data = bytearray(seaweed.objects(bucket, "out/")[name])
    data[len(data) // 2] ^= 1
    seaweed.client().put_object(Bucket=bucket, Key=f"out/{name}", Body=bytes(data))
    ran = embedkit_cli("verify", f"s3://{bucket}/out")
    assert ran.code == 5, ran.err + ran.out
    assert CANARY not in ran.err + ran.out


# Several writers -----------------------------------------------------------------------------------------


def test_two_ranks_race_on_one_bucket(seaweed: S3Server, table: Path, bert: Path, whole: Any, use: Any) -> None:
    bucket = seaweed.make_bucket()
    use(seaweed.environment)
    target = f"s3://{bucket}/out"
    ranks = [in_a_process(table, bert, target, "--shard-id", rank, "--num-shards", 2) for rank in (0, 1)]
    said = [rank.communicate(timeout=280)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert seaweed.objects(bucket, "out/") == whole


@pytest.mark.parametrize("name", ["rclone_s3", "s3rver"])
def test_ranks_are_refused_where_the_store_ignores_conditions(
    name: str, run: Any, use: Any, request: pytest.FixtureRequest
) -> None:
    server: S3Server = request.getfixturevalue(name)
    bucket = server.make_bucket()
    use(server.environment)
    ran = run(f"s3://{bucket}/out", "--shard-id", 0, "--num-shards", 2)
    assert ran.code == 5, ran.err
    assert server.objects(bucket, "out/embeddings") == {}


# Cost and privacy ----------------------------------------------------------------------------------------


def test_a_shard_costs_at_most_four_puts_and_three_gets(
    faulty_proxy: FaultyProxy, seaweed: S3Server, table: Path, run: Any, use: Any
) -> None:
    bucket = seaweed.make_bucket()
    seaweed.client().upload_file(str(table), bucket, "in/rows.jsonl")
    use(faulty_proxy.environment)
    assert run(f"s3://{bucket}/out", source=f"s3://{bucket}/in/rows.jsonl").code == 0
    counts = faulty_proxy.counts()
    per_shard = {verb: count / N_SHARDS for verb, count in counts.items()}
    print("requests per shard:", per_shard, "of data:", faulty_proxy.counts("out/embeddings"))
    # Beside what each shard costs, a run has some twenty requests of its own: bucket, plan, listings, manifest.
    assert counts["PUT"] <= 4 * N_SHARDS
    assert counts["GET"] + counts["HEAD"] <= 3 * N_SHARDS + 30


def test_the_text_of_a_row_is_nowhere_but_in_the_outputs_that_were_asked_for(
    faulty_proxy: FaultyProxy, seaweed: S3Server, table: Path, bert: Path, use: Any, tmp_path: Path
) -> None:
    """Neither in what the run says, nor in files that it leaves, nor in what a server's log has of a request."""
    bucket = seaweed.make_bucket()
    seaweed.client().upload_file(str(table), bucket, "in/rows.jsonl")
    use(
        faulty_proxy.environment
        | {"TMPDIR": str(tmp_path), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    )
    source = f"s3://{bucket}/in/rows.jsonl"
    words = ["encode", source, "-m", bert, "-o", f"s3://{bucket}/out", "--keep", "note", "--verbose"]
    command = [sys.executable, "-m", "embedkit", *map(str, words)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert CANARY not in ran.stdout + ran.stderr
    assert CANARY.encode() in b"".join(seaweed.objects(bucket, "in/").values())
    left = [path for path in tmp_path.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert left == []
    assert CANARY not in "".join(path for _, path, _ in faulty_proxy.requests)
    assert CANARY.encode() not in seaweed.log.read_bytes()
