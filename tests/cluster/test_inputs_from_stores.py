"""Inputs from real stores: the rows of a local copy, and one clear error for each way in which one can fail."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as pf
import pyarrow.parquet as pq
import pytest

import embedkit
from benchmarks.torture.kills import contents
from embedkit.config import InputConfig
from embedkit.errors import EmbedkitError, InputError
from embedkit.sources import open_table
from embedkit.storage import object_store, ranged_reader
from embedkit.storage.filesystem import list_files, write_file
from embedkit.storage.object_store import object_store_for
from embedkit.storage.remote_path import RemotePath
from tests.cluster.conftest import CANARY, Local, Run, Use
from tests.cluster.faulty_proxy import FaultyProxy
from tests.cluster.servers import Bucketed, GcsServer, S3Server
from tests.conftest import Ran


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the same 600 rows in every format that is read, and a few in each compression."""
    folder = tmp_path_factory.mktemp("tables")
    made = random.Random(1)
    rows = [
        {"id": f"r{at}", "text": "".join(made.choices("abc ä\n", k=made.randint(0, 3000)))} for at in range(600)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    table = pa.Table.from_pylist(rows)
    (folder / "deep").mkdir()
    (folder / "a.jsonl").write_bytes(lines)
    pq.write_table(table, folder / "b.parquet", row_group_size=100)
    pf.write_feather(table, folder / "c.arrow")
    (folder / "deep" / "d.jsonl.gz").write_bytes(gzip.compress(lines[:20_000].rpartition(b"\n")[0]))
    (folder / "deep" / "e.jsonl.bz2").write_bytes(bz2.compress(lines[:20_000].rpartition(b"\n")[0]))
    (folder / "deep" / "f.jsonl.xz").write_bytes(lzma.compress(lines[:20_000].rpartition(b"\n")[0]))
    (folder / "deep" / ".hidden.csv").write_bytes(b"text\nnot read\n")
    (folder / "deep" / "g.csv").write_bytes(b'id,text\n1,"a ""quoted"" text"\n')
    return folder


def upload(files: Path, folder: RemotePath) -> None:
    store = object_store_for(folder)
    for path in files.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(files).as_posix(), path.read_bytes())


def read(name: str) -> tuple[list[Any], list[Any], list[str]]:
    table = open_table(InputConfig((name,)))
    assert table.scan().n_faults == 0
    rows = [(item.id, item.text) for item in table.records()]
    table.check_unchanged()
    return rows, [(file.size, file.sha256) for file in table.files], table.take_notes()


STORES = ["seaweed", "moto", "azurite", "gcs"]


@pytest.fixture(params=STORES)
def folder(request: pytest.FixtureRequest, use: Use) -> RemotePath:
    """Returns a folder in a new bucket of a store."""
    server: Bucketed = request.getfixturevalue(request.param)
    return RemotePath(f"{server.scheme}://{use(server)}/in")


def test_each_store_gives_the_rows_of_a_local_copy(folder: RemotePath, files: Path) -> None:
    upload(files, folder)
    for pattern in ("a.jsonl", "b.parquet", "c.arrow", "deep/*", "", "**/*.jsonl*", "[ab].*"):
        local, remote = read(f"{files}/{pattern}"), read(f"{folder}/{pattern}")
        assert remote[:2] == local[:2], pattern
        assert [note.replace(str(folder), str(files)) for note in remote[2]] == local[2]


