"""The Ray actor of a worker. Its run sends it JSON and gets JSON; rows and vectors stay in the actor's process.

Knows nothing of Ray: `ray_cluster` makes an actor class of it.
"""

from __future__ import annotations

import contextlib
import pickle
import threading
from typing import Any

from embedkit.engines.line import Line, Mailbox


class RayActor:
    """A worker that others call: `hello`, `start`, then `messages` again and again, and `order` meanwhile.

    Or, to plan: `hello`, `open_input`, then `scan` for each segment.
    """

    def __init__(self) -> None:
        self._mailbox = Mailbox()
        self._line = Line(self._mailbox)
        self._scanner: Any = None  # of the input, in an actor that scans it

    def hello(self) -> tuple[str, int, dict[str, str]]:
        """Returns host, process and versions, before anything that depends on them is unpickled."""
        from embedkit.engines.node import Node

        here = Node.here()
        return here.host, here.pid, dict(here.versions)

    def open_input(self, job: bytes) -> None:
        """Prepares to scan the input of a pickled ScanJob."""
        from embedkit.engines.node_scan import NodeScanner

        _disable_core_files()
        self._scanner = NodeScanner(pickle.loads(job))  # noqa: S301 - from the run, which starts this process

    def scan(self, *segment: Any) -> str:
        """Scans a segment of the input; see NodeScanner."""
        found: str = self._scanner.scan(*segment)
        return found

    def start(self, task: bytes) -> None:
        """Starts to compute a pickled WorkerTask."""
        _disable_core_files()
        self._line.listen()
        threading.Thread(target=self._compute, args=(task,), name="embedkit-worker", daemon=True).start()

    def messages(self, seconds: float) -> list[str]:
        """See Mailbox."""
        return self._mailbox.messages(seconds)

    def order(self, order: str) -> None:
        """See Mailbox."""
        self._mailbox.order(order)

    def stop(self) -> None:
        """Asks the worker to end after its current batch."""
        self._line.stop.set()

    def _compute(self, task: bytes) -> None:
        from embedkit.engines.worker import compute

        compute(pickle.loads(task), self._line)  # noqa: S301 - from the run, which starts this process


def _disable_core_files() -> None:
    """Keeps the system from writing core files, which hold the memory of the process, texts included."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
