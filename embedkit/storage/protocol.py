"""The protocol of a file system: what embedkit needs of a place that holds inputs and outputs.

It fits object stores: files are written whole, by `AtomicFiles`, without renames, syncs or locks, and methods for
folders may do nothing. `embedkit.storage.filesystem` finds the file system of a path and calls it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias, TypeVar

from embedkit.storage.remote_path import RemotePath

#: A local path as the user typed it (`./a`, which `Path` would shorten), or one made from it.
LocalPath: TypeAlias = "Path | str"
#: As `LocalPath`, or a URI: a text or a `RemotePath`, never a `Path`.
AnyPath: TypeAlias = "Path | RemotePath | str"
#: A path that has the operations of `pathlib`: `path / name`, `path.suffix`.
FilePath: TypeAlias = "Path | RemotePath"
#: For functions that return a path of the kind that they are given.
OnePath = TypeVar("OnePath", Path, RemotePath, "Path | RemotePath")

_P_contra = TypeVar("_P_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class FileStat:
    """A file or folder as it is now; equal values mean an unchanged file."""

    size: int  # in bytes
    mtime_ns: int
    kind: str  # file, folder or other (a device, a pipe)
    identity: tuple[int, ...] | str  # the same for all names of one file
    etag: str | None = None  # of an object, changes whenever its content does


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

    def create(self, name: str, *, private: bool = False) -> BinaryIO:
        """Opens a new file for the path `name` in the folder; a private one is readable by this user alone.

        Raises:
            OutputError: it cannot be made.
        """

    def publish(
        self, *, last: str | None = None, replace: bool = True, check: Callable[[], None] = lambda: None
    ) -> list[PublishedFile]:
        """Gives the files their names.

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
        """Removes the files that were not published."""


class FileSystem(Protocol[_P_contra]):
    """Operations that embedkit needs of a place that holds files.

    They raise `OSError`; if a file is missing, `FileNotFoundError`. Functions of `embedkit.storage.filesystem`
    with the same names call them on the file system of the path.
    """

    def open_file(self, path: _P_contra, known: FileStat | None = None) -> io.BufferedReader:
        """Opens a file for reading, with `seek`.

        Args:
            path: of the file.
            known: what `stat_file` said of it before. An object that has another ETag now is an error.
        """

    def read_file(self, path: _P_contra) -> bytes:
        """Reads a whole file."""

    def stat_file(self, path: _P_contra) -> FileStat:
        """Describes a file or folder; of a link, its target."""

    def exists(self, path: _P_contra) -> bool:
        """Checks for anything of this name, a link without a target too.

        Raises:
            OSError: the disk or its permissions hide it. `Path.exists` would say False.
        """

    def is_link(self, path: _P_contra) -> bool:
        """Checks for a symbolic link."""

    def fixed_name(self, path: str) -> str:
        """Returns the path or pattern, on the hub with the present commit in place of a branch."""

    def real_path(self, path: _P_contra) -> str:
        """Returns the path without links and `..`."""

    def file_names(self, folder: _P_contra) -> list[str]:
        """Lists the names directly in a folder."""

    def list_files(self, folder: _P_contra, prefix: str = "") -> Iterator[tuple[str, int | None]]:
        """Lists all files below a folder.

        Yields:
            `prefix` and the path in the folder, and the size in bytes; None for a link or a device. A missing
            folder has no files; a file that is removed during the listing is left out.

        Raises:
            OSError: a folder or a file in it cannot be accessed.
        """

    def walk_folder(self, folder: _P_contra) -> Iterator[tuple[str, list[str], list[str]]]:
        """Visits a folder and those below it, linked ones too; each once, and none that is hidden.

        A link to a folder that the link is in is not followed.

        Yields:
            The path of the folder, the names of folders in it, and those of files. Removing names from the first
            list leaves these folders out.

        Raises:
            OSError: a folder cannot be listed.
        """

    def match_files(self, pattern: str) -> Iterator[str]:
        """Finds files by a pattern, in any order; folders, too, unless it has a `**`.

        Raises:
            OSError: a folder on the way cannot be listed.
        """

    def new_files(self, folder: _P_contra, *, sweep: bool = True) -> AtomicFiles:
        """Prepares several files that appear together.

        Args:
            folder: that their names are relative to.
            sweep: remove temporary files that dead processes left of the same files. That lists the folder for
                each file: where there are 100,000, the caller does it once.
        """

    def make_folder(self, folder: _P_contra, *, private: bool = False) -> None:
        """Makes a folder, accessible for this user alone if `private`, and its parents; no error if it exists."""

    def remove_file(self, path: _P_contra) -> None:
        """Removes a file; not an error if it is missing."""

    def remove_empty(self, folder: _P_contra) -> None:
        """Removes a folder and those in it, if they hold no files."""

    def remove_tree(self, folder: _P_contra) -> None:
        """Removes a folder with all of its content."""

    def free_bytes(self, folder: _P_contra) -> int:
        """Returns how much can still be written where a folder is."""
