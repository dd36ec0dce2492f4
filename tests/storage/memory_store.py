"""An object store in memory, whose requests are counted, and can fail or wait for each other, as a test wants."""

from __future__ import annotations

import copy
import hashlib
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import BinaryIO

from embedkit.storage.object_store import StoredObject
from embedkit.storage.store_errors import ObjectChangedError


class MemoryStore:
    """See `ObjectStore`; several may share their `objects`.

    Args:
        objects: content, ETag and metadata by key.
        top: the folder that keys are relative to, with a slash at its end.
        etags: md5, as of S3; `unique` for each put, as of Azure; or none.
        knows_conditions: False for a store that ignores them.
        before: called with the name and the key of each request, before it is carried out.
    """

    def __init__(
        self,
        objects: dict[str, tuple[bytes, str | None, Mapping[str, str]]] | None = None,
        *,
        top: str = "",
        etags: str = "md5",
        knows_conditions: bool = True,
        before: Callable[[str, str], str] = lambda *_: "",
    ) -> None:
        self.objects = {} if objects is None else objects
        self.top = top
        self.etags = etags
        self.knows_conditions = knows_conditions
        self.before = before
        #: By verb; reading a range counts as a get.
        self.requests: Counter[str] = Counter()
        #: By key, what was read.
        self.sent_bytes: Counter[str] = Counter()

    def folder(self, top: str) -> MemoryStore:
        """Returns a folder of this store, whose requests are counted together."""
        found = copy.copy(self)
        found.top = f"{top}/" if top else ""
        return found

    @property
    def content(self) -> dict[str, bytes]:
        return {key: data for key, (data, _, _) in self.objects.items()}

    @property
    def sent(self) -> int:
        return self.sent_bytes.total()

    def write(self, key: str, data: bytes) -> None:
        """Replaces an object as another program does: it is no request of this one."""
        self.objects[key] = (data, self._etag(data), {})

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        self._ask("list", prefix)
        start = self.top + (f"{prefix}/" if prefix else "")
        keys = [key.removeprefix(self.top) for key in sorted(self.objects) if key.startswith(start)]
        found = map(self._described, keys)
        # Listings of Azure leave out the quotes.
        return iter(
            [replace(of, etag=of.etag.strip('"')) if of.etag and self.etags == "unique" else of for of in found]
        )

    def names(self, prefix: str = "") -> tuple[str, ...]:
        start = f"{prefix}/" if prefix else ""
        return tuple(dict.fromkeys(found.key.removeprefix(start).split("/")[0] for found in self.list(prefix)))

    def head(self, key: str) -> StoredObject:
        self._ask("head", key)
        return self._described(key)

    def get(self, key: str) -> tuple[bytes, StoredObject]:
        self._ask("get", key)
        described = self._described(key)
        self.sent_bytes[key] += described.size
        return self.objects[self.top + key][0], described

    def get_range(self, key: str, start: int, stop: int, etag: str | None = None) -> bytes:
        self._ask("get", key)
        if etag not in {None, self._described(key).etag}:
            raise ObjectChangedError(key)
        content = self.objects[self.top + key][0][start:stop]
        self.sent_bytes[key] += len(content)
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
        fate = self._ask("put", key)
        content = data if isinstance(data, bytes) else data.read()
        whole = self.top + key
        for _ in range(2 if fate == "lost" else 1):  # the client tries again if the answer is lost
            if self.knows_conditions and (
                (if_absent and whole in self.objects)
                or (if_match is not None and (whole not in self.objects or self.objects[whole][1] != if_match))
            ):
                raise FileExistsError(key)
            self.objects[whole] = (content, self._etag(content), dict(metadata or {}))
        if fate == "killed after":
            raise Killed
        return self.objects[whole][1]

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._ask("delete", key)
            self.objects.pop(self.top + key, None)

    def _ask(self, name: str, key: str) -> str:
        self.requests[name] += 1
        fate = self.before(name, key)
        if fate == "killed":
            raise Killed
        return fate

    def _etag(self, content: bytes) -> str | None:
        if self.etags == "none":
            return None
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        return f'"{digest}"' if self.etags == "md5" else f'"{next(_NUMBERS)}"'

    def _described(self, key: str) -> StoredObject:
        if self.top + key not in self.objects:
            raise FileNotFoundError(2, "no such object", key)
        content, etag, metadata = self.objects[self.top + key]
        return StoredObject(key, len(content), etag, 0, metadata)


_NUMBERS = itertools.count()


class Killed(BaseException):
    """Ends a writer at once, as SIGKILL does: nothing catches it."""


class Turns:
    """Lets one of several threads carry out its next request at a time, in an order that the test decides."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        #: Writers by their waiting requests, of which one may have several.
        self._waiting: dict[object, int] = {}
        self._running: set[int] = set()
        self._next: object = None

    def run(self, writers: Sequence[Callable[[Callable[[], None]], None]], order: Iterator[int]) -> None:
        """Runs writers, each called with a function that waits for its turn."""
        self._running = set(range(len(writers)))
        threads = [threading.Thread(target=self._work, args=(at, of)) for at, of in enumerate(writers)]
        for thread in threads:
            thread.start()
        while True:
            with self._turn:
                self._turn.wait_for(lambda: set(self._waiting.values()) >= self._running and not self._next)
                if not self._running:
                    break
                waiting = sorted(set(self._waiting.values()))
                chosen = waiting[next(order) % len(waiting)]
                self._next = next(request for request, of in self._waiting.items() if of == chosen)
                self._turn.notify_all()
        for thread in threads:
            thread.join()

    def _work(self, number: int, writer: Callable[[Callable[[], None]], None]) -> None:
        try:
            writer(lambda: self._wait(number))
        finally:
            with self._turn:
                self._running.discard(number)
                self._turn.notify_all()

    def _wait(self, number: int) -> None:
        request = object()
        with self._turn:
            self._waiting[request] = number
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._next is request)
            del self._waiting[request]
            self._next = None
            self._turn.notify_all()
