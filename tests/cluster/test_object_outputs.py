"""Outputs in object stores, by real servers: the bytes of a local folder, and every command that reads them."""

from __future__ import annotations

import gzip
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

import embedkit
from benchmarks.torture.kills import contents
from embedkit.storage import object_store
from tests.cluster.conftest import N_SHARDS, SHARD_ROWS, Local, Run, Use
from tests.cluster.servers import Bucketed, S3Server
from tests.conftest import Ran

Cli = Callable[..., Ran]
STORES = ("seaweed", "moto", "rclone_s3", "s3rver", "azurite", "gcs")
#: They replace an object where they are told not to.
CARELESS = ("rclone_s3", "s3rver")


@pytest.mark.parametrize("name", STORES)
def test_a_run_into_each_store_has_the_bytes_of_a_local_one_and_is_read_verified_and_resumed(
    name: str, run: Run, local: Local, use: Use, embedkit_cli: Cli, request: pytest.FixtureRequest
) -> None:
    server: Bucketed = request.getfixturevalue(name)
    bucket = use(server)
    target = f"{server.scheme}://{bucket}/of/out"
    ran = run(target)
    assert ran.code == 0, ran.err
    assert ("let no second run write there" in ran.err) == (name in CARELESS)
    assert server.objects(bucket, "of/out/") == local()
    again = run(target)
    assert (again.code, "--on-exists overwrite" in again.err) == (5, True)
    assert embedkit_cli("verify", target).code == 0
    read = embedkit.read(target)
    assert len(read.table) == SHARD_ROWS * N_SHARDS
    assert read.vectors.shape == (len(read.ids), 32)
    server.remove(bucket, "of/out/manifest.json", "of/out/commits/00003.json")
    shown = embedkit_cli("inspect", target)
    assert f"NOT FINISHED, {N_SHARDS - 1} of {N_SHARDS} shards done" in shown.out
    resumed = run(target, "--on-exists", "resume")
    assert resumed.code == 0, resumed.err
    assert server.objects(bucket, "of/out/") == local()


@pytest.mark.parametrize("name", CARELESS)
def test_a_store_that_ignores_conditions_takes_no_ranks(
    name: str, run: Run, use: Use, request: pytest.FixtureRequest
) -> None:
    server: S3Server = request.getfixturevalue(name)
    bucket = use(server)
    refused = run(f"s3://{bucket}/out", "--num-shards", 2, "--shard-id", 0)
    assert refused.code == 5
    assert "If-None-Match" in refused.err
    assert server.objects(bucket) == {}


@pytest.mark.parametrize("form", ["parquet", "npy", "jsonl", "arrow"])
def test_every_command_reads_an_output_of_each_format(
    form: str, seaweed: S3Server, use: Use, run: Run, embedkit_cli: Cli, tmp_path: Path
) -> None:
    bucket = use(seaweed)
    uri, folder = f"s3://{bucket}/of/{form}", tmp_path / "local"
    for output in (uri, folder):
        assert run(output, "--output-format", form).code == 0
    assert seaweed.objects(bucket, f"of/{form}") == contents(folder)

    ours, theirs = embedkit.read(uri), embedkit.read(folder)
    assert np.array_equal(ours.vectors, theirs.vectors)
    assert ours.table.equals(theirs.table)
    assert np.array_equal(embedkit.read(uri, check=False).vectors, theirs.vectors)
    inspected = [json.loads(embedkit_cli("inspect", of, "--json").out) for of in (uri, folder)]
    assert {**inspected[0], "path": ""} == {**inspected[1], "path": ""}
    verified = embedkit_cli("verify", uri, "--json", "--resample", 5)
    assert verified.code == 0
    assert json.loads(verified.out)["rows"] == len(theirs.table)
    assert embedkit_cli("diff", uri, folder).out.endswith("the same\n")
    page = tmp_path / "page.html"
    assert embedkit_cli("report", uri, "-o", page).code == 0
    assert form in page.read_text()


def test_the_output_of_another_recipe_is_replaced_on_request_and_others_objects_are_left_alone(
    seaweed: S3Server, use: Use, run: Run, local: Local
) -> None:
    bucket = use(seaweed)
    uri = f"s3://{bucket}/out"
    assert run(uri, "--precision", "float16").code == 0
    other = run(uri, "--on-exists", "resume")
    assert (other.code, "precision" in other.err) == (5, True)
    seaweed.write(bucket, "out/notes.txt", b"mine")
    assert run(uri, "--on-exists", "overwrite").code == 0
    assert seaweed.objects(bucket, "out") == {**local(), "notes.txt": b"mine"}


