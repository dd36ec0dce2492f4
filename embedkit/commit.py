"""A shard is done or it is not: files appear under their names only when whole, records after files.

Data goes to a temporary name in the folder where it will stay, is synced, renamed, and the folder synced;
then the shard's record is made the same way. The record is the only truth: files without one do not count
and are written again, and since the same shard gives the same bytes, writing it twice does no harm. So
there are no locks. Plan, records and manifest are sealed (`seal.py`), so that a changed one is not believed.
Nothing is written through a symbolic link. Knows nothing of what is in the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from embedkit.disk import listed, read_small, refuse_link, sha256_of
from embedkit.errors import OutputError
from embedkit.leftovers import is_leftover, is_temporary
from embedkit.seal import sealed, unsealed
from embedkit.whole_files import WholeFiles, as_output_error

PLAN, MANIFEST, COMMITS = "plan.json", "manifest.json", "commits"
_DATA = ("embeddings", "metadata", "rejects")
#: Everything that embedkit writes into an output folder; nothing else is ever removed from it.
_OURS = (MANIFEST, COMMITS, PLAN, *_DATA)
_OWN_FILE = re.compile(
    r"(plan|manifest)\.json|commits/\d{5,}\.json|(embeddings(/[^/]+)?|metadata|rejects)/part-\d{5,}\.\w+"
)
_RECORD = re.compile(r"\d{5,}\.json")

Create = Callable[[str], BinaryIO]


class OutputFolder:
    """A folder of shards: plan, commits, files, manifest.

    Args:
        path: of the folder; made when the plan is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        #: Temporary files by the first part of their names; None until they are looked for.
        self._temporary: defaultdict[str, list[Path]] | None = None

    def has_foreign_files(self) -> bool:
        """Whether anything is there that embedkit did not write, in folders of its names too."""
        if any(path.name not in _OURS and not is_temporary(path.name) for path in self.path.iterdir()):
            return True
        files = (name for name, _ in listed(self.path))
        return any(not _OWN_FILE.fullmatch(name) and not is_temporary(Path(name).name) for name in files)

    def has_shards(self) -> bool:
        """Whether a shard was ever written here."""
        return any((self.path / name).exists() for name in _DATA)

    def read_plan(self) -> dict[str, Any] | None:
        """The plan of a run that was started here, or None.

        Raises:
            OutputError: there is one that cannot be read.
        """
        return _read_sealed(self.path / PLAN)

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Write the plan; the first thing to be in the folder.

        Raises:
            OutputError: the folder cannot be made or written.
        """
        with as_output_error(self.path):
            (self.path / COMMITS).mkdir(parents=True, exist_ok=True)
        self._write_json(PLAN, plan, indent=None)

    def join_plan(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        """Write the plan unless another rank was first.

        Returns:
            The plan that is there now, this one's or the other's; whoever calls compares them.

        Raises:
            OutputError: the folder cannot be made or written.
        """
        with as_output_error(self.path):
            (self.path / COMMITS).mkdir(parents=True, exist_ok=True)
        self._write_json(PLAN, plan, indent=None, replace=False)
        return self.read_plan() or dict(plan)

    def remove_leftovers(self) -> None:
        """Remove the temporary files of processes that are gone, whichever shard they were for."""
        with as_output_error(self.path):
            for path in self.path.glob("**/.*.tmp"):
                if is_leftover(path):
                    path.unlink(missing_ok=True)

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest; the last thing, when every row is accounted for.

        The hashes of the plan and of all records go with it.
        """
        with as_output_error(self.path):
            hashes = self.hashes()
        self._write_json(MANIFEST, {**manifest, **hashes}, indent=2)

    def hashes(self) -> dict[str, str]:
        """What the manifest says of the plan and the records.

        Returns:
            `plan_sha256` of plan.json, and `records_sha256` of all records one behind the other, by number.
        """
        plan, records = hashlib.sha256((self.path / PLAN).read_bytes()), hashlib.sha256()
        for _, path in sorted(self.record_paths()):
            records.update(read_small(path))
        return {"plan_sha256": plan.hexdigest(), "records_sha256": records.hexdigest()}

    def record_paths(self) -> Iterator[tuple[int, str]]:
        """The number and the place of every record, in any order."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.path / COMMITS) as entries:
            for entry in entries:
                if _RECORD.fullmatch(entry.name):
                    yield int(entry.name.partition(".")[0]), entry.path

    def committed(self, *, verify: bool = False) -> dict[int, dict[str, Any]]:
        """Records of the shards that are done: their files are there with the recorded sizes.

        100,000 shards take 2 s: folders are listed, not asked for one file after another.

        Args:
            verify: hold the files against the recorded hashes, too.
        """
        sizes = {name: size for folder in _DATA for name, size in listed(self.path / folder, f"{folder}/")}
        records: dict[int, dict[str, Any]] = {}
        for index, path in sorted(self.record_paths()):
            with contextlib.suppress(OutputError, OSError):
                record = _read_sealed(path)
                if record is not None and record["index"] == index and self._is_whole(record, sizes, verify):
                    records[index] = record
        return records

    @contextlib.contextmanager
    def shard(self, index: int) -> Iterator[ShardWriter]:
        """Write a shard: files through `create`, then `commit`. What is not committed is removed.

        Raises:
            OutputError: the disk refuses, here or while the block writes its files.
        """
        files = WholeFiles(self.path, sweep=False)
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
            for path in self.path.glob("**/.*.tmp"):
                self._temporary[path.name.split(".")[1]].append(path)
        for name in (f"part-{index:05d}", f"{index:05d}"):
            for path in self._temporary.pop(name, ()):
                if is_leftover(path):
                    path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove a former run: its records first, so that no moment looks like a finished shard."""
        with as_output_error(self.path):
            for name in _OURS:
                path = self.path / name
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            for path in self.path.glob(".*.tmp"):
                if is_temporary(path.name):
                    path.unlink(missing_ok=True)

    def refuse_links(self) -> None:
        """See that nothing would be written through a symbolic link.

        Raises:
            OutputError: the folder is one, or what embedkit writes into is.
        """
        for path in (self.path, *(self.path / name for name in _OURS)):
            refuse_link(path)

    def _is_whole(self, record: Mapping[str, Any], sizes: Mapping[str, int | None], verify: bool) -> bool:
        return all(
            sizes.get(file["path"]) == file["bytes"]
            and (not verify or sha256_of(self.path / file["path"]) == file["sha256"])
            for file in record["files"]
        )

    def _write_json(
        self, name: str, content: Mapping[str, Any], *, indent: int | None, replace: bool = True
    ) -> None:
        files = WholeFiles(self.path, sweep=False)
        try:
            with as_output_error(self.path / name), files.create(name) as file:
                file.write(sealed(content, indent=indent))
            files.publish(replace=replace)
        finally:
            files.discard()


@dataclass(frozen=True, slots=True)
class ShardWriter:
    """One shard being written."""

    folder: OutputFolder
    index: int
    files: WholeFiles

    def create(self, name: str) -> BinaryIO:
        """A new file for a path in the output folder; nobody sees it before `commit`."""
        return self.files.create(name)

    def commit(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Put the files in place, then the record with these facts and the files' sizes and hashes.

        Returns:
            The record.

        Raises:
            OutputError: the disk is full, or the folder cannot be written.
        """
        record = {"index": self.index, **facts, "files": self.files.publish()}
        self.folder._write_json(f"{COMMITS}/{self.index:05d}.json", record, indent=None)  # noqa: SLF001
        return record


def _read_sealed(path: Path | str) -> dict[str, Any] | None:
    try:
        return unsealed(read_small(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        pass
    raise OutputError(
        f"{path} cannot be read, or is not as it was written", hint="start again with --on-exists overwrite"
    )
