"""The engine that computes shards in several processes of this machine, and notices at once if one dies.

Each worker has a pipe of its own and they share no lock, so a killed worker blocks no other. Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NoReturn, Self

from embedkit.config import RunConfig
from embedkit.engines.base import EngineSetup, EngineStats, ShardJob
from embedkit.engines.dispatch import FAIL_SECONDS, RESUME, Dispatcher, Worker
from embedkit.engines.signals import blocked
from embedkit.engines.worker import WorkerTask, work
from embedkit.errors import EmbedkitError, Stopped
from embedkit.inference.build import ModelFacts
from embedkit.manifest.schema import Int8Ranges, ShardRecord

#: spawn: a process that has used threads, as all of these libraries do, cannot be forked safely.
_CONTEXT = multiprocessing.get_context("spawn")
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class _Process:
    """The process of a worker, and the connection to it."""

    process: BaseProcess
    link: Connection

    def send(self, order: str | int | None) -> None:
        """Sends an order."""
        self.link.send_bytes(json.dumps(order).encode())


class WorkerPool:
    """Runs worker processes on this machine; see Engine. Workers are spread over the devices in turn."""

    def __init__(self, setup: EngineSetup) -> None:
        self.setup = setup
        self._dispatcher = Dispatcher(setup, self._send)
        self._processes: dict[Worker, _Process] = {}

    @property
    def stats(self) -> EngineStats:
        """See Engine."""
        return self._dispatcher.stats

    def __enter__(self) -> Self:
        workers = self.setup.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        for number in range(workers):
            config = _of_worker(self.setup.config, number, workers)
            ours, theirs = _CONTEXT.Pipe()
            task = WorkerTask(config, self.setup.spec, max(1, cores // workers), self.setup.table.facts)
            process = _CONTEXT.Process(target=work, args=(task, theirs), name=f"embedkit-{number}", daemon=True)
            with blocked():
                process.start()
            theirs.close()
            worker = Worker(number, f"worker {number} of {workers} ({config.model.device})")
            self._dispatcher.workers.append(worker)
            self._processes[worker] = _Process(process, ours)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for of in self._processes.values():
            if kind is not None:
                of.process.kill()
            of.process.join()
            of.link.close()

    def load(self) -> ModelFacts:
        """See Engine; returns as soon as one worker has loaded the model."""
        with self._dispatcher.workers_end_on_failure(self._dismiss):
            model = self._first_ready()[1]
        return replace(model, device=f"{len(self._processes)} workers, {model.device}")

    def calibrate(self) -> Int8Ranges:
        """See Engine; one of the workers does it."""
        with self._dispatcher.workers_end_on_failure(self._dismiss):
            self._send(self._first_ready()[0], "calibrate")
            while self._dispatcher.ranges is None:
                self._receive()
            return self._dispatcher.ranges

    def run(self, job: ShardJob) -> Mapping[int, ShardRecord]:
        """See Engine."""
        with self._dispatcher.workers_end_on_failure(self._dismiss):
            self._dispatcher.begin(job)
            while not all(worker.ended for worker in self._processes):
                self._receive()
        return job.destination.recorded()

    def _first_ready(self) -> tuple[Worker, ModelFacts]:
        """Waits for the first worker that has loaded the model."""
        while (first := self._dispatcher.first_ready()) is None:
            self._receive()
        return first

    def _dismiss(self, seconds: float) -> None:
        """Asks all workers to end after their current batch; kills those that take longer."""
        for of in self._processes.values():
            with contextlib.suppress(OSError):
                of.send("stop")
        until = time.monotonic() + seconds
        left = dict(self._processes)
        while left and time.monotonic() < until:
            # Their messages are still received, or they would block.
            ready = wait([of.link for of in left.values()], _POLL_SECONDS)
            for worker, of in [(worker, of) for worker, of in left.items() if of.link in ready]:
                try:
                    self._dispatcher.count(worker, json.loads(of.link.recv_bytes()))
                except (EOFError, OSError):
                    del left[worker]
        for worker, of in self._processes.items():
            if worker in left:
                of.process.kill()
            of.process.join()

    def _receive(self) -> None:
        if self.setup.stop.is_set():
            raise Stopped("stopped", hint=RESUME)
        present = {worker: of for worker, of in self._processes.items() if not worker.ended}
        things = [thing for of in present.values() for thing in (of.link, of.process.sentinel)]
        ready = set(wait(things, _POLL_SECONDS))
        for worker, of in present.items():
            if of.link in ready:
                try:
                    message = json.loads(of.link.recv_bytes())
                except (EOFError, OSError):
                    self._report_death(worker)
                self._dispatcher.handle(worker, message)
            elif of.process.sentinel in ready and not of.link.poll():
                self._report_death(worker)

    def _send(self, worker: Worker, order: str | int | None) -> None:
        try:
            self._processes[worker].send(order)
        except OSError:
            self._report_death(worker)

    def _report_death(self, worker: Worker) -> NoReturn:
        process = self._processes[worker].process
        process.join(FAIL_SECONDS)
        code = process.exitcode
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = "closed its connection" if code is None else f"ended with exit code {code}"
        where = f"at shard {worker.shards[0]}" if worker.shards else "before it had a shard"
        memory = "; fewer --workers or --batch-tokens need less memory" if code == -signal.SIGKILL else ""
        raise EmbedkitError(f"{worker.name} {how} {where}", hint=f"{RESUME}{memory}")


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
