"""Fixtures of stores."""

from __future__ import annotations

import pytest

from embedkit.storage import object_filesystem
from tests.storage.memory_store import MemoryStore


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """Returns the store of every URI of a test, whatever its bucket."""
    whole = MemoryStore()
    monkeypatch.setattr(object_filesystem, "object_store_for", lambda folder: whole.folder(folder.key))
    return whole
