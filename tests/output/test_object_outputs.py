"""A round trip through a real object store; `make test-cluster` has the others, and their faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedkit
from tests.cluster import servers


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.S3Server]:
    with servers.seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


def test_a_table_and_its_vectors_in_a_bucket_are_those_of_this_disk(
    seaweed: servers.S3Server, encode: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    bucket, table, out = seaweed.make_bucket(), tmp_path / "notes.csv", tmp_path / "out"
    table.write_text("id,text\n" + "".join(f"n{row},patient {row} has fever\n" for row in range(9)))
    seaweed.client().put_object(Bucket=bucket, Key="notes.csv", Body=table.read_bytes())
    options = ("--id-column", "id", "--shard-rows", 4)
    assert encode(table, *options, "-o", out).code == 0
    local = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    uri = f"s3://{bucket}/out"
    assert encode(table, *options, "-o", uri).code == 0
    assert seaweed.objects(bucket, "out") == local
    again = encode(table, *options, "-o", uri)
    assert again.code == 5
    assert "--on-exists overwrite to delete it" in again.err
    seaweed.client().delete_object(Bucket=bucket, Key="out/commits/00001.json")
    assert encode(table, *options, "-o", uri, "--on-exists", "resume").code == 0
    assert seaweed.objects(bucket, "out") == local

    read = embedkit.read(uri)
    assert np.array_equal(read.vectors, embedkit.read(out).vectors)
    assert encode(f"s3://{bucket}/notes.csv", *options, "-o", tmp_path / "from").code == 0
    assert np.array_equal(embedkit.read(tmp_path / "from").vectors, read.vectors)
