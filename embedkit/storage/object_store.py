"""The few operations on objects that embedkit is built on: list, get, put, head and delete, each retried.

`object_store_for` opens a folder of a bucket by obstore. A put is whole or absent. A request that the store cannot
answer now is tried again for three minutes; where no server answered at all since this process began, for ten
seconds, since its address is then likely wrong.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, BinaryIO, Protocol, TypeVar

from embedkit.storage.remote_path import RemotePath
from embedkit.storage.store_client import open_client
from embedkit.storage.store_errors import Failure, ObjectChangedError, StoreError, failure_of, unusable_key
from embedkit.storage.store_options import StoreOptions, configured_stores

#: Larger files are sent in parts of this many bytes.
PART_BYTES = 64 * 2**20
#: Seconds in which a request is tried again: by default, and where no server has answered yet.
PATIENCE, FIRST_PATIENCE = 180.0, 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 15.0
_LISTED_AT_ONCE = _DELETED_AT_ONCE = 1000
_BULK_UNKNOWN = frozenset({400, 404, 405, 501})
_REFUSED = 403

#: Attributes of an object that HTTP defines; all others are of the user.
_OF_HTTP = frozenset(
    {
        *("Content-Disposition", "Content-Encoding", "Content-Language", "Content-Type", "Cache-Control"),
        "Storage-Class",
    }
)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as a store describes it."""

    key: str  # relative to the folder of the `ObjectStore`
    size: int
    etag: str | None  # changes whenever the content does
    mtime_ns: int
    metadata: Mapping[str, str] = field(default_factory=dict)  # of the user; a listing has none


