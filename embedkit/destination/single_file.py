"""One file, made of a folder of parts beside it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embedkit.commit import PLAN
from embedkit.destination.destination import SHARED_WAYS, WAYS, Overtaken
from embedkit.destination.folder import Folder
from embedkit.disk import refuse_link
from embedkit.errors import OutputError
from embedkit.records import EncodedShard
from embedkit.sinks import Sink
from embedkit.sinks.npy import metadata_name
from embedkit.sinks.stored import former_files, made_by
from embedkit.whole_files import WholeFiles, as_output_error


class SingleFile:
    """One file, which is there when it is whole.

    Args:
        path: of the file.
        on_exists: error, resume or overwrite.
        verify, several: see Folder.
    """

    def __init__(self, path: Path, on_exists: str, *, verify: bool = False, several: bool = False) -> None:
        self.path = path
        self.on_exists = on_exists
        self.several = several
        self.parts = Folder(path.with_name(f"{path.name}.partial"), on_exists, verify=verify, several=several)
        self.was_whole = False
        #: The file that is published last: once it is there, the output is whole.
        self.last = path.with_name(metadata_name(path.name)) if path.suffix == ".npy" else path
        self.rejects = f"{path.stem}.rejects.jsonl"

    def open(self) -> dict[str, Any] | None:
        """See Destination."""
        if not self.path.parent.is_dir():
            raise OutputError(f"there is no folder {self.path.parent}", hint="make it, or choose another with -o")
        refuse_link(self.path)
        there = self.path.exists() or self.last.exists()
        if there and self.on_exists == "error" and not self.several:
            raise OutputError(f"{self.path} exists", hint=f"use {WAYS}")
        plan = self.parts.open()
        self.was_whole = there and plan is None
        return plan

    def is_whole(self, sink: Sink) -> bool:
        """See Destination."""
        if self.was_whole and self.on_exists == "error":
            raise OutputError(f"{self.path} exists", hint=f"use {SHARED_WAYS}")
        if self.on_exists != "resume" or not self.last.exists():
            return False
        try:
            found = made_by(self.path)
        except OutputError:
            found = {}
        unfinished = (self.parts.path / PLAN).exists()
        if not unfinished:
            # A run that was killed at the very end left them.
            shutil.rmtree(self.parts.path, ignore_errors=True)
        for name, what in (("embedkit.fingerprint", "recipe"), ("embedkit.input", "input")):
            if found.get(name) != sink.layout.metadata[name]:
                if unfinished:
                    # What is there is a former output, or half of one, that this run is about to replace.
                    return False
                difference = f"is from another {what}" if name in found else f"does not say from what {what}"
                raise OutputError(
                    f"{self.path} is whole and {difference}",
                    hint="use --on-exists overwrite to replace it, or another place with -o",
                )
        # A run that was killed at the very end left them.
        shutil.rmtree(self.parts.path, ignore_errors=True)
        return True

    def committed(self) -> dict[int, dict[str, Any]]:
        """See Destination.

        Raises:
            Overtaken: another process has finished the file, and removed the records.
        """
        records = self.parts.committed()
        self._look()
        return records

    def begin(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        """See Destination."""
        return self.parts.begin(plan)

    def abandon(self) -> None:
        """See Destination."""
        self.parts.abandon()

    def write(self, shard: EncodedShard, sink: Sink) -> dict[str, Any]:
        """See Destination."""
        try:
            record = self.parts.write(shard, sink)
        except (OutputError, OSError):
            self._look()
            raise
        self._look()
        return record

    def finish(self, sink: Sink, manifest: Mapping[str, Any], shards: Sequence[int]) -> None:  # noqa: ARG002
        """See Destination."""
        former = {self.rejects, *(former_files(self.path) if self.last.exists() else ())}
        self._refuse_damage(shards)
        files = WholeFiles(self.path.parent)
        try:
            with as_output_error(self.path):
                sink.merge(self.parts.path, shards, self.path.name, files.create)
                self._merge_rejects(files)
            made = {facts["path"] for facts in files.publish(last=self.last.name)}
        except (OutputError, OSError):
            self._look()
            raise
        finally:
            files.discard()
        with as_output_error(self.path):
            for name in former - made:
                self.path.with_name(name).unlink(missing_ok=True)
            # The plan goes first: who does not find it any more knows that the file is whole.
            (self.parts.path / PLAN).unlink(missing_ok=True)
        shutil.rmtree(self.parts.path, ignore_errors=True)

    def _refuse_damage(self, shards: Sequence[int]) -> None:
        """Hold the parts against their hashes: in the one file that is made of them nobody could any more."""
        whole = self.parts.output.committed(verify=True)
        damaged = [index for index in shards if index not in whole]
        if damaged:
            self._look()
            raise OutputError(
                f"{self.parts.path}: the files of {len(damaged)} shards are damaged, first those of {damaged[0]}",
                hint="the same command with --on-exists resume --verify makes them again",
            )

    def _look(self) -> None:
        """See whether another process has made the file whole; if so, leave nothing beside it."""
        if self.last.exists() and not (self.parts.path / PLAN).exists():
            shutil.rmtree(self.parts.path, ignore_errors=True)
            raise Overtaken

    def _merge_rejects(self, files: WholeFiles) -> None:
        parts = sorted((self.parts.path / "rejects").glob("*.jsonl"))
        if parts:
            with files.create(self.rejects) as out:
                for part in parts:
                    out.write(part.read_bytes())
