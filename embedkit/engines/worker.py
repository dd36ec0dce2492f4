"""A worker process of a pool: loads the model, then computes the shards that it is given, in ascending order.

It exchanges JSON with the pool: facts of the model, numbers, error messages. No text of any row.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from embedkit.config import RunConfig
from embedkit.engines.base import EngineSetup, RunStart, ShardJob
from embedkit.engines.in_process import InProcessEngine
from embedkit.engines.planning import input_facts, table_of
from embedkit.engines.reuse import open_reuse
from embedkit.engines.signals import install_handlers, unblock
from embedkit.errors import EmbedkitError, OutputError, Stopped
from embedkit.inference.model_spec import ModelSpec
from embedkit.manifest.identity import check_same_input
from embedkit.manifest.schema import Plan
from embedkit.output.destination import AlreadyCompleted, Destination, destination_of
from embedkit.types import DeviceStats

_POLL_SECONDS = 0.1
#: Seconds in which a worker whose pool is gone may notice it between two batches.
_ORPHAN_SECONDS = 15.0


def work(config: RunConfig, spec: ModelSpec, workers: int, link: Connection) -> None:
    """Runs the process; never returns.

    Args:
        config: with the device of this worker alone.
        spec: the model, found by the run.
        workers: number of workers that share the cores of this machine.
        link: to the pool.
    """
    line = Line(link)
    install_handlers(line.stop)
    unblock()
    line.listen()
    try:
        with contextlib.suppress(BrokenPipeError):  # the pool is gone
            _work(config, spec, workers, line)
    finally:
        os._exit(0)


def _work(config: RunConfig, spec: ModelSpec, workers: int, line: Line) -> None:
    try:
        _limit_threads(workers)
        table, spans = table_of(config)
        engine = InProcessEngine(EngineSetup(config, spec, table, line, line.stop), prefetch=1)
        line.send(ready=asdict(engine.load()))
        if line.order() == "calibrate":
            line.send(ranges=engine.calibrate())
            line.order()
        destination = destination_of(config.output, config.share)
        plan = _stored_plan(destination)
        check_same_input(plan.input, input_facts(table, spans, config.input, whole=False))
        # The key of the hashes is there once there is a plan.
        engine.setup = replace(engine.setup, reuse=open_reuse(config, plan))
        engine.run(ShardJob(plan, destination, {}, line.shards()))
        line.send(end=True)
    except BrokenPipeError:
        raise
    except AlreadyCompleted:
        line.send(already_completed=True)
    except EmbedkitError as error:
        line.send(error=type(error).__name__, message=error.message, hint=error.hint)
    except BaseException as fault:  # noqa: BLE001 - its message may hold row content, a place cannot
        frame = traceback.extract_tb(fault.__traceback__)[-1]
        place = f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}"
        line.send(fault=f"{type(fault).__name__} at {place}")


def _stored_plan(destination: Destination) -> Plan:
    plan = destination.open()
    if plan is None:
        hint = "start it again, and leave the output alone while it runs"
        raise OutputError("plan.json of this run was removed", hint=hint)
    return plan


def _limit_threads(workers: int) -> None:
    """Gives a worker its share of the cores: more threads than cores would mostly wait for each other."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // workers)
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))  # of the tokenizers
    import torch

    torch.set_num_threads(min(threads, torch.get_num_threads()))


class Line:
    """A worker's end of the connection to its pool; also its Callbacks."""

    def __init__(self, link: Connection) -> None:
        self.stop = threading.Event()
        self._link = link
        self._sending = threading.Lock()
        self._orders: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def listen(self) -> None:
        """Starts the thread that receives orders."""
        threading.Thread(target=self._listen, name="embedkit-orders", daemon=True).start()

    def send(self, **message: Any) -> None:
        """Sends a message to the pool.

        Raises:
            BrokenPipeError: the pool is gone.
        """
        with self._sending:
            self._link.send_bytes(json.dumps(message).encode())

    def order(self) -> Any:
        """Waits for the next order.

        Raises:
            Stopped: the worker is to stop.
        """
        while not self.stop.is_set():
            with contextlib.suppress(queue.Empty):
                return self._orders.get(timeout=_POLL_SECONDS)
        raise Stopped("a worker was stopped", hint="the same command with --on-exists resume continues")

    def shards(self) -> Iterator[int]:
        """Asks for shards and yields them, each when the one before has been read."""
        while True:
            self.send(ask=True)
            shard = self.order()
            if shard is None:
                return
            yield shard

    def notice(self, sentence: str) -> None:
        """See Callbacks."""
        self.send(notice=sentence)

    def started(self, start: RunStart) -> None:
        """See Callbacks; the pool reports it once for all workers."""

    def tokenized(self, shard: int, tokens: int) -> None:
        """See Callbacks."""
        self.send(tokenized=[shard, tokens])

    def batch(self, texts: int, tokens: int, cells: int) -> None:
        """See Callbacks."""
        self.send(batch=[texts, tokens, cells])

    def device(self, use: DeviceStats) -> None:
        """See Callbacks."""
        self.send(device=asdict(use))

    def shard_done(self, rows: int) -> None:
        """See Callbacks."""
        self.send(done=rows)

    def _listen(self) -> None:
        try:
            while True:
                order = json.loads(self._link.recv_bytes())
                if order == "stop":
                    self.stop.set()
                else:
                    self._orders.put(order)
        except (EOFError, OSError):
            self.stop.set()
            time.sleep(_ORPHAN_SECONDS)
            os._exit(Stopped.exit_code)
