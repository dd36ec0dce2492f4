"""The lock under which threads load and run models, and a mark of forked processes.

Loading changes process-wide state: it imports parts of transformers, sets environment variables, silences
warnings, and makes 16 bits torch's default for new tensors while a model in 16 bits is built.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class LoadLock:
    """Lets one thread load at a time, and many encode, but not while a model is loaded in 16 bits.

    Attributes:
        is_fork: whether this process is a fork of one that had imported torch.
    """

    def __init__(self) -> None:
        # If this is first imported in the child, only multiprocessing's own module shows that it is a fork.
        process = sys.modules.get("multiprocessing.process")
        self.is_fork = (
            {"torch", "multiprocessing.popen_fork"} <= sys.modules.keys()
            and process is not None
            and process.parent_process() is not None
        )
        self._begin()

    def _begin(self) -> None:
        self._loading = threading.RLock()
        self._changed = threading.Condition()
        self._exclusive: int | None = None
        self._waiting = self._encoding = 0

    def after_fork(self) -> None:
        """Resets the locks in the child: threads that held one do not exist there."""
        self.is_fork = self.is_fork or "torch" in sys.modules
        self._begin()

    @contextmanager
    def loading(self, *, exclusive: bool) -> Iterator[None]:
        """Waits until no other thread loads a model, and holds the lock.

        Args:
            exclusive: waits until no thread encodes either, and holds these up too.
        """
        with self._loading:
            if not exclusive:
                yield
                return
            with self._changed:
                self._waiting += 1
                try:
                    self._changed.wait_for(lambda: not self._encoding)
                    before, self._exclusive = self._exclusive, threading.get_ident()
                finally:
                    self._waiting -= 1
                    self._changed.notify_all()
            try:
                yield
            finally:
                with self._changed:
                    self._exclusive = before
                    self._changed.notify_all()

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Waits until no other thread loads a model in 16 bits, and keeps others from starting to."""
        me = threading.get_ident()
        with self._changed:
            # Loading goes first: encoding threads could otherwise keep the lock among themselves forever.
            self._changed.wait_for(lambda: self._exclusive == me or not (self._exclusive or self._waiting))
            self._encoding += 1
        try:
            yield
        finally:
            with self._changed:
                self._encoding -= 1
                self._changed.notify_all()


LOAD_LOCK = LoadLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=LOAD_LOCK.after_fork)
