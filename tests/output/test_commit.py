"""A shard is done or it is not; files appear when they are whole."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import pytest

from embedkit.errors import OutputError
from embedkit.manifest.schema import ShardRecord
from embedkit.output.commit import OutputFolder
from embedkit.storage.atomic import temporary_name
from embedkit.storage.filesystem import new_files
from tests.manifest.plans import make_plan, make_record


@pytest.fixture
def folder(tmp_path) -> OutputFolder:
    output = OutputFolder(tmp_path / "out")
    output.join_plan(make_plan())
    return output


def write(folder: OutputFolder, index: int, content: bytes) -> ShardRecord:
    with folder.shard(index) as shard:
        with shard.create(f"embeddings/part-{index:05d}.npy") as file:
            file.write(content)
        return shard.commit(make_record(index))


def files_of(folder: OutputFolder) -> set[str]:
    return {path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file()}


def test_a_record_names_every_file_with_its_size_and_hash(folder):
    record = write(folder, 3, b"vectors")
    stored = json.loads((folder.path / "commits/00003.json").read_bytes())
    assert stored["plan_sha256"] == hashlib.sha256((folder.path / "plan.json").read_bytes()).hexdigest()
    assert stored["files"] == [
        {"path": "embeddings/part-00003.npy", "bytes": 7, "sha256": hashlib.sha256(b"vectors").hexdigest()}
    ]
    assert folder.committed() == {3: record}


def test_nothing_of_an_uncommitted_shard_stays(folder):
    with pytest.raises(LookupError), folder.shard(0) as shard:
        shard.create("embeddings/part-00000.npy").close()
        raise LookupError
    assert files_of(folder) == {"plan.json"}


def test_what_a_killed_run_left_is_removed_by_the_next_run_of_the_same_shard(folder):
    (folder.path / "embeddings").mkdir()
    dead = [re.sub(r"-\d+\.tmp$", "-4194305.tmp", temporary_name(f"part-0000{shard}.npy")) for shard in (0, 1)]
    for name in dead:
        (folder.path / "embeddings" / name).write_bytes(b"half")
    write(folder, 0, b"whole")
    assert files_of(folder) == {
        "plan.json",
        "commits/00000.json",
        "embeddings/part-00000.npy",
        f"embeddings/{dead[1]}",
    }


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"short")])
def test_a_record_whose_file_is_gone_or_cut_does_not_count(folder, damage):
    write(folder, 0, b"vectors")
    damage(folder.path / "embeddings/part-00000.npy")
    assert folder.committed() == {}


def test_a_file_without_a_record_does_not_count(folder):
    write(folder, 0, b"vectors")
    (folder.path / "commits/00000.json").unlink()
    assert folder.committed() == {}


def test_a_damaged_record_does_not_count(folder):
    write(folder, 0, b"vectors")
    (folder.path / "commits/00000.json").write_bytes(b'{"index": 0, "fi')
    assert folder.committed() == {}


def test_files_are_synced_before_they_get_their_names_and_the_record_comes_last(folder, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        done.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    def noted_replace(path, target, **within):
        done.append(("name", Path(target).name))
        return replace(path, target, **within)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write(folder, 0, b"vectors")
    temporary = temporary_name("part-00000.npy")
    record = temporary_name("00000.json")
    assert done == [
        ("sync", temporary),
        ("name", "part-00000.npy"),
        ("sync", "embeddings"),
        ("sync", record),
        ("name", "00000.json"),
        ("sync", "commits"),
    ]


def test_a_full_disk_is_told_with_the_way_to_go_on(folder, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left") as caught:
        write(folder, 0, b"vectors")
    assert "--on-exists resume" in caught.value.hint
    monkeypatch.undo()
    assert files_of(folder) == {"plan.json"}


def test_clearing_removes_what_is_embedkits_and_nothing_else(folder):
    write(folder, 0, b"vectors")
    (folder.path / "notes-of-mine.txt").write_text("keep")
    folder.clear()
    assert files_of(folder) == {"notes-of-mine.txt"}


def test_files_that_belong_together_appear_together(tmp_path):
    files = new_files(tmp_path)
    for name in ("x.npy", "x.metadata.parquet"):
        with files.create(name) as file:
            file.write(b"1")
    assert not list(tmp_path.glob("x*"))
    files.publish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.metadata.parquet", "x.npy"]
