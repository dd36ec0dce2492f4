"""Has the segments of an input scanned by Ray actors, on all nodes of a cluster, before there is a plan.

The actors hold no model: each takes one processor, and all end with the last segment. They send back what a scan
has found, numbers and hashes; no row. While Ray has no room for any, this process scans. Imports no ray by itself.
"""

from __future__ import annotations

import json
import os
import pickle
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from embedkit.config import RunConfig
from embedkit.engines.node import Node
from embedkit.engines.ray_cluster import Cluster, Death, RayCluster, ray_address
from embedkit.engines.scan_pool import scanner_of
from embedkit.engines.scanning import Scanner, ScanTask
from embedkit.engines.segments import SegmentScan
from embedkit.errors import EmbedkitError, InputError, Stopped, UsageError

_POLL_SECONDS = 0.1
#: Seconds that this process waits for the first actor before it scans a segment by itself.
_PATIENCE_SECONDS = 10.0
#: Actors that may die with the same segment.
_DEATHS = 3
#: Actors that are asked for in place of those that never came: Ray learns late that a node is gone.
_FALSE_STARTS = 10


def ray_scanner_of(config: RunConfig, stop: threading.Event, notice: Callable[[str], None]) -> Scanner | None:
    """Returns the scanner of a run with Ray.

    Args:
        config: the user's options.
        stop: set from outside to end the run.
        notice: tells the user something.

    Returns:
        Actors of the cluster; processes of this machine if Ray is started here for this run alone.
    """
    if ray_address(config.engine) != "local":
        return partial(scan_by_actors, cluster=RayCluster(config.engine), stop=stop, notice=notice)
    return scanner_of(config.engine.most_workers or os.cpu_count() or 1, stop)


def scan_by_actors(
    tasks: Sequence[ScanTask], *, cluster: Cluster, stop: threading.Event, notice: Callable[[str], None]
) -> Iterator[SegmentScan]:
    """Scans segments by actors of a cluster; see Scanner.

    Raises:
        Stopped: `stop` was set.
        InputError: a node has another file than this process, or none.
        UsageError: a node has other versions than this process.
        EmbedkitError: a segment has killed three actors, or the cluster is gone.
    """
    if not tasks:
        return
    with cluster:
        scanning = _ActorScan(cluster, tasks)
        try:
            scanning.begin()
            notice(f"{scanning.size} actors of Ray look through {len(tasks)} segments of the input")
            while scanning.is_unfinished:
                if stop.is_set():
                    raise Stopped("stopped by a signal; no shard was begun", hint="the same command starts again")
                yield from scanning.step()
        finally:
            scanning.end()


@dataclass(eq=False)
class _Scanning:
    """An actor that scans."""

    actor: Any
    host: str = ""  # once it has said where it is
    is_ready: bool = False  # True once it knows the input
    task: ScanTask | None = None  # that it has


class _ActorScan:
    """The state of a scan by actors."""

    def __init__(self, cluster: Cluster, tasks: Sequence[ScanTask]) -> None:
        self._cluster = cluster
        self._left = deque(tasks)
        self._job = pickle.dumps(tasks[0].job)
        self._members: dict[Any, _Scanning] = {}
        self._here = Node.here()
        self._deaths = Counter[int]()  # by number of the segment
        self._false_starts = 0
        self._since = time.monotonic()

    @property
    def size(self) -> int:
        """Number of actors."""
        return len(self._members)

    @property
    def is_unfinished(self) -> bool:
        """True until every segment has been scanned."""
        return bool(self._left) or any(member.task is not None for member in self._members.values())

    def begin(self) -> None:
        """Asks for actors."""
        for _ in range(self._cluster.plan_scanners(len(self._left))):
            self._add()

    def end(self) -> None:
        """Ends all actors."""
        for actor in self._members:
            self._cluster.kill(actor)

    def step(self) -> Iterator[SegmentScan]:
        """Waits a moment for the scans of actors; scans a segment here while there is no actor."""
        self._cluster.check()
        is_alone = not any(member.host for member in self._members.values())
        if self._left and is_alone and (not self._members or time.monotonic() - self._since > _PATIENCE_SECONDS):
            yield self._left.popleft().run()
            return
        for actor, answer in self._cluster.poll(_POLL_SECONDS):
            member = self._members[actor]
            if isinstance(answer, Death):
                self._died(member, answer)
            elif member.is_ready:
                member.task = None
                yield _scan_of(member.host, answer)
            elif member.host:
                member.is_ready = True
            else:
                node = Node(*answer)
                node.check_same_versions(self._here)
                member.host = node.host
                self._cluster.call(actor, "open_input", self._job)
        for member in self._members.values():
            if self._left and member.is_ready and member.task is None:
                task = member.task = self._left.popleft()
                self._cluster.call(
                    member.actor, "scan", task.part.first, task.part.stop, task.part.piece, task.index
                )

    def _add(self) -> None:
        actor = self._cluster.create()
        self._members[actor] = _Scanning(actor)
        self._cluster.call(actor, "hello")

    def _died(self, member: _Scanning, death: Death) -> None:
        """Takes back the segment of an actor that has died, and asks for another actor."""
        del self._members[member.actor]
        self._cluster.kill(member.actor)
        if member.task is None:
            if death.never_began and not member.host:
                raise UsageError(
                    "a worker that is to scan the input cannot be started: this version of embedkit is not on its "
                    "node, or lacks a library",
                    hint="install the same versions on all nodes, such as by one container image",
                )
            self._false_starts += 1
        else:
            number = member.task.index
            self._left.appendleft(member.task)
            self._deaths[number] += 1
            if self._deaths[number] >= _DEATHS:
                raise EmbedkitError(
                    f"{_DEATHS} workers died at segment {number} of the input; the last one, on node "
                    f"{member.host}, {death.how}",
                    hint="the logs of Ray there may say why; the same command starts again",
                )
        if self._false_starts < _FALSE_STARTS:
            self._add()


def _scan_of(host: str, answer: str) -> SegmentScan:
    found = json.loads(answer)
    if "error" in found:
        raise InputError(f"node {host}: {found['error']}", hint=found["hint"])
    return SegmentScan.parse(found["scan"].encode(), host)
