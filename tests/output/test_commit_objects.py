"""Shards in an object store: done or not, whatever other processes do and whenever one of them ends."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embedkit.errors import OutputError
from embedkit.manifest.schema import Manifest, Plan, Sharding, ShardRecord, Totals
from embedkit.output.commit import is_own
from embedkit.output.destination import Objects
from embedkit.storage.remote_path import RemotePath
from tests.manifest.plans import make_plan, make_record
from tests.storage.memory_store import Killed, MemoryStore, Turns

OUT = RemotePath("s3://bucket/out")
SHARDS = 3
PLAN = make_plan(rows=5 * SHARDS)


def destination(store: MemoryStore, on_exists: str = "resume", **options: Any) -> Objects:
    return Objects(OUT, on_exists, store=store, **options)


def write(out: Objects, index: int, content: str = "vectors") -> ShardRecord:
    with out.output.shard(index) as shard:
        for name in (f"embeddings/part-{index:05d}.npy", f"metadata/part-{index:05d}.parquet"):
            with shard.create(name) as file:
                file.write(f"{content} of {name}".encode())
        return shard.commit(make_record(index))


def encode(out: Objects, content: str = "vectors", plan: Plan = PLAN) -> bool:
    """Carries out a run as `encode_rows` does. Returns True if it completed the output."""
    plan = out.open() or out.begin(plan)
    done = out.committed()
    for index in range(SHARDS):
        if index not in done:
            done[index] = write(out, index, content)
    if out.several:
        done = out.committed()
    if len(done) < SHARDS:
        return False
    in_order = [done[index] for index in range(SHARDS)]
    out.output.write_manifest(Manifest.of(plan, in_order, Totals.of(in_order, 5 * SHARDS)))
    return True


def problems(store: MemoryStore) -> Iterator[str]:
    """Yields where an output is not whole, from its bytes alone."""
    content = {key: data for key, (data, _, _) in store.objects.items()}
    manifest = json.loads(content["manifest.json"])
    records = {key: data for key, data in sorted(content.items()) if key.startswith("commits/")}
    if manifest["plan_sha256"] != hashlib.sha256(content["plan.json"]).hexdigest():
        yield "another plan"
    if manifest["records_sha256"] != hashlib.sha256(b"".join(records.values())).hexdigest():
        yield "other records"
    if list(records) != [f"commits/{index:05d}.json" for index in range(SHARDS)]:
        yield f"the records are {list(records)}"
    for key, data in records.items():
        record = json.loads(data)
        if record["plan_sha256"] != manifest["plan_sha256"]:
            yield f"{key} is of another plan"
        for file in record["files"]:
            if hashlib.sha256(content.get(file["path"], b"")).hexdigest() != file["sha256"]:
                yield f"{file['path']} is not what {key} says"


def names() -> set[str]:
    parts = [f"{index:05d}" for index in range(SHARDS)]
    files = {f"embeddings/part-{part}.npy" for part in parts} | {f"metadata/part-{part}.parquet" for part in parts}
    return {"plan.json", "manifest.json", *files, *(f"commits/{part}.json" for part in parts)}


@pytest.mark.parametrize("etags", ["md5", "unique"])
def test_a_run_makes_as_few_requests_as_a_shard_needs(etags: str) -> None:
    store = MemoryStore(etags=etags)
    out = destination(store, "error")
    out.begin(PLAN) if out.open() is None else None
    before = store.requests.copy()
    write(out, 0)
    made = store.requests - before
    assert made == {"put": 3, "head": 2}  # two files and a record; the plan is still there, twice
    for index in range(1, SHARDS):
        write(out, index)
    before = store.requests.copy()
    records = [make_record(index) for index in range(SHARDS)]
    out.output.write_manifest(Manifest.of(PLAN, records, Totals.of(records)))
    assert store.requests - before == {"list": 1, "head": 1, "put": 1}
    assert set(store.objects) == names()
    assert not list(problems(store))
    resumed = MemoryStore(store.objects, etags=etags)
    assert encode(destination(resumed))
    assert resumed.requests == {"list": 2, "get": 1 + SHARDS, "head": 3, "put": 1}


@pytest.mark.parametrize("lacks", [{"knows_conditions": False}, {"etags": "none"}], ids=repr)
def test_where_a_store_ignores_conditions_one_process_may_write_and_several_ranks_may_not(
    lacks: dict[str, Any],
) -> None:
    store = MemoryStore(**lacks)
    alone = destination(store, "error")
    assert encode(alone)
    assert "let no second run write there" in alone.notices[0]
    with pytest.raises(OutputError, match="several ranks could write one shard twice") as caught:
        destination(MemoryStore(**lacks), several=True).open()
    assert "If-None-Match" in caught.value.hint
    assert not list(problems(store))
    assert set(store.objects) == names()  # the probe is gone


def test_an_output_is_replaced_only_on_request_and_objects_of_others_are_left_alone() -> None:
    store = MemoryStore()
    store.objects["notes.txt"] = (b"mine", '"1"', {})
    with pytest.raises(OutputError, match="holds objects that are not embedkit's"):
        destination(store, "overwrite").open()
    del store.objects["notes.txt"]
    assert encode(destination(store, "error"), "old")
    store.objects |= {"notes.txt": (b"mine", '"1"', {}), "embeddings/notes.txt": (b"mine too", '"2"', {})}
    with pytest.raises(OutputError, match="holds the output of another run") as caught:
        destination(store, "error").open()
    assert "overwrite to delete it" in caught.value.hint
    former = dict(store.objects)
    out = destination(store, "overwrite")
    assert out.open() is None
    assert store.objects == former  # until the model is loaded
    out.begin(replace(PLAN, batch_tokens=7))
    assert set(store.objects) == {"plan.json", "notes.txt", "embeddings/notes.txt"}
    assert encode(destination(store), "new", replace(PLAN, batch_tokens=7))
    assert not list(problems(store))
    assert store.objects["notes.txt"][0] == b"mine"
    assert store.objects["embeddings/notes.txt"][0] == b"mine too"


def test_a_failed_run_takes_its_plan_back_unless_a_shard_is_committed() -> None:
    store = MemoryStore()
    out = destination(store, "error")
    out.open()
    out.begin(PLAN)
    out.abandon()
    assert not store.objects
    out.open()
    out.begin(PLAN)
    write(out, 1)
    out.abandon()
    assert "plan.json" in store.objects


def test_a_run_whose_plan_was_replaced_commits_nothing_more() -> None:
    store = MemoryStore()
    old = destination(store, "error")
    old.open()
    old.begin(PLAN)
    write(old, 0, "old")
    new = destination(store, "overwrite")
    new.open()
    other = replace(PLAN, batch_tokens=7)
    new.begin(other)
    with pytest.raises(OutputError, match="another run has replaced this one"):
        write(old, 1, "old")
    assert set(store.objects) == {"plan.json"}
    # A put that was on its way when the old run was replaced arrives late.
    store.objects["commits/00001.json"] = (
        replace(make_record(1), plan_sha256="0" * 64).serialize(),
        '"late"',
        {},
    )
    store.objects["embeddings/part-00001.npy"] = (b"old", '"late"', {})
    store.objects["commits/00009.json"] = store.objects["commits/00001.json"]
    assert encode(destination(store), "new", other)
    assert not list(problems(store))


@pytest.mark.parametrize("etags", ["md5", "unique", "none"])
@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: None,
        lambda data: b"X" + data[1:],  # of the same size
    ],
)
def test_a_shard_whose_file_was_changed_is_computed_again(etags: str, change: Callable[[bytes], Any]) -> None:
    store = MemoryStore(etags=etags)
    assert encode(destination(store, "error"))
    del store.objects["manifest.json"]
    name = "embeddings/part-00001.npy"
    data, etag, _ = store.objects[name]
    changed = change(data)
    if changed is None:
        del store.objects[name]
    else:
        store.objects[name] = (changed, None if etag is None else '"changed"', {})
    # Without ETags, a changed file of the same size is found with --verify, as on a disk.
    same_size = changed is not None and len(changed) == len(data)
    out = destination(store, verify=etags == "none" and same_size)
    assert sorted(out.committed()) == [0, 2]
    assert encode(destination(store, verify=etags == "none"))
    assert not list(problems(store))


def test_a_copy_of_a_bucket_has_other_etags_and_the_same_bytes_so_nothing_is_computed_again() -> None:
    store = MemoryStore(etags="unique")
    assert encode(destination(store, "error"))
    copy = MemoryStore(etags="unique")
    for key, (data, _, metadata) in store.objects.items():
        copy.put(key, data, metadata=metadata)
    copy.requests.clear()
    assert len(destination(copy).committed()) == SHARDS
    assert copy.requests["put"] == 0
    assert copy.requests["get"] == 1 + SHARDS + 2 * SHARDS  # plan, records, and the files to hash them


def test_two_processes_that_compute_other_bits_are_stopped_and_what_was_committed_stays() -> None:
    store = MemoryStore()
    one, two = destination(store), destination(store)
    for out in (one, two):
        if out.open() is None:
            out.begin(PLAN)
    record = write(one, 0, "bits of one device")
    with pytest.raises(OutputError, match="with other bytes") as caught:
        write(two, 0, "bits of another device")
    assert "devices of one kind" in caught.value.hint
    assert destination(store).output.committed() == {0: record}
    assert write(two, 1) == write(one, 1)  # of the same bytes: nothing is wrong


def leave_files_of_a_killed_run(objects: dict[str, Any], etags: str, puts: int) -> None:
    """Begins an output as a machine that computes other bits does, killed after so many puts."""
    number = itertools.count()

    def before(name: str, key: str) -> str:
        return "killed" if name == "put" and not key.startswith(".") and next(number) == puts else ""

    with contextlib.suppress(Killed):
        encode(destination(MemoryStore(objects, etags=etags, before=before)), "left")


FATES = ("", "", "", "", "", "lost", "killed", "killed after")


@settings(max_examples=20000, deadline=None)
@given(
    order=st.lists(st.integers(0, 1), max_size=120),
    fates=st.lists(st.sampled_from(FATES), max_size=60),
    etags=st.sampled_from(["md5", "unique"]),
    contents=st.sampled_from([("same", "same"), ("one", "other")]),
    left=st.integers(0, 5),
)
# The second looks for a record, and puts its file once the first has committed all shards and ended.
@example(order=[0] * 7 + [1] + [0] * 4 + [1] * 12, fates=[], etags="md5", contents=("one", "other"), left=0)
def test_nothing_is_lost_doubled_or_mixed_in_any_order_of_the_requests_of_two_ranks(
    order: list[int], fates: list[str], etags: str, contents: tuple[str, str], left: int
) -> None:
    objects: dict[str, Any] = {}
    leave_files_of_a_killed_run(objects, etags, left)
    fate = iter(fates)
    outcomes: list[str] = []

    def rank(content: str) -> Callable[[Callable[[], None]], None]:
        def work(wait: Callable[[], None]) -> None:
            def before(name: str, _: str) -> str:
                wait()
                return next(fate, "") if name == "put" else ""

            store = MemoryStore(objects, etags=etags, before=before)
            try:
                outcomes.append("complete" if encode(destination(store, several=True), content) else "rest")
            except OutputError as error:
                outcomes.append(error.message)
            except Killed:
                outcomes.append("killed")

        return work

    Turns().run([rank(content) for content in contents], itertools.chain(order, itertools.repeat(0)))
    store = MemoryStore(objects, etags=etags)
    assert all(is_own(key) for key in objects)
    assert "manifest.json" not in objects or not list(problems(store))
    assert len(outcomes) == len(contents)
    is_same = contents[0] == contents[1] and not left
    for outcome in outcomes:
        assert outcome in {"complete", "rest", "killed"} or (not is_same and "with other bytes" in outcome)
    # The way out of every end: the same command again.
    for _ in range(2):
        try:
            assert encode(destination(store), contents[0])
            break
        except OutputError:
            assert not is_same
    assert not list(problems(store))
    assert {key for key in objects if not key.startswith(".")} == names()


def test_the_sharding_of_the_tests_is_that_of_the_plan() -> None:
    assert PLAN.sharding == Sharding(5, 1000, 5 * SHARDS, tuple(range(0, 5 * SHARDS, 5)), None)
