"""The engine that computes shards in Ray actors, on this machine or on all nodes of a cluster.

An actor that dies is replaced, and its shards are given to others: Ray's own restarts are off, since they would
lose what an actor was about to say. Actors that Ray has no room for yet join later. Imports neither ray nor torch.
"""

from __future__ import annotations

import json
import os
import pickle
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Self

from embedkit.config import RunConfig
from embedkit.engines.base import EngineSetup, EngineStats, ShardJob
from embedkit.engines.dispatch import RESUME, Dispatcher, Worker
from embedkit.engines.node import Node
from embedkit.engines.ray_cluster import ActorPlan, Cluster, Death, RayCluster
from embedkit.engines.worker import WorkerTask
from embedkit.errors import EmbedkitError, Stopped, UsageError
from embedkit.inference.build import ModelFacts
from embedkit.manifest.schema import Int8Ranges, ShardRecord
from embedkit.storage.remote_path import is_uri

_POLL_SECONDS = 0.1
#: Seconds that an actor waits for something to say; counts alone are told as often.
_RECEIVE_SECONDS = 1.0
#: Seconds without any worker after which the user is told.
_PATIENCE_SECONDS = 30.0
#: Times in a row that a worker may die without a shard.
_DEATHS = 3
#: Times in a row that an actor may die before it runs, and seconds between: Ray learns late that a node is gone.
_FALSE_STARTS, _PAUSE_SECONDS = 30, 2.0
#: Messages after which a worker says nothing more.
_LAST = frozenset({"end", "error", "fault", "other_input", "already_completed"})


@dataclass(frozen=True, slots=True)
class _Past:
    """Deaths in a row of the workers that one replaces, which had no shard."""

    deaths: int = 0
    false_starts: int = 0


@dataclass(eq=False)
class _Member:
    """A worker and its actor."""

    worker: Worker
    actor: Any
    before: _Past  # of the workers that it replaces
    kind: str | None = None  # of its device, once it is ready
    greeted: bool = False  # True once its node is known
    started: bool = False  # True once it computes
    is_called: bool = True  # True while an answer is to come


