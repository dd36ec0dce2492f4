"""The shards of a run that no worker has, and which of them a worker gets next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable


class ShardQueue:
    """Shards to be computed; those that were given back come first.

    Without `stretch_of` they come in ascending order, and may be known one at a time. With it a worker gets the
    next shard of the stretch that it is in, so that seldom two of them read, say, one row group; else the first of
    a stretch that nobody has; and else one from the end of the longest.

    Args:
        shards: ascending.
        stretch_of: returns a number for a shard, equal for shards that are best read by one process, in order;
            None: any shard can be read for itself.
    """

    def __init__(self, shards: Iterable[int], stretch_of: Callable[[int], int] | None = None) -> None:
        self._returned: deque[int] = deque()
        self._shards = iter(shards if stretch_of is None else ())
        #: The shards that are left of each stretch that nobody has, and of the stretch of each worker.
        self._untouched: deque[deque[int]] = deque()
        self._of_worker: dict[int, deque[int]] = {}
        last = None
        for shard in shards if stretch_of is not None else ():
            stretch = stretch_of(shard) if stretch_of is not None else None
            if stretch != last:
                self._untouched.append(deque())
                last = stretch
            self._untouched[-1].append(shard)

    @property
    def has_returned(self) -> bool:
        """True if the next shard is one that was given back."""
        return bool(self._returned)

    def next(self, worker: int) -> int | None:
        """Returns the shard that a worker, named by its number, gets next; None if there is none now."""
        if self._returned:
            return self._returned.popleft()
        mine = self._of_worker.get(worker)
        if not mine:
            mine = self._of_worker[worker] = self._untouched.popleft() if self._untouched else self._half()
        return mine.popleft() if mine else next(self._shards, None)

    def _half(self) -> deque[int]:
        """Takes the second half of what is left of the longest stretch."""
        longest = max(self._of_worker.values(), key=len, default=deque[int]())
        return deque(reversed([longest.pop() for _ in range((len(longest) + 1) // 2)]))

    def put_back(self, shards: Iterable[int]) -> None:
        """Takes back the shards of a worker that died, to be given to the next one that asks."""
        self._returned.extendleft(reversed(list(shards)))
