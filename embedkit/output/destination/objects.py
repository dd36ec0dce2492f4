"""A folder of shards in an object store.

There is no rename, so an output that is overwritten is deleted when the new one begins.
"""

from __future__ import annotations

from embedkit.errors import OutputError
from embedkit.manifest.schema import Manifest, Plan, ShardRecord
from embedkit.output.commit_objects import ObjectFolder
from embedkit.output.destination.base import SHARED_WAYS
from embedkit.output.destination.shard_folder import ShardFolder
from embedkit.output.formats import Sink
from embedkit.storage.object_store import ObjectStore
from embedkit.storage.remote_path import RemotePath


class Objects(ShardFolder):
    """A folder of shards in an object store.

    Args:
        path: URI of the folder.
        on_exists: error, resume or overwrite.
        verify: a shard is done only if its files have the recorded hashes as well.
        several: True if other ranks write here at the same time.
        store: the objects there; by default those of the URI.
    """

    def __init__(
        self,
        path: RemotePath,
        on_exists: str,
        *,
        verify: bool = False,
        several: bool = False,
        store: ObjectStore | None = None,
    ) -> None:
        folder = ObjectFolder(path, store)
        super().__init__(path, folder, on_exists, verify=verify, several=several)
        self.output: ObjectFolder = folder
        self._replaces = False

    def open(self) -> Plan | None:
        """See Destination."""
        has_plan = self.output.has_plan()
        has_manifest = self.output.has_manifest()
        if not (has_plan or has_manifest) and self.output.has_foreign_files():
            raise OutputError(
                f"{self.path} holds objects that are not embedkit's", hint="choose another place with -o"
            )
        has_shards = not has_plan and self.output.has_shards()
        # A plan is written before any shard, so the plan of a rank that began meanwhile is there now.
        has_plan = has_plan or (has_shards and self.output.has_plan())
        if not has_plan or self.several:
            self._check_writable()
        if self.on_exists == "overwrite" and not self.several:
            self._replaces = has_plan or has_manifest or has_shards
            return None
        if not has_plan and (has_manifest or has_shards):
            raise OutputError(
                f"{self.path} holds shards of another run, without its plan",
                hint="put plan.json back if there is a copy of it, or choose another place with -o; --on-exists "
                "overwrite removes them and starts again",
            )
        if self.several:
            self.was_complete = has_manifest
        elif has_plan and self.on_exists == "error":
            raise OutputError(
                f"{self.path} holds the output of another run",
                hint="use --on-exists resume to go on with it, --on-exists overwrite to delete it and begin anew, "
                "or another place with -o",
            )
        return self.output.read_plan() if has_plan else None

    def _check_writable(self) -> None:
        """Checks that objects can be written, and by several ranks that one of two puts wins."""
        if self.output.check_conditions():
            return
        if self.several:
            raise OutputError(
                f"{self.path}: this store replaces an object where it is told not to, or gives no ETags, so "
                "several ranks could write one shard twice, and differently",
                hint="use one process, or a store that knows If-None-Match and If-Match, or a disk that the ranks "
                "share",
            )
        self.notices.append(
            f"the store of {self.path} replaces an object where it is told not to, or gives no ETags: let no "
            "second run write there"
        )

    def committed(self) -> dict[int, ShardRecord]:
        """See Destination. Records that do not count are removed."""
        records = super().committed()
        self.output.remove_obsolete()
        return records

    def recorded(self) -> dict[int, ShardRecord]:
        """See Destination. What is there is listed when the manifest is written."""
        return self.output.known_records()

    def begin(self, plan: Plan) -> Plan:
        """See Destination."""
        if self._replaces:
            self.output.clear()
        found = self.output.join_plan(plan)
        is_own = self.output.began or self.output.is_same_plan
        if not (is_own or self.several or self.on_exists == "resume"):
            raise OutputError(f"another run has begun in {self.path}", hint=f"use {SHARED_WAYS}")
        return found

    def scans(self) -> ObjectFolder | None:
        """See Destination. A run that replaces an output keeps none: that is there until the plan is written."""
        return None if self.was_complete or self._replaces else self.output

    def finish(self, sink: Sink, manifest: Manifest) -> None:  # noqa: ARG002
        """See Destination."""
        self.output.remove_scans()
        self.output.write_manifest(manifest)
