"""A folder of shards.

An output that is overwritten stays as it is until the new one, made in a folder beside it, is whole.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from embedkit.errors import OutputError
from embedkit.manifest.schema import Manifest, Plan, ShardRecord
from embedkit.output.commit import MANIFEST, PLAN, OutputFolder
from embedkit.output.destination.base import SHARED_WAYS, WAYS
from embedkit.output.formats import Sink
from embedkit.output.rejects import write_rejects
from embedkit.storage.disk_errors import as_read_error
from embedkit.storage.filesystem import exists, is_folder, remove_file, remove_tree
from embedkit.storage.replace_folder import Replacement
from embedkit.types import EncodedShard


class Folder:
    """A folder of shards.

    Args:
        path: of the folder.
        on_exists: error, resume or overwrite.
        verify: a shard is done only if its files have the recorded hashes, too.
        several: whether other ranks write here at the same time.
    """

    def __init__(self, path: Path, on_exists: str, *, verify: bool = False, several: bool = False) -> None:
        self.path = path
        self.on_exists = on_exists
        self.verify = verify
        self.several = several
        self.replacement = Replacement(path, lambda folder: OutputFolder(folder).clear())
        #: Where this run writes: the folder itself, or one beside it that replaces it when it is whole.
        self.output = OutputFolder(path)
        self.was_whole = False
        self.notices: list[str] = []

    @property
    def replaces(self) -> bool:
        """Whether what this run writes takes the place of another output when it is whole."""
        return self.output.path != self.path

    def has_plan(self) -> bool:
        """Whether a run was begun here, or one that replaces it."""
        return self.output.has_plan() or OutputFolder(self.replacement.next).has_plan()

    def open(self) -> Plan | None:
        """See Destination."""
        with as_read_error(self.path):
            return self._opened()

    def _opened(self) -> Plan | None:
        self.output.refuse_links()
        beside = OutputFolder(self.replacement.next)
        beside.refuse_links()
        self.notices += self.replacement.recover()
        is_there_now, is_beside = exists(self.path), exists(beside.path)
        if is_there_now and not is_folder(self.path):
            raise OutputError(f"{self.path} is a file, not a folder", hint="choose another place with -o")
        ours = is_there_now and (self.output.has_plan() or exists(self.path / MANIFEST))
        if is_there_now and not ours and self.output.has_foreign_files():
            raise OutputError(
                f"{self.path} holds files that are not embedkit's", hint="choose an empty or new folder with -o"
            )
        begun_beside = is_beside and beside.has_plan()
        if begun_beside and self.on_exists == "resume":
            self.output = beside
            return beside.read_plan()
        if self.several and not begun_beside:
            return self._open_shared()
        if self.on_exists == "overwrite":
            if ours or is_beside or self.output.has_shards():
                self._make_room(beside)
            return None
        if begun_beside:
            raise OutputError(
                f"{beside.path} holds a run that replaces {self.path} when it is whole, and is not finished",
                hint=f"use {SHARED_WAYS if self.several else WAYS}",
            )
        if (ours or self.output.has_shards()) and not self.output.has_plan():
            raise OutputError(
                f"{self.path} holds shards of another run, without its plan",
                hint="put plan.json back if there is a copy of it, or choose another place with -o; --on-exists "
                "overwrite starts again, and removes them when the new output is whole",
            )
        if ours and self.on_exists == "error":
            raise OutputError(f"{self.path} holds the output of another run", hint=f"use {WAYS}")
        return self.output.read_plan() if ours else None

    def _make_room(self, beside: OutputFolder) -> None:
        """Have the new output made beside the old one, which stays as it is until then."""
        self.replacement.check_movable()
        if exists(beside.path) and (not is_folder(beside.path) or beside.has_foreign_files()):
            raise OutputError(
                f"{beside.path} holds files that are not embedkit's, and the new output would be made there",
                hint="rename or remove it, or choose another place with -o",
            )
        self.output = beside

    def _open_shared(self) -> Plan | None:
        """The plan of the ranks that were here first. That the output is whole is no fault of a late rank."""
        # In this order: the plan is there before any shard is.
        has_shards = self.output.has_shards()
        plan = self.output.read_plan()
        if plan is None and has_shards:
            raise OutputError(
                f"{self.path} holds shards of another run, without its plan",
                hint="remove it, or choose another place with -o",
            )
        with as_read_error(self.path):
            self.was_whole = exists(self.path / MANIFEST)
        return plan

    def is_whole(self, sink: Sink, inputs: Collection[str]) -> bool:  # noqa: ARG002
        """See Destination; whether a folder is whole, its records say shard by shard."""
        if self.was_whole and self.on_exists == "error":
            raise OutputError(f"{self.path} holds the output of another run", hint=f"use {SHARED_WAYS}")
        return False

    def committed(self) -> dict[int, ShardRecord]:
        """See Destination; what another run left is gone since `begin`. Hashes are compared once."""
        verify, self.verify = self.verify, False
        return self.output.committed(verify=verify)

    def begin(self, plan: Plan) -> Plan:
        """See Destination."""
        if self.replaces:
            self.replacement.start()
        found = self.output.join_plan(plan)
        if not (self.output.began or self.several or self.on_exists == "resume"):
            raise OutputError(f"another run has begun in {self.path} meanwhile", hint=f"use {SHARED_WAYS}")
        return found

    def abandon(self) -> None:
        """See Destination."""
        if not self.several:
            self.output.withdraw()

    def write(self, shard: EncodedShard, sink: Sink) -> ShardRecord:
        """See Destination."""
        with self.output.shard(shard.index) as writer:
            # embedding-reader passes over an .npy array of no rows but not over its facts, and the pairs would
            # shift: a shard of empty texts has neither.
            if sink.suffix != ".npy" or shard.has_vector.any():
                sink.write(shard, writer.create)
            write_rejects(shard, writer.create)
            return writer.commit(ShardRecord.of(shard))

    def finish(self, sink: Sink, manifest: Manifest) -> None:  # noqa: ARG002
        """See Destination."""
        self.output.remove_leftovers()
        self.output.write_manifest(manifest)
        if self.replaces:
            self.notices += self.replacement.finish()

    def remove(self) -> None:
        """Remove all of it, unfinished as it may be: what was made of it is whole."""
        for folder in (self.path, self.replacement.next):
            try:
                # The plan goes first: who does not find it any more knows that the output is whole.
                remove_file(folder / PLAN)
                remove_tree(folder)
            except FileNotFoundError:
                continue
            except OSError as fault:
                self.notices.append(
                    f"{folder} is of no more use, and could not be removed "
                    f"({os.strerror(fault.errno or 0)}): remove it"
                )
