"""One of several local processes: loads the model, then does the shards that it is given, in ascending order.

What is said between it and the crew is JSON: what was settled, numbers, codes, the sentences of an error.
No text of any row.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from embedkit.config import RunConfig
from embedkit.engines.in_process import InProcessEngine
from embedkit.engines.planning import input_facts, table_of
from embedkit.engines.signals import install_handlers, unblock
from embedkit.errors import EmbedkitError, OutputError, Stopped
from embedkit.inference.model_spec import find_model
from embedkit.manifest.identity import refuse_another_input
from embedkit.manifest.schema import Plan
from embedkit.output.destination import AlreadyCompleted, Destination, destination_of
from embedkit.output.formats import layout_of, make_sink
from embedkit.types import DeviceStats

_LOOK_SECONDS = 0.1
#: How long a worker whose crew is gone may take to notice between two batches.
_ORPHAN_SECONDS = 15.0


def work(config: RunConfig, workers: int, link: Connection) -> None:
    """The process: never returns.

    Args:
        config: with this worker's device alone.
        workers: how many share this machine's cores.
        link: to the crew.
    """
    line = Line(link)
    install_handlers(line.stop)
    unblock()
    line.listen()
    try:
        with contextlib.suppress(BrokenPipeError):  # the crew is gone
            _work(config, workers, line)
    finally:
        os._exit(0)


def _work(config: RunConfig, workers: int, line: Line) -> None:
    try:
        _limit_threads(workers)
        table, spans = table_of(config)
        engine = InProcessEngine(config, table, find_model(config), line, line.stop)
        line.say(ready=asdict(engine.load()))
        if line.order() == "calibrate":
            line.say(ranges=engine.calibrate())
            line.order()
        destination = destination_of(config.output, config.share)
        plan = _plan_to_join(destination)
        refuse_another_input(plan.input, input_facts(table, spans, config.input, whole=False))
        sink = make_sink(config.output.format, layout_of(plan))
        engine.run(plan, destination, sink, {}, line.shards(), ahead=1)
        line.say(end=True)
    except BrokenPipeError:
        raise
    except AlreadyCompleted:
        line.say(overtaken=True)
    except EmbedkitError as error:
        line.say(error=type(error).__name__, message=error.message, hint=error.hint)
    except BaseException as fault:  # noqa: BLE001 - its message might hold row content, a place cannot
        frame = traceback.extract_tb(fault.__traceback__)[-1]
        place = f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}"
        line.say(fault=f"{type(fault).__name__} at {place}")


def _plan_to_join(destination: Destination) -> Plan:
    plan = destination.open()
    if plan is None:
        raise OutputError(
            "the plan of this run is gone", hint="start it again, and leave the output alone while it runs"
        )
    return plan


def _limit_threads(workers: int) -> None:
    """Give a worker its share of the cores: more threads than cores wait for each other longer than they work."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // workers)
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))  # of the tokenizers
    import torch

    torch.set_num_threads(min(threads, torch.get_num_threads()))


class Line:
    """A worker's end of the line to its crew; also its watcher.

    Args:
        link: the connection.
    """

    def __init__(self, link: Connection) -> None:
        self.stop = threading.Event()
        self._link = link
        self._speaking = threading.Lock()
        self._orders: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def listen(self) -> None:
        """Take orders from now on, in a thread of its own."""
        threading.Thread(target=self._listen, name="embedkit-orders", daemon=True).start()

    def say(self, **message: Any) -> None:
        """Tell the crew something.

        Raises:
            BrokenPipeError: it is gone.
        """
        with self._speaking:
            self._link.send_bytes(json.dumps(message).encode())

    def order(self) -> Any:
        """The next order.

        Raises:
            Stopped: it is to stop.
        """
        while not self.stop.is_set():
            with contextlib.suppress(queue.Empty):
                return self._orders.get(timeout=_LOOK_SECONDS)
        raise Stopped("a worker was stopped", hint="the same command with --on-exists resume goes on")

    def shards(self) -> Iterator[int]:
        """The shards that are given to this worker, each when the one before has been read."""
        while True:
            self.say(ask=True)
            shard = self.order()
            if shard is None:
                return
            yield shard

    def notice(self, sentence: str) -> None:
        """See Callbacks."""
        self.say(notice=sentence)

    def started(
        self,
        *,
        rows: int | None,
        done: int,
        device: str,
        dtype: str,
        characters: Mapping[int, int] | None = None,
    ) -> None:
        """See Callbacks; the crew says it once for all."""

    def tokenized(self, shard: int, tokens: int) -> None:
        """See Callbacks."""
        self.say(tokenized=[shard, tokens])

    def batch(self, texts: int, tokens: int, cells: int) -> None:
        """See Callbacks."""
        self.say(batch=[texts, tokens, cells])

    def device(self, use: DeviceStats) -> None:
        """See Callbacks."""
        self.say(device=asdict(use))

    def shard_done(self, rows: int) -> None:
        """See Callbacks."""
        self.say(done=rows)

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
