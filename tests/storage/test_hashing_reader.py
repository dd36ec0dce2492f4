"""Ranges of a file are hashed while it is read, in whatever order, and no byte of them is read twice for that."""

from __future__ import annotations

import hashlib
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkit.storage import ranged_reader
from embedkit.storage.hashing_reader import HashingRangedReader, HashingReader
from embedkit.storage.ranged_reader import RangedReader


class Counting(io.FileIO):
    """Counts the bytes that are read."""

    count = 0

    def readinto(self, buffer):
        found = super().readinto(buffer)
        self.count += found
        return found

    def read(self, size=-1):
        found = super().read(size)
        self.count += len(found)
        return found


def opened(folder, content):
    path = Path(folder) / "file"
    path.write_bytes(content)
    return Counting(path)


@settings(max_examples=150, deadline=None)
@given(
    content=st.binary(max_size=200),
    bounds=st.lists(st.integers(0, 220), max_size=8),
    steps=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 90)), max_size=12),
    buffer=st.integers(1, 64),
    shuffled=st.booleans(),
)
def test_hashes_are_those_of_the_ranges_whatever_is_read(content, bounds, steps, buffer, shuffled):
    ends = sorted(bounds)
    ranges = list(zip(ends[::2], ends[1::2], strict=False))
    ranges = ranges[::-1] if shuffled else ranges
    with tempfile.TemporaryDirectory() as folder:
        reader = HashingReader(opened(folder, content))
        stream = io.BufferedReader(reader, buffer)
        stream.read(7)
        reader.watch(ranges)
        for offset, size in steps:
            stream.seek(offset)
            assert stream.read(size) == content[offset : offset + size]
        assert reader.digests() == [hashlib.sha256(content[start:stop]).hexdigest() for start, stop in ranges]
        assert stream.read() == content[stream.tell() :] or stream.tell() == len(content)
        stream.close()


def test_columns_that_are_read_alternately_are_read_once(tmp_path):
    content = bytes(range(256)) * 400
    file = opened(tmp_path, content)
    reader = HashingReader(file)
    ranges = [(100, 40_100), (40_100, 80_100)]
    reader.watch(ranges)
    stream = io.BufferedReader(reader, 1_000)
    for at in range(0, 40_000, 5_000):
        for start, _ in ranges:
            stream.seek(start + at)
            stream.read(5_000)
    assert reader.digests() == [hashlib.sha256(content[start:stop]).hexdigest() for start, stop in ranges]
    assert file.count <= 80_000 + 16 * 1_000  # each place is read to the end of a buffer
    stream.close()


@settings(max_examples=150, deadline=None)
@given(
    content=st.binary(max_size=200),
    bounds=st.lists(st.integers(0, 220), max_size=8),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 200), st.integers(0, 90)), max_size=12),
    buffer=st.integers(1, 64),
    shuffled=st.booleans(),
    sizes=st.tuples(st.integers(1, 30), st.integers(1, 60), st.integers(1, 90)),
)
def test_hashes_of_a_remote_file_are_those_of_the_ranges_whatever_is_read_or_fetched(
    content, bounds, steps, buffer, shuffled, sizes
):
    ends = sorted(bounds)
    ranges = list(zip(ends[::2], ends[1::2], strict=False))
    ranges = ranges[::-1] if shuffled else ranges
    with pytest.MonkeyPatch.context() as patch:
        for name, size in zip(("FIRST_BYTES", "WHOLE_BYTES", "MOST_BYTES"), sizes, strict=True):
            patch.setattr(ranged_reader, name, size)
        source = RangedReader(lambda start, stop: content[start:stop], len(content), "s3://b/k")
        reader = HashingRangedReader(source)
        stream = io.BufferedReader(reader, buffer)
        stream.read(7)
        reader.watch(ranges)
        for is_fetched, offset, size in steps:
            if is_fetched:
                assert reader.read_range(offset, offset + size) == content[offset : offset + size]
            else:
                stream.seek(offset)
                assert stream.read(size) == content[offset : offset + size]
        assert reader.digests() == [hashlib.sha256(content[start:stop]).hexdigest() for start, stop in ranges]


@pytest.mark.parametrize("is_fetched", [True, False])
def test_bytes_of_a_remote_file_that_are_read_in_order_are_fetched_once_and_hashed(is_fetched):
    content, asked = bytes(range(256)) * 40_000, []

    def fetch(start, stop):
        asked.append((start, stop))
        return content[start:stop]

    reader = HashingRangedReader(RangedReader(fetch, len(content), "s3://b/k"))
    stream = io.BufferedReader(reader, 2**18)
    assert stream.read(10) == content[:10]
    reader.watch([(0, len(content))])
    stream.seek(0)
    if is_fetched:
        for start in range(0, len(content), 10**6):
            reader.read_range(start, start + 10**6)
    else:
        assert stream.read() == content
    assert reader.digests() == [hashlib.sha256(content).hexdigest()]
    assert sum(stop - start for start, stop in asked) <= len(content) + (2**20 if is_fetched else 0)
