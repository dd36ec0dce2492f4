"""A shard is done or it is not: files appear under their names only when whole, records after files.

Data goes to a temporary name in the folder where it will stay, is synced, renamed, and the folder synced;
then the shard's record is made the same way. The record is the only truth: files without one do not count
and are written again, and since the same shard gives the same bytes, writing it twice does no harm. So
there are no locks. Plan, records and manifest are sealed (`seal.py`), so that a changed one is not believed.
A record names its plan by the plan's SHA-256, and a run whose plan is no longer in place commits nothing more.
What cannot be read is not absent: a disk that refuses ends the run, and nothing is removed or written again.
Nothing is written through a symbolic link. Knows nothing of what is in the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from embedkit.errors import OutputError
from embedkit.manifest.schema import Manifest, Plan, ShardRecord, VersionedFile
from embedkit.storage.atomic import is_former_mark, is_leftover, is_temporary, temporary_files
from embedkit.storage.disk_errors import as_output_error, as_read_error, check_no_link
from embedkit.storage.filesystem import (
    AtomicFiles,
    FileStat,
    exists,
    file_names,
    is_folder,
    is_link,
    list_files,
    make_folder,
    new_files,
    read_file,
    remove_empty,
    remove_file,
    remove_tree,
    sha256_of_file,
    stat_file,
)

PLAN, MANIFEST, COMMITS = "plan.json", "manifest.json", "commits"
_DATA = ("embeddings", "metadata", "rejects")
#: Everything that embedkit writes into an output folder; nothing else is ever removed from it.
_OURS = (MANIFEST, COMMITS, PLAN, *_DATA)
_OWN_FILE = re.compile(
    r"(plan|manifest)\.json|commits/\d{5,}\.json|(embeddings(/[^/]+)?|metadata|rejects)/part-\d{5,}\.\w+"
)
_RECORD = re.compile(r"\d{5,}\.json")

Create = Callable[[str], BinaryIO]


class DamagedPlanError(OutputError):
    """A plan that was read, and is not as it was written."""


class OutputFolder:
    """A folder of shards: plan, commits, files, manifest.

    Args:
        path: of the folder; made when the plan is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        #: SHA-256 of the plan that this process works by, once it has read or written one.
        self.plan_sha256: str | None = None
        #: Whether this process wrote the plan that is there.
        self.began = False
        #: What tells that plan.json is still the same file, so that it is not read for every shard.
        self._plan_seen: FileStat | None = None
        #: Temporary files by the first part of their names; None until they are looked for.
        self._temporary: defaultdict[str, list[Path]] | None = None

    def has_foreign_files(self) -> bool:
        """Whether anything is there that embedkit did not write, in folders of its names too."""
        with as_read_error(self.path):
            if any(name not in _OURS and not is_temporary(name) for name in file_names(self.path)):
                return True
            return any(not _is_own(name) for name, _ in list_files(self.path))

    def has_plan(self) -> bool:
        """Whether a run was begun here."""
        with as_read_error(self.path):
            return exists(self.path / PLAN)

    def has_shards(self) -> bool:
        """Whether anything of a shard is here: a record, or a file under its final name."""
        with as_read_error(self.path):
            names = (name for of in (COMMITS, *_DATA) for name, _ in list_files(self.path / of))
            return any(not is_temporary(Path(name).name) for name in names)

    def read_plan(self) -> Plan | None:
        """The plan of a run that was started here, or None; the one that this process works by from now on.

        Raises:
            DamagedPlanError: there is one that is not as it was written.
            OutputError: there is one that cannot be read.
        """
        path = self.path / PLAN
        with as_read_error(path):
            try:
                seen = stat_file(path)
                data = read_file(path)
            except FileNotFoundError:
                return None
        try:
            plan = Plan.parse(data, path)
        except ValueError:
            raise DamagedPlanError(
                f"{path} cannot be read, or is not as it was written; nothing was changed",
                hint="put plan.json back if there is a copy of it; else start again with --on-exists overwrite",
            ) from None
        self.plan_sha256, self._plan_seen = hashlib.sha256(data).hexdigest(), seen
        return plan

    def join_plan(self, plan: Plan) -> Plan:
        """Write the plan unless another process was first.

        Returns:
            The plan that is there now, this one's or the other's; whoever calls compares them.

        Raises:
            OutputError: the folder cannot be made or written.
        """
        with as_output_error(self.path):
            make_folder(self.path / COMMITS)
        self.began = self._write(PLAN, plan, replace=False)
        found = self.read_plan()
        if found is None:
            raise self._taken()
        return found

    def refuse_another_plan(self) -> None:
        """See that the plan in place is the one that this process works by.

        Raises:
            OutputError: another run has put its own there, or taken this one's away.
        """
        if self.plan_sha256 is None:
            return
        path = self.path / PLAN
        with as_read_error(path):
            try:
                seen = stat_file(path)
                if seen != self._plan_seen:
                    if sha256_of_file(path) != self.plan_sha256:
                        raise self._taken()
                    self._plan_seen = seen
            except FileNotFoundError:
                raise self._taken() from None

    def _taken(self) -> OutputError:
        return OutputError(
            f"another run has taken the place of this one in {self.path}: the plan there is no longer this run's",
            hint="what is there is the other run's alone; start this one again with another place for -o",
        )

    def remove_leftovers(self) -> None:
        """Remove the temporary files of processes that are gone, whichever shard they were for.

        One that cannot be removed stays; `verify` names it.
        """
        with contextlib.suppress(OSError):
            for path in temporary_files(self.path, recursive=True):
                if is_leftover(path):
                    remove_file(path)

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the manifest; the last thing, when every row is accounted for.

        The hashes of the plan and of all records go with it.
        """
        with as_read_error(self.path):
            plan_sha256, records_sha256 = self.hashes()
        manifest = replace(manifest, plan_sha256=plan_sha256, records_sha256=records_sha256)
        self._write(MANIFEST, manifest, indent=2, check=self.refuse_another_plan)

    def hashes(self) -> tuple[str, str]:
        """Returns the SHA-256 of plan.json, and that of all records, concatenated by number."""
        plan, records = hashlib.sha256(read_file(self.path / PLAN)), hashlib.sha256()
        for _, path in sorted(self.record_paths()):
            records.update(read_file(path))
        return plan.hexdigest(), records.hexdigest()

    def record_paths(self) -> Iterator[tuple[int, str]]:
        """The number and the place of every record, in any order."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for name in file_names(self.path / COMMITS):
                if _RECORD.fullmatch(name):
                    yield int(name.partition(".")[0]), f"{self.path}/{COMMITS}/{name}"

    def committed(self, *, verify: bool = False) -> dict[int, ShardRecord]:
        """Records of the shards that are done: by this plan, and their files are there with the recorded sizes.

        100,000 shards take 2 s: folders are listed, not asked for one file after another.

        Args:
            verify: hold the files against the recorded hashes, too.

        Raises:
            OutputError: a record or a file cannot be read. One that is read and found damaged does not count.
        """
        records: dict[int, ShardRecord] = {}
        with as_read_error(self.path):
            sizes = {name: size for folder in _DATA for name, size in list_files(self.path / folder, f"{folder}/")}
            plans = {None, self._sha256_in_place()}
            for index, path in sorted(self.record_paths()):
                record = _record(path)
                if (
                    record is not None
                    and record.index == index
                    and (record.plan_sha256 in plans or plans == {None})
                    and self._is_whole(record, sizes, verify)
                ):
                    records[index] = record
        return records

    def _sha256_in_place(self) -> str | None:
        try:
            return sha256_of_file(self.path / PLAN)
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def shard(self, index: int) -> Iterator[ShardWriter]:
        """Write a shard: files through `create`, then `commit`. What is not committed is removed.

        Raises:
            OutputError: the disk refuses, here or while the block writes its files.
        """
        files = new_files(self.path, sweep=False)
        self.refuse_another_plan()
        with as_output_error(self.path):
            self._sweep(index)
            try:
                yield ShardWriter(self, index, files)
            finally:
                files.discard()

    def _sweep(self, index: int) -> None:
        """Remove what processes that are gone left of a shard.

        The folder is listed once: for each of 100,000 shards anew, that took 0.5 s a shard.
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
        """Remove a former run: its records first, so that no moment looks like a finished shard.

        What somebody else put among its files stays.

        Raises:
            OutputError: something cannot be removed.
        """
        with as_output_error(self.path):
            for name in _OURS:
                path = self.path / name
                if not is_folder(path) or is_link(path):
                    remove_file(path)
                elif all(_is_own(f"{name}/{inside}") for inside, _ in list_files(path)):
                    remove_tree(path)
                else:
                    for inside, _ in list_files(path):
                        if _is_own(f"{name}/{inside}"):
                            remove_file(path / inside)
            for path in temporary_files(self.path):
                if not is_former_mark(path.name):
                    remove_file(path)

    def withdraw(self) -> None:
        """Leave nothing behind of a run that this process began and that committed nothing.

        Where anybody has committed a shard by its plan, or that cannot be known, all of it stays.
        """
        if not self.began:
            return
        with contextlib.suppress(OutputError, OSError):
            self.refuse_another_plan()
            if not any(True for _ in self.record_paths()):
                self.clear()
                remove_empty(self.path)

    def refuse_links(self) -> None:
        """See that nothing would be written through a symbolic link.

        Raises:
            OutputError: the folder is one, or what embedkit writes into is.
        """
        for path in (self.path, *(self.path / name for name in _OURS)):
            check_no_link(path)

    def _is_whole(self, record: ShardRecord, sizes: Mapping[str, int | None], verify: bool) -> bool:
        try:
            return all(
                sizes.get(file.path) == file.bytes
                and (not verify or sha256_of_file(self.path / file.path) == file.sha256)
                for file in record.files
            )
        except FileNotFoundError:  # it has gone since the folders were listed
            return False

    def _write(
        self,
        name: str,
        content: VersionedFile,
        *,
        indent: int | None = None,
        replace: bool = True,
        check: Callable[[], None] = lambda: None,
    ) -> bool:
        """Write one of embedkit's own files. Returns whether it has the name, and no other was first."""
        files = new_files(self.path, sweep=False)
        try:
            with as_output_error(self.path / name), files.create(name) as file:
                file.write(content.serialize(indent=indent))
            files.publish(replace=replace, check=check)
        finally:
            files.discard()
        return not files.taken


