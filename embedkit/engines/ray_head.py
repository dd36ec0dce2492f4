"""Finds out whether the head of a Ray cluster listens. Knows nothing of Ray."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable

#: Seconds that a head may take to listen: it may just be starting.
_KNOCK_SECONDS = 3.0
#: Seconds that the head may be unreachable.
_HEAD_SECONDS, _HEAD_POLL_SECONDS = 30.0, 2.0


def refusal(addresses: Iterable[str]) -> str | None:
    """Returns why nothing listens at any of these addresses, as HOST:PORT; None if something does."""
    addresses = list(addresses)
    until = time.monotonic() + _KNOCK_SECONDS
    while True:
        for address in addresses:
            try:
                _connect(address, _KNOCK_SECONDS)
            except OSError as error:
                reason = error
            else:
                return None
        if time.monotonic() > until or not isinstance(reason, ConnectionRefusedError):
            return reason.strerror or str(reason)
        time.sleep(0.2)


def _connect(address: str, seconds: float) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()


class HeadWatch:
    """Knocks at the port of the cluster's head, in a thread.

    Args:
        address: HOST:PORT.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.failing = False
        self.is_gone = False
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="embedkit-ray-head", daemon=True).start()

    def stop(self) -> None:
        """Ends the thread."""
        self._ended.set()

    def _run(self) -> None:
        seen = time.monotonic()
        while not self._ended.wait(_HEAD_POLL_SECONDS):
            try:
                _connect(self.address, _HEAD_POLL_SECONDS)
            except OSError:
                self.failing = True
                self.is_gone = time.monotonic() - seen > _HEAD_SECONDS
            else:
                self.failing, seen = False, time.monotonic()
