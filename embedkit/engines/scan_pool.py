"""Scans the segments of an input by several processes of this machine, which end with the last one."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from embedkit.engines.scanning import ScanJob, Scanner, ScanTask
from embedkit.engines.segments import SegmentScan
from embedkit.engines.signals import blocked
from embedkit.errors import EmbedkitError, Stopped

#: See worker_pool.
_CONTEXT = multiprocessing.get_context("spawn")
_POLL_SECONDS = 0.1


def scanner_of(workers: int, stop: threading.Event) -> Scanner | None:
    """Returns a scanner with so many processes, or one a core; None if one process is to scan all."""
    workers = min(workers, os.cpu_count() or 1)
    return None if workers < 2 else partial(_scan, workers=workers, stop=stop)


@dataclass(eq=False)
class _Process:
    """A process that scans, and the segment that it has."""

    process: BaseProcess
    link: Connection
    task: ScanTask | None = None


def _scan(tasks: Sequence[ScanTask], *, workers: int, stop: threading.Event) -> Iterator[SegmentScan]:
    left = iter(tasks)
    processes = [_started(number, tasks[0].job) for number in range(min(workers, len(tasks)))]
    try:
        for each in processes:
            _give(each, next(left, None))
        while busy := {each.link: each for each in processes if each.task is not None}:
            if stop.is_set():
                raise Stopped("stopped by a signal; no shard was begun", hint="the same command starts again")
            for link in wait(list(busy), _POLL_SECONDS):
                each = busy[link]  # type: ignore[index]  # only connections were waited for
                try:
                    scan = each.link.recv()
                except (EOFError, OSError):
                    raise _died(each) from None
                yield scan
                _give(each, next(left, None))
    finally:
        for each in processes:
            each.process.kill()
            each.process.join()
            each.link.close()


def _started(number: int, job: ScanJob) -> _Process:
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_serve, args=(theirs, job), name=f"embedkit-scan-{number}", daemon=True)
    with blocked():  # for good: the process of the run ends this one
        process.start()
    theirs.close()
    return _Process(process, ours)


def _give(each: _Process, task: ScanTask | None) -> None:
    each.task = task
    if task is not None:
        with suppress(OSError):  # its death is seen when its answer is read
            each.link.send((task.part, task.index))


def _serve(link: Connection, job: ScanJob) -> None:
    """Scans the segments that come through a pipe, until it is closed."""
    table = job.table()
    with suppress(EOFError, OSError):
        while True:
            link.send(ScanTask(job, *link.recv()).run(table))
    os._exit(0)


def _died(each: _Process) -> EmbedkitError:
    each.process.join()
    return EmbedkitError(
        f"a process that read the input ended with exit code {each.process.exitcode}",
        hint="fewer --workers need less memory; the same command starts again",
    )