@dataclass(frozen=True, slots=True)
class ShardWriter:
    """One shard being written."""

    folder: OutputFolder
    index: int
    files: AtomicFiles

    def create(self, name: str) -> BinaryIO:
        """A new file for a path in the output folder; nobody sees it before `commit`."""
        return self.files.create(name)

    def commit(self, record: ShardRecord) -> ShardRecord:
        """Puts the files in place, then the record with the files' sizes and hashes.

        Returns:
            The record.

        Raises:
            OutputError: the disk is full, the folder cannot be written, or another run has taken its place.
        """
        folder = self.folder
        files = self.files.publish(check=folder.refuse_another_plan)
        record = replace(record, files=tuple(files), plan_sha256=folder.plan_sha256)
        name = f"{COMMITS}/{self.index:05d}.json"
        folder._write(name, record, check=folder.refuse_another_plan)  # noqa: SLF001
        return record


def _is_own(name: str) -> bool:
    """Whether a file is one that embedkit writes, or wrote and did not get to name, by its path in the folder."""
    return _OWN_FILE.fullmatch(name) is not None or is_temporary(Path(name).name)


def _record(path: str) -> ShardRecord | None:
    """A record, or None where it is gone or damaged; an error of the disk is neither, and goes on."""
    try:
        return ShardRecord.parse(read_file(path), Path(path))
    except (FileNotFoundError, ValueError):
        return None
