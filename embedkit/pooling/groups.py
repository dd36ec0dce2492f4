"""Pools the vectors of rows to one vector a group of rows: notes → encounters → patients.

Rows come in the order of the input. A group is returned after its last row, so that only open groups are held.
Groups of several columns are nested, the finest first, and each level is pooled from the vectors of the one below.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class Item:
    """A row, or a finished group."""

    key: tuple[str, ...]  # values of the group columns, as text; a group has those from its own column on
    vectors: Mapping[str, NDArray[Any]] | None  # variant → [D] of any float dtype; None if it has no vector
    weight: int  # tokens that the vector is pooled from
    rows: int
    pooled: int  # rows with a vector
    n_tokens: int  # this and the next two are sums over the rows
    n_used: int
    n_chunks: int
    statuses: set[str]
    #: For each kept column, up to two different values of its rows, or the caller's codes for them.
    kept: tuple[tuple[Any, ...], ...]
    order: Any = None  # value by which the last item is chosen

    @property
    def status(self) -> str:
        """Returns one status for all of its rows."""
        if self.vectors is None:
            return min(self.statuses - {"empty"}, default="empty")
        return next((word for word in ("truncated", "chunked") if word in self.statuses), "ok")


class Grouping:
    """Pools items into groups as they come.

    Args:
        closes: for each level bool [R], whether a row is the last of its group.
        how: `mean` = sum(tokens x vector) / sum(tokens), `row_mean` = sum(vector) / items, `max` of each
            dimension, `last` by the items' order (of equals, the one that comes last).
    """

    def __init__(self, closes: Sequence[NDArray[np.bool_]], how: str) -> None:
        self.closes = closes
        self.how = how
        self._open: list[dict[tuple[str, ...], _Group]] = [{} for _ in closes]

    def groups(self, rows: Iterable[Item]) -> Iterator[Item]:
        """Yields the groups of the last level, in the order in which they are finished."""
        for number, row in enumerate(rows):
            item, done = row, True
            for level, closes in enumerate(self.closes):
                if not done:
                    break
                key = item.key if level == 0 else item.key[1:]
                group = self._open[level].setdefault(key, _Group(key))
                group.add(item, self.how)
                done = bool(closes[number])
                if done:
                    item = self._open[level].pop(key).item(self.how)
            if done:
                yield item


class _Group:
    def __init__(self, key: tuple[str, ...]) -> None:
        self.item_so_far = Item(key, None, 0, 0, 0, 0, 0, 0, set(), ())
        self.divisor = 0.0

    def add(self, item: Item, how: str) -> None:
        """Adds an item."""
        total = self.item_so_far
        total.rows += item.rows
        total.pooled += item.pooled
        total.n_tokens += item.n_tokens
        total.n_used += item.n_used
        total.n_chunks += item.n_chunks
        total.statuses |= item.statuses
        pairs = zip(total.kept or ((),) * len(item.kept), item.kept, strict=True)
        total.kept = tuple(_distinct(before, now) for before, now in pairs)
        if item.vectors is None:
            return
        total.weight += item.weight
        if how in {"mean", "row_mean"}:
            factor = float(max(item.weight, 1)) if how == "mean" else 1.0
            self.divisor += factor
            added = {name: factor * vector.astype(np.float64) for name, vector in item.vectors.items()}
            before = total.vectors
            total.vectors = {name: before[name] + vector for name, vector in added.items()} if before else added
        elif total.vectors is None or how == "max":
            before = total.vectors or item.vectors
            total.vectors = {name: np.maximum(before[name], vector) for name, vector in item.vectors.items()}
            total.order = item.order
        elif not _earlier(item.order, total.order):
            total.vectors, total.order = item.vectors, item.order

    def item(self, how: str) -> Item:
        """Returns the group after its last item."""
        if self.item_so_far.vectors is not None and how in {"mean", "row_mean"}:
            sums = self.item_so_far.vectors
            self.item_so_far.vectors = {name: total / self.divisor for name, total in sums.items()}
        return self.item_so_far


def last_rows(keys: Iterable[tuple[str, ...]], levels: int) -> list[NDArray[np.bool_]]:
    """Returns for each level bool [R], whether a row is the last of its group. Holds 16 bytes a row and level."""
    digests = [bytearray() for _ in range(levels)]
    for key in keys:
        for level in range(levels):
            digests[level] += hashlib.blake2b(json.dumps(key[level:]).encode(), digest_size=16).digest()
    closes: list[NDArray[np.bool_]] = []
    for of_level in digests:
        # np.unique returns the first of equal values, so the order is reversed.
        backwards = np.frombuffer(bytes(of_level), "V16")[::-1]
        _, first = np.unique(backwards, return_index=True)
        last = np.zeros(len(backwards), np.bool_)
        last[len(backwards) - 1 - first] = True
        closes.append(last)
    return closes


def _distinct(before: tuple[Any, ...], now: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the first two different values."""
    return (*before, *(value for value in now if value not in before))[:2]


def _earlier(one: Any, other: Any) -> bool:
    """Compares two orders; a null is before all others."""
    if other is None:
        return False
    return one is None or bool(one < other)
