"""Fixtures of stores."""

from __future__ import annotations

import pytest

from embedkit.storage import object_filesystem
from embedkit.storage.remote_path import RemotePath
from tests.storage.dict_store import DictStore


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> DictStore:
    """The store of every URI of a test, whatever its bucket; it notes the requests."""
    whole = DictStore({})

    def store_for(folder: RemotePath) -> DictStore:
        store = DictStore(whole.objects, folder.key)
        store.requests = whole.requests
        return store

    monkeypatch.setattr(object_filesystem, "object_store_for", store_for)
    return whole
