"""A worker's end of the connection to its run: messages out and orders in, over a pipe or through Ray.

Both are JSON: facts of the model, numbers, error messages. No text of any row.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Protocol

from embedkit.engines.base import RunStart
from embedkit.errors import Stopped
from embedkit.types import DeviceStats

_POLL_SECONDS = 0.1
#: Seconds in which a worker whose run is gone may notice it between two batches.
_ORPHAN_SECONDS = 15.0
#: Messages that a mailbox may keep for a while: counts, and what precedes "done".
_COUNTS = frozenset({"batch", "tokenized", "device", "committed"})


class Link(Protocol):
    """Carries bytes to the run and back, as a `multiprocessing.Connection` does."""

    def send_bytes(self, buf: bytes, /) -> None:
        """Sends a message; raises BrokenPipeError if the run is gone."""

    def recv_bytes(self) -> bytes:
        """Waits for an order; raises EOFError or OSError if the run is gone."""


class Line:
    """A worker's end of the connection to its run; also its Callbacks."""

    def __init__(self, link: Link) -> None:
        self.stop = threading.Event()
        self._link = link
        self._sending = threading.Lock()
        self._orders: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def listen(self) -> None:
        """Starts the thread that receives orders."""
        threading.Thread(target=self._listen, name="embedkit-orders", daemon=True).start()

    def send(self, **message: Any) -> None:
        """Sends a message to the run.

        Raises:
            BrokenPipeError: the run is gone.
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
        """See Callbacks; the run reports it once for all workers."""

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


class Mailbox:
    """A link whose other end calls `order` and `messages`: what a remote actor offers its run."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._messages: list[str] = []
        self._is_due = False
        self._changed = threading.Condition()

    def send_bytes(self, buf: bytes, /) -> None:
        """See Link."""
        with self._changed:
            self._messages.append(buf.decode())
            self._is_due = self._is_due or json.loads(buf).keys().isdisjoint(_COUNTS)
            self._changed.notify_all()

    def recv_bytes(self) -> bytes:
        """See Link; whoever calls `order` ends the process if the run is gone."""
        return self._orders.get().encode()

    def order(self, order: str) -> None:
        """Delivers an order."""
        self._orders.put(order)

    def messages(self, seconds: float) -> list[str]:
        """Returns the messages since the last call.

        Waits for one, at most so many seconds; counts alone are returned when these are over.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_due, seconds)
            messages, self._messages, self._is_due = self._messages, [], False
        return messages
