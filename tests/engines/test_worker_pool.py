"""Several local processes: the bytes of one, and whatever becomes of one of them is told, never waited for."""

from __future__ import annotations

import errno
import json
import multiprocessing
import re
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from embedkit.config import InputConfig, ModelConfig, OutputConfig, RunConfig
from embedkit.engines import dispatch, worker, worker_pool
from embedkit.storage.store_errors import StoreError
from tests.conftest import NOTES
from tests.engines import unlucky
from tests.engines.test_resume import SHARDS, assert_same

MARKER = "canary-7f3a"
pytestmark = pytest.mark.timeout(60)
quick = pytest.mark.usefixtures("quick_workers")


@pytest.fixture
def workers(encode, tmp_path):
    """Returns a function that encodes the notes with two workers."""

    def workers(output, *options):
        return encode(NOTES, "-o", tmp_path / "place" / output, "--shard-rows", 8, "--device", "cpu,cpu", *options)

    (tmp_path / "place").mkdir()
    return workers


@pytest.fixture
def whole(encode, tmp_path):
    """Returns a function that gives the folder with an output made by one process."""

    def whole(output, *options):
        (tmp_path / "whole").mkdir()
        assert encode(NOTES, "-o", tmp_path / "whole" / output, "--shard-rows", 8, *options).code == 0
        return tmp_path / "whole"

    return whole


def test_workers_make_what_one_process_makes_and_tell_how_it_goes(workers, whole, tmp_path):
    ran = workers("out.parquet", "--precision", "int8", "--progress", "json")
    assert ran.code == 0, ran.err
    events = [json.loads(line) for line in ran.err.splitlines()]
    assert [event["committed"] for event in events if event["event"] == "shard"][-1] == 67
    done = events[-1]
    assert (done["event"], done["computed_rows"]) == ("done", 67)
    assert 0 < done["computed_tokens"] <= done["n_used"]
    assert_same(tmp_path / "place", whole("out.parquet", "--precision", "int8"))
    assert multiprocessing.active_children() == []


@quick
def test_a_killed_worker_is_reported_with_its_shard_and_resuming_gives_the_same_bytes(
    workers, encode, whole, tmp_path, monkeypatch
):
    monkeypatch.setattr(worker_pool, "work", unlucky.killed)
    monkeypatch.setattr(dispatch, "FAIL_SECONDS", 1.0)
    ran = workers("out")
    assert ran.code == 1, ran.err
    told = re.match(
        r"error: worker 1 of 2 \(cpu\) was killed by SIGKILL at shard (\d+)\nhint: (.*)", "\n".join(ran.told)
    )
    assert told, ran.err
    assert "--on-exists resume" in told[2]
    committed = {int(path.stem) for path in (tmp_path / "place/out/commits").glob("[0-9]*.json")}
    assert committed
    assert int(told[1]) not in committed
    assert multiprocessing.active_children() == []
    arguments = ("-o", tmp_path / "place" / "out", "--shard-rows", 8, "--on-exists", "resume")
    assert encode(NOTES, *arguments).code == 0
    assert_same(tmp_path / "place", whole("out"))


def test_a_worker_that_dies_at_the_start_does_not_block_the_pool(workers, tmp_path, monkeypatch):
    # The other worker sleeps for longer than a test may take.
    monkeypatch.setattr(worker_pool, "work", unlucky.killed_at_once)
    monkeypatch.setattr(dispatch, "FAIL_SECONDS", 0.5)
    ran = workers("out")
    assert (ran.code, "worker 1 of 2 (cpu) ended with exit code 3 before it had a shard" in ran.err) == (1, True)
    assert multiprocessing.active_children() == []


@quick
def test_a_request_to_stop_ends_all_workers_and_resume_goes_on(workers, encode, whole, tmp_path, monkeypatch):
    stop, commits = threading.Event(), tmp_path / "place/out/commits"

    def stop_when_a_shard_is_done():
        while not list(commits.glob("[0-9]*.json")):
            time.sleep(0.05)
        stop.set()

    monkeypatch.setattr("embedkit.cli.run_context.stop_event", lambda _: nullcontext(stop))
    monkeypatch.setattr(worker_pool, "work", unlucky.stalling)
    monkeypatch.setattr(dispatch, "_STOP_SECONDS", 2.0)
    began = time.monotonic()
    threading.Thread(target=stop_when_a_shard_is_done, daemon=True).start()
    ran = workers("out")
    assert ran.code == 75, ran.err
    told = re.search(r"error: stopped by a signal; (\d+) shards are committed\n", ran.err)
    committed = len(list(commits.glob("[0-9]*.json")))
    assert int(told[1]) == committed < SHARDS
    assert time.monotonic() - began < 60
    stop.clear()
    arguments = ("-o", tmp_path / "place" / "out", "--shard-rows", 8, "--on-exists", "resume")
    assert encode(NOTES, *arguments).code == 0
    assert_same(tmp_path / "place", whole("out"))


