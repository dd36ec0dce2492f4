"""Scans segments of an input in an actor, for a run on another machine perhaps. Imports neither ray nor torch."""

from __future__ import annotations

import json

from embedkit.engines.scanning import ScanJob, ScanTask
from embedkit.errors import EmbedkitError
from embedkit.sources import Part, Table
from embedkit.sources.changes import OtherFileError
from embedkit.storage.store_options import configure_stores


class NodeScanner:
    """Scans segments on a node, for another process."""

    def __init__(self, job: ScanJob) -> None:
        self._job = job
        self._table: Table | None = None

    def scan(self, first: int, stop: int, piece: tuple[int, int] | None, index: int) -> str:
        """Scans a segment, see Part; returns JSON: the scan, or an error."""
        try:
            if self._table is None:
                configure_stores(self._job.config.store)
                self._table = self._job.table()
            task = ScanTask(self._job, Part(first, stop, piece), index)
            return json.dumps({"scan": task.run(self._table, OtherFileError).serialize().decode()})
        except OtherFileError as error:
            hint = "keep the input as it is while embedkit reads it, and the same on all machines"
            return json.dumps({"error": error.message, "hint": hint})
        except EmbedkitError as error:
            return json.dumps({"error": error.message, "hint": error.hint})