@pytest.mark.parametrize("name", ["a.jsonl", "b.parquet"])
def test_an_object_that_is_replaced_while_it_is_read_is_an_error(
    folder: RemotePath, files: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for attribute, size in (("FIRST_BYTES", 1000), ("WHOLE_BYTES", 2000), ("MOST_BYTES", 5000)):
        monkeypatch.setattr(ranged_reader, attribute, size)
    monkeypatch.setattr("embedkit.sources.columnar._TOGETHER", 1000)
    for attribute in ("_TAIL", "_NEAR"):
        monkeypatch.setattr(f"embedkit.storage.partial_copy.{attribute}", 1000)
    upload(files, folder)
    rows = open_table(InputConfig((f"{folder}/{name}",))).records()
    next(rows)
    object_store_for(folder).put(name, (files / name).read_bytes()[:-1] + b" ")
    with pytest.raises(InputError, match="was changed while it was read"):
        list(rows)


@pytest.mark.parametrize("name", ["none.csv", "none/*.csv"])
def test_what_is_not_there_is_an_error_of_the_input(folder: RemotePath, name: str, files: Path) -> None:
    upload(files, folder)
    with pytest.raises(InputError, match=r"no such object|matches no file"):
        open_table(InputConfig((f"{folder}/{name}",)))
    with pytest.raises(InputError, match="a part of its name is empty"):
        open_table(InputConfig((f"{folder.root}//{folder.key}/a.jsonl",)))
    elsewhere = f"{folder.scheme}://{folder.host}-none/a.csv"
    with pytest.raises(InputError, match=r"there is no (bucket|container)|no such object") as caught:
        open_table(InputConfig((elsewhere,)))
    assert caught.value.hint


@pytest.mark.parametrize("fault", ["503", "cut", "lost answer", "half answer"])
def test_faults_that_pass_are_waited_for(
    faulty_proxy: FaultyProxy,
    seaweed: S3Server,
    files: Path,
    fault: str,
    use: Use,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = RemotePath(f"s3://{use(seaweed)}/in")
    upload(files, folder)
    local = read(f"{files}/a.jsonl")
    use(faulty_proxy)
    monkeypatch.setattr(ranged_reader, "MOST_BYTES", 2**17)
    monkeypatch.setattr(object_store, "_FIRST_PAUSE", 0.01)
    faulty_proxy.fail(fault, verb="GET|HEAD", skip=1, times=4)
    assert read(f"{folder}/a.jsonl")[:2] == local[:2]
    assert sum(bool(found) for _, _, found in faulty_proxy.requests) == 4


@pytest.mark.parametrize(
    ("fault", "message"), [("503", "overloaded or down"), ("403", "refuses access"), ("cut", "cannot be reached")]
)
def test_a_store_that_fails_for_good_is_one_error_before_a_model_is_loaded(
    faulty_proxy: FaultyProxy,
    embedkit_cli: Callable[..., Ran],
    tmp_path: Path,
    fault: str,
    message: str,
    use: Use,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket = use(faulty_proxy)
    monkeypatch.setattr(object_store, "PATIENCE", 1.0)
    monkeypatch.setattr(object_store, "FIRST_PATIENCE", 1.0)
    faulty_proxy.fail(fault)
    ran = embedkit_cli("encode", f"s3://{bucket}/a.csv", "-m", tmp_path / "no-model", "-o", tmp_path)
    assert (ran.code, len(ran.told)) == (3, 2), ran.err
    assert message in ran.err
    assert ran.told[1].startswith("hint: ")


def _bad_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", CANARY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)


def _expired_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", CANARY)


def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")


def _no_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    _no_key(monkeypatch)
    monkeypatch.setenv("AWS_PROFILE", "none")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_bad_key, r"does not accept the credentials \(HTTP 403, InvalidAccessKeyId\)"),
        (_expired_token, r"does not accept the credentials \(HTTP 403"),
        (_no_key, "no credentials were found"),
        (_no_profile, "profile of AWS cannot be read"),
        (lambda patch: patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1"), "refuses the connection"),
        (lambda patch: patch.setenv("AWS_ENDPOINT_URL", "http://store.invalid"), "no address is found"),
        (lambda patch: patch.setenv("AWS_ENDPOINT_URL", "ftp://store"), "cannot be reached|is invalid"),
    ],
)
def test_wrong_settings_are_one_error_that_shows_no_secret(
    seaweed: S3Server,
    change: Callable[[pytest.MonkeyPatch], None],
    message: str,
    use: Use,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = f"s3://{use(seaweed)}/a.csv"
    change(monkeypatch)
    monkeypatch.setattr(object_store, "FIRST_PATIENCE", 0.5)
    with pytest.raises(EmbedkitError) as caught:
        open_table(InputConfig((name,)))
    assert re.search(message, str(caught.value)), str(caught.value)
    chain: BaseException | None = caught.value
    while chain is not None:
        assert CANARY not in f"{chain!r} {chain}"
        chain = chain.__cause__ or chain.__context__


def test_a_profile_has_the_keys_the_region_and_the_endpoint(
    seaweed: S3Server, files: Path, tmp_path: Path, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RemotePath(f"s3://{use(seaweed)}/in")
    upload(files, folder)
    keys = seaweed.environment
    access, secret = keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"]
    for name in (
        "AWS_ENDPOINT_URL",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
    ):
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(
        f"[profile lab]\nregion = eu-test-1\nendpoint_url = {keys['AWS_ENDPOINT_URL']}\n"
        f"aws_access_key_id = {access}\naws_secret_access_key = {secret}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    object_store._bucket.cache_clear()
    assert read(f"{folder}/a.jsonl")[:2] == read(f"{files}/a.jsonl")[:2]


def test_a_shard_takes_at_most_three_requests(
    faulty_proxy: FaultyProxy, seaweed: S3Server, tmp_path: Path, use: Use
) -> None:
    """40 MB, two passes, are as ten shards: planning included, 30 GETs of each file at most."""
    bucket = RemotePath(f"s3://{use(seaweed)}")
    text = "".join(random.Random(1).choices("abcdefgh ", k=100_000))
    rows = [{"id": str(at), "text": text[at : at + 80_000]} for at in range(500)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet", row_group_size=125, compression="none")
    for name, content in (("a.jsonl", lines), ("b.parquet", (tmp_path / "b.parquet").read_bytes())):
        object_store_for(bucket).put(name, content)
    for name in ("a.jsonl", "b.parquet"):
        use(faulty_proxy)
        faulty_proxy.reset()
        assert len(read(f"{bucket}/{name}")[0]) == 500
        n_gets = faulty_proxy.counts(f"{name}$")["GET"]
        assert 4 <= n_gets <= 30, f"{name}: {n_gets}"


def test_an_input_in_a_bucket_gives_the_bytes_of_a_local_copy(
    folder: RemotePath, files: Path, encode: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the store has the operations that they were put there with."""
    # Its objects are as large ones, which are hashed by the pass that planning makes.
    monkeypatch.setattr("embedkit.sources.file_hashes.BYTES_OF_ENDS", 1000)
    upload(files, folder)
    assert not write_file(folder, "a.jsonl", b"other", replace=False)
    assert {name for name, _ in list_files(folder)} == {
        path.relative_to(files).as_posix() for path in files.rglob("*") if path.is_file()
    }
    for pattern, n_rows in (("deep/g.csv", 1), ("b.parquet", 600), ("**", 1800)):
        found = {}
        for source, out in ((files, tmp_path / "of-local"), (folder, tmp_path / "of-store")):
            made = encode(f"{source}/{pattern}", "-o", out, "--shard-rows", 300, "--on-exists", "overwrite")
            assert made.code == 0, made.err
            # Plan, records and manifest name the place of the input.
            found[out.name] = {name: data for name, data in contents(out).items() if not name.endswith(".json")}
        assert found["of-local"] == found["of-store"]
        assert len(embedkit.read(tmp_path / "of-store").ids) >= n_rows


def test_an_input_in_googles_store_is_read(
    gcs_reading: GcsServer, table: Path, run: Run, local: Local, use: Use, tmp_path: Path
) -> None:
    bucket = use(gcs_reading)
    gcs_reading.write(bucket, "in/rows.jsonl", table.read_bytes())
    ran = run(tmp_path / "out", source=f"gs://{bucket}/in/rows.jsonl")
    assert ran.code == 0, ran.err
    data = {name for name in local() if name.endswith(".parquet")}
    assert {name: contents(tmp_path / "out")[name] for name in data} == {name: local()[name] for name in data}
