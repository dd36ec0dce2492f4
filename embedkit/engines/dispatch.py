"""The run's end of the connections to its workers: gives shards, counts, and raises the errors of workers.

Knows neither processes nor Ray: an engine passes on what its workers send, and sends what this returns to them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from embedkit.engines.base import EngineSetup, EngineStats, ShardJob
from embedkit.engines.deal import ShardQueue
from embedkit.errors import EmbedkitError, InputError, Stopped, UsageError
from embedkit.inference.build import ModelFacts
from embedkit.manifest.schema import Int8Ranges, ModelSource, Plan
from embedkit.output.destination import AlreadyCompleted
from embedkit.types import DeviceStats, Variant

RESUME = "committed shards stay; the same command with --on-exists resume continues"
#: Workers that may die with the same shard; it is given to no other then.
_DEATHS = 3
#: Seconds in which workers may end after a signal, and after another one failed; then they are killed.
_STOP_SECONDS, FAIL_SECONDS = 15.0, 5.0
_KINDS: dict[str, type[EmbedkitError]] = {
    kind.__name__: kind for base in EmbedkitError.__subclasses__() for kind in (base, *base.__subclasses__())
}


@dataclass(eq=False)
class Worker:
    """State of a worker, as its run knows it."""

    number: int
    name: str  # in error messages
    facts: ModelFacts | None = None  # None while it is loading the model
    shards: deque[int] = field(default_factory=deque)  # given to it and not committed, the oldest first
    use: DeviceStats | None = None  # None if not measured
    asks: bool = False  # True while it waits for a shard
    ended: bool = False  # True once it has finished
    is_remote: bool = False  # True if it may see other files than this process: its errors name it


class Dispatcher:
    """Gives the shards of a job to workers that ask, and keeps the counts.

    A worker that asks when no shard is left waits until all are committed: another worker may die, and leave its
    shards to this one. The shards of a worker that died are then computed one at a time, each by a worker that has
    no other, so that one which kills its workers is found.

    Args:
        setup: of the engine.
        send: sends an order to a worker.
    """

    def __init__(self, setup: EngineSetup, send: Callable[[Worker, str | int | None], None]) -> None:
        self.setup = setup
        self.stats = EngineStats()
        self.workers: list[Worker] = []
        self.ranges: Int8Ranges | None = None  # once a worker has found them
        self.job: ShardJob | None = None  # None until shards may be computed
        self.shards_done = 0
        self.is_done = False  # True once every shard is committed
        self._send = send
        self._queue = ShardQueue(())
        self._given = 0
        self._deaths = Counter[int]()
        self._started: set[Worker] = set()

    def begin(self, job: ShardJob) -> None:
        """Starts to give the shards of a job."""
        self.job, self.shards_done = job, len(job.done)
        sharding = job.plan.sharding
        self._queue = ShardQueue(job.shards or (), sharding.stretch if sharding.stretches else None)
        for worker in self.workers:
            self._start(worker)

    def first_ready(self) -> tuple[Worker, ModelFacts] | None:
        """Returns the first worker that has loaded the model; None if none has yet."""
        ready = ((worker, worker.facts) for worker in self.workers if not worker.ended)
        return next(((worker, facts) for worker, facts in ready if facts is not None), None)

    @contextmanager
    def workers_end_on_failure(self, dismiss: Callable[[float], None]) -> Iterator[None]:
        """Ends the workers if the block fails, and says how far a run has come that a signal stopped.

        Args:
            dismiss: asks the workers to end, and waits so many seconds for them.
        """
        try:
            yield
        except Stopped:
            dismiss(_STOP_SECONDS)
            done = "no shard was begun" if self.job is None else f"{self.shards_done} shards are committed"
            raise Stopped(
                f"stopped by a signal; {done}",
                hint="the same command with --on-exists resume continues from there",
            ) from None
        except BaseException:
            dismiss(FAIL_SECONDS)
            raise

    def lost(self, worker: Worker, how: str) -> None:
        """Gives the shards of a worker that died to others.

        Args:
            worker: no longer used.
            how: it died, such as "was killed".

        Raises:
            EmbedkitError: other workers died with one of its shards, too.
        """
        self.workers.remove(worker)
        self._started.discard(worker)
        shards, worker.shards = list(worker.shards), deque()
        self._deaths.update(shards)
        for shard in shards:
            if self._deaths[shard] >= _DEATHS:
                raise self._deadly(shard, worker.name, how)
        self._given -= len(shards)
        self._queue.put_back(shards)
        self._serve()

    def handle(self, worker: Worker, message: dict[str, Any]) -> None:
        """Takes a message of a worker.

        Raises:
            AlreadyCompleted: another process has completed the output.
            EmbedkitError: the worker has failed, or would compute other numbers than the plan says.
        """
        self.count(worker, message)
        match message:
            case {"ask": _}:
                worker.asks = True
                self._serve()
            case {"ready": facts}:
                worker.facts = _model_facts(facts)
                self._start(worker)
            case {"ranges": ranges}:
                self.ranges = ranges
            case {"notice": sentence}:
                self.setup.callbacks.notice(sentence)
            case {"end": _}:
                worker.ended = True
                if worker.shards or not self.is_done:
                    raise EmbedkitError(
                        f"a fault of embedkit: {worker.name} ended before all shards were committed",
                        hint=f"please report this line with your versions (`embedkit doctor`); {RESUME}",
                    )
            case _:
                _raise_failure(worker, message)

    def count(self, worker: Worker, message: dict[str, Any]) -> None:
        """Takes the counts of a message; all that a worker which is asked to stop still sends."""
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
            case {"committed": acknowledgement} if self.job is not None:
                self.job.destination.adopt(acknowledgement)
            case {"done": rows}:
                worker.shards.popleft()
                self._given -= 1
                self.shards_done += 1
                self.stats.rows += rows
                self.setup.callbacks.shard_done(rows)
                self._serve()

    def _start(self, worker: Worker) -> None:
        """Lets a worker that is ready begin, if there are shards to be computed."""
        if self.job is None or worker.facts is None or worker in self._started:
            return
        check_recipe(worker.name, worker.facts, self.job.plan)
        self._started.add(worker)
        self._send(worker, "go")

    def _serve(self) -> None:
        """Gives shards to workers that wait for one; tells them to end once every shard is committed."""
        for worker in [worker for worker in self.workers if worker.asks]:
            if worker.shards and (self._queue.has_returned or worker.shards[-1] in self._deaths):
                continue
            shard = self._queue.next(worker.number)
            if shard is None and self._given:
                return
            worker.asks = False
            if shard is None:
                self.is_done = True
            else:
                worker.shards.append(shard)
                self._given += 1
            self._send(worker, shard)

    def _device_stats(self) -> DeviceStats:
        """Returns the sum of all workers' seconds, and the memory of the one that took most."""
        uses = [worker.use for worker in self.workers if worker.use is not None]
        return DeviceStats(
            busy=sum(use.busy for use in uses),
            waited=sum(use.waited for use in uses),
            allocated=max(use.allocated for use in uses),
            reserved=max(use.reserved for use in uses),
        )

    def _deadly(self, shard: int, name: str, how: str) -> EmbedkitError:
        ranges = self.job.plan.sharding.ranges if self.job else None
        rows = f" (rows {ranges[shard][0]} to {ranges[shard][1] - 1})" if ranges else ""
        return EmbedkitError(
            f"{_DEATHS} workers died at shard {shard}{rows}; the last one, {name}, {how}",
            hint=f"a smaller --batch-tokens needs less memory; {RESUME}",
        )


