"""A run that is told of commits reads no record of them, and completes the output that it would by reading all."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkit.manifest.schema import Manifest, Totals
from embedkit.output import commit
from embedkit.output.commit import OutputFolder
from embedkit.output.commit_objects import ObjectFolder
from embedkit.storage.remote_path import RemotePath
from tests.manifest.plans import make_plan, make_record
from tests.storage.memory_store import MemoryStore

SHARDS = 8
PLAN = make_plan(rows=5 * SHARDS)
#: What happens to a shard: who commits it, and what becomes of it afterwards.
FATES = ("former", "told", "told twice", "untold", "record cut off", "record removed", "file removed", "missing")


class Disk:
    """An output on a disk, as several processes see it."""

    def __init__(self, folder):
        self.path = Path(folder) / "out"

    def process(self):
        return OutputFolder(self.path)

    def content(self, name):
        return (self.path / name).read_bytes()

    def change(self, name, content):
        (self.path / name).unlink() if content is None else (self.path / name).write_bytes(content)


class Store:
    """An output in an object store, as several processes see it."""

    def __init__(self, _):
        self.objects = {}

    def process(self):
        return ObjectFolder(RemotePath("s3://bucket/out"), MemoryStore(self.objects))

    def content(self, name):
        return self.objects[name][0]

    def change(self, name, content):
        del self.objects[name]
        if content is not None:
            MemoryStore(self.objects).put(name, content)


def write(folder, index):
    with folder.shard(index) as shard:
        with shard.create(f"embeddings/part-{index:05d}.npy") as file:
            file.write(b"vectors %d" % index)
        return shard.commit(make_record(index))


@pytest.mark.parametrize("place", [Disk, Store])
@settings(max_examples=15, deadline=None)
@given(fates=st.lists(st.sampled_from(FATES), min_size=SHARDS, max_size=SHARDS), workers=st.integers(1, 3))
def test_who_was_told_of_commits_finds_what_one_finds_who_reads_all(place, fates, workers):
    with tempfile.TemporaryDirectory() as folder:
        output = place(folder)
        run = output.process()
        run.join_plan(PLAN)
        others = [output.process() for _ in range(workers + 1)]
        for other in others:
            other.read_plan()
        for index, fate in enumerate(fates):
            if fate == "missing":
                continue
            times = 2 if fate == "told twice" else 1
            for other in [others[-1 - (index + at) % workers] for at in range(times)]:
                record = write(other, index)
                if fate not in {"former", "untold"}:
                    run.adopt(json.loads(json.dumps(other.acknowledgement(record))))
            name = f"commits/{index:05d}.json"
            if fate == "record cut off":
                output.change(name, output.content(name)[:-9])
            elif fate == "record removed":
                output.change(name, None)
            elif fate == "file removed":
                output.change(f"embeddings/part-{index:05d}.npy", None)
        reader = output.process()
        reader.read_plan()
        assert run.committed() == reader.committed()
        assert set(run.committed()) == {
            index for index, fate in enumerate(fates) if fate in {"former", "told", "told twice", "untold"}
        }
        assert run.hashes() == reader.hashes()


@pytest.mark.parametrize("place", [Disk, Store])
def test_the_manifest_is_the_same_and_no_record_is_read_that_the_run_was_told_of(place, tmp_path, monkeypatch):
    output = place(tmp_path)
    run, worker = output.process(), output.process()
    run.join_plan(PLAN)
    worker.read_plan()
    for index in range(SHARDS):
        record = write(worker, index)
        if index != 4:
            run.adopt(worker.acknowledgement(record))
    read = []

    def read_files(paths):
        read.extend(paths)
        return original(paths)

    original = commit.read_files
    monkeypatch.setattr(commit, "read_files", read_files)

    def finish(process):
        records = process.committed()
        process.write_manifest(Manifest.of(PLAN, list(records.values()), Totals.of(list(records.values()))))
        return output.content("manifest.json")

    manifest = finish(run)
    if place is Store:
        assert run.store.requests["get"] == 1
    else:
        assert {Path(path).name for path in read} == {"00004.json"}
    reader = output.process()
    reader.read_plan()
    assert finish(reader) == manifest
