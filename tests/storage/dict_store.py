"""An object store that is a dict, with the semantics of S3: whole puts, conditions, ETags of the content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

from embedkit.storage.object_store import StoredObject
from embedkit.storage.store_errors import ObjectChangedError


class DictStore:
    """See `ObjectStore`; `objects` are shared by all folders of a bucket."""

    def __init__(self, objects: dict[str, bytes], top: str = "") -> None:
        self.objects = objects
        self.top = f"{top}/" if top else ""
        self.requests: list[tuple[str, str]] = []

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        start = f"{self.top}{prefix}/" if prefix else self.top
        for key in sorted(self.objects):
            if key.startswith(start):
                yield self.head(key.removeprefix(self.top))

    def names(self, prefix: str = "") -> tuple[str, ...]:
        start = f"{prefix}/" if prefix else ""
        return tuple(dict.fromkeys(found.key.removeprefix(start).split("/")[0] for found in self.list(prefix)))

    def head(self, key: str) -> StoredObject:
        self.requests.append(("head", key))
        content = self._content(key)
        return StoredObject(key, len(content), _etag(content), 1)

    def get(self, key: str) -> tuple[bytes, StoredObject]:
        return self._content(key), self.head(key)

    def get_range(self, key: str, start: int, stop: int, etag: str | None = None) -> bytes:
        self.requests.append(("get", key))
        content = self._content(key)
        if etag not in {None, _etag(content)}:
            raise ObjectChangedError(key)
        return content[start:stop]

    def put(
        self,
        key: str,
        data: bytes | BinaryIO,
        *,
        if_absent: bool = False,
        if_match: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> str | None:
        self.requests.append(("put", key))
        present = self.objects.get(self.top + key)
        if (if_absent and present is not None) or (if_match and (present is None or _etag(present) != if_match)):
            raise FileExistsError(key)
        content = data if isinstance(data, bytes) else data.read()
        self.objects[self.top + key] = content
        return _etag(content)

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.objects.pop(self.top + key, None)

    def _content(self, key: str) -> bytes:
        if self.top + key not in self.objects:
            raise FileNotFoundError(key)
        return self.objects[self.top + key]


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
