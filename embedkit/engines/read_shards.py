"""Reads the shards of a plan, in any order: each is opened where planning has found its first row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from embedkit.engines.accounting import unreadable_rows
from embedkit.errors import InputError
from embedkit.inference.pipeline import ReadShard
from embedkit.manifest.schema import Sharding
from embedkit.manifest.shards import ShardCutter
from embedkit.sources import Table
from embedkit.types import Fault, Record


def read_shards(
    table: Table, sharding: Sharding, on_bad_row: str, wanted: Iterable[int] | None = None
) -> Iterator[ReadShard]:
    """Reads the rows of a table as shards.

    Args:
        table: the rows.
        sharding: where the rows are cut; a stream is cut while it is read.
        on_bad_row: fail, null or skip.
        wanted: numbers of the wanted shards, in any order; None = all. Asked for the next one when one has been
            read.

    Raises:
        InputError: a row cannot be read and `on_bad_row` is fail, or there are not as many rows as planned.
    """
    if sharding.starts is None:
        return _cut_while_read(table, sharding, on_bad_row)
    reader = _ShardReader(table, sharding, on_bad_row)
    return map(reader.read, range(len(sharding.starts)) if wanted is None else wanted)


def _cut_while_read(table: Table, sharding: Sharding, on_bad_row: str) -> Iterator[ReadShard]:
    cutter = ShardCutter(sharding.shard_rows, sharding.shard_characters)
    index, start, row = -1, 0, 0
    records: list[Record] = []
    faults: list[Fault] = []
    for row, item in enumerate(table.records()):
        text = item.text if isinstance(item, Record) else None
        if cutter.opens_shard(len(text or "")):
            if index >= 0:
                yield ReadShard(index, start, row, records, faults)
            index, start, records, faults = index + 1, row, [], []
        kept = _kept(item, on_bad_row, len(table.columns.keep), faults)
        records += [kept] if kept else []
    if index >= 0:
        yield ReadShard(index, start, row + 1, records, faults)


class _ShardReader:
    """Reads shards of a plan one by one.

    It goes on where the last shard has ended if the next one starts there. It passes over rows if that is the way
    to the next shard (see `Place.stretch`, and plans of older versions, which have no places), and does not parse
    them. Else it opens the table anew, at the shard.
    """

    def __init__(self, table: Table, sharding: Sharding, on_bad_row: str) -> None:
        self._table = table
        self._sharding = sharding
        self._ranges = sharding.ranges or {}
        self._on_bad_row = on_bad_row
        self._rows: Iterator[Record | Fault] = iter(())
        #: Number of the row that `_rows` yields next, and of the last shard that was read; None before the first.
        self._row: int | None = None
        self._last: int | None = None
        #: Rows before this one are not parsed.
        self._first = 0

    def read(self, number: int) -> ReadShard:
        """Reads a shard."""
        start, stop = self._ranges[number]
        self._go_to(number, start)
        records: list[Record] = []
        faults: list[Fault] = []
        for row in range(start, stop):
            kept = _kept(self._next(row), self._on_bad_row, len(self._table.columns.keep), faults)
            records += [kept] if kept else []
        self._row, self._last = stop, number
        if stop == self._sharding.rows:
            more = sum(1 for _ in self._rows)
            if more:
                raise self._changed(stop + more)
        return ReadShard(number, start, stop, records, faults)

    def _go_to(self, number: int, start: int) -> None:
        self._first = start
        if self._row is None or self._row != start:
            place = self._sharding.place(number)
            is_ahead = self._row is not None and self._row < start
            if not (is_ahead and self._last is not None and self._sharding.is_one_stretch(self._last, number)):
                self._row = 0 if place is None else start
                self._rows = (
                    self._table.records(self._is_wanted)
                    if place is None
                    else self._table.records_from(*place, start, self._is_wanted)
                )
            for row in range(self._row or 0, start):
                self._next(row)

    def _is_wanted(self, first: int, stop: int) -> bool:  # noqa: ARG002
        return stop > self._first

    def _next(self, row: int) -> Record | Fault:
        item = next(self._rows, None)
        if item is None:
            raise self._changed(row)
        return item

    def _changed(self, found: int) -> InputError:
        return InputError(
            f"the input has {found} rows now and had {self._sharding.rows} when the run was planned",
            hint="keep the input as it is while embedkit reads it; start again with --on-exists overwrite",
        )


def _kept(item: Record | Fault, on_bad_row: str, n_keep: int, faults: list[Fault]) -> Record | None:
    """Returns the record of a row, or None if it is skipped; adds a faulty row to `faults`."""
    if isinstance(item, Record):
        return item
    if on_bad_row == "fail":
        raise unreadable_rows([item], 1)
    faults.append(item)
    return Record(item.row, None, None, (None,) * n_keep) if on_bad_row == "null" else None
