"""The shards of a run that no worker has, and which of them a worker gets next."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class ShardQueue:
    """Shards to be computed, in ascending order; those that were given back come first."""

    def __init__(self, shards: Iterable[int]) -> None:
        self._shards = iter(shards)
        self._returned: deque[int] = deque()

    def next(self, worker: int) -> int | None:  # noqa: ARG002 - every worker gets the first one
        """Returns the shard that a worker, named by its number, gets next; None if there is none now."""
        return self._returned.popleft() if self._returned else next(self._shards, None)

    def put_back(self, shards: Iterable[int]) -> None:
        """Takes back the shards of a worker that died, to be given to the next one that asks."""
        self._returned.extendleft(reversed(list(shards)))
