"""The engine that computes shards in several processes of this machine, and notices at once if one dies.

Each worker has a pipe of its own and they share no lock, so a killed worker blocks no other. Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Self

from embedkit.config import RunConfig
from embedkit.engines.base import EngineSetup, EngineStats, ShardJob
from embedkit.engines.signals import blocked
from embedkit.engines.worker import work
from embedkit.errors import EmbedkitError, Stopped, UsageError
from embedkit.inference.build import ModelFacts
from embedkit.manifest.schema import ModelSource, Plan, ShardRecord
from embedkit.output.destination import AlreadyCompleted
from embedkit.types import DeviceStats, Variant

#: spawn: a process that has used threads, as all of these libraries do, cannot be forked safely.
_CONTEXT = multiprocessing.get_context("spawn")
_POLL_SECONDS = 0.1
#: Seconds in which workers may end after a signal, and after another one failed; then they are killed.
_STOP_SECONDS, _FAIL_SECONDS = 15.0, 5.0
_KINDS: dict[str, type[EmbedkitError]] = {
    kind.__name__: kind for base in EmbedkitError.__subclasses__() for kind in (base, *base.__subclasses__())
}
_RESUME = "committed shards stay; the same command with --on-exists resume continues"


@dataclass
class _Worker:
    """A worker process and its state."""

    name: str  # in error messages
    process: BaseProcess
    link: Connection  # to the process
    facts: ModelFacts | None = None  # None while it is loading the model
    shards: deque[int] = field(default_factory=deque)  # given to it and not committed, the oldest first
    use: DeviceStats | None = None  # None if not measured
    ended: bool = False  # True once it has finished

    def send(self, order: str | int | None) -> None:
        """Sends an order."""
        self.link.send_bytes(json.dumps(order).encode())


class WorkerPool:
    """Runs worker processes on this machine; see Engine. Workers are spread over the devices in turn."""

    def __init__(self, setup: EngineSetup) -> None:
        self.setup = setup
        self.stats = EngineStats()
        self._shards_done = 0
        self._is_running = False
        self._workers: list[_Worker] = []
        self._ranges: dict[str, dict[str, list[float]]] | None = None
        self._left: Iterator[int] = iter(())

    def __enter__(self) -> Self:
        workers = self.setup.workers
        for number in range(workers):
            config = _of_worker(self.setup.config, number, workers)
            ours, theirs = _CONTEXT.Pipe()
            arguments = (config, self.setup.spec, workers, theirs)
            process = _CONTEXT.Process(target=work, args=arguments, name=f"embedkit-{number}", daemon=True)
            with blocked():
                process.start()
            theirs.close()
            name = f"worker {number} of {workers} ({config.model.device})"
            self._workers.append(_Worker(name, process, ours))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for worker in self._workers:
            if kind is not None:
                worker.process.kill()
            worker.process.join()
            worker.link.close()

    def _device_stats(self) -> DeviceStats:
        """Returns the sum of all workers' seconds, and the memory of the one that took most."""
        uses = [worker.use for worker in self._workers if worker.use is not None]
        return DeviceStats(
            busy=sum(use.busy for use in uses),
            waited=sum(use.waited for use in uses),
            allocated=max(use.allocated for use in uses),
            reserved=max(use.reserved for use in uses),
        )

    def load(self) -> ModelFacts:
        """See Engine; returns as soon as one worker has loaded the model."""
        with self._workers_end_on_failure():
            model = self._first_ready()[1]
        return replace(model, device=f"{len(self._workers)} workers, {model.device}")

    def calibrate(self) -> dict[str, dict[str, list[float]]]:
        """See Engine; one of the workers does it."""
        with self._workers_end_on_failure():
            self._send(self._first_ready()[0], "calibrate")
            while self._ranges is None:
                self._receive()
            return self._ranges

    def run(self, job: ShardJob) -> Mapping[int, ShardRecord]:
        """See Engine."""
        self._shards_done, self._is_running = len(job.done), True
        self._left = iter(job.shards or ())
        started: list[_Worker] = []
        with self._workers_end_on_failure():
            while not all(worker.ended for worker in self._workers):
                for worker in self._workers:
                    if worker.facts is not None and worker not in started:
                        started.append(worker)
                        _check_recipe(worker.name, worker.facts, job.plan)
                        self._send(worker, "go")
                self._receive()
        return job.destination.committed()

    def _first_ready(self) -> tuple[_Worker, ModelFacts]:
        """Waits for the first worker that has loaded the model."""
        while True:
            for worker in self._workers:
                if worker.facts is not None:
                    return worker, worker.facts
            self._receive()

    @contextlib.contextmanager
    def _workers_end_on_failure(self) -> Iterator[None]:
        try:
            yield
        except Stopped:
            self._dismiss(_STOP_SECONDS)
            done = f"{self._shards_done} shards are committed" if self._is_running else "no shard was begun"
            raise Stopped(
                f"stopped by a signal; {done}",
                hint="the same command with --on-exists resume continues from there",
            ) from None
        except BaseException:
            self._dismiss(_FAIL_SECONDS)
            raise

    def _dismiss(self, seconds: float) -> None:
        """Asks all workers to end after their current batch; kills those that take longer."""
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.send("stop")
        until = time.monotonic() + seconds
        left = list(self._workers)
        while left and time.monotonic() < until:
            # Their messages are still received, or they would block.
            ready = wait([worker.link for worker in left], _POLL_SECONDS)
            for worker in [worker for worker in left if worker.link in ready]:
                try:
                    self._count(worker, json.loads(worker.link.recv_bytes()))
                except (EOFError, OSError):
                    left.remove(worker)
        for worker in self._workers:
            if worker in left:
                worker.process.kill()
            worker.process.join()

    def _receive(self) -> None:
        if self.setup.stop.is_set():
            raise Stopped("stopped", hint=_RESUME)
        present = [worker for worker in self._workers if not worker.ended]
        ready = set(wait([thing for w in present for thing in (w.link, w.process.sentinel)], _POLL_SECONDS))
        for worker in present:
            if worker.link in ready:
                try:
                    message = json.loads(worker.link.recv_bytes())
                except (EOFError, OSError):
                    self._report_death(worker)
                self._handle(worker, message)
            elif worker.process.sentinel in ready and not worker.link.poll():
                self._report_death(worker)

    def _handle(self, worker: _Worker, message: dict[str, Any]) -> None:
        self._count(worker, message)
        match message:
            case {"ask": _}:
                shard = next(self._left, None)
                if shard is not None:
                    worker.shards.append(shard)
                self._send(worker, shard)
            case {"ready": facts}:
                variants = tuple(Variant(**variant) for variant in facts.pop("variants"))
                source = ModelSource(**facts.pop("source"))
                notices = tuple(facts.pop("notices"))
                worker.facts = ModelFacts(**facts, notices=notices, variants=variants, source=source)
            case {"ranges": ranges}:
                self._ranges = ranges
            case {"notice": sentence}:
                self.setup.callbacks.notice(sentence)
            case {"end": _}:
                worker.ended = True
            case {"already_completed": _}:
                raise AlreadyCompleted
            case {"error": kind, "message": sentence, "hint": hint}:
                raise _KINDS.get(kind, EmbedkitError)(sentence, hint=hint)
            case {"fault": fault}:
                raise EmbedkitError(
                    f"a fault of embedkit in {worker.name}: {fault}",
                    hint=f"please report this line with your versions (`embedkit doctor`); {_RESUME}",
                )

    def _count(self, worker: _Worker, message: dict[str, Any]) -> None:
        match message:
            case {"batch": [texts, tokens, cells]}:
                self.stats.tokens += tokens
                self.setup.callbacks.batch(texts, tokens, cells)
            case {"tokenized": [shard, tokens]}:
                self.setup.callbacks.tokenized(shard, tokens)
            case {"device": use}:
                worker.use = DeviceStats(**use)
                self.stats.device = self._device_stats()
                self.setup.callbacks.device(self.stats.device)
            case {"done": rows}:
                worker.shards.popleft()
                self._shards_done += 1
                self.stats.rows += rows
                self.setup.callbacks.shard_done(rows)

    def _send(self, worker: _Worker, order: str | int | None) -> None:
        try:
            worker.send(order)
        except OSError:
            self._report_death(worker)

    def _report_death(self, worker: _Worker) -> None:
        worker.process.join(_FAIL_SECONDS)
        code = worker.process.exitcode
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = "closed its connection" if code is None else f"ended with exit code {code}"
        where = f"at shard {worker.shards[0]}" if worker.shards else "before it had a shard"
        memory = "; fewer --workers or --batch-tokens need less memory" if code == -signal.SIGKILL else ""
        raise EmbedkitError(f"{worker.name} {how} {where}", hint=f"{_RESUME}{memory}")


def _of_worker(config: RunConfig, number: int, workers: int) -> RunConfig:
    """Returns the configuration of one worker: its device, and to join the stored plan."""
    devices = config.model.devices
    device = devices[number % len(devices)]
    # Workers are spread over the devices in turn, and a device may be named twice.
    on_device = sum(devices[other % len(devices)] == device for other in range(workers))
    return replace(
        config,
        model=replace(config.model, device=device),
        output=replace(config.output, on_exists="resume"),
        share=replace(
            config.share, workers=1, place=(config.share.place or 0) * workers + number, on_device=on_device
        ),
    )


def _check_recipe(name: str, facts: ModelFacts, plan: Plan) -> None:
    if facts.fingerprint != plan.fingerprint:
        now, planned = facts.recipe["dtype"], plan.recipe["dtype"]
        raise UsageError(
            f"{name} would compute other numbers than the plan: in {now} instead of {planned}"
            if now != planned
            else f"{name} loaded another model than the plan's",
            hint="name devices of one kind, or --dtype",
        )
