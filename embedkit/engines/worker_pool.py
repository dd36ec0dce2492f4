"""Several local processes on one part of a run: starts them, hands out shards, and notices at once if one dies.

Each worker has a pipe of its own and there is no lock between them, so that one that is killed holds up nobody.
Knows nothing of models; imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Self

from embedkit.config import RunConfig
from embedkit.engines.callbacks import Callbacks
from embedkit.engines.signals import blocked
from embedkit.engines.worker import work
from embedkit.errors import EmbedkitError, Stopped, UsageError
from embedkit.inference.build import ModelFacts
from embedkit.manifest.schema import ModelSource, Plan, ShardRecord
from embedkit.output.destination import AlreadyCompleted, Destination
from embedkit.output.formats import Sink
from embedkit.types import DeviceStats, Variant

#: spawn: a process that has used threads, as all of these libraries do, cannot be forked safely.
_CONTEXT = multiprocessing.get_context("spawn")
_LOOK_SECONDS = 0.1
#: How long workers may take to leave when a signal came, and when another of them failed; then they are killed.
_STOP_SECONDS, _FAIL_SECONDS = 15.0, 5.0
_KINDS: dict[str, type[EmbedkitError]] = {
    kind.__name__: kind for of in EmbedkitError.__subclasses__() for kind in (of, *of.__subclasses__())
}
_RESUME = "what is committed stays; the same command with --on-exists resume goes on"


@dataclass
class _Worker:
    """A process, and what it is at.

    Attributes:
        name: as errors call it.
        process: it.
        link: what is said to it and by it.
        facts: what its model settles; None while it is loading.
        shards: those that it was given and has not committed, the oldest first.
        use: how its device was used so far; None where that is not measured.
        ended: whether it has said that it is through.
    """

    name: str
    process: BaseProcess
    link: Connection
    facts: ModelFacts | None = None
    shards: deque[int] = field(default_factory=deque)
    use: DeviceStats | None = None
    ended: bool = False


class WorkerPool:
    """Workers on this machine; used as a context, which leaves none of them behind.

    Args:
        config: what the user asked for.
        workers: how many to start; they take turns on the devices.
        watcher: is told how it goes.
        stop: set from outside to end the run.
    """

    def __init__(self, config: RunConfig, workers: int, watcher: Callbacks, stop: threading.Event) -> None:
        self.watcher = watcher
        self.stop = stop
        self.rows_computed = self.tokens_computed = 0
        self.shards_done: int | None = None
        self._workers: list[_Worker] = []
        self._ranges: dict[str, dict[str, list[float]]] | None = None
        self._configs = [_of_worker(config, number, workers) for number in range(workers)]

    def __enter__(self) -> Self:
        for number, config in enumerate(self._configs):
            ours, theirs = _CONTEXT.Pipe()
            process = _CONTEXT.Process(
                target=work, args=(config, len(self._configs), theirs), name=f"embedkit-{number}", daemon=True
            )
            with blocked():
                process.start()
            theirs.close()
            name = f"worker {number} of {len(self._configs)} ({config.model.device})"
            self._workers.append(_Worker(name, process, ours))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for worker in self._workers:
            if kind is not None:
                worker.process.kill()
            worker.process.join()
            worker.link.close()

    @property
    def device_stats(self) -> DeviceStats | None:
        """How all devices were used: seconds of all workers, and the memory of the one that took most."""
        uses = [worker.use for worker in self._workers if worker.use is not None]
        if not uses:
            return None
        return DeviceStats(
            busy=sum(use.busy for use in uses),
            waited=sum(use.waited for use in uses),
            allocated=max(use.allocated for use in uses),
            reserved=max(use.reserved for use in uses),
        )

    def load(self) -> ModelFacts:
        """What the model settles, as soon as one worker has loaded it; the device is that of the first."""
        with self._dismissed_on_failure():
            model = self._first()[1]
        return replace(model, device=f"{len(self._workers)} workers, {model.device}")

    def calibrate(self) -> dict[str, dict[str, list[float]]]:
        """Ranges for int8, by one of the workers."""
        with self._dismissed_on_failure():
            self._tell(self._first()[0], "calibrate")
            while self._ranges is None:
                self._take_messages()
            return self._ranges

    def run(
        self,
        plan: Plan,
        destination: Destination,
        sink: Sink,  # noqa: ARG002 - each worker makes its own
        records: Mapping[int, ShardRecord],
        wanted: Iterable[int] | None,
    ) -> dict[int, ShardRecord]:
        """Have the shards done that are wanted.

        Returns:
            The records of these and of those that were done, by number.

        Raises:
            Stopped: a signal came.
            AlreadyCompleted: another process has finished the output.
            EmbedkitError: a worker failed, or died.
        """
        self.shards_done = len(records)
        self._left = iter(wanted or ())
        started: list[_Worker] = []
        with self._dismissed_on_failure():
            while not all(worker.ended for worker in self._workers):
                for worker in self._workers:
                    if worker.facts is not None and worker not in started:
                        started.append(worker)
                        _refuse_another_recipe(worker.name, worker.facts, plan)
                        self._tell(worker, "go")
                self._take_messages()
        return destination.committed()

    def _first(self) -> tuple[_Worker, ModelFacts]:
        """The first of the workers that have loaded the model."""
        while True:
            for worker in self._workers:
                if worker.facts is not None:
                    return worker, worker.facts
            self._take_messages()

    @contextlib.contextmanager
    def _dismissed_on_failure(self) -> Iterator[None]:
        try:
            yield
        except Stopped:
            self._dismiss(_STOP_SECONDS)
            done = "no shard was begun" if self.shards_done is None else f"{self.shards_done} shards are committed"
            raise Stopped(
                f"stopped by a signal; {done}",
                hint="the same command with --on-exists resume goes on from there",
            ) from None
        except BaseException:
            self._dismiss(_FAIL_SECONDS)
            raise

    def _dismiss(self, seconds: float) -> None:
        """Ask all workers to leave after the batch that they are at; kill those that take longer."""
        for worker in self._workers:
            with contextlib.suppress(OSError):
                _send(worker, "stop")
        until = time.monotonic() + seconds
        left = list(self._workers)
        while left and time.monotonic() < until:
            # What they still say is taken, or they would wait for it to be.
            ready = wait([worker.link for worker in left], _LOOK_SECONDS)
            for worker in [worker for worker in left if worker.link in ready]:
                try:
                    self._heed_counts(worker, json.loads(worker.link.recv_bytes()))
                except (EOFError, OSError):
                    left.remove(worker)
        for worker in self._workers:
            if worker in left:
                worker.process.kill()
            worker.process.join()

    def _take_messages(self) -> None:
        if self.stop.is_set():
            raise Stopped("stopped", hint=_RESUME)
        present = [worker for worker in self._workers if not worker.ended]
        ready = set(wait([thing for w in present for thing in (w.link, w.process.sentinel)], _LOOK_SECONDS))
        for worker in present:
            if worker.link in ready:
                try:
                    message = json.loads(worker.link.recv_bytes())
                except (EOFError, OSError):
                    self._report_death(worker)
                self._heed(worker, message)
            elif worker.process.sentinel in ready and not worker.link.poll():
                self._report_death(worker)

    def _heed(self, worker: _Worker, message: dict[str, Any]) -> None:
        self._heed_counts(worker, message)
        match message:
            case {"ask": _}:
                shard = next(self._left, None)
                if shard is not None:
                    worker.shards.append(shard)
                self._tell(worker, shard)
            case {"ready": facts}:
                variants = tuple(Variant(**variant) for variant in facts.pop("variants"))
                source = ModelSource(**facts.pop("source"))
                notices = tuple(facts.pop("notices"))
                worker.facts = ModelFacts(**facts, notices=notices, variants=variants, source=source)
            case {"ranges": ranges}:
                self._ranges = ranges
            case {"notice": sentence}:
                self.watcher.notice(sentence)
            case {"end": _}:
                worker.ended = True
            case {"overtaken": _}:
                raise AlreadyCompleted
            case {"error": kind, "message": sentence, "hint": hint}:
                raise _KINDS.get(kind, EmbedkitError)(sentence, hint=hint)
            case {"fault": fault}:
                raise EmbedkitError(
                    f"a fault of embedkit in {worker.name}: {fault}",
                    hint=f"please report this line with your versions (`embedkit doctor`); {_RESUME}",
                )

    def _heed_counts(self, worker: _Worker, message: dict[str, Any]) -> None:
        match message:
            case {"batch": [texts, tokens, cells]}:
                self.tokens_computed += tokens
                self.watcher.batch(texts, tokens, cells)
            case {"tokenized": [shard, tokens]}:
                self.watcher.tokenized(shard, tokens)
            case {"device": use}:
                worker.use = DeviceStats(**use)
                if self.device_stats is not None:
                    self.watcher.device(self.device_stats)
            case {"done": rows}:
                worker.shards.popleft()
                self.shards_done = (self.shards_done or 0) + 1
                self.rows_computed += rows
                self.watcher.shard_done(rows)

    def _tell(self, worker: _Worker, order: str | int | None) -> None:
        try:
            _send(worker, order)
        except OSError:
            self._report_death(worker)

    def _report_death(self, worker: _Worker) -> None:
        worker.process.join(_FAIL_SECONDS)
        code = worker.process.exitcode
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = "closed its line" if code is None else f"ended with exit code {code}"
        where = f"at shard {worker.shards[0]}" if worker.shards else "before it had a shard"
        memory = "; fewer --workers or --batch-tokens need less memory" if code == -signal.SIGKILL else ""
        raise EmbedkitError(f"{worker.name} {how} {where}", hint=f"{_RESUME}{memory}")


def _of_worker(config: RunConfig, number: int, workers: int) -> RunConfig:
    """What one worker is told: its device, and to join the plan that the crew has written."""
    devices = config.model.devices
    device = devices[number % len(devices)]
    # They take turns on the devices named, and a device may be named twice.
    on_device = sum(devices[other % len(devices)] == device for other in range(workers))
    return replace(
        config,
        model=replace(config.model, device=device),
        output=replace(config.output, on_exists="resume"),
        share=replace(
            config.share, workers=1, place=(config.share.place or 0) * workers + number, on_device=on_device
        ),
    )


def _refuse_another_recipe(name: str, facts: ModelFacts, plan: Plan) -> None:
    if facts.fingerprint != plan.fingerprint:
        now, planned = facts.recipe["dtype"], plan.recipe["dtype"]
        raise UsageError(
            f"{name} would compute other numbers than the plan: in {now} instead of {planned}"
            if now != planned
            else f"{name} loaded another model than the plan's",
            hint="name devices of one kind, or --dtype",
        )


def _send(worker: _Worker, order: str | int | None) -> None:
    worker.link.send_bytes(json.dumps(order).encode())