def test_an_update_takes_vectors_from_an_output_in_a_store(
    seaweed: S3Server, use: Use, run: Run, embedkit_cli: Cli, tmp_path: Path
) -> None:
    bucket = use(seaweed)
    uri = f"s3://{bucket}/old"
    refused = run(uri, "--keep-hashes")
    assert (refused.code, "--hash-key FILE" in refused.err) == (2, True)
    key = tmp_path / "key"
    key.write_text("0123456789abcdef" * 4)
    assert run(uri, "--keep-hashes", "--hash-key", key).code == 0
    for new in (f"s3://{bucket}/new", tmp_path / "new"):
        updated = run(new, "--hash-key", key, "--update", uri, "--progress", "json")
        assert updated.code == 0, updated.err
        done = json.loads(updated.err.splitlines()[-1])
        assert done["reused"] == done["vectors"] > 0
        assert embedkit_cli("diff", uri, new).code == 0


def test_labelled_rows_in_a_bucket_are_studied_as_local_ones_are(
    seaweed: S3Server, use: Use, bert: Path, embedkit_cli: Cli, tmp_path: Path
) -> None:
    bucket = use(seaweed)
    draw = random.Random(0)
    lines = [
        json.dumps(
            {
                "text": f"{draw.choice(('no', 'has'))} {('fever', 'cough', 'pain', 'chest')[row % 4]} {row}",
                "y": row % 2,
            }
        )
        for row in range(80)
    ]
    for part, some in (("train", lines[:60]), ("test", lines[60:])):
        (tmp_path / f"{part}.jsonl").write_text("\n".join(some))
        seaweed.write(bucket, f"in/{part}.jsonl", "\n".join(some).encode())
    made = []
    for out, place in (("here", str(tmp_path)), ("there", f"s3://{bucket}/in")):
        (tmp_path / out).mkdir()
        words = (f"{place}/train.jsonl", "-m", bert, "--label", "y")
        test, one = ("--test", f"{place}/test.jsonl"), ("--layers", "-1", "--pool", "mean")
        swept = embedkit_cli("sweep", *words, *test, *one, "-o", tmp_path / out / "sweep")
        assert swept.code == 0, swept.err
        file = tmp_path / out / "pooler.safetensors"
        fitted = embedkit_cli("fit", *words, "--pooler", "attention", "-o", file)
        assert fitted.code == 0, fitted.err
        tensors = {name: array.tolist() for name, array in load_file(file).items()}
        made.append((pq.read_table(tmp_path / out / "sweep" / "predictions.parquet").to_pylist(), tensors))
    assert made[0] == made[1]
    refused = embedkit_cli("fit", *words, "--pooler", "attention", "-o", f"s3://{bucket}/pooler.safetensors")
    assert (refused.code, len(refused.told)) == (2, 2)


# Several writers -----------------------------------------------------------------------------------------


def test_ranks_and_a_rank_that_was_started_twice_race_for_one_prefix(
    seaweed: S3Server, use: Use, started: Any, local: Local
) -> None:
    bucket = use(seaweed)
    ranks = [started(f"s3://{bucket}/out", "--num-shards", 2, "--shard-id", rank) for rank in (0, 1, 1)]
    said = [rank.communicate(timeout=280)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0, 0], said
    assert seaweed.objects(bucket, "out") == local()


def test_writers_killed_at_random_times_leave_what_a_last_one_completes(
    seaweed: S3Server, use: Use, started: Any, run: Run, local: Local
) -> None:
    bucket = use(seaweed)
    uri, draw = f"s3://{bucket}/out", random.Random()
    for _ in range(4):
        writer = started(uri, "--on-exists", "resume")
        target = len(seaweed.objects(bucket, "out/commits")) + draw.randint(0, 2)
        until = time.monotonic() + 120
        while writer.poll() is None and time.monotonic() < until:
            names = seaweed.objects(bucket, "out")
            if "plan.json" in names and sum(name.startswith("commits/") for name in names) >= target:
                break
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.1))
        writer.kill()
        writer.communicate()
    assert run(uri, "--on-exists", "resume").code == 0
    assert seaweed.objects(bucket, "out") == local()


# Other places of the same bytes --------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [(), (0,), (3, 7, 11)])
def test_an_output_is_copied_there_and_back_and_resumed_in_each_place(
    lost: tuple[int, ...], seaweed: S3Server, use: Use, run: Run, local: Local, tmp_path: Path
) -> None:
    bucket = use(seaweed)
    gone = {"manifest.json", *(f"commits/{index:05d}.json" for index in lost)}
    for name, data in local().items():
        if name not in gone:
            seaweed.write(bucket, f"out/{name}", data)
    assert run(f"s3://{bucket}/out", "--on-exists", "resume").code == 0
    assert seaweed.objects(bucket, "out") == local()
    back = tmp_path / "back"
    for name, data in seaweed.objects(bucket, "out").items():
        if name not in gone:
            (back / name).parent.mkdir(parents=True, exist_ok=True)
            (back / name).write_bytes(data)
    assert run(back, "--on-exists", "resume").code == 0
    assert contents(back) == local()


