"""A shard is done or it is not: files appear under their names only when whole, records after files.

Data goes to a temporary name in the folder where it will stay, is synced, renamed, and the folder synced;
then the shard's record is made the same way. The record is the only truth: files without one do not count
and are written again, and since the same shard gives the same bytes, writing it twice does no harm. So
there are no locks. Knows nothing of what is in the files.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from embedkit.errors import OutputError

PLAN, MANIFEST, COMMITS = "plan.json", "manifest.json", "commits"
#: Everything that embedkit writes into an output folder; nothing else is ever removed from it.
_OURS = (MANIFEST, COMMITS, PLAN, "embeddings", "metadata", "rejects")
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")

Create = Callable[[str], BinaryIO]


class OutputFolder:
    """A folder of shards: plan, commits, files, manifest.

    Args:
        path: of the folder; made when the plan is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def has_foreign_files(self) -> bool:
        """Whether anything is there that embedkit did not write."""
        return any(path.name not in _OURS and not _TEMPORARY.fullmatch(path.name) for path in self.path.iterdir())

    def read_plan(self) -> dict[str, Any] | None:
        """The plan of a run that was started here, or None.

        Raises:
            OutputError: there is one that cannot be read.
        """
        return _read_json(self.path / PLAN)

    def read_manifest(self) -> dict[str, Any] | None:
        """The manifest of a finished run, or None.

        Raises:
            OutputError: there is one that cannot be read.
        """
        return _read_json(self.path / MANIFEST)

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Write the plan; the first thing to be in the folder.

        Raises:
            OutputError: the folder cannot be made or written.
        """
        with _as_output_error(self.path):
            (self.path / COMMITS).mkdir(parents=True, exist_ok=True)
        self._write_json(PLAN, plan, indent=None)

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest; the last thing, when every row is accounted for."""
        self._write_json(MANIFEST, manifest, indent=2)

    def committed(self) -> dict[int, dict[str, Any]]:
        """Records of the shards that are done: their files are there with the recorded sizes."""
        records: dict[int, dict[str, Any]] = {}
        for path in sorted((self.path / COMMITS).glob("*.json")):
            with contextlib.suppress(OutputError):
                record = _read_json(path)
                if record is not None and self._is_whole(record):
                    records[int(record["index"])] = record
        return records

    @contextlib.contextmanager
    def shard(self, index: int) -> Iterator[ShardWriter]:
        """Write a shard: files through `create`, then `commit`. What is not committed is removed."""
        for path in self.path.glob(f"*/**/.part-{index:05d}.*.tmp"):
            path.unlink(missing_ok=True)
        files = WholeFiles(self.path)
        try:
            yield ShardWriter(self, index, files)
        finally:
            files.discard()

    def clear(self) -> None:
        """Remove a former run: its records first, so that no moment looks like a finished shard."""
        with _as_output_error(self.path):
            for name in _OURS:
                path = self.path / name
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            for path in self.path.glob(".*.tmp"):
                if _TEMPORARY.fullmatch(path.name):
                    path.unlink(missing_ok=True)

    def _is_whole(self, record: Mapping[str, Any]) -> bool:
        try:
            return all((self.path / file["path"]).stat().st_size == file["bytes"] for file in record["files"])
        except (OSError, KeyError, TypeError):
            return False

    def _write_json(self, name: str, content: Mapping[str, Any], *, indent: int | None) -> None:
        files = WholeFiles(self.path)
        try:
            with _as_output_error(self.path / name), files.create(name) as file:
                file.write(json.dumps(content, indent=indent, ensure_ascii=False).encode() + b"\n")
            files.publish()
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


class WholeFiles:
    """Files that appear together under their names once they are whole and on disk.

    Args:
        root: folder that the names are relative to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made: dict[str, Path] = {}

    def create(self, name: str) -> BinaryIO:
        """Open a new file under a temporary name beside its final one.

        Raises:
            OutputError: it cannot be made.
        """
        final = self.root / name
        temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
        with _as_output_error(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            for leftover in final.parent.glob(f".{glob.escape(final.name)}.*.tmp"):
                leftover.unlink(missing_ok=True)
            self.made[name] = temporary
            return temporary.open("wb")

    def publish(self, *, last: str | None = None) -> list[dict[str, Any]]:
        """Sync the files, give them their names, sync their folders.

        Args:
            last: the name of the file that is published last: once it is there, all are.

        Returns:
            For each file its `path`, `bytes` and `sha256`.

        Raises:
            OutputError: the disk refuses.
        """
        facts: list[dict[str, Any]] = []
        for name, temporary in sorted(self.made.items(), key=lambda item: item[0] == last):
            with _as_output_error(self.root / name):
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                    facts.append({"path": name, "bytes": file.tell(), "sha256": digest})
                temporary.replace(self.root / name)
        for folder in sorted({(self.root / name).parent for name in self.made}):
            with _as_output_error(folder):
                _sync_folder(folder)
        self.made.clear()
        return facts

    def discard(self) -> None:
        """Remove what was not published."""
        for temporary in self.made.values():
            with contextlib.suppress(OSError):
                temporary.unlink()
        self.made.clear()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise OutputError(f"{path} cannot be read", hint="start again with --on-exists overwrite")
    return content


@contextlib.contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        full = fault.errno in {errno.ENOSPC, errno.EDQUOT}
        raise OutputError(
            f"cannot write {path}: {os.strerror(fault.errno or 0)}",
            hint="free some space, then run the same command with --on-exists resume"
            if full
            else "choose another place with -o, or mend its permissions",
        ) from None