@quick
def test_an_error_in_a_worker_ends_the_run_with_that_error(workers, monkeypatch):
    monkeypatch.setattr(worker_pool, "work", unlucky.failing)
    ran = workers("out")
    assert (ran.code, ran.told) == (4, ["error: a vector is not finite", "hint: use --dtype fp32"])


@pytest.fixture
def said_at(monkeypatch):
    """Returns a function that gives the one message of a worker that meets a fault."""

    def said_at(fault):
        def broken(*_):
            raise fault

        said = []
        monkeypatch.setattr(worker, "_limit_threads", lambda _: None)
        monkeypatch.setattr(worker, "table_of", broken)
        line = SimpleNamespace(send=lambda **message: said.append(message))
        config = RunConfig(InputConfig(("notes.csv",)), OutputConfig("out", "parquet"))
        worker.compute(worker.WorkerTask(config, None, threads=1), line)
        (message,) = said
        return message

    return said_at


def test_a_fault_in_a_worker_is_reported_by_its_place_without_its_message(said_at):
    said = said_at(ValueError(MARKER))
    told = re.fullmatch(r"ValueError at test_worker_pool\.py, line \d+, in broken", said["fault"])
    assert told
    assert MARKER not in json.dumps(said)


@pytest.mark.parametrize(
    ("fault", "error", "part", "way_out"),
    [
        (
            *(StoreError("no credentials were found", "set AWS_ACCESS_KEY_ID", "s3://bucket"), "OutputError"),
            *("s3://bucket: no credentials were found", "set AWS_ACCESS_KEY_ID"),
        ),
        (OSError(errno.ENOSPC, "", "part"), "OutputError", "the disk is full", "free space"),
        (MemoryError(), "ModelError", "not enough memory", "--batch-tokens"),
    ],
    ids=["store", "disk", "memory"],
)
def test_limits_of_a_workers_machine_are_told_as_those_of_the_runs(said_at, fault, error, part, way_out):
    """A node without credentials, say: it is no fault of embedkit."""
    said = said_at(fault)
    assert (said["error"], part in said["message"], way_out in said["hint"]) == (error, True, True)


@quick
def test_workers_on_devices_make_the_same_bytes_and_tell_how_these_were_used(
    workers, whole, tmp_path, monkeypatch
):
    monkeypatch.setattr(worker_pool, "work", unlucky.on_fake_device)
    ran = workers("out.parquet", "--progress", "json")
    assert ran.code == 0, ran.err
    done = json.loads(ran.err.splitlines()[-1])
    use = done["device_use"]
    # On the fake device a batch takes a second, and so does what is between two of one worker.
    assert 0 <= use["busy"] - use["waited"] <= 2
    assert done["device_waiting"] == pytest.approx(use["waited"] / (use["busy"] + use["waited"]), abs=1e-4)
    assert use["allocated"] == 3 << 30
    assert_same(tmp_path / "place", whole("out.parquet"))


@pytest.mark.parametrize(
    ("devices", "workers", "expected"),
    [
        ("cuda:0", 2, [("cuda:0", 2)] * 2),
        ("cuda:0,cuda:1", 2, [("cuda:0", 1), ("cuda:1", 1)]),
        ("cuda:0,cuda:1", 3, [("cuda:0", 2), ("cuda:1", 1), ("cuda:0", 2)]),
        ("cuda:0,cuda:0", 2, [("cuda:0", 2)] * 2),
    ],
)
def test_workers_take_turns_on_the_devices_and_know_how_many_share_theirs(devices, workers, expected):
    config = RunConfig(
        InputConfig(("notes.csv",)), OutputConfig("out", "parquet"), model=ModelConfig(device=devices)
    )
    made = [worker_pool._of_worker(config, number, workers) for number in range(workers)]
    assert [(of.model.device, of.share.on_device) for of in made] == expected


def test_fewer_workers_than_devices_are_refused(workers):
    ran = workers("out", "--workers", 1)
    assert (ran.code, "--workers 1 is fewer than the 2 devices" in ran.err) == (2, True), ran.err
