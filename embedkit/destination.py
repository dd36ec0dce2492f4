"""What `-o` means: a folder of shards, a single file, or stdout; and what to do if it is there already.

A single file is made of a folder of shards too, `OUT.partial` beside it, so that a killed run can be resumed
whatever it writes. The file appears when that folder is whole, and the folder goes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from embedkit.commit import MANIFEST, PLAN, OutputFolder, WholeFiles
from embedkit.config import OutputConfig
from embedkit.errors import OutputError
from embedkit.records import EncodedShard
from embedkit.sinks import Sink, jsonl_lines
from embedkit.sinks.npy import metadata_name
from embedkit.sinks.rejects import write_rejects
from embedkit.sinks.stored import former_files, made_by

_WAYS = "--on-exists resume to go on with it, --on-exists overwrite to start again, or another place with -o"


class Destination(Protocol):
    """Where finished shards go."""

    def open(self) -> dict[str, Any] | None:
        """Look what is there: the plan of a run that is to be resumed, or None to begin.

        Raises:
            OutputError: something is there, and the user did not say what to do with it.
        """

    def is_whole(self, sink: Sink) -> bool:
        """Whether all of it is there already, by the same recipe from the same input.

        Raises:
            OutputError: it is there by another recipe, or from another input.
        """

    def committed(self) -> dict[int, dict[str, Any]]:
        """Records of the shards that are done."""

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Make room, and write the plan."""

    def abandon(self) -> None:
        """Leave nothing behind: the run failed before any shard was committed."""

    def write(self, shard: EncodedShard, sink: Sink) -> dict[str, Any]:
        """Commit a shard. Returns its record."""

    def finish(self, sink: Sink, manifest: Mapping[str, Any], shards: Sequence[int]) -> None:
        """Make the output whole, now that every row is accounted for; `shards` are those that have files."""


def destination_of(config: OutputConfig) -> Destination:
    """The destination that `-o` names: by `-`, by the suffix of a file, else a folder."""
    if config.is_stdout:
        return Stdout()
    path = Path(config.output)
    if path.suffix == f".{config.format}" and not path.is_dir():
        return SingleFile(path, config.on_exists)
    return Folder(path, config.on_exists)


class Folder:
    """A folder of shards.

    Args:
        path: of the folder.
        on_exists: error, resume or overwrite.
    """

    def __init__(self, path: Path, on_exists: str) -> None:
        self.path = path
        self.on_exists = on_exists
        self.output = OutputFolder(path)

    def open(self) -> dict[str, Any] | None:
        """See Destination."""
        if not self.path.exists():
            return None
        if not self.path.is_dir():
            raise OutputError(f"{self.path} is a file, not a folder", hint="choose another place with -o")
        ours = (self.path / PLAN).exists() or (self.path / MANIFEST).exists()
        if not ours and self.output.has_foreign_files():
            raise OutputError(
                f"{self.path} holds files that are not embedkit's", hint="choose an empty or new folder with -o"
            )
        if not ours:
            return None
        if self.on_exists == "error":
            raise OutputError(f"{self.path} holds the output of another run", hint=f"use {_WAYS}")
        return self.output.read_plan() if self.on_exists == "resume" else None

    def is_whole(self, sink: Sink) -> bool:  # noqa: ARG002
        """See Destination; whether a folder is whole, its records say shard by shard."""
        return False

    def committed(self) -> dict[int, dict[str, Any]]:
        """See Destination."""
        return self.output.committed() if self.on_exists == "resume" else {}

    def begin(self, plan: Mapping[str, Any]) -> None:
        """See Destination."""
        self.output.clear()
        self.output.write_plan(plan)

    def abandon(self) -> None:
        """See Destination."""
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
            return writer.commit(_facts(shard))

    def finish(self, sink: Sink, manifest: Mapping[str, Any], shards: Sequence[int]) -> None:  # noqa: ARG002
        """See Destination."""
        self.output.write_manifest(manifest)


