"""Signals that ask a run to stop: the first is a request, the second ends the process at once.

Only the command `embedkit` and its worker processes handle signals. A program that calls this package keeps its
own handlers.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from embedkit.errors import Stopped

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]

#: Seconds that a command may take to end after it was interrupted.
_LEAVE_SECONDS = 2.0


class _Interrupt:
    """Handler of a command without work to save: interrupts it, and makes sure that the process ends."""

    def __init__(self, report: Callable[[], object]) -> None:
        self._report = report
        self._timer = threading.Timer(_LEAVE_SECONDS, self._leave)
        self._timer.daemon = True

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        if self._timer.is_alive():
            self._leave()
        self._timer.start()
        # Libraries may swallow the exception: then the timer ends the process.
        raise KeyboardInterrupt

    def _leave(self) -> None:
        self._report()
        os._exit(Stopped.exit_code)


def leave_on_signal(report: Callable[[], object]) -> None:
    """Lets a signal interrupt this process, the command's; if that is swallowed, calls `report` and ends it."""
    handler = _Interrupt(report)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def install_handlers(stop: threading.Event, message: bytes = b"") -> dict[int, Any]:
    """Makes the first signal set `stop`, and the second end the process after writing `message` to stderr.

    Returns:
        The handlers before, by signal.
    """

    def handle(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            # Safe at any moment: no file under its final name is ever incomplete.
            with suppress(OSError):
                os.write(2, message)
            os._exit(Stopped.exit_code)
        stop.set()

    return {number: signal.signal(number, handle) for number in _SIGNALS}


@contextmanager
def handlers_kept() -> Generator[None, None, None]:
    """Restores the handlers of signals after a block that calls a library which sets its own."""
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in _SIGNALS} if is_main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # one that is not Python's stays
                signal.signal(number, handler)


@contextmanager
def stop_event(message: bytes) -> Generator[threading.Event, None, None]:
    """Yields the event that asks a run to stop; in the process of the command, signals set it."""
    stop = threading.Event()
    is_command = isinstance(signal.getsignal(signal.SIGTERM), _Interrupt)
    before = install_handlers(stop, message) if is_command else {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def blocked() -> Generator[None, None, None]:
    """Holds signals back, here and in processes started inside the block, until these call `unblock`."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock() -> None:
    """Delivers the signals that were held back, and those to come."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
