"""Outputs in object stores, by real servers: the bytes of a local folder, whatever happens to their writers."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

import embedkit
from tests.cluster.faulty_proxy import FaultyProxy
from tests.cluster.gcs_stub import GcsStub
from tests.cluster.servers import AzureServer, S3Server

Cli: TypeAlias = Callable[..., Any]
#: A server, and the name of a bucket there.
Bucket: TypeAlias = tuple[S3Server, str]

WORDS = ["patient", "has", "pain", "in", "the", "chest", "fever", "cough", "no", "history", "of", "left", "right"]
#: 12 shards of 50 rows.
ROWS, SHARD_ROWS = 600, 50
SHARDS = ROWS // SHARD_ROWS


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("input") / "notes.jsonl"
    lines = [
        {"id": f"n{row}", "text": " ".join(draw.choices(WORDS, k=draw.randint(0, 40))), "age": row % 90}
        for row in range(ROWS)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def arguments(table: Path, bert: Path) -> list[str]:
    options = f"--pool mean --keep age --id-column id --shard-rows {SHARD_ROWS} --quiet"
    return ["encode", str(table), "-m", str(bert), *options.split()]


@pytest.fixture
def local(embedkit_cli: Cli, arguments: list[str], tmp_path: Path) -> Callable[..., dict[str, bytes]]:
    """The files of the same encode to a local folder, by name."""

    def encoded(*more: str) -> dict[str, bytes]:
        out = tmp_path / "reference"
        assert embedkit_cli(*arguments, "-o", out, *more).code == 0
        return files(out)

    return encoded


@pytest.fixture
def s3(seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """SeaweedFS, with the environment set for it, and a new bucket."""
    use(monkeypatch, seaweed.environment)
    return seaweed, seaweed.make_bucket()


def use(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def process(
    arguments: list[str], *more: str, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "embedkit", *arguments, *more]
    return subprocess.Popen(command, env={**os.environ, **(environment or {})}, stderr=subprocess.PIPE)


@pytest.mark.parametrize("form", ["parquet", "npy", "jsonl", "arrow"])
def test_an_output_has_the_bytes_of_a_local_folder_and_every_command_reads_it(
    form: str,
    s3: Bucket,
    embedkit_cli: Cli,
    arguments: list[str],
    local: Any,
    tmp_path: Path,
) -> None:
    server, bucket = s3
    uri = f"s3://{bucket}/of/{form}"
    reference = local("--output-format", form)
    assert embedkit_cli(*arguments, "-o", uri, "--output-format", form).code == 0
    assert server.objects(bucket, f"of/{form}") == reference

    ours, theirs = embedkit.read(uri), embedkit.read(tmp_path / "reference")
    assert np.array_equal(ours.vectors, theirs.vectors)
    assert ours.table.equals(theirs.table)
    assert np.array_equal(embedkit.read(uri, check=False).vectors, theirs.vectors)
    inspected = [json.loads(embedkit_cli("inspect", of, "--json").out) for of in (uri, tmp_path / "reference")]
    assert {**inspected[0], "path": ""} == {**inspected[1], "path": ""}
    verified = embedkit_cli("verify", uri, "--json")
    assert verified.code == 0
    assert json.loads(verified.out)["rows"] == len(theirs.table)
    assert embedkit_cli("verify", uri, "--resample", 5).code == 0
    assert embedkit_cli("diff", uri, tmp_path / "reference").out.endswith("the same\n")
    page = tmp_path / "page.html"
    assert embedkit_cli("report", uri, "-o", page).code == 0
    assert uri.rpartition("/")[2] in page.read_text()


def test_the_output_of_another_recipe_is_replaced_on_request_and_unfinished_ones_are_shown(
    s3: Bucket, embedkit_cli: Cli, arguments: list[str], local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, bucket = s3
    uri = f"s3://{bucket}/out"
    assert embedkit_cli(*arguments, "-o", uri, "--precision", "float16").code == 0
    other = embedkit_cli(*arguments, "-o", uri, "--on-exists", "resume")
    assert other.code == 5
    assert "precision" in other.err
    server.client().put_object(Bucket=bucket, Key="out/notes.txt", Body=b"mine")
    assert embedkit_cli(*arguments, "-o", uri, "--on-exists", "overwrite").code == 0
    assert server.objects(bucket, "out") == {**local(), "notes.txt": b"mine"}
    for name in ("manifest.json", "commits/00001.json"):
        server.client().delete_object(Bucket=bucket, Key=f"out/{name}")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    shown = embedkit_cli("inspect", uri, "--store-option", f"endpoint={server.endpoint}")
    assert f"NOT FINISHED, {SHARDS - 1} of {SHARDS} shards done" in shown.out


def test_an_update_takes_vectors_from_an_output_in_a_store(
    s3: Bucket, embedkit_cli: Cli, arguments: list[str], tmp_path: Path
) -> None:
    _, bucket = s3
    uri = f"s3://{bucket}/old"
    refused = embedkit_cli(*arguments, "-o", uri, "--keep-hashes")
    assert refused.code == 2
    assert "--hash-key FILE" in refused.err
    key = tmp_path / "key"
    key.write_text("0123456789abcdef" * 4)
    assert embedkit_cli(*arguments, "-o", uri, "--keep-hashes", "--hash-key", key).code == 0
    again = [*(argument for argument in arguments if argument != "--quiet"), "--hash-key", str(key)]
    updated = embedkit_cli(*again, "-o", f"s3://{bucket}/new", "--update", uri, "--progress", "json")
    assert updated.code == 0
    done = json.loads(updated.err.splitlines()[-1])
    assert done["reused"] == done["vectors"] > 0
    assert embedkit_cli("diff", uri, f"s3://{bucket}/new").code == 0


def test_writers_killed_at_random_times_leave_what_a_last_one_completes(
    s3: Bucket, arguments: list[str], local: Any, embedkit_cli: Cli
) -> None:
    server, bucket = s3
    uri, draw = f"s3://{bucket}/out", random.Random()
    for _ in range(4):
        writer = process(arguments, "-o", uri, "--on-exists", "resume")
        target = len(server.objects(bucket, "out/commits")) + draw.randint(0, 2)
        until = time.monotonic() + 120
        while writer.poll() is None and time.monotonic() < until:
            if len(server.objects(bucket, "out/commits")) >= target and "plan.json" in server.objects(
                bucket, "out"
            ):
                break
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.1))
        writer.kill()
        writer.communicate()
    assert embedkit_cli(*arguments, "-o", uri, "--on-exists", "resume").code == 0
    assert server.objects(bucket, "out") == local()


@pytest.mark.parametrize("lost", [(3, 4, 11), tuple(range(SHARDS))])
def test_a_run_goes_on_in_a_store_with_what_was_copied_there_and_back(
    lost: tuple[int, ...],
    s3: Bucket,
    embedkit_cli: Cli,
    arguments: list[str],
    local: Any,
    tmp_path: Path,
) -> None:
    server, bucket = s3
    reference = local()
    gone = {"manifest.json", *(f"commits/{index:05d}.json" for index in lost)}
    client = server.client()
    for name, data in reference.items():
        if name not in gone:
            client.put_object(Bucket=bucket, Key=f"out/{name}", Body=data)
    assert embedkit_cli(*arguments, "-o", f"s3://{bucket}/out", "--on-exists", "resume").code == 0
    assert server.objects(bucket, "out") == reference
    back = tmp_path / "back"
    for name, data in server.objects(bucket, "out").items():
        if name not in gone:
            (back / name).parent.mkdir(parents=True, exist_ok=True)
            (back / name).write_bytes(data)
    assert embedkit_cli(*arguments, "-o", back, "--on-exists", "resume").code == 0
    assert files(back) == reference


def test_ranks_and_a_rank_that_was_started_twice_race_for_one_prefix(
    s3: Bucket, arguments: list[str], local: Any
) -> None:
    server, bucket = s3
    ranks = [
        process(arguments, "-o", f"s3://{bucket}/out", "--num-shards", "2", "--shard-id", str(rank))
        for rank in (0, 1, 1)
    ]
    for rank in ranks:
        _, printed = rank.communicate(timeout=300)
        assert rank.returncode == 0, printed.decode()
    assert server.objects(bucket, "out") == local()


def test_an_object_that_was_changed_is_named_by_verify_and_made_again(
    s3: Bucket, embedkit_cli: Cli, arguments: list[str], local: Any
) -> None:
    server, bucket = s3
    uri, name = f"s3://{bucket}/out", "embeddings/part-00002.parquet"
    assert embedkit_cli(*arguments, "-o", uri).code == 0
    reference = server.objects(bucket, "out")
    changed = bytearray(reference[name])
    changed[len(changed) // 2] ^= 1
    server.client().put_object(Bucket=bucket, Key=f"out/{name}", Body=bytes(changed))
    verified = embedkit_cli("verify", uri)
    assert verified.code == 5
    assert verified.out == f"{name}: is damaged: its SHA-256 is not that of its record\n"
    with pytest.raises(embedkit.errors.OutputError, match="is damaged"):
        _ = embedkit.read(uri).vectors
    # Of the same size: noticed by its ETag, without --verify.
    assert embedkit_cli(*arguments, "-o", uri, "--on-exists", "resume").code == 0
    assert server.objects(bucket, "out") == reference == local()


def test_a_writer_that_is_killed_in_the_middle_of_a_put_leaves_no_half_object(
    faulty_proxy: FaultyProxy,
    s3: Bucket,
    arguments: list[str],
    local: Any,
    embedkit_cli: Cli,
) -> None:
    server, bucket = s3
    faulty_proxy.fail("stuck", verb="PUT", path="embeddings/part-00003")
    writer = process(arguments, "-o", f"s3://{bucket}/out", environment=faulty_proxy.environment)
    assert faulty_proxy.stuck.wait(120)
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    left = server.objects(bucket, "out")
    reference = local()
    assert "embeddings/part-00003.parquet" not in left
    assert left.items() <= reference.items()
    assert embedkit_cli(*arguments, "-o", f"s3://{bucket}/out", "--on-exists", "resume").code == 0
    assert server.objects(bucket, "out") == reference


@pytest.mark.parametrize(
    ("fault", "verb", "path"),
    [
        ("503", ".*", ""),
        ("cut", "PUT", "embeddings|commits"),
        ("lost answer", "PUT", "embeddings|commits|plan.json|manifest.json"),
        ("half answer", "GET", "commits"),
    ],
)
def test_a_store_that_fails_now_and_then_delays_a_run_and_changes_no_byte(
    fault: str,
    verb: str,
    path: str,
    faulty_proxy: FaultyProxy,
    s3: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    embedkit_cli: Cli,
    arguments: list[str],
    local: Any,
) -> None:
    server, bucket = s3
    use(monkeypatch, faulty_proxy.environment)
    for skip in range(0, 40, 4):
        faulty_proxy.fail(fault, verb=verb, path=path, skip=skip, times=1)
    assert embedkit_cli(*arguments, "-o", f"s3://{bucket}/out").code == 0
    use(monkeypatch, server.environment)
    assert server.objects(bucket, "out") == local()


def test_a_shard_takes_at_most_four_puts_and_three_gets(
    faulty_proxy: FaultyProxy,
    s3: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    embedkit_cli: Any,
) -> None:
    _, bucket = s3
    use(monkeypatch, faulty_proxy.environment)
    assert embedkit_cli(*arguments, "-o", f"s3://{bucket}/out", "--output-format", "npy").code == 0
    counted = faulty_proxy.counts(r"/out/")
    fixed = 10  # of the run: the plan, the manifest, a probe of the conditions
    assert counted["PUT"] <= 4 * SHARDS + fixed
    assert counted["GET"] + counted["HEAD"] <= 3 * SHARDS + fixed
    assert sum(faulty_proxy.counts(r"list-type").values()) <= 6


@pytest.fixture(params=["rclone_s3", "s3rver"])
def careless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A store that ignores conditions."""
    server: S3Server = request.getfixturevalue(request.param)
    use(monkeypatch, server.environment)
    return server