class RayEngine:
    """Runs workers as Ray actors; see Engine.

    Args:
        setup: see Engine.
        cluster: Ray; by default as `EngineSetup.config.engine` says.
    """

    def __init__(self, setup: EngineSetup, cluster: Cluster | None = None) -> None:
        self.setup = setup
        self._cluster = cluster or RayCluster(setup.config.engine)
        self._dispatcher = Dispatcher(setup, self._send)
        self._members: dict[Any, _Member] = {}  # by actor
        self._answers: deque[tuple[Any, Any]] = deque()  # that have come, with their actors
        self._due: list[tuple[float, _Past]] = []  # when to ask for more actors
        self._numbers = count()
        self._plan = ActorPlan(1, 1, 1, 0.0)
        self._task = b""
        self._here = Node.here()
        self._kind: tuple[str, str] | None = None  # of devices, and the worker that was first to tell
        self._waiting_since = 0.0

    @property
    def stats(self) -> EngineStats:
        """See Engine."""
        return self._dispatcher.stats

    def __enter__(self) -> Self:
        self.setup.callbacks.notice("connecting to Ray")
        self._cluster.__enter__()
        try:
            device = self.setup.config.model.device
            self._plan = self._cluster.plan(device, self.setup.workers)
            self._task = pickle.dumps(self._worker_task())
            for _ in range(self._plan.most):
                self._add(_Past())
        except BaseException:
            self._cluster.__exit__()
            raise
        self.setup.callbacks.notice(f"asking for {self._plan.workers}, {self._plan.needs} each")
        self._waiting_since = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for actor in list(self._members):
            self._remove(actor)
        self._cluster.__exit__()

    def load(self) -> ModelFacts:
        """See Engine; returns as soon as the least number of workers have loaded the model."""
        with self._dispatcher.workers_end_on_failure(self._dismiss):
            while self._n_ready() < self._plan.least or (first := self._dispatcher.first_ready()) is None:
                self._receive()
        return replace(first[1], device=f"{self._plan.workers}, {first[1].device}")

    def calibrate(self) -> Int8Ranges:
        """See Engine; one of the workers does it, and another one if that dies."""
        asked = None
        with self._dispatcher.workers_end_on_failure(self._dismiss):
            while self._dispatcher.ranges is None:
                first = self._dispatcher.first_ready()
                if first is not None and first[0] is not asked:
                    asked = first[0]
                    self._send(asked, "calibrate")
                self._receive()
        return self._dispatcher.ranges

    def run(self, job: ShardJob) -> Mapping[int, ShardRecord]:
        """See Engine."""
        with self._dispatcher.workers_end_on_failure(self._dismiss):
            self._dispatcher.begin(job)
            while not self._dispatcher.is_done:
                self._receive()
        return job.destination.recorded()

    def _worker_task(self) -> WorkerTask:
        before = os.umask(0o077)
        os.umask(before)
        config = _of_worker(self.setup.config, self._plan)
        # At a path, nodes may see other files: they open the input for themselves. An object store is one for all.
        is_everywhere = all(is_uri(name) for name in config.input.inputs)
        table = self.setup.table.facts if is_everywhere else None
        return WorkerTask(config, self.setup.spec, self._plan.cpus, table, is_remote=True, umask=before)

    def _n_ready(self) -> int:
        return sum(worker.facts is not None for worker in self._dispatcher.workers)

    def _add(self, before: _Past) -> None:
        number = next(self._numbers)
        actor = self._cluster.create()
        self._members[actor] = _Member(Worker(number, f"worker {number}", is_remote=True), actor, before)
        self._dispatcher.workers.append(self._members[actor].worker)
        self._cluster.call(actor, "hello")

    def _remove(self, actor: Any) -> None:
        del self._members[actor]
        self._cluster.kill(actor)

    def _dismiss(self, seconds: float) -> None:
        """Asks all workers to end after their current batch, and waits for them."""
        computing = {actor for actor, of in self._members.items() if of.started and not of.worker.ended}
        for actor in computing:
            self._cluster.tell(actor, "stop")
        until = time.monotonic() + seconds
        while computing and time.monotonic() < until:
            for actor in computing:
                if not self._members[actor].is_called:
                    self._ask(self._members[actor])
            self._answers += self._cluster.poll(_POLL_SECONDS)
            while self._answers:
                actor, answer = self._answers.popleft()
                if actor not in computing:
                    continue
                member = self._members[actor]
                member.is_called = False
                messages = [json.loads(text) for text in answer or ()] if isinstance(answer, list) else []
                for message in messages:
                    self._dispatcher.count(member.worker, message)
                has_ended = any(not message.keys().isdisjoint(_LAST) for message in messages)
                if has_ended or isinstance(answer, Death):
                    computing.discard(actor)

    def _receive(self) -> None:
        if self.setup.stop.is_set():
            raise Stopped("stopped", hint=RESUME)
        self._cluster.check()
        self._tell_if_nobody_comes()
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            self._add(self._due.pop(0)[1])
        self._answers += self._cluster.poll(_POLL_SECONDS)
        while self._answers:
            actor, answer = self._answers.popleft()
            member = self._members.get(actor)
            if member is None:
                continue
            member.is_called = False
            if isinstance(answer, Death):
                self._died(member, answer)
            elif not member.greeted:
                self._greet(member, Node(*answer))
            elif not member.started:
                member.started = True
                self._ask(member)
            else:
                self._handle(member, answer)

    def _greet(self, member: _Member, node: Node) -> None:
        """Takes the first answer of an actor: the node that it is on."""
        node.check_same_versions(self._here)
        member.greeted = True
        member.worker.name = f"worker {member.worker.number} on node {node.host} (process {node.pid})"
        self._call(member, "start", self._task)

    def _handle(self, member: _Member, texts: list[str]) -> None:
        worker = member.worker
        for text in texts:
            message = json.loads(text)
            if "ready" in message:
                self._check_kind(worker.name, message["kind"])
            if "done" in message:
                member.before = _Past()
            worker.ended = worker.ended or not message.keys().isdisjoint(_LAST)
            self._dispatcher.handle(worker, message)
        if worker.ended:
            self._remove(member.actor)
        else:
            self._ask(member)

    def _ask(self, member: _Member) -> None:
        self._call(member, "messages", _RECEIVE_SECONDS)

    def _call(self, member: _Member, method: str, *arguments: Any) -> None:
        member.is_called = True
        self._cluster.call(member.actor, method, *arguments)

    def _send(self, worker: Worker, order: str | int | None) -> None:
        member = next(member for member in self._members.values() if member.worker is worker)
        self._cluster.tell(member.actor, "order", json.dumps(order))

    def _check_kind(self, name: str, kind: str) -> None:
        """Checks that devices are of one kind: others compute other last digits."""
        if self._kind is None:
            self._kind = kind, name
        elif self._kind[0] != kind:
            raise UsageError(
                f"{name} computes on {kind}, and {self._kind[1]} on {self._kind[0]}: their last digits differ",
                hint="let the cluster have nodes of one kind for this run",
            )

    def _died(self, member: _Member, death: Death) -> None:
        """Gives the shards of a worker to others, and asks for another worker."""
        worker = member.worker
        self._remove(member.actor)
        if death.never_began and not member.greeted:
            raise UsageError(
                f"{worker.name} cannot be started: this version of embedkit is not on its node, or lacks "
                "a library",
                hint="install the same versions on all nodes, such as by one container image",
            )
        lost = len(worker.shards)
        self._dispatcher.lost(worker, death.how)
        if not member.greeted:
            past = replace(member.before, false_starts=member.before.false_starts + 1)
        else:
            past = _Past(0 if lost else member.before.deaths + 1)
            self.setup.callbacks.notice(
                f"{worker.name} {death.how}; another one is started"
                + (f", and {lost} shards that it had are computed again" if lost else "")
            )
        if past.deaths >= _DEATHS or past.false_starts >= _FALSE_STARTS:
            raise EmbedkitError(
                f"{worker.name} {death.how} before it had a shard, as those before it",
                hint="the logs of Ray on that node may say why; a model that does not fit into memory needs fewer "
                f"workers on a node; {RESUME}",
            )
        self._due.append((time.monotonic() + (0.0 if member.greeted else _PAUSE_SECONDS), past))
        self._due.sort(key=lambda of: of[0])

    def _tell_if_nobody_comes(self) -> None:
        if any(member.greeted for member in self._members.values()):
            self._waiting_since = time.monotonic()
        elif time.monotonic() - self._waiting_since > _PATIENCE_SECONDS:
            self._waiting_since = float("inf")
            self.setup.callbacks.notice(
                f"still waiting for Ray to find room for a worker with {self._plan.needs}; `ray status` shows "
                "what the cluster has"
            )


def _of_worker(config: RunConfig, plan: ActorPlan) -> RunConfig:
    """Returns the configuration of a worker: its device, and to join the stored plan."""
    device = "cuda" if plan.gpus else "cpu" if config.model.device == "auto" else config.model.device
    return replace(
        config,
        model=replace(config.model, device=device),
        output=replace(config.output, on_exists="resume"),
        share=replace(config.share, on_device=config.engine.workers_per_gpu or 1),
    )
