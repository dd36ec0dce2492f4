"""Files of this machine and of what it has mounted."""

from __future__ import annotations

import errno
import glob
import io
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from embedkit.storage.atomic import LocalAtomicFiles
from embedkit.storage.protocol import AtomicFiles, FileStat, LocalPath


class LocalFileSystem:
    """See `FileSystem`."""

    def open_file(self, path: LocalPath, known: FileStat | None = None) -> io.BufferedReader:  # noqa: ARG002
        return open(path, "rb")  # noqa: PTH123 - a path as typed; the caller closes it

    def read_file(self, path: LocalPath) -> bytes:
        """Takes half the system calls of `Path.read_bytes`: 0.5 s instead of 1.6 for 100,000."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return b"".join(iter(lambda: os.read(descriptor, 2**20), b""))
        except OSError as fault:
            fault.filename = str(path)  # `os.read` does not know it
            raise
        finally:
            os.close(descriptor)

    def stat_file(self, path: LocalPath) -> FileStat:
        found = os.stat(path)  # noqa: PTH116 - a path as typed
        is_file, is_folder = stat.S_ISREG(found.st_mode), stat.S_ISDIR(found.st_mode)
        kind = "file" if is_file else "folder" if is_folder else "other"
        return FileStat(found.st_size, found.st_mtime_ns, kind, (found.st_dev, found.st_ino))

    def exists(self, path: LocalPath) -> bool:
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def is_link(self, path: LocalPath) -> bool:
        return os.path.islink(path)  # noqa: PTH114 - `Path.is_symlink` raises where a name is too long

    def fixed_name(self, path: str) -> str:
        return path

    def real_path(self, path: LocalPath) -> str:
        return os.path.realpath(path)

    def file_names(self, folder: LocalPath) -> list[str]:
        return os.listdir(folder)  # noqa: PTH208 - names, not paths

    def list_files(self, folder: LocalPath, prefix: str = "") -> Iterator[tuple[str, int | None]]:
        """Makes one pass: over 100,000 files it takes 0.3 s, a `stat` of each 2 s."""
        try:
            entries = os.scandir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return
        with entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from self.list_files(entry.path, f"{prefix}{entry.name}/")
                    continue
                size = None
                try:
                    if entry.is_file(follow_symlinks=False):
                        size = entry.stat(follow_symlinks=False).st_size
                except FileNotFoundError:
                    continue
                yield f"{prefix}{entry.name}", size

    def walk_folder(self, folder: LocalPath) -> Iterator[tuple[str, list[str], list[str]]]:
        """Names keep the spelling of `folder`."""
        seen: set[str] = set()
        waiting = [str(folder)]
        while waiting:
            links: list[str] = []
            for top in waiting:
                for root, folders, files in os.walk(top or ".", onerror=_fail):
                    if os.path.realpath(root) in seen:
                        folders.clear()
                        continue
                    seen.add(os.path.realpath(root))
                    folders[:] = [name for name in folders if not name.startswith(".")]
                    yield (root if top else os.path.relpath(root)), folders, files
                    paths = [os.path.join(root, name) for name in folders]  # noqa: PTH118
                    links += [path for path in paths if self.is_link(path)]
            waiting = [link for link in sorted(links) if not _is_around(link)]

    def match_files(self, pattern: str) -> Iterator[str]:
        """Searches each folder below `**` once: `glob` follows links in circles."""
        for part in self._without_any_depth(pattern):
            _check_readable(os.path.dirname(part))  # noqa: PTH120
            for name in glob.iglob(part):  # noqa: PTH207
                if part == pattern or not os.path.isdir(name):  # noqa: PTH112
                    yield name

    def _without_any_depth(self, pattern: str) -> list[str]:
        """Replaces a pattern with `**` by one for each folder."""
        before, mark, after = f"{os.sep}{pattern}".partition(f"{os.sep}**{os.sep}")
        if not mark and before.endswith(f"{os.sep}**"):
            before, mark, after = before.removesuffix(f"{os.sep}**"), "**", "*"
        if not mark:
            return [pattern]
        tops = glob.glob(before[1:]) if before else [""]  # noqa: PTH207
        below = [glob.escape(folder) for top in tops for folder, _, _ in self.walk_folder(top)]
        return [
            part
            for folder in below
            for part in self._without_any_depth(os.path.join(folder, after or "*"))  # noqa: PTH118
        ]

    def new_files(self, folder: LocalPath, *, sweep: bool = True) -> AtomicFiles:
        return LocalAtomicFiles(Path(folder), sweep=sweep)

    def make_folder(self, folder: LocalPath, *, private: bool = False) -> None:
        Path(folder).mkdir(0o700 if private else 0o777, parents=True, exist_ok=True)

    def remove_file(self, path: LocalPath) -> None:
        Path(path).unlink(missing_ok=True)

    def remove_empty(self, folder: LocalPath) -> None:
        for root, _, _ in os.walk(folder, topdown=False):
            with suppress(OSError):
                Path(root).rmdir()

    def remove_tree(self, folder: LocalPath) -> None:
        shutil.rmtree(folder)

    def free_bytes(self, folder: LocalPath) -> int:
        return shutil.disk_usage(folder).free


def _fail(error: OSError) -> NoReturn:
    raise error


def _is_around(link: str) -> bool:
    """Checks for a link to a folder that the link is in."""
    target, place = os.path.realpath(link), os.path.realpath(os.path.dirname(link))  # noqa: PTH120
    return os.path.commonpath([target, place]) == target


def _check_readable(pattern: str) -> None:
    """Raises the error of a folder that cannot be listed, which `glob` would leave out."""
    if glob.has_magic(pattern):
        _check_readable(os.path.dirname(pattern))  # noqa: PTH120
    elif pattern:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(pattern)
    for name in glob.glob(pattern) if pattern else ():  # noqa: PTH207
        if os.path.isdir(name) and not os.access(name, os.R_OK | os.X_OK):  # noqa: PTH112
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
