"""A folder of shards.

An output that is overwritten stays unchanged until the new one, written to another folder, is complete.
"""

from __future__ import annotations

import os
from pathlib import Path

from embedkit.errors import OutputError
from embedkit.manifest.schema import Manifest, Plan
from embedkit.output.commit import MANIFEST, PLAN, OutputFolder
from embedkit.output.destination.base import SHARED_WAYS, WAYS
from embedkit.output.destination.shard_folder import ShardFolder
from embedkit.output.formats import Sink
from embedkit.storage.atomic import remove_abandoned_states
from embedkit.storage.disk_errors import as_output_error, as_read_error
from embedkit.storage.filesystem import exists, is_folder, remove_file, remove_tree
from embedkit.storage.replace_folder import Replacement


class Folder(ShardFolder):
    """A folder of shards.

    Args:
        path: of the folder.
        on_exists: error, resume or overwrite.
        verify: a shard is done only if its files have the recorded hashes as well.
        several: True if other ranks write here at the same time.
    """

    def __init__(self, path: Path, on_exists: str, *, verify: bool = False, several: bool = False) -> None:
        # What is written is the destination, or a folder that replaces it when complete.
        super().__init__(path, OutputFolder(path), on_exists, verify=verify, several=several)
        self.path: Path = path
        self.replacement = Replacement(path, lambda folder: OutputFolder(folder).clear())

    def has_plan(self) -> bool:
        """Returns True if a run was begun here, or one that replaces it."""
        return self.output.has_plan() or OutputFolder(self.replacement.next).has_plan()

    def open(self) -> Plan | None:
        """See Destination."""
        with as_read_error(self.path):
            return self._open()

    def _open(self) -> Plan | None:
        self.output.check_no_links()
        following = OutputFolder(self.replacement.next)
        following.check_no_links()
        self.notices += self.replacement.recover()
        exists_now, has_following = exists(self.path), exists(following.path)
        if exists_now and not is_folder(self.path):
            raise OutputError(f"{self.path} is a file, not a folder", hint="choose another place with -o")
        ours = exists_now and (self.output.has_plan() or exists(self.path / MANIFEST))
        if exists_now and not ours and self.output.has_foreign_files():
            raise OutputError(
                f"{self.path} holds files that are not embedkit's", hint="choose an empty or new folder with -o"
            )
        has_begun = has_following and following.has_plan()
        if has_begun and self.on_exists == "resume":
            self.output = following
            return following.read_plan()
        if self.several and not has_begun:
            return self._open_shared()
        if self.on_exists == "overwrite":
            if ours or has_following or self.output.has_shards():
                self._make_room(following)
            return None
        if has_begun:
            raise OutputError(
                f"{following.path} holds an unfinished run that replaces {self.path} when it is complete",
                hint=f"use {SHARED_WAYS if self.several else WAYS}",
            )
        if (ours or self.output.has_shards()) and not self.output.has_plan():
            raise OutputError(
                f"{self.path} holds shards of another run, without its plan",
                hint="put plan.json back if there is a copy of it, or choose another place with -o; --on-exists "
                "overwrite starts again, and removes them when the new output is complete",
            )
        if ours and self.on_exists == "error":
            raise OutputError(f"{self.path} holds the output of another run", hint=f"use {WAYS}")
        return self.output.read_plan() if ours else None

    def _make_room(self, following: OutputFolder) -> None:
        """Directs the new output to the folder that replaces the old one when complete."""
        self.replacement.check_movable()
        if exists(following.path) and (not is_folder(following.path) or following.has_foreign_files()):
            raise OutputError(
                f"{following.path} holds files that are not embedkit's, and the new output would be written there",
                hint="rename or remove it, or choose another place with -o",
            )
        self.output = following

    def _open_shared(self) -> Plan | None:
        """Returns the plan of the ranks that began, also if the output is complete: a rank may start late."""
        # In this order, since the plan is written before any shard.
        has_shards = self.output.has_shards()
        plan = self.output.read_plan()
        if plan is None and has_shards:
            raise OutputError(
                f"{self.path} holds shards of another run, without its plan",
                hint="remove it, or choose another place with -o",
            )
        with as_read_error(self.path):
            self.was_complete = exists(self.path / MANIFEST)
        return plan

    def begin(self, plan: Plan) -> Plan:
        """See Destination."""
        with as_output_error(self.path):
            remove_abandoned_states(self.path.parent)
        if self.output.path != self.path:
            self.replacement.start()
        found = self.output.join_plan(plan)
        if not (self.output.began or self.several or self.on_exists == "resume"):
            raise OutputError(f"another run has begun in {self.path}", hint=f"use {SHARED_WAYS}")
        return found

    def scans(self) -> OutputFolder | None:
        """See Destination. A run that replaces an output, which may be moved aside, keeps none."""
        return None if self.was_complete or self.output.path != self.path else self.output

    def finish(self, sink: Sink, manifest: Manifest) -> None:  # noqa: ARG002
        """See Destination."""
        self.output.remove_leftovers()
        self.output.remove_scans()
        self.output.write_manifest(manifest)
        if self.output.path != self.path:
            self.notices += self.replacement.finish()

    def remove(self) -> None:
        """Removes the folder, once the file that was made of it is complete."""
        for folder in (self.path, self.replacement.next):
            try:
                # The plan goes first: a process that no longer finds it knows that the output is complete.
                remove_file(folder / PLAN)
                remove_tree(folder)
            except FileNotFoundError:
                continue
            except OSError as fault:
                self.notices.append(
                    f"{folder} is obsolete and could not be removed ({os.strerror(fault.errno or 0)}): remove it"
                )
