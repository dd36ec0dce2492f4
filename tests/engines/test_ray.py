"""The Ray engine with a cluster that is not there: what it does when workers come late, die or are others."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkit.config import EngineConfig, ModelConfig, parse_workers
from embedkit.engines import ray_start
from embedkit.engines.line import Line, Mailbox
from embedkit.engines.node import Node, spec_here
from embedkit.engines.ray import RayEngine
from embedkit.engines.ray_cluster import ActorPlan, Death, NodeResources, plan_actors
from embedkit.errors import EmbedkitError, ModelError, Stopped, UsageError
from embedkit.models.repository.model_folder import ModelFolder
from tests.conftest import NOTES
from tests.engines.fake_ray import FACTS, HELD, FakeCluster, setup
from tests.engines.test_resume import assert_same


@dataclass(frozen=True)
class Spec:
    """The part of a ModelSpec that finding its files needs."""

    config: SimpleNamespace
    folder: ModelFolder


class Told:
    """Callbacks that keep what they are told."""

    def __init__(self):
        self.notices, self.rows = [], 0

    def notice(self, sentence):
        self.notices.append(sentence)

    def shard_done(self, rows):
        self.rows += rows


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr("embedkit.engines.ray._PAUSE_SECONDS", 0.0)


def run(cluster, shards, *, stop=None, calibrate=False):
    told = Told()
    made, job = setup(shards, told, stop or threading.Event(), workers=cluster.workers)
    with RayEngine(made, cluster) as engine:
        assert engine.load().recipe == FACTS.recipe
        if calibrate:
            assert engine.calibrate() == {"embedding": {"min": [0.0], "max": [1.0]}}
        assert engine.run(job) == "records"
    assert not cluster.is_open
    assert all(actor.dead for actor in cluster.actors)
    return told


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 5), st.integers(1, 40), st.booleans())
def test_workers_die_at_any_time_and_every_shard_is_committed(data, workers, shards, calibrate):
    deaths = data.draw(st.sets(st.integers(0, 60), max_size=6))
    polls, turns = itertools.count(), data.draw(st.lists(st.integers(0, 99), min_size=1, max_size=20))
    turn = itertools.cycle(turns)
    cluster = FakeCluster(
        workers, turn=lambda n: (next(turn) + next(polls)) % n, dies=lambda *_: next(polls) // 3 in deaths
    )
    try:
        told = run(cluster, shards, calibrate=calibrate)
    except EmbedkitError as error:
        assert any(word in error.message for word in ("before it had a shard", "workers died at shard"))  # noqa: PT017
        assert sum(actor.dead for actor in cluster.actors) >= 3
        return
    assert set(cluster.committed) == set(range(shards))
    assert told.rows == shards
    # A death costs the shards that the worker held, and one whose commit it did not live to tell.
    lost = len(told.notices) - 2
    assert sum(cluster.given.values()) <= shards + lost * (HELD + 1)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("position", [1, HELD])
def test_a_shard_that_kills_three_workers_ends_the_run_and_is_named(when, position):
    """It may kill them when it is read, computed or written: they have others then."""
    cluster = FakeCluster(3, dies=lambda actor, now: now == when and 7 in list(actor.held)[:position])
    with pytest.raises(EmbedkitError, match=r"3 workers died at shard 7 \(rows 70 to 79\)") as error:
        run(cluster, 30)
    assert error.value.exit_code == 1
    assert "--on-exists resume" in error.value.hint
    assert cluster.given[7] == 3
    assert all(actor.dead for actor in cluster.actors)


def test_workers_that_die_before_they_have_a_shard_end_the_run():
    cluster = FakeCluster(2, dies=lambda actor, when: actor.ready)
    with pytest.raises(EmbedkitError, match="died before it had a shard, as those before it"):
        run(cluster, 4)


def test_a_node_that_ray_does_not_know_to_be_gone_delays_the_run_and_does_not_end_it():
    cluster = FakeCluster(2, dies=lambda actor, when: actor.number < 20)
    told = run(cluster, 4)
    assert set(cluster.committed) == set(range(4))
    assert [note for note in told.notices if "died" in note] == []
    with pytest.raises(EmbedkitError, match="before it had a shard"):
        run(FakeCluster(2, dies=lambda actor, when: True), 4)


def test_the_run_begins_with_the_least_workers_and_late_ones_join():
    # The third actor is not there before ten shards are done.
    def turn(n):
        waiting = list(cluster.calls)
        late = sum(cluster.committed.values()) < 10
        usable = [place for place, actor in enumerate(waiting) if not (late and actor.number == 2)]
        return usable[next(polls) % len(usable)]

    polls = itertools.count()
    cluster = FakeCluster(3, least=2, turn=turn)
    run(cluster, 40)
    assert cluster.actors[2].went
    assert sum(cluster.committed.values()) == 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda of: setattr(of, "versions", lambda n: {**Node.here().versions, "torch": f"9.{n}"}),
            "node host has torch 9.0",
        ),
        (lambda of: setattr(of, "versions", lambda _: {"python": "3.11"}), "node host has no"),
        (lambda of: of.kinds.update({1: "another CPU"}), r"worker 1 .* another CPU, and worker 0 .* on a CPU"),
        (lambda of: of.facts.update({1: {"fingerprint": "g"}}), "worker 1 .* loaded another model than the plan"),
        (lambda of: of.facts.update({1: {"engine": "lean"}}), "worker 1 .* runs the model by lean"),
    ],
)
def test_a_node_that_would_compute_something_else_is_refused_by_name(change, message):
    cluster = FakeCluster(2, least=2)
    change(cluster)
    with pytest.raises(UsageError, match=message) as error:
        run(cluster, 9)
    assert error.value.hint
    assert not cluster.given


def test_a_request_to_stop_ends_all_workers(monkeypatch):
    stop = threading.Event()
    cluster = FakeCluster(2, turn=lambda n: next(polls) % n)
    polls = itertools.count()
    monkeypatch.setattr(cluster, "check", lambda: sum(cluster.committed.values()) > 5 and stop.set())
    with pytest.raises(Stopped, match="shards are committed"):
        run(cluster, 50, stop=stop)
    assert all(actor.stopped and actor.dead for actor in cluster.actors)


def test_a_node_without_embedkit_is_refused(monkeypatch):
    cluster = FakeCluster(1)
    monkeypatch.setattr(cluster, "poll", lambda _: [(cluster.actors[0], Death("died", never_began=True))])
    with pytest.raises(UsageError, match="worker 0 cannot be started"):
        run(cluster, 3)


def test_a_mailbox_keeps_counts_and_hands_out_the_rest_at_once():
    mailbox = Mailbox()
    line = Line(mailbox)
    line.listen()
    line.batch(1, 2, 3)
    began = time.monotonic()
    assert mailbox.messages(0.2) == ['{"batch": [1, 2, 3]}']
    assert time.monotonic() - began > 0.15
    threading.Timer(0.05, lambda: line.notice("ready")).start()
    began = time.monotonic()
    mailbox.order("7")
    assert mailbox.messages(30.0) == ['{"notice": "ready"}']
    assert time.monotonic() - began < 10
    assert line.order() == 7
    assert not line.stop.is_set()
    mailbox.order(json.dumps("stop"))
    with pytest.raises(Stopped):
        line.order()


GPUS = [NodeResources(16, 4), NodeResources(16, 4)]


@pytest.mark.parametrize(
    ("workers", "per_gpu", "nodes", "device", "useful", "expected"),
    [
        (None, None, [NodeResources(8, 0), NodeResources(8, 0)], "auto", 99, ActorPlan(1, 2, 8, 0)),
        (None, None, [NodeResources(0, 0), NodeResources(6, 0)], "cpu", 99, ActorPlan(1, 1, 6, 0)),
        ((1, 5), None, [NodeResources(8, 0), NodeResources(8, 0)], "cpu", 99, ActorPlan(1, 5, 2, 0)),
        ((2, 5), None, [NodeResources(8, 0)], "auto", 3, ActorPlan(2, 3, 1, 0)),
        ((3, 4), None, [], "auto", 99, ActorPlan(3, 4, 1, 0)),
        (None, None, GPUS, "auto", 99, ActorPlan(1, 8, 4, 1)),
        (None, 2, GPUS, "cuda", 99, ActorPlan(1, 16, 2, 0.5)),
        (None, 3, [NodeResources(2, 1)], "cuda", 99, ActorPlan(1, 3, 1, 0.3333)),
        (None, None, GPUS, "cpu", 99, ActorPlan(1, 2, 16, 0)),
        ((1, 9), None, [], "cuda", 99, ActorPlan(1, 9, 1, 1)),
    ],
)
def test_how_many_actors_are_asked_for_and_with_what(workers, per_gpu, nodes, device, useful, expected):
    least, most = workers or (1, None)
    config = EngineConfig("ray", least_workers=least, most_workers=most, workers_per_gpu=per_gpu)
    assert plan_actors(config, nodes, device, useful) == expected


@pytest.mark.parametrize(
    ("device", "options", "nodes", "said", "way_out"),
    [
        ("cuda", {}, [], "no GPU yet", "such as --workers 8"),
        ("auto", {}, [], "no CPU yet", "such as --workers 8"),
        ("cuda", {"workers_per_gpu": 2}, [NodeResources(8, 0)], "no GPU yet", "--device cpu computes on the CPUs"),
        ("auto", {"workers_per_gpu": 2}, [NodeResources(8, 0)], "--workers-per-gpu: no node", "leave it out"),
        ("auto", {"workers_per_gpu": 2, "most_workers": 4}, [], "--workers-per-gpu: no node", "--device cuda"),
        ("cuda", {"most_workers": 1}, None, "--device cuda: this machine has no GPU", "--ray-address"),
        ("auto", {"workers_per_gpu": 2}, None, "--workers-per-gpu: this machine has no GPU", "--ray-address"),
    ],
)
def test_workers_that_cannot_be_counted_are_refused_with_a_way_out(device, options, nodes, said, way_out):
    with pytest.raises(UsageError, match=said) as error:
        plan_actors(EngineConfig("ray", **options), nodes or [], device, 9, may_grow=nodes is not None)
    assert way_out in error.value.hint


@pytest.mark.parametrize(
    ("text", "expected"), [(None, None), ("4", (1, 4)), ("2:16", (2, 16)), ("16:2", "2:16"), ("x", "whole number")]
)
def test_numbers_of_workers(text, expected):
    if isinstance(expected, str):
        with pytest.raises(UsageError) as error:
            parse_workers(text)
        assert expected in error.value.hint
    else:
        assert parse_workers(text) == expected


def test_a_model_that_is_not_on_the_node_is_refused_and_one_that_is_there_is_hashed_there(bert, tmp_path):
    folder = ModelFolder("bert", bert, None, None, {}, bert, hashed={"model.safetensors": "of the run's machine"})
    spec = Spec(SimpleNamespace(model=ModelConfig(model=str(bert))), folder)
    assert "of the run's machine" not in spec_here(spec).folder.hashes().values()
    with pytest.raises(ModelError, match=r"there is no model in .*gone"):
        spec_here(replace(spec, folder=replace(folder, folder=tmp_path / "gone")))


@pytest.mark.parametrize(
    ("address", "code", "said"),
    [
        ("http://127.0.0.1:8265", 2, "RAY_ADDRESS cannot be 'http://127.0.0.1:8265'"),  # of `ray job submit`
        ("10.0.0.1", 2, "RAY_ADDRESS cannot be '10.0.0.1'"),
        ("127.0.0.1:1", 1, "cannot connect to Ray at 127.0.0.1:1: Connection refused"),
        ("head.invalid:6379", 1, "cannot connect to Ray at head.invalid:6379: "),
    ],
)
def test_an_address_without_a_cluster_is_refused_at_once(encode, tmp_path, monkeypatch, address, code, said):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("embedkit.engines.ray_head._KNOCK_SECONDS", 0.3)
    ran = encode(NOTES, "-o", tmp_path / "out", "--engine", "ray")
    assert (ran.code, said in ran.err, "HOST:PORT" in ran.err) == (code, True, True), ran.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-o", "-"), "neither read stdin nor write to stdout"),
        (("--group-by", "label"), "--group-by needs all rows in one place"),
        (("--num-shards", 2, "--shard-id", 0), "--engine ray spreads the work itself"),
        (("--device", "cpu,cpu"), "Ray gives each worker a GPU of its own"),
        (("--ray-address", "ray://head:10001"), "--ray-address cannot be"),
        (("--device", "cpu", "--workers-per-gpu", 2), "--workers-per-gpu with --device cpu"),
        (("--engine", "local", "--workers", "2:3"), "all start at once"),
        (("--engine", "local", "--ray-address", "auto"), "--ray-address is for --engine ray"),
    ],
)
def test_what_ray_cannot_do_is_refused_with_a_way_out(encode, tmp_path, options, message):
    ran = encode(NOTES, "-o", tmp_path / "out", "--engine", "ray", *options)
    assert (ran.code, message in ran.err, "hint: " in ran.err) == (2, True, True), ran.err


def test_without_ray_the_extra_is_named(encode, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    ran = encode(NOTES, "-o", tmp_path / "out", "--engine", "ray")
    assert ran.code == 2
    assert ran.told == [
        "error: --engine ray needs the package ray",
        "hint: install it on all nodes: pip install 'embedkit-cli[ray]'",
    ]


def test_ray_has_the_private_names_by_which_it_starts_faster():
    node = pytest.importorskip("ray._private.node", reason="in the dev extra")
    from ray._private import services, state, utils

    assert all(callable(vars(node.Node)[name]) for name in ray_start.UNUSED_PROCESSES)
    assert callable(utils.get_dashboard_dependency_error)
    assert all(callable(of) for of in (services.get_node, services._get_gcs_client_options))
    assert callable(state.GlobalState.node_table)
    before = services.get_node
    with ray_start.quick_start():
        assert services.get_node is not before
    assert services.get_node is before


@pytest.mark.timeout(240)
def test_a_ray_of_this_machine_makes_the_same_bytes_and_leaves_nothing_behind(encode, bert, tmp_path):
    (tmp_path / "home").mkdir()
    environment = {**os.environ, "TMPDIR": "/tmp", "HOME": str(tmp_path / "home")}  # noqa: S108
    environment.pop("RAY_ADDRESS", None)
    command = ("-m", "embedkit", "encode", NOTES, "-m", bert, "-o", tmp_path / "ray" / "out", "--shard-rows", "8")
    (tmp_path / "ray").mkdir()
    before = set(os.listdir("/tmp"))  # noqa: S108, PTH208
    ran = subprocess.run(
        [sys.executable, *map(str, command), "--engine", "ray", "--workers", "2", "--precision", "int8"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
    assert "2 Ray workers, cpu" in ran.stderr
    left = {name for name in set(os.listdir("/tmp")) - before if name.startswith("embedkit-")}  # noqa: S108, PTH208
    assert not left
    assert not list((tmp_path / "home").rglob("*auth_token*"))
    (tmp_path / "one").mkdir()
    assert encode(NOTES, "-o", tmp_path / "one" / "out", "--shard-rows", 8, "--precision", "int8").code == 0
    assert_same(tmp_path / "ray", tmp_path / "one")
