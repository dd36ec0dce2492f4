"""Every shard is dealt once, and a stretch to as few workers as possible."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from embedkit.engines.deal import ShardQueue


@given(
    lengths=st.lists(st.integers(1, 20), max_size=8),
    alone=st.booleans(),
    asking=st.lists(st.integers(0, 4), max_size=80),
    dead=st.sets(st.integers(0, 3)),
)
def test_every_shard_is_dealt_once_whichever_workers_ask(lengths, alone, asking, dead):
    stretch = [number for number, length in enumerate(lengths) for _ in range(length)]
    shards = range(len(stretch))
    queue = ShardQueue(shards, None if alone else stretch.__getitem__)
    dealt = [shard for worker in asking if (shard := queue.next(worker)) is not None]
    returned = dealt[:: len(dead) + 1] if dead else []
    queue.put_back(returned)
    again = [queue.next(9) for _ in returned]
    assert again == returned
    while (shard := queue.next(9)) is not None:
        dealt.append(shard)
    assert sorted(dealt) == list(shards)
    if alone:
        assert dealt == list(shards)


def test_workers_keep_to_their_stretches_and_share_the_last_one():
    queue = ShardQueue(range(12), lambda shard: shard // 4)
    turns = [queue.next(worker) for worker in (0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1)]
    assert turns == [0, 4, 1, 5, 2, 6, 3, 7, 8, 10, 9, 11]
