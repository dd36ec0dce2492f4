"""The garbage collector around imports."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from weakref import ref

import pytest

from embedkit.models.torch_import import collection_paused


class Circle:
    """Refers to itself, so that only the collector frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes each test begin as a process does that has not imported torch."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    yield
    gc.enable()
    gc.freeze()  # as conftest.py leaves it


def test_what_was_made_while_collection_was_paused_is_old_afterwards_and_can_still_be_freed():
    gc.unfreeze()
    with collection_paused():
        assert not gc.isenabled()
        made = Circle()
    assert gc.isenabled()
    assert any(found is made for found in gc.get_objects(generation=2))
    seen = ref(made)
    del made
    gc.collect(1)
    assert seen() is not None
    gc.collect()
    assert seen() is None


def test_what_the_user_has_frozen_stays_so():
    gc.freeze()
    frozen = gc.get_freeze_count()
    with collection_paused():
        pass
    assert gc.get_freeze_count() >= frozen


def test_a_collector_that_the_user_has_turned_off_stays_off():
    gc.disable()
    with pytest.raises(ZeroDivisionError), collection_paused():
        raise ZeroDivisionError
    assert not gc.isenabled()


def test_collection_goes_on_where_torch_is_imported_already(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with collection_paused():
        assert gc.isenabled()


def test_it_is_on_again_after_an_error():
    with pytest.raises(ZeroDivisionError), collection_paused():
        raise ZeroDivisionError
    assert gc.isenabled()
