"""The seam to the places that hold inputs and outputs.

Every open, listing, check, write and removal of the user's files goes through the functions of this module, which
call the `FileSystem` of the path; `tests/storage/test_seam.py` lists the exceptions. Places other than the local
machine and object stores (`s3://`, `gs://`, `az://`) are read only, such as data sets of the Hugging Face hub
(`hf://datasets/...`).
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from embedkit.errors import UsageError
from embedkit.storage.disk_errors import as_output_error
from embedkit.storage.fsspec_filesystem import FsspecFileSystem
from embedkit.storage.hub_filesystem import HubFileSystem
from embedkit.storage.local_filesystem import LocalFileSystem
from embedkit.storage.object_filesystem import SCHEMES, ObjectFileSystem
from embedkit.storage.protocol import AnyPath, FilePath, FileStat, FileSystem, LocalPath
from embedkit.storage.remote_path import RemotePath, is_uri
from embedkit.storage.store_errors import StoreError

_LOCAL: FileSystem[LocalPath] = LocalFileSystem()
_OBJECTS: FileSystem[AnyPath] = ObjectFileSystem()
_REMOTE: dict[str, FileSystem[AnyPath]] = {"hf": HubFileSystem(), **dict.fromkeys(SCHEMES, _OBJECTS)}
_OTHERS: FileSystem[AnyPath] = FsspecFileSystem()
_SAMPLED = 2**20
#: `sha256_of_ends` is of all bytes of a file that has no more.
BYTES_OF_ENDS = 2 * _SAMPLED
#: Small files of an object store that are read at a time, and those whose content is held.
_REQUESTS, _READ_AHEAD = 64, 4096

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Path = TypeVar("_Path", bound=AnyPath)


def filesystem_for(path: AnyPath) -> FileSystem[Any]:
    """Returns the file system that a path or URI is on."""
    return _REMOTE.get(RemotePath(str(path)).scheme, _OTHERS) if is_uri(path) else _LOCAL


def _on_file_system_of_path(
    method: Callable[Concatenate[FileSystem[Any], _Path, _P], _T],
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
fixed_name = _on_file_system_of_path(FileSystem.fixed_name)
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
    """Checks whether two names are of one file, through links too; False if one of them is missing."""
    return seems_there(one) and seems_there(other) and stat_file(one).identity == stat_file(other).identity


def is_folder(path: AnyPath) -> bool:
    """Checks for a folder, or a link to one.

    Raises:
        OSError: the disk or its permissions hide it.
    """
    try:
        return stat_file(path).kind == "folder"
    except (FileNotFoundError, NotADirectoryError):
        return False


def seems_file(path: AnyPath) -> bool:
    """Checks for a file; False if the disk or its permissions hide it: opening it will report the error."""
    return _kind(path) == "file"


def seems_folder(path: AnyPath) -> bool:
    """Checks for a folder; see `seems_file`."""
    return _kind(path) == "folder"


def seems_there(path: AnyPath) -> bool:
    """Checks for anything but a link without a target; see `seems_file`."""
    return stat_if_there(path) is not None


def _kind(path: AnyPath) -> str | None:
    found = stat_if_there(path)
    return None if found is None else found.kind


def stat_if_there(path: AnyPath) -> FileStat | None:
    """Describes a file or folder; None for one that is missing, or that the disk or its permissions hide."""
    try:
        return stat_file(path)
    except StoreError:
        raise  # it may have taken minutes to find out
    except (OSError, ValueError, UsageError):
        return None


def read_files(paths: Sequence[AnyPath]) -> Iterator[bytes | None]:
    """Reads small files in order; None for one that is missing. Those of an object store are read in parallel.

    Raises:
        OSError: a file cannot be read.
    """
    if all(filesystem_for(path) is _LOCAL for path in paths[:1]):
        yield from map(_content, paths)
        return
    with ThreadPoolExecutor(_REQUESTS, "embedkit-get") as pool:
        for start in range(0, len(paths), _READ_AHEAD):  # all at once would hold all of their content
            yield from pool.map(_content, paths[start : start + _READ_AHEAD])


def _content(path: AnyPath) -> bytes | None:
    try:
        return read_file(path)
    except FileNotFoundError:
        return None


def sha256_of_file(path: AnyPath, ranges: Iterable[tuple[int, int]] | None = None) -> str:
    """Returns the SHA-256 of a file as 64 hexadecimal digits; or of its bytes [first, stop) in some ranges."""
    try:
        with open_file(path) as file:
            if ranges is None:
                return hashlib.file_digest(file, "sha256").hexdigest()
            digest = hashlib.sha256()
            for first, stop in ranges:
                file.seek(first)
                while first < stop and (data := file.read(min(_SAMPLED, stop - first))):
                    digest.update(data)
                    first += len(data)  # noqa: PLW2901
            return digest.hexdigest()
    except OSError as fault:
        fault.filename = str(path)  # a read does not know it
        raise


def sha256_of_ends(path: AnyPath, known: FileStat | None = None) -> str:
    """Returns the SHA-256 of a file's first and last MiB together: a quick check for changes.

    Args:
        path: of the file.
        known: see `FileSystem.open_file`.
    """
    with open_file(path, known) as file:
        digest = hashlib.sha256(file.read(_SAMPLED))
        file.seek(max(_SAMPLED, file.seek(0, os.SEEK_END) - _SAMPLED))
        digest.update(file.read(_SAMPLED))
    return digest.hexdigest()


def write_file(
    folder: FilePath,
    name: str,
    data: bytes,
    *,
    replace: bool = True,
    sweep: bool = True,
    private: bool = False,
    check: Callable[[], None] = lambda: None,
) -> bool:
    """Writes a whole file in one step: readers see the former file or the new one.

    Args:
        folder: it may be a link.
        name: path of the file in the folder; no folder on the way to it may be a link.
        data: its content.
        replace: see `AtomicFiles.publish`.
        sweep: see `FileSystem.new_files`.
        private: see `AtomicFiles.create`.
        check: see `AtomicFiles.publish`.

    Returns:
        False if there was a file already and `replace` is False.

    Raises:
        OutputError: it cannot be written.
    """
    files = new_files(folder, sweep=sweep)
    try:
        with as_output_error(folder / name), files.create(name, private=private) as file:
            file.write(data)
        files.publish(replace=replace, check=check)
    finally:
        files.discard()
    return not files.taken


def cache_folder() -> Path:
    """Returns the folder of files that embedkit can make again."""
    default = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or default) / "embedkit"
