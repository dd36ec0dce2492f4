"""The surroundings of a command that runs a model: signals, progress, umask, standard streams."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import closing, contextmanager

from embedkit.cli.progress import make_callbacks, shown_downloads
from embedkit.engines.base import Callbacks
from embedkit.engines.signals import stop_event
from embedkit.storage.standard_streams import reserved_for_rows

#: A command changes state of the whole process (stdin, stdout, umask, signals), so threads take turns.
_TURN = threading.RLock()
_SECOND_SIGNAL = (
    b"error: stopped by a second signal\n"
    b"hint: committed shards are kept; run the command again, encode and sweep with --on-exists resume\n"
)


@contextmanager
def run_context(
    progress: str, *, quiet: bool, private: bool
) -> Generator[tuple[threading.Event, Callbacks], None, None]:
    """Prepares the process for a command that runs a model, and restores it afterwards.

    Signals set the yielded event, the yielded callbacks report progress, and stdin and stdout are kept for rows.
    """
    with (
        _TURN,
        stop_event(_SECOND_SIGNAL) as stop,
        _umask(private=private),
        reserved_for_rows(),
        shown_downloads(progress, quiet=quiet, stop=stop),
        closing(make_callbacks(progress, quiet=quiet)) as callbacks,
    ):
        yield stop, callbacks


@contextmanager
def _umask(*, private: bool) -> Generator[None, None, None]:
    """Makes new files 0600 and new folders 0700 if private, those of worker processes too."""
    if not private:
        yield
        return
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
