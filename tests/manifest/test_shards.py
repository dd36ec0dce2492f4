"""Where shards begin."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from embedkit.manifest.shards import ShardCutter


@given(st.lists(st.integers(0, 40_000_000), max_size=60), st.integers(1, 20))
def test_shards_are_bounded_in_rows_and_text_and_leave_no_row_out(characters, shard_rows):
    cutter = ShardCutter(shard_rows)
    opens = [cutter.opens_shard(count) for count in characters]
    starts = [row for row, is_first in enumerate(opens) if is_first]
    assert cutter.starts == starts
    assert starts[:1] == ([0] if characters else [])
    for start, stop in pairwise([*starts, len(characters)] if characters else []):
        assert 1 <= stop - start <= shard_rows
        assert stop - start == 1 or sum(characters[start:stop]) <= 64_000_000
