"""Turns that threads take where a model is loaded or run, and what a fork of the process has to know.

Loading changes what is of the whole process: parts of transformers are imported, environment variables are set,
warnings are put aside, and a model in 16 bits is built while that is torch's default for every new tensor.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """One thread loads at a time; many encode, but not while a model is loaded in 16 bits.

    Attributes:
        is_fork: this process is a fork of one that had torch.
    """

    def __init__(self) -> None:
        # Where this is imported in the child, nobody has told of the fork: multiprocessing's own module has.
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
        self._alone: int | None = None
        self._wanting = self._encoding = 0

    def after_fork(self) -> None:
        """Begin anew in the child: threads that held a lock are not in it."""
        self.is_fork = self.is_fork or "torch" in sys.modules
        self._begin()

    @contextmanager
    def loading(self, *, alone: bool) -> Iterator[None]:
        """Wait until no other thread loads a model, and keep others from it.

        Args:
            alone: wait until no thread encodes, either.
        """
        with self._loading:
            if not alone:
                yield
                return
            with self._changed:
                self._wanting += 1
                try:
                    self._changed.wait_for(lambda: not self._encoding)
                    before, self._alone = self._alone, threading.get_ident()
                finally:
                    self._wanting -= 1
                    self._changed.notify_all()
            try:
                yield
            finally:
                with self._changed:
                    self._alone = before
                    self._changed.notify_all()

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Wait until no other thread loads a model in 16 bits, and keep others from it."""
        me = threading.get_ident()
        with self._changed:
            # Who waits to load goes first: encoding threads could hand on the turn among themselves for ever.
            self._changed.wait_for(lambda: self._alone == me or not (self._alone or self._wanting))
            self._encoding += 1
        try:
            yield
        finally:
            with self._changed:
                self._encoding -= 1
                self._changed.notify_all()


TURNS = Turns()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=TURNS.after_fork)
