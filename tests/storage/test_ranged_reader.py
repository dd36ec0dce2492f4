"""Reading by ranges gives the bytes of the file, in few requests, and never a mixture of two versions."""

from __future__ import annotations

import io
import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkit.storage import ranged_reader
from embedkit.storage.ranged_reader import RangedReader
from embedkit.storage.store_errors import ObjectChangedError

CONTENT = random.Random(1).randbytes(5000)
#: A seek (offset, whence), a read of some bytes, or a read of a line.
STEPS = st.lists(
    st.tuples(st.just("seek"), st.integers(0, 6000), st.sampled_from([os.SEEK_SET, os.SEEK_END]))
    | st.tuples(st.just("read"), st.integers(0, 3000), st.none())
    | st.tuples(st.just("readline"), st.none(), st.none()),
    max_size=30,
)


@settings(max_examples=200)
@given(size=st.integers(0, len(CONTENT)), steps=STEPS, buffer=st.integers(1, 64))
def test_seeks_and_reads_give_what_a_file_in_memory_gives(size: int, steps: list[tuple], buffer: int) -> None:
    content = CONTENT[:size]
    with pytest.MonkeyPatch.context() as patch:
        for name, least in (("FIRST_BYTES", 7), ("WHOLE_BYTES", 14), ("MOST_BYTES", 100)):
            patch.setattr(ranged_reader, name, least)
        ours = io.BufferedReader(RangedReader(lambda start, stop: content[start:stop], size, "s3://b/k"), buffer)
        theirs = io.BytesIO(content)
        for step, number, whence in steps:
            if step == "seek":
                offset = -min(number, size) if whence == os.SEEK_END else number
                assert ours.seek(offset, whence) == theirs.seek(offset, whence)
            elif step == "read":
                assert ours.read(number) == theirs.read(number)
            else:
                assert ours.readline() == theirs.readline()
            assert ours.tell() == theirs.tell()


def requests_of(size: int) -> tuple[RangedReader, list[tuple[int, int]]]:
    asked: list[tuple[int, int]] = []

    def fetch(start: int, stop: int) -> bytes:
        asked.append((start, stop))
        return bytes(stop - start)

    return RangedReader(fetch, size, "s3://b/k"), asked


def test_reading_on_takes_three_requests_for_41_mib() -> None:
    reader, asked = requests_of(200 * 2**20)
    reader.seek(50 * 2**20)
    stream = io.BufferedReader(reader, 2**16)
    while stream.tell() < 91 * 2**20:
        stream.read(10_000 if stream.tell() < 90 * 2**20 else 91 * 2**20 - stream.tell())
    assert [stop - start for start, stop in asked] == [2**20, 8 * 2**20, 32 * 2**20]


def test_a_small_file_is_one_request_from_wherever_it_is_read() -> None:
    reader, asked = requests_of(2 * 2**20)
    for place in (2**20, 0, 2 * 2**20 - 8):
        reader.seek(place)
        assert reader.read(8) == bytes(8)
    assert asked == [(0, 2 * 2**20)]


def test_columns_that_are_read_alternately_have_windows_of_their_own() -> None:
    reader, asked = requests_of(200 * 2**20)
    for step in range(8):
        for column in range(4):
            reader.seek(column * 50 * 2**20 + step * 100_000)
            assert reader.read(100_000) == bytes(100_000)
    assert len(asked) == 4


def test_a_known_version_is_fetched_once_by_all_readers_of_it() -> None:
    asked: list[int] = []

    def fetch(start: int, stop: int) -> bytes:
        asked.append(start)
        return bytes(stop - start)

    for etag in ("one", "one", "two"):
        assert RangedReader(fetch, 1000, "s3://b/once", etag).read(1000) == bytes(1000)
    assert asked == [0, 0]


def test_fewer_bytes_than_the_size_says_are_an_error() -> None:
    reader = RangedReader(lambda start, _: CONTENT[start : start + 10], 5000, "s3://b/k")
    with pytest.raises(ObjectChangedError, match="was changed"):
        reader.read(100)
