"""Records of shards in an object store, and whether the objects there are those that they are of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from embedkit.manifest.schema import ShardRecord
from embedkit.storage.object_store import StoredObject


@dataclass(frozen=True, slots=True)
class KnownRecord:
    """A record that was read or written."""

    etag: str | None
    record: ShardRecord | None  # None if it is damaged
    data: bytes | None  # None if the record gives the same bytes again
    etags: str | None  # of its metadata


def have_sizes(record: ShardRecord, there: Mapping[str, StoredObject]) -> bool:
    """Returns True if the objects of a shard are there, with the recorded sizes."""
    return all(file.path in there and there[file.path].size == file.bytes for file in record.files)


def digest_of_files(record: ShardRecord, there: Mapping[str, StoredObject]) -> str | None:
    """Returns `digest_of_etags` of the objects of a shard that are there."""
    return digest_of_etags([there[file.path].etag for file in record.files])


def digest_of_etags(etags: Sequence[str | None]) -> str | None:
    """Returns one SHA-256 for the ETags of a shard's files, which fits into metadata; None if one is unknown."""
    known = [_plain(etag) for etag in etags if etag is not None]
    return hashlib.sha256(",".join(known).encode()).hexdigest() if len(known) == len(etags) else None


def is_same_etag(one: str | None, other: str | None) -> bool:
    """Returns True for one ETag; False if the store gives none."""
    return one is not None and other is not None and _plain(one) == _plain(other)


def _plain(etag: str) -> str:
    """Returns an ETag without its quotes, which listings of Azure leave out."""
    return etag.removeprefix("W/").strip('"')