class SingleFile:
    """One file, which is there when it is whole.

    Args:
        path: of the file.
        on_exists: error, resume or overwrite.
    """

    def __init__(self, path: Path, on_exists: str) -> None:
        self.path = path
        self.on_exists = on_exists
        self.parts = Folder(path.with_name(f"{path.name}.partial"), on_exists)
        #: The file that is published last: once it is there, the output is whole.
        self.last = path.with_name(metadata_name(path.name)) if path.suffix == ".npy" else path
        self.rejects = f"{path.stem}.rejects.jsonl"

    def open(self) -> dict[str, Any] | None:
        """See Destination."""
        if not self.path.parent.is_dir():
            raise OutputError(f"there is no folder {self.path.parent}", hint="make it, or choose another with -o")
        if self.on_exists == "error" and (self.path.exists() or self.last.exists()):
            raise OutputError(f"{self.path} exists", hint=f"use {_WAYS}")
        return self.parts.open()

    def is_whole(self, sink: Sink) -> bool:
        """See Destination."""
        if self.on_exists != "resume" or not self.last.exists():
            return False
        try:
            found = made_by(self.path)
        except OutputError:
            found = {}
        unfinished = (self.parts.path / PLAN).exists()
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
        """See Destination."""
        return self.parts.committed()

    def begin(self, plan: Mapping[str, Any]) -> None:
        """See Destination."""
        self.parts.begin(plan)

    def abandon(self) -> None:
        """See Destination."""
        self.parts.abandon()

    def write(self, shard: EncodedShard, sink: Sink) -> dict[str, Any]:
        """See Destination."""
        return self.parts.write(shard, sink)

    def finish(self, sink: Sink, manifest: Mapping[str, Any], shards: Sequence[int]) -> None:  # noqa: ARG002
        """See Destination."""
        former = {self.rejects, *(former_files(self.path) if self.last.exists() else ())}
        files = WholeFiles(self.path.parent)
        try:
            sink.merge(self.parts.path, shards, self.path.name, files.create)
            self._merge_rejects(files)
            made = {facts["path"] for facts in files.publish(last=self.last.name)}
        finally:
            files.discard()
        for name in former - made:
            self.path.with_name(name).unlink(missing_ok=True)
        shutil.rmtree(self.parts.path)

    def _merge_rejects(self, files: WholeFiles) -> None:
        parts = sorted((self.parts.path / "rejects").glob("*.jsonl"))
        if parts:
            with files.create(self.rejects) as out:
                for part in parts:
                    out.write(part.read_bytes())


class Stdout:
    """JSON Lines on stdout, shard by shard. Nothing stays, so nothing can be resumed."""

    def open(self) -> None:
        """See Destination."""

    def is_whole(self, sink: Sink) -> bool:  # noqa: ARG002
        """See Destination."""
        return False

    def committed(self) -> dict[int, dict[str, Any]]:
        """See Destination."""
        return {}

    def begin(self, plan: Mapping[str, Any]) -> None:
        """See Destination."""

    def abandon(self) -> None:
        """See Destination."""

    def write(self, shard: EncodedShard, sink: Sink) -> dict[str, Any]:
        """See Destination.

        Raises:
            BrokenPipeError: whoever read has gone.
            OutputError: it goes to a disk that is full.
        """
        try:
            sys.stdout.buffer.writelines(jsonl_lines(shard, sink.layout))
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as fault:
            raise OutputError(
                f"cannot write to stdout: {os.strerror(fault.errno or 0)}",
                hint="free some space where it goes, or write to a folder with -o, which can be resumed",
            ) from None
        return {"index": shard.index, **_facts(shard)}

    def finish(self, sink: Sink, manifest: Mapping[str, Any], shards: Sequence[int]) -> None:
        """See Destination."""


def _facts(shard: EncodedShard) -> dict[str, Any]:
    """What a shard's record says beside its files."""
    return {
        "start": shard.start,
        "stop": shard.stop,
        "rows": len(shard.ids),
        "vectors": int(shard.has_vector.sum()),
        "status_counts": dict(sorted(Counter(shard.status).items())),
        "tokens": {"n_tokens": int(shard.n_tokens.sum()), "n_used": int(shard.n_used.sum())},
        "rejects": len(shard.rejects),
    }
