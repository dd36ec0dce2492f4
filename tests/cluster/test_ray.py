"""Runs on real Ray clusters: the bytes of a run without Ray, whatever is killed; and nothing of a row in Ray."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
import tracemalloc
from pathlib import Path

import pytest

from tests.cluster.ray_autoscaler import autoscaled_ray
from tests.cluster.ray_runs import ROOT, command, environment, started
from tests.engines.test_resume import assert_same
from tests.tiny_models import make

pytestmark = pytest.mark.timeout(900)
CANARY = "canary-5e1f-text"
ROWS = 600
#: Pages of Ray's dashboard and of its state API: all that have something of a run.
DASHBOARD = (
    *("/nodes?view=summary", "/logical/actors", "/api/jobs/", "/events", "/api/cluster_status"),
    *(f"/api/v0/{name}?detail=1" for name in ("actors", "jobs", "nodes", "workers", "objects", "tasks")),
    *(f"/api/v0/{name}" for name in ("runtime_envs", "cluster_events", "tasks/timeline")),
    *(f"/api/v0/{name}/summarize" for name in ("actors", "objects", "tasks")),
)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """600 rows, each with a text, an id and a kept value that appear nowhere else."""
    path = tmp_path_factory.mktemp("table") / "rows.jsonl"
    with path.open("w") as file:
        for row in range(ROWS):
            text = f"{CANARY} number {row}, " + "and no change since the last visit " * (row % 7)
            file.write(
                json.dumps({"id": f"{CANARY}-id-{row}", "text": text, "note": f"{CANARY}-kept-{row}"}) + "\n"
            )
    return path


@pytest.fixture(scope="module")
def whole(table, bert, tmp_path_factory):
    """Returns the output of one process."""
    folder = tmp_path_factory.mktemp("whole")
    words = command(table, bert, folder / "out", "--keep", "note")
    subprocess.run(words, env=environment(), check=True, capture_output=True, cwd=ROOT)
    return folder


def encode(table, model, output, cluster, *options):
    """Runs to the end; returns exit code and stderr."""
    with started(command(table, model, output, "--keep", "note", *options), cluster) as run:
        return run.end(), run.text


def ray(workers):
    return ("--engine", "ray", "--workers", workers)


def assert_no_row_in(cluster, *told):
    """Checks that neither Ray's files (logs, crash reports, spilled objects) nor messages have any of a row."""
    files = [path for path in cluster.folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []
    assert CANARY not in "".join(told)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_cluster_makes_the_bytes_of_one_process_and_ray_sees_no_row(
    ray_cluster, table, bert, whole, tmp_path, workers
):
    code, told = encode(table, bert, tmp_path / "out", ray_cluster.environment, *ray(workers))
    assert code == 0, told
    assert f"{workers} Ray worker{'s' * (workers > 1)}, cpu" in told
    assert_same(tmp_path, whole)
    assert_no_row_in(ray_cluster, told)


def test_a_dashboard_shows_workers_and_no_row(ray_cluster, table, bert, tmp_path):
    if not ray_cluster.dashboard:
        pytest.skip("what Ray's dashboard needs is not installed: pip install 'ray[default]'")
    words = command(table, bert, tmp_path / "out", "--keep", "note", *ray(2))
    with started(words, ray_cluster.environment) as run:
        run.after(2)
        pages = {path: ray_cluster.page(path) for path in DASHBOARD}
        assert run.end() == 0, run.text
    pages |= {f"{path} at the end": ray_cluster.page(path) for path in DASHBOARD}
    assert "RayActor" in pages["/logical/actors"]
    assert [path for path, page in pages.items() if CANARY in page] == []


def test_killed_workers_are_replaced(ray_cluster, table, bert, whole, tmp_path):
    chance = random.Random(0)
    words = command(table, bert, tmp_path / "out", "--keep", "note", *ray(2))
    with started(words, ray_cluster.environment) as run:
        for _ in range(3):
            run.after(chance.randint(1, 20))
            os.kill(chance.choice(ray_cluster.actors("RayActor")), signal.SIGKILL)
        assert run.end() == 0, run.text
        assert "another one is started" in run.text
    assert_same(tmp_path, whole)
    assert_no_row_in(ray_cluster, run.text)


def test_a_node_that_goes_is_done_without(ray_cluster, table, bert, whole, tmp_path):
    words = command(table, bert, tmp_path / "out", "--keep", "note", *ray(3))
    with started(words, ray_cluster.environment) as run:
        run.after(10)
        killed = ray_cluster.kill_node()
        code = run.end()
    assert not Path(f"/proc/{killed}").exists()
    ray_cluster.add_node()
    assert code == 0, run.text
    assert_same(tmp_path, whole)


def test_a_run_goes_on_after_each_way_to_end_it_with_ray_and_without(ray_cluster, table, bert, whole, tmp_path):
    words = command(table, bert, tmp_path / "out", "--keep", "note", "--on-exists", "resume")
    with started(words, {}) as run:
        run.after(5)
        run.kill(signal.SIGTERM)
        assert run.end() == 75, run.text
    with started([*words, *map(str, ray(2))], ray_cluster.environment) as run:
        run.after(9)
        run.kill(signal.SIGTERM)
        assert run.end() == 75, run.text
    assert "stopped by a signal" in run.text
    with started([*words, *map(str, ray(2))], ray_cluster.environment) as run:
        run.after(12)
        run.kill()
    gone_by = time.monotonic() + 60
    while ray_cluster.actors("RayActor") and time.monotonic() < gone_by:
        time.sleep(0.1)
    assert ray_cluster.actors("RayActor") == []  # Ray has ended them
    code, told = encode(table, bert, tmp_path / "out", ray_cluster.environment, *ray(1), "--on-exists", "resume")
    assert code == 0, told
    assert_same(tmp_path, whole)


@pytest.mark.parametrize(
    ("odd", "workers", "code", "said"),
    [
        ("version", 1, 2, r"has transformers 4.0.0, and the run is by transformers"),
        ("input", 1, 3, r"reads another input: input.files[0].s"),
        ("model", "2:2", 2, r"loaded another model than the plan's"),  # the plan's is that of the first worker
        ("nowhere", 1, 4, r"there is no model in /nowhere"),
        ("no input", 1, 3, r"gone.jsonl"),
        ("output", 1, 5, r"plan.json of this run is not in"),  # a folder that the nodes do not share
    ],
)
def test_a_node_with_something_else_is_refused_by_name(
    ray_cluster, table, bert, tmp_path, odd, workers, code, said
):
    value = ""
    if odd == "input":
        value = tmp_path / "other.jsonl"
        value.write_text(table.read_text().replace("visit", "visIt", 1))
    elif odd == "no input":
        odd, value = "input", tmp_path / "gone.jsonl"
    elif odd == "output":
        value = tmp_path / "of-the-node"
    elif odd == "model":
        value = make("bert", tmp_path / "model", seed=7).folder
    with ray_cluster.odd_workers(odd, value):
        ran, told = encode(table, bert, tmp_path / "out", ray_cluster.environment, *ray(workers))
    assert ran == code, told
    assert said in told
    assert "worker" in told.split("error: ")[1] or "node" in told.split("error: ")[1]
    assert "hint: " in told
    assert not list((tmp_path / "out").glob("commits/*.json"))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("abort", "3 workers died at shard 11 (rows 88 to 95)"),  # Ray and Python write where it happened
        ("raise", r"a fault of embedkit in worker"),  # with a text of the shard in its message
    ],
)
def test_a_shard_that_ends_its_workers_ends_the_run_and_no_crash_report_has_its_texts(
    ray_cluster, table, bert, tmp_path, how, said
):
    with ray_cluster.odd_workers(how, 11):
        code, told = encode(table, bert, tmp_path / "out", ray_cluster.environment, *ray(2))
    assert code == 1, told
    assert said in told
    assert "--on-exists resume" in told
    committed = {int(path.stem) for path in (tmp_path / "out/commits").glob("[0-9]*.json")}
    assert 11 not in committed
    if how == "abort":  # a fault ends all workers at once
        assert set(range(11)) <= committed
        logs = ray_cluster.folder.glob("ray/session_2*/logs/worker-*")
        assert any(
            "SIGABRT" in log or "Aborted" in log for log in (path.read_text("utf-8", "replace") for path in logs)
        )
    assert_no_row_in(ray_cluster, told)


