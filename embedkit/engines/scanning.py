"""Has all segments of an input scanned: here, by several processes, or together with other ranks.

Ranks share their scans through the output folder, without locks: each scans every n-th segment and publishes what
it finds. It then waits for the others' scans, and after a time that a slow process would take, scans what is
missing. A segment that two ranks scan costs time and changes nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from embedkit.config import RunConfig, ShareConfig
from embedkit.engines.open_input import table_of
from embedkit.engines.segments import (
    Cut,
    SegmentScan,
    cut_segments,
    digests_of,
    scan_key,
    scan_segment,
    sharding_of,
    try_segment,
)
from embedkit.errors import EmbedkitError, Stopped
from embedkit.manifest.schema import Sharding
from embedkit.output.commit import OutputFolder
from embedkit.sources import Part, Scan, SpanBook, Table, TableFacts

#: Bytes a second that a slow process scans; other ranks wait as long before they scan a segment of it.
_SLOW = 10 * 2**20
_POLL_SECONDS, _MOST_POLL_SECONDS = 0.05, 2.0


@dataclass(frozen=True, slots=True)
class ScanJob:
    """What all segments of an input have in common. Can be pickled; as large as the list of files."""

    config: RunConfig
    facts: TableFacts
    cut: Cut
    key: str

    def table(self) -> Table:
        """Opens the input, in any process of this run."""
        return table_of(self.config, self.facts)[0]


@dataclass(frozen=True, slots=True)
class ScanTask:
    """A segment to be scanned, by any process of this run."""

    job: ScanJob
    part: Part
    index: int

    def run(self, table: Table | None = None, raises: type[EmbedkitError] | tuple[()] = ()) -> SegmentScan:
        """Scans the segment; an error is noted in the result, unless it is one of `raises`.

        Args:
            table: of the job, if it is open already.
            raises: kinds of errors.
        """
        return try_segment(table or self.job.table(), self.part, self.job.cut, self.index, self.job.key, raises)


#: A function that has segments scanned, in any order and place.
Scanner = Callable[[Sequence[ScanTask]], Iterator[SegmentScan]]


@dataclass(frozen=True, slots=True)
class Shared:
    """Where processes of this run find each other's scans."""

    folder: OutputFolder
    share: ShareConfig


@dataclass(frozen=True, slots=True)
class InputScan:
    """What the scans of all segments say together."""

    scan: Scan
    sharding: Sharding
    digests: Mapping[int, Mapping[str, Any]]  # see digests_of
    unseen: int  # see SegmentScan, as is `unreadable`
    unreadable: int


def scan_input(
    table: Table,
    spans: SpanBook | None,
    config: RunConfig,
    cut: Cut,
    *,
    scanner: Scanner | None = None,
    shared: Shared | None = None,
    stop: threading.Event | None = None,
) -> InputScan:
    """Scans an input, segment by segment.

    Args:
        table: the input.
        spans: the file of spans, if any.
        config: the user's options.
        cut: how shards are cut.
        scanner: scans segments elsewhere; None: this process does. A single segment is always scanned here.
        shared: where scans of other ranks and of a former run are; None: nowhere.
        stop: set from outside to end the run.

    Raises:
        InputError: see `Table.records`; the same one, for the same row, as of one pass over the input.
        Stopped: `stop` was set.
        OutputError: scans cannot be published.
    """
    parts = cut_segments(table, spans, config)
    key = scan_key(table, config, cut) if shared else ""
    job = ScanJob(config, table.facts, cut, key)
    tasks = [ScanTask(job, part, index) for index, part in enumerate(parts)]
    alone = len(parts) == 1

    def here(some: Sequence[ScanTask]) -> Iterator[SegmentScan]:
        for task in some:
            _check(stop)
            if task.index == 0:  # an error names the right row
                yield scan_segment(table, spans, task.part, cut, key=key)
            else:
                yield try_segment(table, task.part, cut, task.index, key)

    scan_all = here if alone or scanner is None else scanner
    # Size and hash of a query are those of the rows that this process has read.
    is_shared = shared is not None and config.input.sql is None and (shared.share.several or not alone)
    found = _scan_shared(tasks, scan_all, shared, table, stop) if shared and is_shared else list(scan_all(tasks))
    scans = _without_errors(table, spans, cut, parts, found)
    combined = table.combine([scan.scan for scan in scans if scan.scan is not None])
    return InputScan(
        combined,
        sharding_of(cut, parts, scans),
        digests_of(table, parts, scans),
        unseen=sum(scan.unseen for scan in scans),
        unreadable=sum(scan.unreadable for scan in scans),
    )


def _without_errors(
    table: Table, spans: SpanBook | None, cut: Cut, parts: Sequence[Part], found: Sequence[SegmentScan]
) -> list[SegmentScan]:
    """Returns the scans in order; raises the first error, which needs the number of the rows before it."""
    scans: list[SegmentScan] = []
    rows = 0
    for scan in sorted(found, key=lambda scan: scan.index):
        if scan.scan is None:
            part = parts[scan.index]
            scan = scan_segment(table, spans, part, cut, index=scan.index, key=scan.key, first=rows)  # noqa: PLW2901
        rows += scan.scan.rows if scan.scan else 0
        scans.append(scan)
    return scans


def _scan_shared(
    tasks: Sequence[ScanTask], scan_all: Scanner, shared: Shared, table: Table, stop: threading.Event | None
) -> list[SegmentScan]:
    folder, share = shared.folder, shared.share
    found: dict[int, SegmentScan] = {}

    def fetch() -> list[ScanTask]:
        """Reads the scans that others have published; returns the segments without one."""
        for task in tasks:
            if task.index not in found and (scan := _published(folder, task)) is not None:
                found[task.index] = scan
        return [task for task in tasks if task.index not in found]

    def scan_and_publish(some: Sequence[ScanTask]) -> None:
        for scan in scan_all(some):
            found[scan.index] = scan
            folder.write_scan(scan.index, scan.serialize(), is_stale=partial(_is_stale, scan.key))

    missing = fetch()
    scan_and_publish([task for task in missing if task.index % share.world_size == share.rank])
    began, pause = time.monotonic(), _POLL_SECONDS
    while missing := fetch():
        _check(stop)
        waited = time.monotonic() - began
        due = [task for task in missing if waited >= _patience(task, share, table)]
        if due:
            scan_and_publish(due[:1])
        else:
            (stop or threading.Event()).wait(pause)
            pause = min(_MOST_POLL_SECONDS, 1.5 * pause)
    return list(found.values())


def _patience(task: ScanTask, share: ShareConfig, table: Table) -> float:
    """Returns the seconds after which this rank scans another's segment: one rank after the other does."""
    piece = task.part.piece
    files = table.files[task.part.first : task.part.stop]
    size = sum(file.size or 0 for file in files) if piece is None else piece[1] - piece[0]
    return (share.rank - task.index) % share.world_size * size / _SLOW


def _published(folder: OutputFolder, task: ScanTask) -> SegmentScan | None:
    """Returns a scan of this input that is in the folder; None if there is none, or it is damaged."""
    data = folder.read_scan(task.index)
    with suppress(ValueError):
        scan = None if data is None else SegmentScan.parse(data, str(folder.path))
        if scan is not None and (scan.key, scan.index) == (task.job.key, task.index):
            return scan
    return None


def _is_stale(key: str, data: bytes) -> bool:
    with suppress(ValueError):
        return SegmentScan.parse(data, "").key != key
    return True


def _check(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise Stopped("stopped by a signal; no shard was begun", hint="the same command starts again")
