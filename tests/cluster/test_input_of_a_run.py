"""A run whose input is in a bucket gives the files of a run with a local copy."""

from __future__ import annotations

import gzip
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedkit.storage.filesystem import list_files, stat_file, write_file
from embedkit.storage.remote_path import RemotePath
from tests.cluster.servers import S3Server
from tests.conftest import NOTES, Ran


def content(folder: Path) -> dict[str, str]:
    """The hashes of an output's files, but for those that name the input and the time."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".json")
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_files_of_a_bucket_give_the_output_of_a_local_copy(
    seaweed: S3Server, encode: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    bucket = seaweed.make_bucket()
    local, remote = tmp_path / "in", RemotePath(f"s3://{bucket}/in")
    (local / "deep").mkdir(parents=True)
    shutil.copy(NOTES, local / "a.csv")
    (local / "deep" / "b.jsonl.gz").write_bytes(gzip.compress(b'{"id": "j", "text": "a line"}\n'))
    texts = pa.table({"id": [f"p{row}" for row in range(300)], "text": [f"text {row}" for row in range(300)]})
    pq.write_table(texts, local / "deep" / "c.parquet", row_group_size=100)
    for file in filter(Path.is_file, local.rglob("*")):
        assert write_file(remote, file.relative_to(local).as_posix(), file.read_bytes())

    assert not write_file(remote, "a.csv", b"other", replace=False)
    assert stat_file(remote / "a.csv").size == NOTES.stat().st_size
    assert {name for name, _ in list_files(remote)} == {"a.csv", "deep/b.jsonl.gz", "deep/c.parquet"}

    for source, out in ((str(local), "from-local"), (f"{remote}/**", "from-s3")):
        ran = encode(source, "-o", tmp_path / out, "--shard-rows", 50)
        assert ran.code == 0, ran.err
    assert content(tmp_path / "from-s3") == content(tmp_path / "from-local")
    assert len(content(tmp_path / "from-s3")) > 5

    seaweed.client().put_object(Bucket=bucket, Key="in/a.csv", Body=b"id,text\n1,another\n")
    resumed = encode(f"{remote}/**", "-o", tmp_path / "from-s3", "--shard-rows", 50, "--on-exists", "resume")
    assert resumed.code == 5
    assert "input.files[0]" in resumed.err
