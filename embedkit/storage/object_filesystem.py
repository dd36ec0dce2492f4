"""Object stores as a file system: `s3://BUCKET/KEY`, `gs://BUCKET/KEY` and `az://CONTAINER/KEY`.

Files are objects, folders are what their keys have in common before a slash. A file is read by ranges that must
all be of the version with one ETag; it is written whole or not at all.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO, cast

from embedkit.errors import UsageError
from embedkit.storage.disk_errors import as_output_error
from embedkit.storage.object_store import ObjectStore, StoredObject, object_store_for
from embedkit.storage.protocol import AnyPath, AtomicFiles, FileStat, PublishedFile
from embedkit.storage.ranged_reader import RangedReader
from embedkit.storage.remote_files import RemoteFileSystem
from embedkit.storage.remote_path import RemotePath, as_remote
from embedkit.storage.spool import SpooledFile
from embedkit.storage.store_errors import ObjectChangedError
from embedkit.storage.uri_patterns import fixed_part, matches_key

SCHEMES = frozenset({"s3", "gs", "az"})
#: Seconds for which what a listing said of an object is taken as its present state: reading checks the ETag.
_LISTED_SECONDS = 60.0


class ObjectFileSystem(RemoteFileSystem):
    """See `FileSystem`. Failures of the store are a `StoreError`."""

    def __init__(self) -> None:
        #: By URI: when it was listed, and what was found.
        self._listed: dict[str, tuple[float, FileStat]] = {}

    def open_file(self, path: AnyPath, known: FileStat | None = None) -> io.BufferedReader:
        place = as_remote(path)
        found = known if known is not None and known.etag is not None else self.stat_file(path)
        if found.kind != "file":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(place))
        fetch = partial(_fetched, _bucket(place), place.key, found)
        return io.BufferedReader(RangedReader(fetch, found.size, str(place), found.etag), 2**16)

    def read_file(self, path: AnyPath) -> bytes:
        place = as_remote(path)
        return _bucket(place).get(place.key)[0]

    def stat_file(self, path: AnyPath) -> FileStat:
        place = as_remote(path)
        # Listings are of stores with the options of the process.
        when, listed = self._listed.get(str(place), (0.0, None)) if place.options is None else (0.0, None)
        if listed is not None and time.monotonic() - when < _LISTED_SECONDS:
            return listed
        bucket = _bucket(place)
        try:
            if place.key and not str(path).endswith("/"):
                return _stat(str(place), bucket.head(place.key))
        except FileNotFoundError:
            pass
        if next(bucket.list(place.key), None) is None and place.key:
            raise FileNotFoundError(errno.ENOENT, "no such object or folder", str(place))
        return _folder(str(place))

    def fixed_name(self, path: str) -> str:
        """Also forgets what was listed there: who asks for a name wants its present state."""
        below = fixed_part(str(RemotePath(path)))
        self._listed = {name: found for name, found in self._listed.items() if not name.startswith(below)}
        return path

    def real_path(self, path: AnyPath) -> str:
        return str(as_remote(path))

    def file_names(self, folder: AnyPath) -> list[str]:
        return list(object_store_for(as_remote(folder)).names())

    def list_files(self, folder: AnyPath, prefix: str = "") -> Iterator[tuple[str, int | None]]:
        for found in object_store_for(as_remote(folder)).list():
            yield prefix + found.key, found.size

    def walk_folder(self, folder: AnyPath) -> Iterator[tuple[str, list[str], list[str]]]:
        place = as_remote(folder)
        tree: dict[str, Any] = {}
        for key in self._keys(place):
            *folders, name = key.split("/")
            below = tree
            for part in folders:
                inner = below.setdefault(part, {})
                if inner is None:  # an object of this name, too
                    inner = below[part] = {}
                below = inner
            below.setdefault(name, None)
        yield from _walked(str(place), tree)

    def match_files(self, pattern: str) -> Iterator[str]:
        place = RemotePath(pattern)
        top = fixed_part(place.key)
        expression = matches_key(place.key)
        root = place.root
        has_folders = "**" not in place.key.split("/")
        folders: set[str] = set()
        for below in self._keys(root / top):
            key = top + below
            if expression.fullmatch(key):
                yield f"{root}/{key}"
            for cut in range(len(top), len(key)) if has_folders else ():
                if key[cut] == "/" and key[:cut] not in folders and expression.fullmatch(key[:cut]):
                    folders.add(key[:cut])
                    self._listed[f"{root}/{key[:cut]}"] = (time.monotonic(), _folder(f"{root}/{key[:cut]}"))
                    yield f"{root}/{key[:cut]}"

    def new_files(self, folder: AnyPath, *, sweep: bool = True) -> AtomicFiles:  # noqa: ARG002
        return ObjectFiles(as_remote(folder))

    def make_folder(self, folder: AnyPath, *, private: bool = False) -> None:
        if private:
            raise _not_private(folder)

    def remove_file(self, path: AnyPath) -> None:
        place = as_remote(path)
        self._listed.pop(str(place), None)
        _bucket(place).delete([place.key])

    def remove_empty(self, folder: AnyPath) -> None:
        """Does nothing: a folder without objects does not exist."""

    def remove_tree(self, folder: AnyPath) -> None:
        store = object_store_for(as_remote(folder))
        self._listed.clear()
        store.delete([found.key for found in store.list()])

    def free_bytes(self, folder: AnyPath) -> int:  # noqa: ARG002
        return sys.maxsize

    def _keys(self, folder: RemotePath) -> Iterator[str]:
        """Lists the keys below a folder, relative to it, and remembers what the listing says of them."""
        for found in object_store_for(folder).list():
            path = f"{folder}/{found.key}"
            self._listed[path] = (time.monotonic(), _stat(path, found))
            yield found.key


class ObjectFiles:
    """See `AtomicFiles`. Until it is put, a file is in memory; above 64 MiB in an unnamed temporary file."""

    def __init__(self, root: RemotePath) -> None:
        self._root = root
        self._new: dict[str, SpooledFile] = {}
        self.taken: set[str] = set()

    def create(self, name: str, *, private: bool = False) -> BinaryIO:
        if private:
            raise _not_private(self._root / name)
        self._new[name] = SpooledFile()
        return cast("BinaryIO", self._new[name])

    def publish(
        self, *, last: str | None = None, replace: bool = True, check: Callable[[], None] = lambda: None
    ) -> list[PublishedFile]:
        in_order = sorted(self._new.items(), key=lambda item: item[0] == last)
        check()
        facts: list[PublishedFile] = []
        for name, spool in in_order:
            with as_output_error(self._root / name):
                try:
                    object_store_for(self._root).put(name, spool.content, if_absent=not replace)
                except FileExistsError:
                    self.taken.add(name)
                facts.append(PublishedFile(name, spool.size, spool.sha256))
        self.discard()
        return facts

    def discard(self) -> None:
        while self._new:
            self._new.popitem()[1].discard()


def _bucket(place: RemotePath) -> ObjectStore:
    return object_store_for(place.root)


def _fetched(bucket: ObjectStore, key: str, known: FileStat, start: int, stop: int) -> bytes:
    if (start, stop) != (0, known.size):
        return bucket.get_range(key, start, stop, known.etag)
    # Some stores do not give parts of an object, not even all of it as a part.
    content, found = bucket.get(key)
    if None not in {known.etag, found.etag} and found.etag != known.etag:
        raise ObjectChangedError(str(known.identity))
    return content


def _stat(path: str, found: StoredObject) -> FileStat:
    return FileStat(found.size, found.mtime_ns, "file", path, found.etag)


def _folder(path: str) -> FileStat:
    return FileStat(0, 0, "folder", path)


def _walked(root: str, tree: dict[str, Any]) -> Iterator[tuple[str, list[str], list[str]]]:
    folders = [name for name, below in tree.items() if below is not None and not name.startswith(".")]
    yield root, folders, [name for name, below in tree.items() if below is None]
    for name in folders:
        yield from _walked(f"{root}/{name}", tree[name])


def _not_private(path: AnyPath) -> UsageError:
    return UsageError(
        f"{path}: in an object store, its access rules decide who can read", hint="leave out --private"
    )