class ObjectStore(Protocol):
    """Objects below a folder. Keys are relative to it.

    Raises:
        FileNotFoundError: there is no such object.
        StoreError: the store does not do it.
    """

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Lists all objects below a folder, in the order of the store."""

    def names(self, prefix: str = "") -> tuple[str, ...]:
        """Lists the names directly in a folder: of objects, and of folders."""

    def head(self, key: str) -> StoredObject:
        """Describes an object."""

    def get(self, key: str) -> tuple[bytes, StoredObject]:
        """Reads a whole object."""

    def get_range(self, key: str, start: int, stop: int, etag: str | None = None) -> bytes:
        """Reads the bytes [start, stop) of an object, or those of them that it has.

        Raises:
            ObjectChangedError: it does not have this ETag (any more).
        """

    def put(
        self,
        key: str,
        data: bytes | BinaryIO,
        *,
        if_absent: bool = False,
        if_match: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> str | None:
        """Writes a whole object.

        Args:
            key: of the object.
            data: its content, or a file that is read from its start.
            if_absent: do not replace an object.
            if_match: replace only the object with this ETag.
            metadata: of the user.

        Returns:
            Its ETag, if the store gives one.

        Raises:
            FileExistsError: there is an object already, or another one. After a broken connection, it may be what
                this call wrote.
        """

    def delete(self, keys: Sequence[str]) -> None:
        """Deletes objects; one that is missing is no error."""


def object_store_for(folder: RemotePath) -> ObjectStore:
    """Opens a folder of an object store.

    Raises:
        UsageError: obstore is not installed, or the options are not for this store.
        StoreError: there are no credentials.
    """
    options = configured_stores(folder.scheme, folder.host) if folder.options is None else folder.options
    return ObstoreFolder(_bucket(folder.scheme, folder.host, options), folder.key)


@functools.cache
def _bucket(scheme: str, name: str, options: StoreOptions) -> _Bucket:
    return _Bucket(scheme, name, options)


class _Bucket:
    """The client of a bucket, and whether its server has answered."""

    def __init__(self, scheme: str, name: str, options: StoreOptions) -> None:
        self.scheme = scheme
        self.root = f"{scheme}://{name}"
        self.opened = open_client(scheme, name, options)
        self._has_answered = False

    def ask(self, key: str, question: Callable[[Any], _T]) -> _T:
        """Asks the store, and again if it may answer later."""
        path = f"{self.root}/{key}" if key else self.root
        began, pause = time.monotonic(), _FIRST_PAUSE
        while True:
            failure = self._tried(path, question)
            if not isinstance(failure, Failure):
                return failure[0]
            patience = PATIENCE if self._has_answered else FIRST_PATIENCE
            if not failure.is_passing or time.monotonic() + pause - began > patience:
                raise _final(failure, path, time.monotonic() - began)
            time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads the load
            pause = min(2 * pause, _LONGEST_PAUSE)

    def next_of(self, key: str, chunks: _Chunks) -> Any:
        """Returns the next chunk of a listing; None at its end, or where it breaks off and can be begun again."""
        path = f"{self.root}/{key}" if key else self.root
        found = self._tried(path, lambda _: chunks.next())
        if not isinstance(found, Failure):
            return found[0]
        if not found.is_passing:
            raise found.error
        return None

    def _tried(self, path: str, question: Callable[[Any], _T]) -> tuple[_T] | Failure:
        failure: Failure | None = None
        try:
            result = question(self.opened.client)
        except Exception as error:  # noqa: BLE001 - of the library, of the network; explained without its words
            # Raised by the caller, outside of this handler: the error may hold a signed URL.
            failure = self.opened.problem() or failure_of(error, path, self.opened.host)
        self._has_answered = self._has_answered or failure is None or failure.answered
        return (result,) if failure is None else failure


def _final(failure: Failure, path: str, seconds: float) -> OSError:
    error = failure.error
    if not failure.is_passing or not isinstance(error, StoreError):
        return error
    resume = (
        "; an encode with --on-exists resume continues" if failure.answered or seconds > FIRST_PATIENCE else ""
    )
    hint = f"{error.hint}{resume}"
    return StoreError(f"{error.strerror}, tried for {seconds:.0f} s", hint, path, error.status)


class ObstoreFolder:
    """See `ObjectStore`; `top` is the key of the folder."""

    def __init__(self, bucket: _Bucket, top: str) -> None:
        self._bucket = bucket
        self._top = top

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """See `ObjectStore`. A listing that breaks off goes on after its last key."""
        below = self._key(prefix)
        start = f"{below}/" if below else ""
        cut = len(self._top) + 1 if self._top else 0
        last: str | None = None
        while True:
            chunks, chunk = self._bucket.ask(below, functools.partial(_listing, below, last))
            while chunk is not None:
                for found in chunk:
                    last = found["path"]
                    if last.startswith(start):  # else an empty object that stands for the folder itself
                        yield _described(found, last[cut:])
                chunk = self._bucket.next_of(below, chunks)
            if chunks.is_complete:
                return

    def names(self, prefix: str = "") -> tuple[str, ...]:
        """See `ObjectStore`."""
        below = self._key(prefix)
        found = self._bucket.ask(below, lambda client: client.list_with_delimiter(below or None))
        paths = (*found["common_prefixes"], *(each["path"] for each in found["objects"]))
        start = f"{below}/" if below else ""
        names = (path.removeprefix(start) for path in paths if path.startswith(start))
        return tuple(dict.fromkeys(name.rstrip("/") for name in names))

    def head(self, key: str) -> StoredObject:
        """See `ObjectStore`."""
        whole = self._key(key)
        try:
            found = self._bucket.ask(whole, lambda client: client.head(whole))
        except StoreError as error:
            if error.status == _REFUSED:  # the answer to HEAD has no body, which would say why
                self._bucket.ask(whole, lambda client: client.get(whole))
            raise
        return _described(found, key)

    def get(self, key: str) -> tuple[bytes, StoredObject]:
        """See `ObjectStore`."""
        whole = self._key(key)

        def question(client: Any) -> tuple[bytes, StoredObject]:
            found = client.get(whole)
            content = bytes(found.bytes())
            named = {name.lower(): value for name, value in found.attributes.items() if name not in _OF_HTTP}
            return content, replace(_described(found.meta, key), metadata=named)

        return self._bucket.ask(whole, question)

    def get_range(self, key: str, start: int, stop: int, etag: str | None = None) -> bytes:
        """See `ObjectStore`; a store that ignores the condition is found out by the ETag of its answer."""
        whole = self._key(key)
        options = {"range": (start, stop), **({"if_match": etag} if etag else {})}

        def question(client: Any) -> tuple[bytes, str | None]:
            found = client.get(whole, options=options)
            return bytes(found.bytes()), _quoted(found.meta["e_tag"])

        content, found = self._bucket.ask(whole, question)
        if etag is not None and found is not None and found != etag:
            raise ObjectChangedError(f"{self._bucket.root}/{whole}")
        return content

    def put(
        self,
        key: str,
        data: bytes | BinaryIO,
        *,
        if_absent: bool = False,
        if_match: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> str | None:
        """See `ObjectStore`."""
        whole = self._key(key)
        mode: Any = "create" if if_absent else self._version(whole, if_match) if if_match else "overwrite"
        size = len(data) if isinstance(data, bytes) else data.seek(0, os.SEEK_END)
        in_parts = mode == "overwrite" and size > PART_BYTES

        def question(client: Any) -> str | None:
            content: Any = data
            if not isinstance(data, bytes):
                data.seek(0)
                content = data if in_parts else data.read()
            # Parts are tried again one by one, by the library.
            to = self._bucket.opened.patient if in_parts else client
            made = to.put(
                whole,
                content,
                attributes=dict(metadata or {}),
                mode=mode,
                use_multipart=in_parts,
                chunk_size=PART_BYTES // 4,
                max_concurrency=4,
            )
            return _quoted(made["e_tag"])

        try:
            return self._bucket.ask(whole, question)
        except ObjectChangedError as error:
            raise FileExistsError(errno.EEXIST, "is another one by now", error.filename) from None

    def _version(self, whole: str, etag: str) -> dict[str, str]:
        """Returns what a put names to replace only the object with this ETag: for Google, its generation."""
        if self._bucket.scheme != "gs":
            return {"e_tag": etag}
        found = self._bucket.ask(whole, lambda client: client.head(whole))
        if _quoted(found["e_tag"]) != _quoted(etag):
            raise FileExistsError(errno.EEXIST, "is another one by now", f"{self._bucket.root}/{whole}")
        return {"e_tag": found["e_tag"], "version": found["version"]}

    def delete(self, keys: Sequence[str]) -> None:
        """See `ObjectStore`."""
        whole = [self._key(key) for key in keys]
        for at in range(0, len(whole), _DELETED_AT_ONCE):
            some = whole[at : at + _DELETED_AT_ONCE]
            if self._bucket.scheme == "s3" and len(some) > 1:
                try:
                    self._bucket.ask(some[0], functools.partial(_delete, some))
                    continue
                except StoreError as error:
                    if error.status not in _BULK_UNKNOWN:
                        raise
            for key in some:
                with contextlib.suppress(FileNotFoundError):
                    self._bucket.ask(key, functools.partial(_delete, key))

    def _key(self, key: str) -> str:
        whole = f"{self._top}/{key}" if self._top and key else self._top or key
        if whole.startswith("/"):  # else obstore would leave out the slash
            raise unusable_key(f"{self._bucket.root}/{whole}")
        return whole


class _Chunks:
    """The chunks of a listing; `is_complete` when there are no more."""

    def __init__(self, chunks: Iterator[Any]) -> None:
        self._chunks = chunks
        self.is_complete = False

    def next(self) -> Any:
        chunk = next(self._chunks, None)
        self.is_complete = chunk is None
        return chunk


def _delete(keys: list[str] | str, client: Any) -> None:
    client.delete(keys)


def _listing(below: str, last: str | None, client: Any) -> tuple[_Chunks, Any]:
    chunks = _Chunks(iter(client.list(below or None, offset=last, chunk_size=_LISTED_AT_ONCE)))
    return chunks, chunks.next()


def _quoted(etag: str | None) -> str | None:
    """Returns an ETag as HTTP writes it: Azure lists them without the quotes."""
    return f'"{etag}"' if etag and not etag.endswith('"') else etag


def _described(found: Any, key: str) -> StoredObject:
    seconds: datetime = found["last_modified"]
    return StoredObject(key, found["size"], _quoted(found["e_tag"]), int(seconds.timestamp() * 10**6) * 1000)
