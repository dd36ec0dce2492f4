"""A cluster without Ray: actors that commit numbers instead of shards, and die when a test says so."""

from __future__ import annotations

import json
import pickle
from collections import Counter, deque
from dataclasses import asdict
from types import SimpleNamespace

from embedkit.config import EngineConfig, InputConfig, OutputConfig, RunConfig
from embedkit.engines.base import EngineSetup, ShardJob
from embedkit.engines.node import Node
from embedkit.engines.node_scan import NodeScanner
from embedkit.engines.ray_cluster import ActorPlan, Death
from embedkit.inference.build import ModelFacts
from embedkit.manifest.schema import ModelSource, Sharding

#: Shards that a worker may hold: two read, one computed, two written.
HELD = 5
FACTS = ModelFacts(
    recipe={"dtype": "fp32"},
    fingerprint="f",
    notices=(),
    device="cpu",
    engine="fused",
    variants=(),
    max_length=64,
    source=ModelSource(),
)
HERE = Node.here()


class FakeActor:
    def __init__(self, cluster, number):
        self.cluster, self.number = cluster, number
        self.held = deque()
        self.ready = self.went = self.asks = self.over = self.dead = self.stopped = False
        self.scans = []
        self.orders = []

    def hello(self):
        return "host", self.number, self.cluster.versions(self.number)

    def open_input(self, job):
        self.scanner = NodeScanner(pickle.loads(job))  # noqa: S301 - our own

    def scan(self, *segment):
        self.scans.append(self.scanner.scan(*segment))
        return self.scans[-1]

    def start(self, task):
        assert isinstance(task, bytes)

    def stop(self):
        self.stopped = True

    def order(self, order):
        self.orders.append(order)

    def messages(self, seconds):
        messages = []
        orders, self.orders = self.orders, []
        if not self.ready:
            self.ready = True
            kind = self.cluster.kinds.get(self.number, "a CPU")
            messages.append({"ready": asdict(FACTS) | self.cluster.facts.get(self.number, {}), "kind": kind})
        for order in map(json.loads, orders):
            if order == "calibrate":
                messages.append({"ranges": {"embedding": {"min": [0.0], "max": [1.0]}}})
            elif order == "go":
                self.went = True
            else:
                self.asks = False
                if order is None:
                    self.over = True
                    messages.append({"end": True})
                else:
                    self.cluster.given[order] += 1
                    self.held.append(order)
        if self.stopped:
            return [json.dumps({"error": "Stopped", "message": "a worker was stopped", "hint": "resume"})]
        if self.held and not orders:
            self.cluster.committed[self.held.popleft()] += 1
            messages.append({"done": 1})
        if self.went and not (self.asks or self.over) and len(self.held) < HELD:
            self.asks = True
            messages.append({"ask": True})
        return [json.dumps(message) for message in messages]


class FakeCluster:
    """Answers calls in the order in which `turn` picks them.

    An actor dies when `dies` says so: before it answers a call, or after, so that its answer is lost.
    """

    def __init__(self, workers=2, *, least=1, turn=lambda n: 0, dies=lambda actor, when: False):
        self.workers, self.least, self.turn, self.dies = workers, least, turn, dies
        self.versions = lambda number: dict(HERE.versions)
        self.kinds, self.facts = {}, {}
        self.actors, self.calls = [], {}
        self.given, self.committed = Counter(), Counter()
        self.is_open = False
        self.polls = 0

    def __enter__(self):
        self.is_open = True
        return self

    def __exit__(self, *_):
        self.is_open = False

    def plan(self, device, useful):
        return ActorPlan(self.least, min(self.workers, useful), 1, 0.0)

    def plan_scanners(self, useful):
        return min(self.workers, useful)

    def create(self):
        self.actors.append(FakeActor(self, len(self.actors)))
        return self.actors[-1]

    def call(self, actor, method, *arguments):
        assert actor not in self.calls, "an actor has one call at a time"
        self.calls[actor] = (method, arguments)

    def tell(self, actor, method, *arguments):
        getattr(actor, method)(*arguments)

    def kill(self, actor):
        actor.dead = True
        self.calls.pop(actor, None)

    def poll(self, seconds):
        if not self.calls:
            return []
        self.polls += 1
        # Every call is answered at some time: the first one in the dictionary waits the longest.
        actor = list(self.calls)[0 if self.polls % 20 == 0 else self.turn(len(self.calls))]
        method, arguments = self.calls.pop(actor)
        if self.dies(actor, "before"):
            return [(actor, Death("died"))]
        answer = getattr(actor, method)(*arguments)
        if self.dies(actor, "after"):  # what it has just said is lost with it
            return [(actor, Death("died"))]
        return [(actor, answer)]

    def check(self):
        pass


def setup(shards, callbacks, stop, *, workers=2):
    config = RunConfig(InputConfig(("a.csv",)), OutputConfig("out", "parquet"), engine=EngineConfig("ray"))
    made = EngineSetup(config, None, None, callbacks, stop, min(workers, shards))
    sharding = Sharding(10, 1000, 10 * shards, tuple(range(0, 10 * shards, 10)))
    plan = SimpleNamespace(fingerprint="f", recipe={"dtype": "fp32"}, engine="fused", sharding=sharding)
    destination = SimpleNamespace(recorded=lambda: "records")
    return made, ShardJob(plan, destination, {}, range(shards))