def test_from_a_bucket_to_a_bucket(ray_cluster, seaweed, table, bert, whole):
    bucket = seaweed.make_bucket()
    seaweed.client().put_object(Bucket=bucket, Key="rows.jsonl", Body=table.read_bytes())
    places = (f"s3://{bucket}/rows.jsonl", f"s3://{bucket}/out")
    variables = ray_cluster.environment | seaweed.environment
    with ray_cluster.odd_workers("environment", json.dumps({"AWS_EC2_METADATA_DISABLED": "true"})):
        code, told = encode(places[0], bert, places[1], variables, *ray(1))
    assert code == 5, told  # the run's credentials do not go to its nodes
    assert re.search(r"error: worker 0 on node .*: no credentials were found\nhint: set AWS_ACCESS_KEY_ID", told)
    with ray_cluster.odd_workers("environment", json.dumps(seaweed.environment)):
        code, told = encode(places[0], bert, places[1], variables, *ray(2), "--on-exists", "resume")
    assert code == 0, told
    found = seaweed.objects(bucket, "out/embeddings/")
    expected = {path.name: path.read_bytes() for path in (whole / "out/embeddings").iterdir()}
    assert {name.rpartition("/")[2]: content for name, content in found.items()} == expected


def test_an_autoscaler_starts_nodes_and_without_the_head_a_run_ends_within_a_minute(table, bert, whole, tmp_path):
    with autoscaled_ray(nodes=2) as cluster:
        code, told = encode(table, bert, tmp_path / "out", cluster.environment, "--engine", "ray")
        assert code == 2, told
        assert "the Ray cluster has no CPU yet" in told
        assert "--workers 8" in told
        code, told = encode(table, bert, tmp_path / "out", cluster.environment, *ray(2))
        assert code == 0, told
        assert_same(tmp_path, whole)

        (tmp_path / "headless").mkdir()
        output = tmp_path / "headless/out"
        with started(command(table, bert, output, "--keep", "note", *ray(1)), cluster.environment) as run:
            run.after(2)
            cluster.kill_head()
            # A worker that stalls, so that the run is not over before it hears of the head.
            for actor in cluster.actors("RayActor"):
                os.kill(actor, signal.SIGSTOP)
            began = time.monotonic()
            assert run.end() == 1, run.text
            assert time.monotonic() - began < 60
    assert "the head of the Ray cluster at" in run.text
    assert "--on-exists resume" in run.text
    code, told = encode(table, bert, output, {}, "--on-exists", "resume")
    assert code == 0, told
    assert_same(tmp_path / "headless", whole)


def test_the_memory_of_the_command_does_not_grow_with_the_shards():
    from tests.engines.fake_ray import FakeCluster
    from tests.engines.test_ray import run

    def peak(shards):
        cluster = FakeCluster(4)
        tracemalloc.start()
        try:
            told = run(cluster, shards)
            return tracemalloc.get_traced_memory()[1], told.rows
        finally:
            tracemalloc.stop()

    small, _ = peak(1_000)
    large, rows = peak(21_000)
    assert rows == 21_000
    # What the fake keeps itself: two counters by shard. benchmarks/driver.py has 100,000 shards and their records.
    assert (large - small) / 20_000 < 250
