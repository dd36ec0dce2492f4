"""The signals that ask a run to stop: the first is a request, the second leaves at once."""

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

#: How long a command may take to let itself be interrupted.
_LEAVE_SECONDS = 2.0


def install_handlers(stop: threading.Event, *, said: bytes = b"") -> dict[int, Any]:
    """Let the first signal set `stop`, and the second end the process.

    Only the main thread may say what signals do: in another, they do what they did.

    Args:
        stop: is set.
        said: goes to stderr at the second.

    Returns:
        The handlers before, by signal.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}

    def asked(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            # Safe at any moment: nothing under its final name is ever half written.
            with suppress(OSError):
                os.write(2, said)
            os._exit(Stopped.exit_code)
        stop.set()

    return {number: signal.signal(number, asked) for number in _SIGNALS}


def leave_on_signal(say: Callable[[], object]) -> None:
    """Let the first signal interrupt whatever runs, and see that the process ends: for what has nothing to save.

    Args:
        say: tells that it is stopped, where what runs does not let itself be interrupted.
    """

    def leave() -> None:
        say()
        os._exit(Stopped.exit_code)

    def asked(_number: int, _frame: FrameType | None) -> None:
        if timer.is_alive():
            leave()
        timer.start()
        # Libraries may swallow it: then the timer ends the process.
        raise KeyboardInterrupt

    timer = threading.Timer(_LEAVE_SECONDS, leave)
    timer.daemon = True
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, asked)


@contextmanager
def blocked() -> Generator[None, None, None]:
    """Let signals wait, here and in processes that are started meanwhile, until they call `unblocked`."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblocked() -> None:
    """Take the signals that have waited, and those to come."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
