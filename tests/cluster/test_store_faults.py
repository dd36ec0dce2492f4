"""Object stores that fail, writers that are killed, and what nobody may see: keys and texts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import embedkit
from tests.cluster.conftest import CANARY, N_SHARDS, Local, Run, Use
from tests.cluster.faulty_proxy import FaultyProxy
from tests.cluster.servers import AZURE_KEY, SECRET_KEY, AzureServer, S3Server


@pytest.mark.parametrize(
    ("fault", "verb", "path"),
    [
        ("503", "PUT", "embeddings/"),
        ("503", "PUT", "commits/"),
        ("503", "GET", ""),
        ("cut", "PUT", "embeddings/|commits/"),
        ("lost answer", "PUT", "embeddings/"),
        ("lost answer", "PUT", "commits/"),
        ("lost answer", "PUT", "plan.json"),
        ("lost answer", "PUT", "manifest.json"),
        ("half answer", "GET", "rows.jsonl"),
        ("half answer", "GET", "commits"),
        ("cut", "GET", "rows.jsonl"),
    ],
)
def test_faults_that_pass_leave_no_trace(
    fault: str, verb: str, path: str, faulty_proxy: FaultyProxy, seaweed: S3Server, table: Path, run: Run, use: Use
) -> None:
    bucket = use(seaweed)
    seaweed.write(bucket, "in/rows.jsonl", table.read_bytes())
    source = f"s3://{bucket}/in/rows.jsonl"
    assert run(f"s3://{bucket}/whole", source=source).code == 0
    use(faulty_proxy)
    faulty_proxy.fail(fault, verb=verb, path=path, times=3)
    for skip in range(4, 40, 4):
        faulty_proxy.fail(fault, verb=verb, path=path, skip=skip, times=1)
    ran = run(f"s3://{bucket}/out", "--on-exists", "resume", source=source)
    assert ran.code == 0, ran.err
    assert run(f"s3://{bucket}/out", "--on-exists", "resume", source=source).code == 0  # reads all records
    assert [asked[2] for asked in faulty_proxy.requests].count(fault) >= 1
    assert seaweed.objects(bucket, "out/") == seaweed.objects(bucket, "whole/")


def test_a_store_that_hangs_is_asked_again(
    faulty_proxy: FaultyProxy, seaweed: S3Server, run: Run, local: Local, use: Use
) -> None:
    bucket = use(faulty_proxy)
    faulty_proxy.fail("hang", verb="PUT", path="embeddings/", times=1)
    ran = run(f"s3://{bucket}/out", "--store-option", "timeout=3s")
    assert ran.code == 0, ran.err
    assert seaweed.objects(bucket, "out/") == local()


def test_a_run_that_is_refused_midway_ends_with_5_and_is_resumed(
    faulty_proxy: FaultyProxy, seaweed: S3Server, run: Run, local: Local, use: Use
) -> None:
    bucket = use(faulty_proxy)
    faulty_proxy.fail("403", verb="PUT", path="embeddings/", skip=5)
    ran = run(f"s3://{bucket}/out")
    assert (ran.code, len(ran.told)) == (5, 2), ran.err
    assert CANARY not in ran.err
    there = seaweed.objects(bucket, "out/")
    assert "manifest.json" not in there
    assert there.items() <= local().items()
    faulty_proxy.reset()
    assert run(f"s3://{bucket}/out", "--on-exists", "resume").code == 0
    assert seaweed.objects(bucket, "out/") == local()


def test_what_is_refused_is_told_before_a_model_is_looked_for(
    faulty_proxy: FaultyProxy, embedkit_cli: Any, table: Path, use: Use, tmp_path: Path
) -> None:
    bucket = use(faulty_proxy)
    faulty_proxy.fail("403", verb="PUT")
    faulty_proxy.fail("403", path="/in/")
    no_model, out = ("-m", tmp_path / "no-such-model"), tmp_path / "out"
    for words, code, said in (
        ((table, "-o", f"s3://{bucket}/out"), 5, "refuses access"),
        ((table, "-o", "s3://no-such-bucket/out"), 5, "there is no bucket no-such-bucket"),
        ((f"s3://{bucket}/in/rows.jsonl", "-o", out), 3, "refuses access"),
        (("s3://no-such-bucket/rows.jsonl", "-o", out), 3, "there is no bucket no-such-bucket"),
        ((f"s3://{bucket}/other/*.jsonl", "-o", out), 3, "matches no file"),
    ):
        ran = embedkit_cli("encode", *words, *no_model)
        assert (ran.code, len(ran.told)) == (code, 2), ran.err
        assert said in ran.err
        assert ran.told[1].startswith("hint: ")
    assert not out.exists()
    for command in ("inspect", "verify", "report"):
        ran = embedkit_cli(command, "s3://no-such-bucket/out")
        assert (ran.code, "there is no bucket no-such-bucket" in ran.err) == (5, True)


@pytest.mark.parametrize("part", ["embeddings/", "commits/", "manifest.json"])
def test_a_writer_that_is_killed_in_a_put_leaves_nothing_half(
    part: str, faulty_proxy: FaultyProxy, seaweed: S3Server, started: Any, run: Run, local: Local, use: Use
) -> None:
    bucket = use(faulty_proxy)
    faulty_proxy.fail("stuck", verb="PUT", path=part, skip=0 if "manifest" in part else 4, times=1)
    with started(f"s3://{bucket}/out") as writer:
        assert faulty_proxy.stuck.wait(240)
        writer.kill()
    faulty_proxy.reset()
    there = seaweed.objects(bucket, "out/")
    assert there.keys() < local().keys()
    assert there.items() <= local().items()
    assert run(f"s3://{bucket}/out", "--on-exists", "resume").code == 0
    assert seaweed.objects(bucket, "out/") == local()


def test_an_object_that_was_changed_is_named_by_verify_and_made_again(
    seaweed: S3Server, use: Use, run: Run, local: Local, embedkit_cli: Any
) -> None:
    bucket = use(seaweed)
    uri, name = f"s3://{bucket}/out", "embeddings/part-00002.parquet"
    assert run(uri).code == 0
    changed = bytearray(seaweed.objects(bucket, "out")[name])
    changed[len(changed) // 2] ^= 1
    seaweed.write(bucket, f"out/{name}", bytes(changed))
    verified = embedkit_cli("verify", uri)
    assert verified.code == 5
    assert verified.out == f"{name}: is damaged: its SHA-256 is not that of its record\n"
    with pytest.raises(embedkit.errors.OutputError, match="is damaged"):
        _ = embedkit.read(uri).vectors
    assert embedkit_cli("diff", uri, uri).code == 5
    # Of the same size: noticed by its ETag, without --verify.
    assert run(uri, "--on-exists", "resume").code == 0
    assert seaweed.objects(bucket, "out") == local()
    seaweed.remove(bucket, f"out/{name}")
    verified = embedkit_cli("verify", uri)
    assert (verified.code, verified.out) == (5, f"{name}: is missing\n")


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_a_shard_costs_at_most_four_puts_and_three_gets(
    form: str, faulty_proxy: FaultyProxy, seaweed: S3Server, table: Path, run: Run, use: Use
) -> None:
    bucket = use(seaweed)
    seaweed.write(bucket, "in/rows.jsonl", table.read_bytes())
    use(faulty_proxy)
    made = run(f"s3://{bucket}/out", "--output-format", form, source=f"s3://{bucket}/in/rows.jsonl")
    assert made.code == 0, made.err
    counts = faulty_proxy.counts(f"/{bucket}")
    print("requests per shard:", {verb: count / N_SHARDS for verb, count in counts.items()})
    # Besides, a run has some requests of its own: the bucket, the plan, listings, the manifest. A shard of .npy
    # takes four puts: vectors, metadata, the list of rows without a vector, and the record.
    assert counts["PUT"] <= 4 * N_SHARDS + (10 if form == "npy" else 0)
    assert counts["GET"] + counts["HEAD"] <= 3 * N_SHARDS + 30
    # For the files of others, for shards without a plan, for records, for scans, and before the manifest.
    assert sum(faulty_proxy.counts("list-type").values()) == 5


def test_texts_and_keys_are_nowhere_but_where_they_belong(
    faulty_proxy: FaultyProxy,
    seaweed: S3Server,
    azurite: AzureServer,
    table: Path,
    bert: Path,
    use: Use,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither in what the run says, nor in files that it leaves, nor in what a server's log has of a request."""
    # What earlier tests have sent is not meant, such as this word in place of a key.
    logged = {log: log.stat().st_size for log in (seaweed.log, azurite.log)}
    bucket, container = use(seaweed), use(azurite)
    seaweed.write(bucket, "in/rows.jsonl", table.read_bytes())
    use(faulty_proxy)
    for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    for target in (f"s3://{bucket}/out", f"az://{container}/out", "s3://no-such-bucket/out"):
        words = ["encode", f"s3://{bucket}/in/rows.jsonl", "-m", bert, "-o", target, "--keep", "note", "--verbose"]
        command = [sys.executable, "-m", "embedkit", *map(str, words)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ, cwd=tmp_path)
        assert ran.returncode == (5 if "no-such" in target else 0), ran.stderr
        for secret in (CANARY, SECRET_KEY, AZURE_KEY):
            assert secret not in ran.stdout + ran.stderr
    written = seaweed.objects(bucket, "out/") | {f"az/{k}": v for k, v in azurite.objects(container).items()}
    assert len(written) > 4
    for name, data in written.items():
        assert SECRET_KEY.encode() not in data
        assert AZURE_KEY.encode() not in data
        assert "embeddings/" in name or CANARY.encode() not in data
    secrets = [secret.encode() for secret in (CANARY, SECRET_KEY, AZURE_KEY)]
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in left if any(secret in path.read_bytes() for secret in secrets)]
    asked = "".join(path for _, path, _ in faulty_proxy.requests)
    assert CANARY not in asked
    assert SECRET_KEY not in asked
    assert not any(secret in log.read_bytes()[size:] for log, size in logged.items() for secret in secrets)
