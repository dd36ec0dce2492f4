"""A folder of shards."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embedkit.commit import MANIFEST, PLAN, OutputFolder
from embedkit.destination.destination import SHARED_WAYS, WAYS, facts_of
from embedkit.errors import OutputError
from embedkit.records import EncodedShard
from embedkit.sinks import Sink
from embedkit.sinks.rejects import write_rejects


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
        self.output = OutputFolder(path)
        self.was_whole = False

    def open(self) -> dict[str, Any] | None:
        """See Destination."""
        self.output.refuse_links()
        if not self.path.exists():
            return None
        if not self.path.is_dir():
            raise OutputError(f"{self.path} is a file, not a folder", hint="choose another place with -o")
        ours = (self.path / PLAN).exists() or (self.path / MANIFEST).exists()
        if not ours and self.output.has_foreign_files():
            raise OutputError(
                f"{self.path} holds files that are not embedkit's", hint="choose an empty or new folder with -o"
            )
        if self.several:
            return self._open_shared()
        if not ours:
            return None
        if self.on_exists == "error":
            raise OutputError(f"{self.path} holds the output of another run", hint=f"use {WAYS}")
        return self.output.read_plan() if self.on_exists == "resume" else None

    def _open_shared(self) -> dict[str, Any] | None:
        """The plan of the ranks that were here first. That the output is whole is no fault of a late rank."""
        # In this order: the plan is there before any shard is.
        has_shards = self.output.has_shards()
        plan = self.output.read_plan()
        if plan is None and has_shards:
            raise OutputError(
                f"{self.path} holds shards of another run, without its plan",
                hint="remove it, or choose another place with -o",
            )
        self.was_whole = (self.path / MANIFEST).exists()
        return plan

    def is_whole(self, sink: Sink) -> bool:  # noqa: ARG002
        """See Destination; whether a folder is whole, its records say shard by shard."""
        if self.was_whole and self.on_exists == "error":
            raise OutputError(f"{self.path} holds the output of another run", hint=f"use {SHARED_WAYS}")
        return False

    def committed(self) -> dict[int, dict[str, Any]]:
        """See Destination; what another run left is gone since `begin`. Hashes are compared once."""
        verify, self.verify = self.verify, False
        return self.output.committed(verify=verify)

    def begin(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        """See Destination."""
        begun = self.on_exists != "overwrite" and (self.path / PLAN).exists()
        if begun and self.on_exists == "error" and not self.several:
            raise OutputError(f"another run has begun in {self.path} meanwhile", hint=f"use {SHARED_WAYS}")
        if begun or self.several:
            return self.output.join_plan(plan)
        self.output.clear()
        self.output.write_plan(plan)
        return dict(plan)

    def abandon(self) -> None:
        """See Destination."""
        if self.several:
            return
        self.output.clear()
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def write(self, shard: EncodedShard, sink: Sink) -> dict[str, Any]:
        """See Destination."""
        with self.output.shard(shard.index) as writer:
            # embedding-reader passes over an .npy array of no rows but not over its facts, and the pairs would
            # shift: a shard of empty texts has neither.
            if sink.suffix != ".npy" or shard.has_vector.any():
                sink.write(shard, writer.create)
            write_rejects(shard, writer.create)
            return writer.commit(facts_of(shard))

    def finish(self, sink: Sink, manifest: Mapping[str, Any], shards: Sequence[int]) -> None:  # noqa: ARG002
        """See Destination."""
        self.output.remove_leftovers()
        self.output.write_manifest(manifest)
