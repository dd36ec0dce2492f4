"""The folder of an output, and how shards are committed to it.

A shard's files appear under their names once they are complete and synced, then its record appears the same way.
Files without a record do not count and are written again. There are no locks: the same shard gives the same bytes,
so that writing it twice does no harm. A record names its plan by SHA-256, and a run whose plan has been replaced
commits nothing more. A read error ends the run: unreadable files are not treated as absent, and nothing is removed
or written again. Nothing is written through a symbolic link.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Protocol

from embedkit.errors import OutputError
from embedkit.manifest.schema import Manifest, Plan, ShardRecord
from embedkit.manifest.versioned_file import Json
from embedkit.storage.atomic import is_former_mark, is_leftover, is_temporary, temporary_files
from embedkit.storage.disk_errors import as_output_error, as_read_error, check_no_link
from embedkit.storage.filesystem import (
    exists,
    file_names,
    is_folder,
    is_link,
    list_files,
    make_folder,
    new_files,
    read_file,
    read_files,
    remove_empty,
    remove_file,
    remove_tree,
    sha256_of_file,
    stat_file,
    write_file,
)
from embedkit.storage.protocol import AtomicFiles, FilePath, FileStat

PLAN, MANIFEST, COMMITS, SEGMENTS = "plan.json", "manifest.json", "commits", "segments"
#: Folders of the files of shards.
DATA = ("embeddings", "metadata", "rejects")
#: All that embedkit writes into an output folder; nothing else is ever removed from it.
_OURS = (MANIFEST, COMMITS, PLAN, SEGMENTS, *DATA)
_OWN_FILE = re.compile(
    r"(plan|manifest)\.json|(commits|segments)/\d{5,}\.json|(embeddings(/[^/]+)?|metadata|rejects)/part-\d{5,}\.\w+"
)
_RECORD = re.compile(rf"{COMMITS}/(\d{{5,}})\.json")

Create = Callable[[str], BinaryIO]


class DamagedPlanError(OutputError):
    """A plan that can be read but is damaged."""


class OutputFolder:
    """A folder of shards: plan, commits, files, manifest.

    Args:
        path: of the folder; made when the plan is written.
    """

    def __init__(self, path: FilePath) -> None:
        self.path = path
        #: SHA-256 of this process's plan, once it has read or written one.
        self.plan_sha256: str | None = None
        #: True if this process wrote the plan.
        self.began = False
        #: Of plan.json when it was last read, so that it is not read again for every shard.
        self._plan_seen: FileStat | None = None
        #: Temporary files by the first part of their names; None until they are listed.
        self._temporary: defaultdict[str, list[Path]] | None = None
        #: Records of shards that other processes of this run say they have committed, and their sizes in bytes.
        self._told: dict[int, tuple[ShardRecord, int]] = {}

    def has_foreign_files(self) -> bool:
        """Returns True if there are files, at any depth, that embedkit did not write."""
        with as_read_error(self.path):
            if any(name not in _OURS and not is_temporary(name) for name in file_names(self.path)):
                return True
            return any(not is_own(name) for name, _ in list_files(self.path))

    def has_plan(self) -> bool:
        """Returns True if a run was begun here."""
        with as_read_error(self.path):
            return exists(self.path / PLAN)

    def has_shards(self) -> bool:
        """Returns True if there is a record, or a file of a shard under its final name."""
        with as_read_error(self.path):
            names = (name for of in (COMMITS, *DATA) for name, _ in list_files(self.path / of))
            return any(not is_temporary(Path(name).name) for name in names)

    def read_plan(self) -> Plan | None:
        """Reads the plan, which becomes this process's; None if no run was begun here.

        Raises:
            DamagedPlanError: the plan is damaged.
            OutputError: it cannot be read, or a newer embedkit wrote it.
        """
        data = self._plan_bytes()
        return None if data is None else self._own_plan(data)

    def _own_plan(self, data: bytes) -> Plan:
        """Parses a plan, which becomes this process's."""
        path = self.path / PLAN
        try:
            plan = Plan.parse(data, path)
        except ValueError:
            raise DamagedPlanError(
                f"{path} is damaged; nothing was changed",
                hint="put plan.json back if there is a copy of it; else start again with --on-exists overwrite",
            ) from None
        self.plan_sha256 = hashlib.sha256(data).hexdigest()
        return plan

    def _plan_bytes(self) -> bytes | None:
        """Reads plan.json, and remembers when it was written; None if there is none."""
        path = self.path / PLAN
        with as_read_error(path):
            try:
                self._plan_seen = stat_file(path)
                return read_file(path)
            except FileNotFoundError:
                return None

    def join_plan(self, plan: Plan) -> Plan:
        """Writes the plan unless another process was first.

        Returns:
            The plan in the folder, this one or the other process's; the caller compares them.

        Raises:
            OutputError: the folder cannot be made or written.
        """
        with as_output_error(self.path):
            make_folder(self.path / COMMITS)
        self.began = write_file(self.path, PLAN, plan.serialize(), replace=False, sweep=False)
        found = self.read_plan()
        if found is None:
            raise self.replaced()
        return found

    def check_plan(self) -> None:
        """Checks that the plan in the folder is still this process's.

        Raises:
            OutputError: another run has replaced or removed it.
        """
        if self.plan_sha256 is None:
            return
        path = self.path / PLAN
        with as_read_error(path):
            try:
                seen = stat_file(path)
                if seen != self._plan_seen:
                    if sha256_of_file(path) != self.plan_sha256:
                        raise self.replaced()
                    self._plan_seen = seen
            except FileNotFoundError:
                raise self.replaced() from None

    def replaced(self) -> OutputError:
        """Returns the error of a run whose plan is gone."""
        return OutputError(
            f"another run has replaced this one in {self.path}: the plan there is no longer this run's",
            hint="the files there are the other run's; start this one again with another place for -o",
        )

    def remove_leftovers(self) -> None:
        """Removes temporary files of dead processes. One that cannot be removed stays; `verify` names it."""
        with contextlib.suppress(OSError):
            for path in temporary_files(self.path, recursive=True):
                if is_leftover(path):
                    remove_file(path)

    def read_scan(self, index: int) -> bytes | None:
        """Reads the scan of a segment of the input; None if there is none."""
        path = self.path / scan_name(index)
        with as_read_error(path):
            try:
                return read_file(path)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def write_scan(self, index: int, data: bytes, is_stale: Callable[[bytes], bool]) -> None:
        """Writes the scan of a segment, unless there is one that is not stale.

        Raises:
            OutputError: the folder cannot be made or written.
        """
        with as_output_error(self.path):
            make_folder(self.path / SEGMENTS)
        name = scan_name(index)
        if not write_file(self.path, name, data, replace=False, sweep=False):
            former = self.read_scan(index)
            if former is None or is_stale(former):
                write_file(self.path, name, data, sweep=False)

    def remove_scans(self) -> None:
        """Removes the scans of segments, which nobody needs once there is a plan."""
        with contextlib.suppress(OSError):
            remove_tree(self.path / SEGMENTS)

    def write_manifest(self, manifest: Manifest) -> None:
        """Writes the manifest, the last file, with the hashes of plan and records."""
        with as_read_error(self.path):
            plan_sha256, records_sha256 = self.hashes()
        manifest = replace(manifest, plan_sha256=plan_sha256, records_sha256=records_sha256)
        data = manifest.serialize(indent=2)
        write_file(self.path, MANIFEST, data, sweep=False, check=self.check_plan)

    def acknowledgement(self, record: ShardRecord) -> Json:
        """Returns as JSON what the run needs to know of a shard that this process has just committed."""
        return {"record": record.to_json(), "bytes": len(record.serialize())}

    def adopt(self, acknowledgement: Json) -> None:
        """Takes what another process of this run says of a shard that it has committed."""
        record = ShardRecord.from_json(acknowledgement["record"])
        self._told[record.index] = record, acknowledgement["bytes"]

    def hashes(self) -> tuple[str, str]:
        """Returns the SHA-256 of plan.json, and that of all records, concatenated by number."""
        plan, records = hashlib.sha256(read_file(self.path / PLAN)), hashlib.sha256()
        for _, found in self._records():
            records.update(found.serialize() if isinstance(found, ShardRecord) else found or b"")
        return plan.hexdigest(), records.hexdigest()

    def _records(self) -> Iterator[tuple[int, ShardRecord | bytes | None]]:
        """Yields the number and the content of every record, by number; None if it has gone meanwhile.

        Those that this process was told of are not read, unless their files have another size.
        """
        names = ((f"{COMMITS}/{name}", size) for name, size in list_files(self.path / COMMITS))
        found = {number: (name, size) for name, size in names if (number := record_number(name)) is not None}
        told = {number for number in found if number in self._told and self._told[number][1] == found[number][1]}
        read = read_files([f"{self.path}/{found[number][0]}" for number in sorted(found) if number not in told])
        for number in sorted(found):
            yield number, self._told[number][0] if number in told else next(read)

    def record_paths(self) -> Iterator[tuple[int, str]]:
        """Yields the number and the path of every record, in any order."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for name in file_names(self.path / COMMITS):
                if (number := record_number(f"{COMMITS}/{name}")) is not None:
                    yield number, f"{self.path}/{COMMITS}/{name}"

    def committed(self, *, verify: bool = False) -> dict[int, ShardRecord]:
        """Returns the records of the shards that are done: of this plan, with files of the recorded sizes.

        100,000 shards take 4 s, since folders are listed at once. Damaged records are left out.

        Args:
            verify: compare the files with the recorded hashes as well.

        Raises:
            OutputError: a record or a file cannot be read.
        """
        records: dict[int, ShardRecord] = {}
        with as_read_error(self.path):
            sizes = {name: size for folder in DATA for name, size in list_files(self.path / folder, f"{folder}/")}
            plans: set[str | None] = {None}
            with contextlib.suppress(FileNotFoundError):
                plans.add(sha256_of_file(self.path / PLAN))
            for index, found in self._records():
                with contextlib.suppress(FileNotFoundError, ValueError):  # of a data file; or damaged
                    record = found
                    if isinstance(found, bytes):
                        record = ShardRecord.parse(found, self.path / record_name(index))
                    if record is None or record.index != index:
                        continue
                    is_of_plan = record.plan_sha256 in plans or plans == {None}
                    if is_of_plan and self._is_whole(record, sizes, verify):
                        records[index] = record
        return records

    @contextlib.contextmanager
    def shard(self, index: int) -> Iterator[ShardWriter]:
        """Writes a shard: its files by `create`, then `commit`. Files that are not committed are removed.

        Raises:
            OutputError: a file cannot be written, here or in the block.
        """
        files = new_files(self.path, sweep=False)
        self.check_plan()
        with as_output_error(self.path):
            self._sweep(index)
            try:
                yield _AtomicShardWriter(self, index, files)
            finally:
                files.discard()

    def _sweep(self, index: int) -> None:
        """Removes a shard's temporary files of dead processes.

        The folder is listed once: once per shard took 0.5 s each with 100,000 shards.
        """
        if self._temporary is None:
            self._temporary = defaultdict(list)
            for path in temporary_files(self.path, recursive=True):
                self._temporary[path.name.split(".")[1]].append(path)
        for name in (f"part-{index:05d}", f"{index:05d}"):
            for path in self._temporary.pop(name, ()):
                if is_leftover(path):
                    remove_file(path)

    def clear(self) -> None:
        """Removes a former run: its records first, so that no shard looks finished meanwhile.

        Files that embedkit did not write stay.

        Raises:
            OutputError: a file cannot be removed.
        """
        self._told = {}
        with as_output_error(self.path):
            for name in _OURS:
                path = self.path / name
                if not is_folder(path) or is_link(path):
                    remove_file(path)
                elif all(is_own(f"{name}/{inside}") for inside, _ in list_files(path)):
                    remove_tree(path)
                else:
                    for inside, _ in list_files(path):
                        if is_own(f"{name}/{inside}"):
                            remove_file(path / inside)
            for path in temporary_files(self.path):
                if not is_former_mark(path.name):
                    remove_file(path)

    def withdraw(self) -> None:
        """Removes a run that this process began, unless a process has committed a shard of it, or may have."""
        if not self.began:
            return
        with contextlib.suppress(OutputError, OSError):
            self.check_plan()
            if not any(True for _ in self.record_paths()):
                self.clear()
                remove_empty(self.path)

    def check_no_links(self) -> None:
        """Checks that neither the folder nor anything that embedkit writes into is a symbolic link.

        Raises:
            OutputError: one of them is.
        """
        for path in (self.path, *(self.path / name for name in _OURS)):
            check_no_link(path)

    def _is_whole(self, record: ShardRecord, sizes: Mapping[str, int | None], verify: bool) -> bool:
        return all(
            sizes.get(file.path) == file.bytes
            and (not verify or sha256_of_file(self.path / file.path) == file.sha256)
            for file in record.files
        )


class ShardWriter(Protocol):
    """One shard being written."""

    def create(self, name: str) -> BinaryIO:
        """Opens a new file for a path in the output folder; it appears on `commit`."""

    def commit(self, record: ShardRecord) -> ShardRecord:
        """Publishes the files, then the record.

        Returns:
            The record with the files' sizes and hashes.

        Raises:
            OutputError: the disk is full, the folder cannot be written, or another run has taken its place.
        """


@dataclass(frozen=True, slots=True)
class _AtomicShardWriter:
    """See ShardWriter."""

    folder: OutputFolder
    index: int
    files: AtomicFiles

    def create(self, name: str) -> BinaryIO:
        return self.files.create(name)

    def commit(self, record: ShardRecord) -> ShardRecord:
        folder = self.folder
        files = self.files.publish(check=folder.check_plan)
        record = replace(record, files=tuple(files), plan_sha256=folder.plan_sha256)
        name = record_name(self.index)
        write_file(folder.path, name, record.serialize(), sweep=False, check=folder.check_plan)
        return record


def record_name(number: int) -> str:
    """Returns the path in the folder of a shard's record."""
    return f"{COMMITS}/{number:05d}.json"


def scan_name(index: int) -> str:
    """Returns the path in the folder of the scan of a segment."""
    return f"{SEGMENTS}/{index:05d}.json"


def record_number(name: str) -> int | None:
    """Returns the number of the shard whose record has this path in the folder; None if it is no record's."""
    found = _RECORD.fullmatch(name)
    return None if found is None else int(found[1])


def is_own(name: str) -> bool:
    """Returns True if the path in the folder is one of embedkit's files, temporary ones included."""
    return _OWN_FILE.fullmatch(name) is not None or is_temporary(Path(name).name)
