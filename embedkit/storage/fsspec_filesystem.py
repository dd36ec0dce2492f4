"""Other places that fsspec opens, read only: `https://`, `sftp://`, `hdfs://` and more.

A password in a URI, and the query of a signed one, are taken out when options are read. They are kept for this
process here, by the URI without them, and appear in no name of a file.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from embedkit.errors import UsageError
from embedkit.storage.protocol import AnyPath, FileStat
from embedkit.storage.ranged_reader import RangedReader
from embedkit.storage.remote_files import ReadOnlyFileSystem
from embedkit.storage.remote_path import RemotePath
from embedkit.storage.store_errors import StoreError

#: Not read: what is local, needs another file system inside, or has a file system of embedkit's own.
_NOT_READ = frozenset(
    {
        *("file", "local", "cached", "blockcache", "filecache", "simplecache", "async_wrapper", "dir"),
        "reference",
        *("data", "zip", "tar", "libarchive", "dask", "git", "generic", "lazy-reference", "asynclocal"),
    }
)
#: Schemes of fsspec and others for places that embedkit reads by another name.
_OTHER_NAMES = {
    **dict.fromkeys(("s3a", "s3n"), "s3"),
    **dict.fromkeys(("gcs",), "gs"),
    **dict.fromkeys(("abfs", "abfss", "azure", "adl", "wasb", "wasbs"), "az"),
}
_BLOCK = 8 * 2**20
_CHECK = "check the address, the credentials and the network"

_T = TypeVar("_T")

#: By URI without its secret, or by the start of one: the URI with it.
_secrets: dict[str, str] = {}


def keep_secrets(secrets: Iterable[tuple[str, str]]) -> None:
    """Keeps what `config.remote_inputs.split_secret` took out of URIs, for this process."""
    _secrets.update(secrets)


class FsspecFileSystem(ReadOnlyFileSystem):
    """See `FileSystem`. Methods that write raise UsageError, and failures of a place are a `StoreError`."""

    def open_file(self, path: AnyPath, known: FileStat | None = None) -> io.BufferedReader:
        found = known or self.stat_file(path)
        file = _asking(path, lambda files, name: files.open(name, "rb", cache_type="none", block_size=_BLOCK))
        if not file.seekable():  # of a server that sends whole files alone
            return io.BufferedReader(file)

        def fetch(start: int, stop: int) -> bytes:
            file.seek(start)
            return bytes(_answered(path, lambda: file.read(stop - start)))

        return io.BufferedReader(RangedReader(fetch, found.size, str(path)), 2**16)

    def read_file(self, path: AnyPath) -> bytes:
        with self.open_file(path) as file:
            return file.read()

    def stat_file(self, path: AnyPath) -> FileStat:
        found = _asking(path, lambda files, name: files.info(name))
        kind = "folder" if found["type"] == "directory" else "file"
        if kind == "file" and found.get("size") is None:
            raise StoreError("the server does not say how large it is", "download it first", str(path))
        etag = found.get("ETag") or found.get("etag")
        return FileStat(found.get("size") or 0, _time(found), kind, str(path).rstrip("/"), etag)

    def fixed_name(self, path: str) -> str:
        _of_scheme(path)
        return path

    def real_path(self, path: AnyPath) -> str:
        return str(path).rstrip("/")

    def file_names(self, folder: AnyPath) -> list[str]:
        found = _asking(folder, lambda files, name: files.ls(name, detail=False))
        return [name.rstrip("/").rpartition("/")[2] for name in found]

    def list_files(self, folder: AnyPath, prefix: str = "") -> Iterator[tuple[str, int | None]]:
        top = _asking(folder, lambda _, name: name.rstrip("/"))
        for name, found in _asking(folder, lambda files, name: files.find(name, detail=True)).items():
            yield prefix + name.removeprefix(f"{top}/"), found["size"]

    def walk_folder(self, folder: AnyPath) -> Iterator[tuple[str, list[str], list[str]]]:
        for root, folders, files in _asking(folder, lambda files, name: list(files.walk(name))):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield _uri(str(folder), root), folders, sorted(files)

    def match_files(self, pattern: str) -> Iterator[str]:
        for name in _asking(pattern, lambda files, name: files.glob(name)):
            yield _uri(pattern, name)

    def refusal(self, path: AnyPath) -> UsageError:
        scheme = RemotePath(str(path)).scheme
        return UsageError(
            f"{path}: {scheme}:// is only read", hint="write to a local path, or to s3://, gs:// or az://"
        )


def _of_scheme(path: str) -> type[Any]:
    """Returns the class of fsspec for a URI.

    Raises:
        UsageError: there is none, or its package is not installed.
    """
    scheme = RemotePath(path).scheme
    if scheme in _OTHER_NAMES:
        known = _OTHER_NAMES[scheme]
        raise UsageError(
            f"{path}: {scheme}:// is unknown", hint=f"write it as {known}://, followed by the same path"
        )
    hint = "copy it here first, or pipe it in with -"
    if scheme == "file":
        raise UsageError(f"{path}: a local file is named by its path", hint="leave out file://")
    import fsspec

    why = f"{scheme}:// is not read"
    if scheme not in _NOT_READ:
        try:
            found: type[Any] = fsspec.get_filesystem_class(scheme)
        except ImportError:
            why = f"reading {scheme}:// needs a package of fsspec that is not installed"
            from fsspec.registry import known_implementations

            hint = known_implementations.get(scheme, {}).get("err", hint).strip().replace("\n", " ")
        except ValueError:
            why = f"{scheme}:// is not known"
        else:
            return found
    raise UsageError(f"{path}: {why}", hint=hint)


def _asking(path: AnyPath, question: Callable[[Any, str], _T]) -> _T:
    """Asks the file system of a URI."""
    uri = str(path)
    _of_scheme(uri)
    from fsspec.core import url_to_fs

    def ask() -> _T:
        files, name = url_to_fs(_with_secret(uri))
        return question(files, name)

    return _answered(path, ask)


def _answered(path: AnyPath, ask: Callable[[], _T]) -> _T:
    uri = str(path)
    try:
        return ask()
    except Exception as error:  # noqa: BLE001 - of any library: its words may hold a password
        why = _why(error)
    if why is None:
        raise FileNotFoundError(errno.ENOENT, "no such file", uri)
    raise StoreError(f"cannot be read ({why})", _CHECK, uri)


def _why(error: Exception) -> str | None:
    """Returns the status or the kind of a failure; None if there is no such file.

    What a web server refuses, and one that does not answer, are a FileNotFoundError of fsspec, too.
    """
    is_missing = isinstance(error, FileNotFoundError)
    cause = error.__cause__ if is_missing else error
    status = getattr(cause, "status", None)
    if isinstance(status, int):
        return None if status in {404, 410} else f"HTTP {status}"
    if is_missing and (isinstance(cause, FileNotFoundError) or not isinstance(cause, OSError)):
        return None
    return type(cause).__name__


def _with_secret(uri: str) -> str:
    if uri in _secrets:
        return _secrets[uri]
    start = next((start for start in _secrets if uri.startswith(f"{start}/")), None)
    return uri if start is None else _secrets[start] + uri.removeprefix(start)


def _uri(asked: str, name: str) -> str:
    """Returns the URI of a name that fsspec found, without a secret."""
    if "://" in name:
        starts = ((start, whole) for start, whole in _secrets.items() if name.startswith(whole))
        start, whole = next(starts, ("", ""))
        return start + name.removeprefix(whole)
    place = RemotePath(asked)
    # Of most places, names do not have the host; of some, such as `memory://`, it is the first folder.
    asked_for = str(_of_scheme(asked)._strip_protocol(asked)).strip("/")  # noqa: SLF001 - what fsspec calls it
    host = f"{place.host}/" if asked_for == place.key else ""
    return f"{place.scheme}://{host}{name.removeprefix('/')}"


def _time(found: dict[str, Any]) -> int:
    """Returns when a file was changed, in nanoseconds; 0 if that is unknown."""
    when = found.get("mtime") or found.get("modified") or found.get("last_modified") or 0
    if isinstance(when, dt.datetime):
        when = when.timestamp()
    with contextlib.suppress(TypeError, ValueError):
        return int(float(when) * 10**9)
    return 0
