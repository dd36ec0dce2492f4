"""One thread at a time has msgspec convert values: it prepares a class at its first use, and not safely."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from embedkit.manifest.schema import ShardRecord
from embedkit.storage import typed_json
from tests.manifest.plans import make_record


def test_threads_convert_one_after_another(monkeypatch):
    convert, inside, most = msgspec.convert, threading.Semaphore(0), []

    def observed(content, kind):
        inside.release()
        most.append(inside._value)
        time.sleep(0.01)
        inside.acquire()
        return convert(content, kind)

    monkeypatch.setattr(typed_json.msgspec, "convert", observed)
    record = make_record(0)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ShardRecord.from_json, [record.to_json()] * 16))
    assert found == [record] * 16
    assert most == [1] * 16


def test_another_type_is_an_error():
    with pytest.raises(msgspec.ValidationError):
        typed_json.convert({"a": "b"}, dict[str, int])