@pytest.mark.parametrize("form", ["jsonl", "parquet", "jsonl.gz"])
@pytest.mark.parametrize("began", ["here", "there"])
def test_a_run_is_resumed_with_a_copy_of_its_input_in_another_place(
    form: str, began: str, seaweed: S3Server, use: Use, run: Run, embedkit_cli: Cli, table: Path, tmp_path: Path
) -> None:
    bucket = use(seaweed)
    copy = tmp_path / f"rows.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist([json.loads(line) for line in table.open()]), copy, row_group_size=70)
    else:
        copy.write_bytes(gzip.compress(table.read_bytes()) if form.endswith("gz") else table.read_bytes())
    seaweed.write(bucket, f"in/{copy.name}", copy.read_bytes())
    places = [str(copy), f"s3://{bucket}/in/{copy.name}"][:: 1 if began == "here" else -1]
    for output in (tmp_path / "out", f"s3://{bucket}/out"):
        assert run(output, source=places[0]).code == 0
        before = contents(output) if isinstance(output, Path) else seaweed.objects(bucket, "out")
        for name in ("manifest.json", "commits/00003.json", "commits/00004.json"):
            (output / name).unlink() if isinstance(output, Path) else seaweed.remove(bucket, f"out/{name}")
        resumed = run(output, "--on-exists", "resume", source=places[1])
        assert resumed.code == 0, resumed.err
        assert (contents(output) if isinstance(output, Path) else seaweed.objects(bucket, "out")) == before
        verified = embedkit_cli("verify", output, "--resample", 3, "--input", places[1])
        assert verified.code == 0, verified.err
    # Another content of the same size, in the other place.
    changed = copy.read_bytes()[:-3] + b"   "
    copy.write_bytes(changed)
    seaweed.write(bucket, f"in/{copy.name}", changed)
    (tmp_path / "out" / "manifest.json").unlink()
    for place in places:
        refused = run(tmp_path / "out", "--on-exists", "resume", source=place)
        assert refused.code in {3, 5}
        assert len(refused.told) == 2


def test_settings_of_a_store_are_given_to_read_and_two_stores_have_buckets_of_one_name(
    seaweed: S3Server, moto: S3Server, use: Use, run: Run, monkeypatch: pytest.MonkeyPatch, embedkit_cli: Cli
) -> None:
    for server, bucket in ((moto, "shared"), (seaweed, "shared")):
        server.make_bucket(bucket)
        use(server)
        assert run(f"s3://{bucket}/out", "--pool", "cls" if server is moto else "mean").code == 0
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    object_store._bucket.cache_clear()
    outs = [embedkit.read("s3://shared/out", store_options={"endpoint": of.endpoint}) for of in (seaweed, moto)]
    vectors = [out.vectors for out in outs]  # read after both were opened
    assert [out.recipe["pool"] for out in outs] == [["mean"], ["cls"]]
    assert not np.allclose(*vectors)
    assert outs[0].table.num_rows == SHARD_ROWS * N_SHARDS
    shown = embedkit_cli("inspect", "s3://shared/out", "--store-option", f"endpoint={moto.endpoint}", "--json")
    assert json.loads(shown.out)["recipe"]["pool"] == ["cls"]
    with pytest.raises(embedkit.EmbedkitError, match="endpiont is unknown"):
        embedkit.read("s3://shared/out", store_options={"endpiont": seaweed.endpoint})
    with pytest.raises(embedkit.EmbedkitError, match="keys and secrets are not given here"):
        embedkit.read("s3://shared/out", store_options={"aws_secret_access_key": "x"})


def test_a_run_reads_from_one_store_and_writes_to_another(
    seaweed: S3Server,
    moto: S3Server,
    use: Use,
    run: Run,
    table: Path,
    local: Local,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, target = use(seaweed), use(moto)
    seaweed.write(source, "in/rows.jsonl", table.read_bytes())
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    words = [f"s3://{bucket}:endpoint={of.endpoint}" for bucket, of in ((source, seaweed), (target, moto))]
    options = [word for each in words for word in ("--store-option", each)]
    ran = run(f"s3://{target}/out", *options, source=f"s3://{source}/in/rows.jsonl")
    assert ran.code == 0, ran.err
    data = {name: content for name, content in local().items() if name.endswith(".parquet")}
    assert moto.objects(target, "out/").items() >= data.items()
