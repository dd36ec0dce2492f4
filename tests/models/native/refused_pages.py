"""A kernel without pages of 2 MiB."""

from __future__ import annotations

import mmap

import pytest


def refuse_large_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses pages of 2 MiB as a kernel does that was built without them."""

    class Refusing(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Refusing)
