"""A single-file output, made of a folder of shards, `OUT.partial`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from json import loads
from pathlib import Path

from embedkit.errors import OutputError
from embedkit.manifest.schema import Manifest, Plan, ShardRecord
from embedkit.manifest.versioned_file import Json
from embedkit.output.commit import OutputFolder
from embedkit.output.destination.base import SHARED_WAYS, WAYS, AlreadyCompleted
from embedkit.output.destination.folder import Folder
from embedkit.output.formats import FORMATS, Sink, make_sink
from embedkit.output.formats.jsonl_format import sniff
from embedkit.output.formats.layout import REJECTS_KEY, REUSED_KEY, Layout
from embedkit.output.open import describing_file, open_stored, schema_metadata
from embedkit.output.rejects import lists_of_shards, lists_rejects, rejects_path
from embedkit.storage.disk_errors import as_output_error, as_read_error, check_no_link
from embedkit.storage.filesystem import (
    exists,
    is_folder,
    new_files,
    open_file,
    remove_empty,
    remove_file,
    sha256_of_file,
)
from embedkit.storage.protocol import AtomicFiles
from embedkit.types import EncodedShard


class SingleFile:
    """A single file, which appears when it is complete.

    Args:
        path: of the file.
        on_exists: error, resume or overwrite.
        verify, several: see Folder.
        may_reject: False if no row of the run can be a reject.
    """

    def __init__(self, path: Path, on_exists: str, *, verify: bool, several: bool, may_reject: bool) -> None:
        self.path = path
        self.may_reject = may_reject
        self.on_exists = on_exists
        self.several = several
        self.parts = Folder(path.with_name(f"{path.name}.partial"), on_exists, verify=verify, several=several)
        self.was_complete = False
        #: The file that is published last, and whose presence means that the output is complete.
        self.last = describing_file(path)
        self.rejects = rejects_path(path)
        #: To recognise a file that another process of this run has completed.
        self._sink: Sink | None = None
        self._inputs: Iterable[str] = ()
        self._first: ShardRecord | None = None
        self._was_there = False
        self._has_former_rejects = False

    @property
    def notices(self) -> Sequence[str]:
        """See Destination."""
        return self.parts.notices

    def open(self) -> Plan | None:
        """See Destination."""
        with as_read_error(self.path):
            if not is_folder(self.path.parent):
                raise OutputError(
                    f"there is no folder {self.path.parent}", hint="create it, or choose another with -o"
                )
            check_no_link(self.path)
            is_last_there = exists(self.last)
            there = self._was_there = is_last_there or exists(self.path)
            has_rejects = exists(self.rejects)
            if has_rejects and not lists_rejects(self.rejects):
                raise OutputError(
                    f"{self.rejects} is needed for the list of rejects, and embedkit did not write the existing "
                    "file",
                    hint="rename or move it, or choose another place with -o",
                )
            owner = self._owner_of_rejects() if has_rejects else None
            self._has_former_rejects = has_rejects and not owner and (there or self.parts.has_plan())
        if there and self.on_exists == "error" and not self.several:
            name = self.path if exists(self.path) else self.last
            raise OutputError(f"{name} exists", hint=f"use {WAYS}")
        if is_last_there and self.on_exists != "overwrite" and not self.parts.has_plan():
            # A run that was killed after the file was complete leaves parts without a plan.
            self.was_complete = True
            return None
        if owner and self.may_reject:
            raise OutputError(
                f"{self.rejects} lists the rejects of {owner.name}, and this run may have rejects as well",
                hint="choose another name, or a folder, with -o",
            )
        plan = self.parts.open()
        self.was_complete = there and plan is None
        return plan

    def _owner_of_rejects(self) -> Path | None:
        """Returns the other output that the existing list of rejects belongs to: all formats use one name."""
        digest = sha256_of_file(self.rejects)
        others = [self.path.with_suffix(f".{form}") for form in FORMATS if f".{form}" != self.path.suffix]
        others = [path for path in others if exists(describing_file(path))]
        for path in others:
            if _names_rejects(path, digest):
                return path
        lines = self.path.with_suffix(".jsonl")  # JSON Lines cannot name their list
        if lines in others and not (exists(self.last) and _names_rejects(self.path, digest)):
            with suppress(OutputError):
                sniff(lines)
                return lines
        return None

    def is_complete(self, sink: Sink, inputs: Iterable[str]) -> bool:
        """See Destination."""
        self._sink, self._inputs = sink, inputs
        if self.was_complete and self.on_exists == "error":
            raise OutputError(f"{self.path} exists", hint=f"use {SHARED_WAYS}")
        with as_read_error(self.path):
            if self.on_exists != "resume" or not exists(self.last):
                return False
        difference = self._difference(sink, inputs)
        if difference is None:
            self.parts.remove()
            return True
        if self.parts.has_plan():
            # The file is a former output, or half of one, that this run is about to replace.
            return False
        raise OutputError(
            f"{self.path} is complete and {difference}",
            hint="use --on-exists overwrite to replace it, or another place with -o",
        )

    def _difference(self, sink: Sink, inputs: Iterable[str]) -> str | None:
        """Returns how the existing file differs from this run's; None if it has its recipe and its input."""
        try:
            found = schema_metadata(self.path)
            if found:
                open_stored(self.path)  # checks that all of its files belong together
        except OutputError:
            return "cannot be read, or its files do not belong together"
        recipe = sink.layout.metadata["embedkit.fingerprint"]
        for name, what, allowed in (
            ("embedkit.fingerprint", "recipe", [recipe]),
            # One after the other: those of older versions take a while to be found.
            ("embedkit.input", "input", chain([sink.layout.metadata["embedkit.input"]], inputs)),
        ):
            if not any(found.get(name) == digest for digest in allowed):
                if what == "input" and _same_files(found, sink.layout.metadata):
                    return (
                        "was made with other columns, another --limit or --on-bad-row, or its input has changed; "
                        "or an older embedkit wrote it, and the input's modification time has changed"
                    )
                return f"is from another {what}" if name in found else f"does not name its {what}"
        return None

    def committed(self) -> dict[int, ShardRecord]:
        """See Destination.

        Raises:
            AlreadyCompleted: another process has finished the file, and removed the records.
        """
        records = self.parts.committed()
        self._check_not_completed()
        self._first = records.get(0, self._first)
        return records

    def recorded(self) -> dict[int, ShardRecord]:
        """See Destination."""
        return self.committed()

    def acknowledgement(self, record: ShardRecord) -> Json:
        """See Destination."""
        return self.parts.acknowledgement(record)

    def adopt(self, acknowledgement: Json) -> None:
        """See Destination."""
        self.parts.adopt(acknowledgement)

    def begin(self, plan: Plan) -> Plan:
        """See Destination."""
        found = self.parts.begin(plan)
        with as_read_error(self.path):
            appeared = not self._was_there and exists(self.last)
        if appeared and self.on_exists != "overwrite":
            is_own = self._is_this_runs()
            self.parts.abandon()
            if is_own:
                raise AlreadyCompleted
            raise OutputError(f"another run has written {self.path}", hint=f"use {SHARED_WAYS}")
        return found

    def scans(self) -> OutputFolder | None:
        """See Destination."""
        return None if self.was_complete else self.parts.scans()

    def abandon(self) -> None:
        """See Destination."""
        self.parts.abandon()

    def write(self, shard: EncodedShard, sink: Sink) -> ShardRecord:
        """See Destination."""
        self._sink = sink
        try:
            record = self.parts.write(shard, sink)
        except (OutputError, OSError):
            self._check_not_completed()
            raise
        if shard.index == 0:
            self._first = record
        self._check_not_completed()
        return record

    def finish(self, sink: Sink, manifest: Manifest) -> None:
        """See Destination."""
        with as_read_error(self.path):
            former = {*self._former_files(), *([self.rejects.name] if self._has_former_rejects else [])}
        shards = manifest.stored_shards
        self._check_parts(shards)
        files = new_files(self.path.parent)
        parts = self.parts.output
        try:
            with as_output_error(self.path):
                digest = self._merge_rejects(files)
                # The file holds the hash of the list of rejects that belongs to it.
                metadata = {**sink.layout.metadata, REJECTS_KEY: digest}
                if manifest.totals.reused:
                    metadata[REUSED_KEY] = str(manifest.totals.reused)
                layout = replace(sink.layout, metadata=metadata)
                own = make_sink(sink.suffix.removeprefix("."), layout)
                own.merge(parts.path, shards, self.path.name, files.create)
            facts = files.publish(last=self.last.name, check=parts.check_plan)
        except (OutputError, OSError):
            self._check_not_completed()
            raise
        finally:
            files.discard()
        for name in sorted(former - {of.path for of in facts}):
            try:
                remove_file(self.path.with_name(name))
            except OSError as fault:
                self.parts.notices.append(
                    f"{self.path.with_name(name)} belongs to the replaced output and could not be removed "
                    f"({os.strerror(fault.errno or 0)}): remove it"
                )
        self.parts.remove()

    def _former_files(self) -> Sequence[str]:
        """Returns the names of the files of the existing output."""
        if not exists(self.last):
            return ()
        layout = None
        if self.path.suffix == ".npy":
            with suppress(OutputError):  # damaged: no other name is known
                layout = Layout.described_by(schema_metadata(self.path))
        return (self.path.name,) if layout is None else make_sink("npy", layout).merged_files(self.path.name)

    def _check_parts(self, shards: Sequence[int]) -> None:
        """Compares the parts with their recorded hashes, which the single file will not have."""
        undamaged = self.parts.output.committed(verify=True)
        damaged = [index for index in shards if index not in undamaged]
        if damaged:
            self._check_not_completed()
            raise OutputError(
                f"{self.parts.output.path}: the files of {len(damaged)} shards are damaged, first those of "
                f"{damaged[0]}",
                hint="the same command with --on-exists resume --verify writes them again",
            )

    def _check_not_completed(self) -> None:
        """Checks for a file that another process has completed; if so, removes the parts.

        Raises:
            AlreadyCompleted: the file is this run's.
            OutputError: the file is another run's, which has removed this one's parts.
        """
        with as_read_error(self.path):
            if not exists(self.last) or self.parts.output.has_plan():
                return
        if not self._is_this_runs():
            remove_empty(self.parts.output.path)
            raise OutputError(
                f"another run has written {self.path}, and removed the shards of this one",
                hint="the file is the other run's; start this one again with another place for -o",
            )
        self.parts.remove()
        raise AlreadyCompleted

    def _is_this_runs(self) -> bool:
        """Returns True if the existing file is what this run would have written."""
        if self.path.suffix != ".jsonl":
            return self._sink is not None and self._difference(self._sink, self._inputs) is None
        # JSON Lines hold no recipe; the file begins with the bytes of the first part.
        if self._first is None:
            return False
        part = next(of for of in self._first.files if of.path.startswith("embeddings/"))
        with as_read_error(self.path), open_file(self.path) as file:
            return hashlib.sha256(file.read(part.bytes)).hexdigest() == part.sha256

    def _merge_rejects(self, files: AtomicFiles) -> str:
        """Concatenates the lists of rejects. Returns the SHA-256 of the list; "" if there is none."""
        lists = lists_of_shards(self.parts.output.path)
        first = next(lists, None)
        if first is None:
            return ""
        digest = hashlib.sha256()
        with files.create(self.rejects.name) as out:
            for data in chain([first], lists):
                digest.update(data)
                out.write(data)
        return digest.hexdigest()


def _names_rejects(path: Path, digest: str) -> bool:
    """Returns True if an output says that the list of rejects with this SHA-256 is its own."""
    try:
        return schema_metadata(path).get(REJECTS_KEY) == digest
    except OutputError:  # damaged, or no output
        return False


def _same_files(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Returns True if two outputs name input files with the same sizes, heads and tails."""
    digests = [loads(of.get("embedkit.read", "{}")).get("files_digest") for of in (one, other)]
    return digests[0] is not None and digests[0] == digests[1]
