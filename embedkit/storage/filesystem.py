"""The seam to the places that hold inputs and outputs.

Every open, listing, check, write and removal of the user's files goes through the functions of this module, which
call the `FileSystem` of the path; `tests/storage/test_seam.py` lists the exceptions. The local file system is the
only one today. The protocol fits object stores: files are written whole, by `AtomicFiles`, without renames, syncs
or locks, and methods for folders may do nothing.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Concatenate, ParamSpec, Protocol, TypeAlias, TypeVar

from embedkit.errors import UsageError
from embedkit.storage.disk_errors import as_output_error

#: A path as the user typed it (`./a`, which `Path` would shorten), or one made from it.
AnyPath: TypeAlias = "Path | str"

_SAMPLED = 2**20

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Path = TypeVar("_Path", bound=AnyPath)


@dataclass(frozen=True, slots=True)
class FileStat:
    """A file or folder as it is now; equal values mean an unchanged file."""

    size: int  # in bytes
    mtime_ns: int
    kind: str  # file, folder or other (a device, a pipe)
    identity: tuple[int, ...] | str  # the same for all names of one file


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """File with its final name: path relative to its root, size in bytes, SHA-256."""

    path: str
    bytes: int
    sha256: str


class AtomicFiles(Protocol):
    """New files that appear together, once all of them are complete and safely stored."""

    @property
    def taken(self) -> set[str]:
        """Names that `publish(replace=False)` found in use, and left alone."""

    def create(self, name: str) -> BinaryIO:
        """Open a new file for the path `name` in the folder.

        Raises:
            OutputError: it cannot be made.
        """

    def publish(
        self, *, last: str | None = None, replace: bool = True, check: Callable[[], None] = lambda: None
    ) -> list[PublishedFile]:
        """Give the files their names.

        Args:
            last: the name to publish after all others, so that its presence means that all are there.
            replace: False leaves an existing file alone: the first of several processes wins.
            check: called when all files are stored; raises if they must not get their names after all.

        Returns:
            The files, in the order in which they got their names.

        Raises:
            OutputError: they cannot be written.
        """

    def discard(self) -> None:
        """Remove the files that were not published."""


class FileSystem(Protocol):
    """Operations that embedkit needs of a place that holds files.

    They raise `OSError`; if a file is missing, `FileNotFoundError`. Functions of this module with the same names
    call them on the file system of the path.
    """

    def open_file(self, path: AnyPath) -> io.BufferedReader:
        """Open a file for reading, with `seek`."""

    def read_file(self, path: AnyPath) -> bytes:
        """Read a whole file."""

    def stat_file(self, path: AnyPath) -> FileStat:
        """Describe a file or folder; of a link, its target."""

    def exists(self, path: AnyPath) -> bool:
        """Check for anything of this name, a link without a target too.

        Raises:
            OSError: the disk or its permissions hide it. `Path.exists` would say False.
        """

    def is_link(self, path: AnyPath) -> bool:
        """Check for a symbolic link."""

    def real_path(self, path: AnyPath) -> str:
        """Return the path without links and `..`."""

    def file_names(self, folder: AnyPath) -> list[str]:
        """List the names directly in a folder."""

    def list_files(self, folder: AnyPath, prefix: str = "") -> Iterator[tuple[str, int | None]]:
        """List all files below a folder.

        Yields:
            `prefix` and the path in the folder, and the size in bytes; None for a link or a device. A missing
            folder has no files; a file that is removed during the listing is left out.

        Raises:
            OSError: a folder or a file in it cannot be accessed.
        """

    def walk_folder(self, folder: AnyPath) -> Iterator[tuple[str, list[str], list[str]]]:
        """Visit a folder and those below it, linked ones too; each once, and none that is hidden.

        A link to a folder that the link is in is not followed.

        Yields:
            The path of the folder, the names of folders in it, and those of files. Removing names from the first
            list leaves these folders out.

        Raises:
            OSError: a folder cannot be listed.
        """

    def match_files(self, pattern: str) -> Iterator[str]:
        """Find files by a pattern, in any order; folders, too, unless it has a `**`.

        Raises:
            OSError: a folder on the way cannot be listed.
        """

    def new_files(self, folder: Path, *, sweep: bool = True) -> AtomicFiles:
        """Prepare several files that appear together.

        Args:
            folder: that their names are relative to.
            sweep: remove temporary files that dead processes left of the same files. That lists the folder for
                each file: where there are 100,000, the caller does it once.
        """

    def make_folder(self, folder: Path, *, private: bool = False) -> None:
        """Make a folder, accessible for this user alone if `private`, and its parents; no error if it exists."""

    def remove_file(self, path: Path) -> None:
        """Remove a file; not an error if it is missing."""

    def remove_empty(self, folder: Path) -> None:
        """Remove a folder and those in it, if they hold no files."""

    def remove_tree(self, folder: Path) -> None:
        """Remove a folder with all of its content."""

    def free_bytes(self, folder: Path) -> int:
        """Return how much can still be written where a folder is."""


def filesystem_for(path: AnyPath) -> FileSystem:
    """Return the file system that a path or URI is on.

    Raises:
        UsageError: it is a URI of a scheme that is not supported.
    """
    if isinstance(path, str) and "://" in path:
        raise UsageError(f"{path}: only local files are read", hint="copy it here first, or pipe it in with -")
    return _local()


@functools.cache
def _local() -> FileSystem:
    from embedkit.storage.local_filesystem import LocalFileSystem  # it imports this module

    return LocalFileSystem()


def _on_file_system_of_path(
    method: Callable[Concatenate[FileSystem, _Path, _P], _T],
) -> Callable[Concatenate[_Path, _P], _T]:
    @functools.wraps(method)
    def call(path: _Path, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        result: _T = getattr(filesystem_for(path), method.__name__)(path, *args, **kwargs)
        return result

    return call


open_file = _on_file_system_of_path(FileSystem.open_file)
read_file = _on_file_system_of_path(FileSystem.read_file)
stat_file = _on_file_system_of_path(FileSystem.stat_file)
exists = _on_file_system_of_path(FileSystem.exists)
is_link = _on_file_system_of_path(FileSystem.is_link)
real_path = _on_file_system_of_path(FileSystem.real_path)
file_names = _on_file_system_of_path(FileSystem.file_names)
list_files = _on_file_system_of_path(FileSystem.list_files)
walk_folder = _on_file_system_of_path(FileSystem.walk_folder)
match_files = _on_file_system_of_path(FileSystem.match_files)
new_files = _on_file_system_of_path(FileSystem.new_files)
make_folder = _on_file_system_of_path(FileSystem.make_folder)
remove_file = _on_file_system_of_path(FileSystem.remove_file)
remove_empty = _on_file_system_of_path(FileSystem.remove_empty)
remove_tree = _on_file_system_of_path(FileSystem.remove_tree)
free_bytes = _on_file_system_of_path(FileSystem.free_bytes)


def is_same_file(one: AnyPath, other: AnyPath) -> bool:
    """Check whether two names are of one file, through links too; False if one of them is missing."""
    return seems_there(one) and seems_there(other) and stat_file(one).identity == stat_file(other).identity


def is_folder(path: AnyPath) -> bool:
    """Check for a folder, or a link to one.

    Raises:
        OSError: the disk or its permissions hide it.
    """
    try:
        return stat_file(path).kind == "folder"
    except (FileNotFoundError, NotADirectoryError):
        return False


def seems_file(path: AnyPath) -> bool:
    """Check for a file; False if the disk or its permissions hide it: opening it will report the error."""
    return _kind_if_known(path) == "file"


def seems_folder(path: AnyPath) -> bool:
    """Check for a folder; see `seems_file`."""
    return _kind_if_known(path) == "folder"


def seems_there(path: AnyPath) -> bool:
    """Check for anything but a link without a target; see `seems_file`."""
    return _kind_if_known(path) is not None


def _kind_if_known(path: AnyPath) -> str | None:
    try:
        return stat_file(path).kind
    except (OSError, ValueError, UsageError):
        return None


def sha256_of_file(path: AnyPath) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as fault:
        fault.filename = str(path)  # a read does not know it
        raise


def sha256_of_ends(path: AnyPath) -> str:
    """Return the SHA-256 of a file's first and last MiB together: a quick check for changes."""
    with open_file(path) as file:
        digest = hashlib.sha256(file.read(_SAMPLED))
        file.seek(max(_SAMPLED, file.seek(0, os.SEEK_END) - _SAMPLED))
        digest.update(file.read(_SAMPLED))
    return digest.hexdigest()


def write_file(
    folder: Path,
    name: str,
    data: bytes,
    *,
    replace: bool = True,
    sweep: bool = True,
    check: Callable[[], None] = lambda: None,
) -> bool:
    """Write a whole file in one step: readers see the former file or the new one.

    Args:
        folder: it may be a link.
        name: path of the file in the folder; no folder on the way to it may be a link.
        data: its content.
        replace: see `AtomicFiles.publish`.
        sweep: see `FileSystem.new_files`.
        check: see `AtomicFiles.publish`.

    Returns:
        False if there was a file already and `replace` is False.

    Raises:
        OutputError: it cannot be written.
    """
    files = new_files(folder, sweep=sweep)
    try:
        with as_output_error(folder / name), files.create(name) as file:
            file.write(data)
        files.publish(replace=replace, check=check)
    finally:
        files.discard()
    return not files.taken


def cache_folder() -> Path:
    """Return the folder of files that embedkit can make again."""
    default = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or default) / "embedkit"
