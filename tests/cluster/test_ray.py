"""Runs on real Ray clusters: the bytes of a run without Ray, whatever is killed; and nothing of a row in Ray."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from tests.cluster.ray_cluster import ENVIRONMENT
from tests.cluster.ray_cluster import ray_cluster as new_cluster
from tests.cluster.ray_runs import ROOT, command, environment, started
from tests.engines.test_resume import assert_same

pytestmark = pytest.mark.timeout(900)
CANARY = "canary-5e1f-text"
ROWS = 600


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
    """The output of one process."""
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


@pytest.mark.parametrize("workers", [1, 3])
def test_a_cluster_makes_the_bytes_of_one_process_and_ray_sees_no_row(
    ray_cluster, table, bert, whole, tmp_path, workers
):
    code, told = encode(table, bert, tmp_path / "out", ray_cluster.environment, *ray(workers))
    assert code == 0, told
    assert f"{workers} Ray workers, cpu" in told
    assert_same(tmp_path, whole)
    files = [path for path in ray_cluster.folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    with_canary = [path for path in files if CANARY.encode() in path.read_bytes()]
    assert with_canary == []


@pytest.mark.parametrize("seed", range(3))
def test_killed_workers_are_replaced(ray_cluster, table, bert, whole, tmp_path, seed):
    chance = random.Random(seed)
    words = command(table, bert, tmp_path / "out", "--keep", "note", *ray(2))
    with started(words, ray_cluster.environment) as run:
        for _ in range(2):
            run.after(chance.randint(1, 25))
            os.kill(chance.choice(ray_cluster.actors("RayActor")), signal.SIGKILL)
        assert run.end() == 0, run.text
        assert "another one is started" in run.text
    assert_same(tmp_path, whole)


def test_a_node_that_goes_is_done_without(ray_cluster, table, bert, whole, tmp_path):
    words = command(table, bert, tmp_path / "out", "--keep", "note", *ray(3))
    with started(words, ray_cluster.environment) as run:
        run.after(10)
        ray_cluster.kill_node()
        code = run.end()
    ray_cluster.add_node()
    assert code == 0, run.text
    assert_same(tmp_path, whole)


@pytest.mark.parametrize("engine", ["ray", "local"])
def test_after_the_command_is_killed_ray_ends_its_workers_and_another_one_resumes(
    ray_cluster, table, bert, whole, tmp_path, engine
):
    words = command(table, bert, tmp_path / "out", "--keep", "note", *ray(2))
    with started(words, ray_cluster.environment) as run:
        run.after(12)
        run.kill()
    gone_by = time.monotonic() + 60
    while ray_cluster.actors("RayActor") and time.monotonic() < gone_by:
        time.sleep(0.5)
    assert ray_cluster.actors("RayActor") == []
    options = ray(2) if engine == "ray" else ()
    code, told = encode(table, bert, tmp_path / "out", ray_cluster.environment, *options, "--on-exists", "resume")
    assert code == 0, told
    assert_same(tmp_path, whole)


def test_a_signal_ends_the_run_with_75_and_ray_resumes_a_local_run(ray_cluster, table, bert, whole, tmp_path):
    with started(command(table, bert, tmp_path / "out", "--keep", "note"), {}) as run:
        run.after(5)
        run.kill(signal.SIGTERM)
        assert run.end() == 75, run.text
    words = command(table, bert, tmp_path / "out", "--keep", "note", *ray(2), "--on-exists", "resume")
    with started(words, ray_cluster.environment) as run:
        run.after(9)
        run.kill(signal.SIGTERM)
        assert run.end() == 75, run.text
    assert "stopped by a signal" in run.text
    code, told = encode(table, bert, tmp_path / "out", ray_cluster.environment, *ray(1), "--on-exists", "resume")
    assert code == 0, told
    assert_same(tmp_path, whole)


def test_without_its_head_the_run_ends_within_a_minute_and_a_local_one_resumes(table, bert, whole, tmp_path):
    with new_cluster(nodes=1) as cluster:
        words = command(table, bert, tmp_path / "out", "--keep", "note", *ray(1))
        with started(words, cluster.environment) as run:
            run.after(2)
            cluster.kill_head()
            # A worker that stalls, so that the run is not over before it hears of the head.
            for actor in cluster.actors("RayActor"):
                os.kill(actor, signal.SIGSTOP)
            began = time.monotonic()
            assert run.end() == 1, run.text
            assert time.monotonic() - began < 60
            for actor in cluster.actors("RayActor"):
                os.kill(actor, signal.SIGKILL)
    assert "the head of the Ray cluster at" in run.text
    assert "--on-exists resume" in run.text
    code, told = encode(table, bert, tmp_path / "out", {}, "--on-exists", "resume")
    assert code == 0, told
    assert_same(tmp_path, whole)


def odd_node(kind):
    """Variables of a node whose workers differ from those of the others."""
    path = os.pathsep.join((str(Path(__file__).parent / "odd_node"), str(ROOT)))
    return {"PYTHONPATH": path, "ODD_NODE": kind}


@pytest.fixture(scope="module")
def small_cluster():
    """A head to which tests add the nodes that they need."""
    with new_cluster(nodes=0) as cluster:
        yield cluster


@pytest.mark.parametrize(
    ("odd", "code", "said"),
    [
        ("version", 2, r"has transformers 4.0.0, and the run is by transformers"),
        ("input={other}", 3, r"reads another input: input.files[0].s"),
        ("model={model}", 2, r"loaded another model than the plan's"),
        ("nowhere", 4, r"there is no model in /nowhere"),
    ],
)
def test_a_node_with_something_else_is_refused_by_name(small_cluster, table, bert, tmp_path, odd, code, said):
    from tests.tiny_models import make

    (tmp_path / "other.jsonl").write_text(table.read_text().replace("visit", "visIt", 1))
    model = make("bert", tmp_path / "model", seed=7).folder
    odd = odd.format(other=tmp_path / "other.jsonl", model=model)
    nodes = [small_cluster.add_node(2, **odd_node(odd))]
    if "model" in odd:  # the model of the run is that of its first worker: the other node is refused, or this one
        nodes.append(small_cluster.add_node(2))
    try:
        ran, told = encode(
            table, bert, tmp_path / "out", small_cluster.environment, *ray("2:2" if len(nodes) == 2 else 1)
        )
    finally:
        for node in nodes:
            small_cluster.kill_node(node)
    assert ran == code, told
    assert said in told
    assert "worker" in told.split("error: ")[1] or "node" in told.split("error: ")[1]
    assert "hint: " in told
    assert not list((tmp_path / "out").glob("commits/*.json"))


def test_a_shard_that_kills_its_workers_ends_the_run(table, bert, tmp_path):
    code, told = encode(table, bert, tmp_path / "out", odd_node("shard=11"), *ray(2))
    assert code == 1, told
    assert "3 workers died at shard 11 (rows 88 to 95)" in told
    assert "--on-exists resume" in told
    committed = {int(path.stem) for path in (tmp_path / "out/commits").glob("[0-9]*.json")}
    assert 11 not in committed
    assert set(range(11)) <= committed


def test_from_a_bucket_to_a_bucket(seaweed, table, bert, whole):
    bucket = seaweed.make_bucket()
    seaweed.client().put_object(Bucket=bucket, Key="rows.jsonl", Body=table.read_bytes())
    places = (f"s3://{bucket}/rows.jsonl", f"s3://{bucket}/out")
    with started(command(places[0], bert, places[1], "--keep", "note", *ray(2)), seaweed.environment) as run:
        run.after(20)
        run.kill(signal.SIGTERM)
        assert run.end() == 75, run.text
    code, told = encode(places[0], bert, places[1], seaweed.environment, *ray(1), "--on-exists", "resume")
    assert code == 0, told
    found = seaweed.objects(bucket, "out/embeddings/")
    expected = {path.name: path.read_bytes() for path in (whole / "out/embeddings").iterdir()}
    assert {name.rpartition("/")[2]: content for name, content in found.items()} == expected


def test_from_no_node_at_all_the_autoscaler_starts_some(table, bert, whole, tmp_path):
    folder = Path("/tmp") / f"ek-auto-{os.getpid()}"  # noqa: S108 - Ray's sockets need a short path
    folder.mkdir(mode=0o700)
    node_type = {"node_config": {}, "min_workers": 0, "max_workers": 2, "resources": {"CPU": 1}}
    config = {
        "cluster_name": "none",
        "max_workers": 2,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 1.0,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": node_type,
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "head_start_ray_commands": [],
        **{name: [] for name in ("worker_start_ray_commands", "cluster_synced_files", "initialization_commands")},
        **{name: [] for name in ("setup_commands", "head_setup_commands", "worker_setup_commands")},
        **{name: [] for name in ("rsync_exclude", "rsync_filter")},
        **{name: {} for name in ("file_mounts", "docker")},
        "file_mounts_sync_continuously": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    variables = {
        **ENVIRONMENT,
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_AUTH_TOKEN": "7" * 64,
    }
    port = random.Random().randint(20_000, 30_000)
    words = (
        *(Path(sys.executable).with_name("ray"), "start", "--head", f"--port={port}", "--num-cpus=0", "--block"),
        *(f"--autoscaling-config={folder / 'config.json'}", f"--temp-dir={folder / 'ray'}"),
        "--include-dashboard=false",
    )
    with (folder / "log").open("w") as log:
        head = subprocess.Popen(
            list(map(str, words)), env=environment(variables), stdout=log, stderr=log, start_new_session=True
        )
    try:
        until = time.monotonic() + 180
        while "Ray runtime started" not in (folder / "log").read_text():
            assert time.monotonic() < until
            time.sleep(0.5)
        variables["RAY_ADDRESS"] = f"127.0.0.1:{port}"
        code, told = encode(table, bert, tmp_path / "out", variables, *ray(2))
        assert code == 0, told + (folder / "log").read_text()
        assert_same(tmp_path, whole)
        ran = subprocess.run(
            command(table, bert, tmp_path / "unknown", "--engine", "ray"),
            env=environment(variables),
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        assert ran.returncode in {0, 2}, ran.stderr  # nodes of before may still be there
    finally:
        head.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(30)
        for process in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if process.name.isdigit() and str(folder).encode() in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


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
    large, rows = peak(100_000)
    assert rows == 100_000
    # What the fake keeps itself: two counters by shard.
    assert (large - small) / 99_000 < 250