def test_a_store_that_ignores_conditions_takes_one_process_and_no_ranks(
    careless: S3Server, embedkit_cli: Cli, arguments: list[str], local: Any
) -> None:
    bucket = careless.make_bucket()
    refused = embedkit_cli(*arguments, "-o", f"s3://{bucket}/ranks", "--num-shards", 2, "--shard-id", 0)
    assert refused.code == 5
    assert "If-None-Match" in refused.err
    assert careless.objects(bucket, "ranks") == {}
    loud = [argument for argument in arguments if argument != "--quiet"]
    alone = embedkit_cli(*loud, "-o", f"s3://{bucket}/alone")
    assert alone.code == 0
    assert "let no second run write there" in alone.err
    assert careless.objects(bucket, "alone") == local()


def test_azure_and_google_hold_the_same_bytes(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    embedkit_cli: Cli,
    arguments: list[str],
    local: Any,
) -> None:
    reference = local()
    gcs: GcsStub = request.getfixturevalue("gcs")
    use(monkeypatch, {**gcs.environment, "GOOGLE_BASE_URL": gcs.endpoint})
    bucket = gcs.make_bucket()
    assert embedkit_cli(*arguments, "-o", f"gs://{bucket}/out").code == 0
    assert {k.removeprefix("out/"): v for k, v in gcs.objects(bucket).items()} == reference
    azure: AzureServer = request.getfixturevalue("azurite")
    use(monkeypatch, azure.environment)
    container = azure.make_container()
    uri = f"az://{container}/out"
    assert embedkit_cli(*arguments, "-o", uri).code == 0
    assert embedkit_cli(*arguments, "-o", uri, "--on-exists", "resume").code == 0
    found = embedkit.read(uri)
    assert len(found.table) == ROWS
    assert embedkit_cli("verify", uri).code == 0


def test_a_store_that_refuses_is_reported_before_a_model_is_loaded(
    s3: Bucket,
    faulty_proxy: FaultyProxy,
    monkeypatch: pytest.MonkeyPatch,
    embedkit_cli: Cli,
    arguments: list[str],
) -> None:
    bucket = s3[1]
    use(monkeypatch, faulty_proxy.environment)
    faulty_proxy.fail("403", verb="PUT")
    for uri, said in ((f"s3://{bucket}/out", "refuses access"), ("s3://no-such-bucket/out", "there is no bucket")):
        ran = embedkit_cli(*[argument for argument in arguments if argument != "--quiet"], "-o", uri)
        assert ran.code == 5
        assert said in ran.err
        assert "loading the model" not in ran.err