def check_recipe(name: str, facts: ModelFacts, plan: Plan) -> None:
    """Checks that a worker computes the numbers of the plan.

    Raises:
        UsageError: it has another model, dtype or backend.
    """
    if facts.engine != plan.engine:
        raise UsageError(
            f"{name} runs the model by {facts.engine}, and the plan says {plan.engine}: the last digits differ",
            hint="take processors of one kind for int8 and bf16, or --dtype fp32; and let all machines have a C++ "
            "compiler, or none: `embedkit doctor` says what one has",
        )
    if facts.fingerprint == plan.fingerprint:
        return
    now, planned = facts.recipe["dtype"], plan.recipe["dtype"]
    raise UsageError(
        f"{name} would compute other numbers than the plan: in {now} instead of {planned}"
        if now != planned
        else f"{name} loaded another model than the plan's",
        hint="name devices of one kind, or --dtype",
    )


def _model_facts(message: dict[str, Any]) -> ModelFacts:
    variants = tuple(Variant(**variant) for variant in message.pop("variants"))
    source = ModelSource(**message.pop("source"))
    notices = tuple(message.pop("notices"))
    return ModelFacts(**message, notices=notices, variants=variants, source=source)


def _raise_failure(worker: Worker, message: dict[str, Any]) -> None:
    """Raises the failure that a worker reports, if it does."""
    match message:
        case {"already_completed": _}:
            raise AlreadyCompleted
        case {"other_input": [name, planned, found]}:
            raise InputError(
                f"{worker.name} reads another input: {name} is {found} there and {planned} in the plan",
                hint="keep the input as it is while embedkit reads it, and the same on all machines; "
                "--on-exists overwrite starts again",
            )
        case {"error": kind, "message": sentence, "hint": hint}:
            told = f"{worker.name}: {sentence}" if worker.is_remote else sentence
            raise _KINDS.get(kind, EmbedkitError)(told, hint=hint)
        case {"fault": fault}:
            raise EmbedkitError(
                f"a fault of embedkit in {worker.name}: {fault}",
                hint=f"please report this line with your versions (`embedkit doctor`); {RESUME}",
            )
