"""Records of shards in an object store, and whether the objects there are those that they are of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from embedkit.manifest.schema import ShardRecord
from embedkit.output.commit import record_name
from embedkit.storage.object_store import ObjectStore, StoredObject
from embedkit.storage.remote_path import RemotePath

#: Records that are read at a time, and those whose bytes are held meanwhile.
_GETS, _READ_AHEAD = 64, 4096
#: Key of a record's metadata.
ETAGS = "etags"
_CLAIM = "claim of"


@dataclass(frozen=True, slots=True)
class KnownRecord:
    """A record that was read or written."""

    etag: str | None
    record: ShardRecord | None  # None if it is damaged, or a claim
    data: bytes | None  # None if the record gives the same bytes again
    etags: str | None  # of its metadata


class ObjectRecords:
    """The records in a folder of an object store that this process has read, written or was told of.

    Args:
        path: URI of the folder.
        store: the objects below it.
    """

    def __init__(self, path: RemotePath, store: ObjectStore) -> None:
        self._path = path
        self._store = store
        self.known: dict[int, KnownRecord] = {}

    def update(self, listed: Mapping[int, StoredObject]) -> None:
        """Knows the records of a listing alone; those that were known with their ETags are not read again."""
        self.known = dict(sorted(self._with_content(listed)))

    def _with_content(self, listed: Mapping[int, StoredObject]) -> Iterator[tuple[int, KnownRecord]]:
        new: list[int] = []
        for number, found in listed.items():
            known = self.known.get(number)
            if known is not None and is_same_etag(known.etag, found.etag):
                yield number, known
            else:
                new.append(number)
        with ThreadPoolExecutor(_GETS, "embedkit-get") as pool:
            for start in range(0, len(new), _READ_AHEAD):
                some = new[start : start + _READ_AHEAD]
                for number, known in zip(some, pool.map(self.read, some), strict=True):
                    if known is not None:
                        yield number, known

    def read(self, number: int) -> KnownRecord | None:
        """Reads a record; None if there is none."""
        try:
            data, found = self._store.get(record_name(number))
        except FileNotFoundError:
            return None
        try:
            record = ShardRecord.parse(data, self._path / record_name(number))
        except ValueError:
            return KnownRecord(found.etag, None, data, None)
        is_plain = record.serialize() == data
        return KnownRecord(found.etag, record, None if is_plain else data, found.metadata.get(ETAGS))


def claim_of(record: ShardRecord) -> bytes:
    """Returns what stands in a record's place while the process that will put it replaces files of other bytes."""
    return f"{_CLAIM} {record.plan_sha256} {hashlib.sha256(record.serialize()).hexdigest()}\n".encode()


def is_claim(data: bytes | None, plan_sha256: str | None) -> bool:
    """Returns True for a claim of any process that carries out the plan with this hash."""
    return data is not None and data.startswith(f"{_CLAIM} {plan_sha256} ".encode())


def is_of_plan(record: ShardRecord, plan_sha256: str | None) -> bool:
    """Returns True if a record is of the plan with this hash, or if one of both is unknown."""
    return plan_sha256 is None or record.plan_sha256 in {None, plan_sha256}


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
