"""The folder of an output in an object store, and how shards are committed to it.

A put is whole or absent, and "put if absent" has one winner. So there is no rename, no temporary name and no lock:

1. `plan.json` is put if absent; who comes second reads the first one's and compares.
2. A shard's files are put if absent. One of other bytes is replaced, if the shard has no record, under a claim: an
   object that is put if absent where the record will be, and that the record replaces. So nobody commits a file
   that another process is about to replace.
3. Its record is put if absent. Where there is one of the same bytes, another process has done the same work. One
   of other bytes is from a machine that computes other bits, and ends the run.
4. `manifest.json` is put last, once a listing has shown every file of every record.

A killed writer leaves a shard without a record, or with a claim, which is computed again. A record's metadata
identify the ETags of the shard's files: a file that was replaced later is noticed by listing alone. Where the
ETags differ, as in a copy of the bucket, the files are hashed. An acknowledgement that is lost makes a put
look as if another process had been first; what is there is then compared, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from embedkit.errors import OutputError
from embedkit.manifest.schema import Manifest, Plan, ShardRecord
from embedkit.manifest.versioned_file import Json
from embedkit.output.commit import (
    COMMITS,
    DATA,
    MANIFEST,
    PLAN,
    SEGMENTS,
    OutputFolder,
    is_own,
    record_name,
    record_number,
    scan_name,
)
from embedkit.output.object_records import (
    KnownRecord,
    ObjectRecords,
    digest_of_files,
    have_sizes,
    is_claim,
    is_of_plan,
    is_same_etag,
)
from embedkit.output.object_shard import ObjectShardWriter
from embedkit.storage.atomic import temporary_name
from embedkit.storage.disk_errors import as_output_error, as_read_error
from embedkit.storage.object_store import ObjectStore, object_store_for
from embedkit.storage.remote_path import RemotePath

#: Files that are hashed at a time.
_HASHES = 4


class ObjectFolder(OutputFolder):
    """A folder of shards in an object store; see the module.

    Args:
        path: its URI.
        store: the objects below it; by default those of the URI.
    """

    path: RemotePath

    def __init__(self, path: RemotePath, store: ObjectStore | None = None) -> None:
        super().__init__(path)
        self.store = object_store_for(path) if store is None else store
        #: True if the plan there was this one when this process tried to write it.
        self.is_same_plan = False
        self._plan_etag: str | None = None
        self._seen = ObjectRecords(path, self.store)
        #: Records that do not count: of a damaged shard, or of another plan. By number, with their ETags.
        self._obsolete: dict[int, str | None] = {}

    def has_foreign_files(self) -> bool:
        """See OutputFolder."""
        with as_read_error(self.path):
            return any(not is_own(found.key) for found in self.store.list())

    def has_plan(self) -> bool:
        """See OutputFolder."""
        return self._has(PLAN)

    def has_manifest(self) -> bool:
        """Returns True if the output is complete."""
        return self._has(MANIFEST)

    def has_shards(self) -> bool:
        """See OutputFolder."""
        with as_read_error(self.path):
            return any(
                is_own(found.key) and found.key.partition("/")[0] in {COMMITS, *DATA}
                for found in self.store.list()
            )

    def check_conditions(self) -> bool:
        """Puts an object twice, if absent: True if the store takes one of them, and gives it an ETag.

        Raises:
            OutputError: nothing can be written there.
        """
        key = temporary_name(f"probe-{secrets.token_hex(4)}")
        with as_output_error(self.path):
            try:
                self.store.put(key, b"probe of embedkit\n", if_absent=True)
                self.store.put(key, b"probe of embedkit\n", if_absent=True)
            except FileExistsError:
                return self.store.head(key).etag is not None
            finally:
                with contextlib.suppress(OSError):  # who may write need not be allowed to delete
                    self.store.delete([key])
            return False

    def join_plan(self, plan: Plan) -> Plan:
        """See OutputFolder."""
        data = plan.serialize()
        with as_output_error(self.path / PLAN), contextlib.suppress(FileExistsError):
            self._plan_etag = self.store.put(PLAN, data, if_absent=True)
            self.began, self.plan_sha256 = True, hashlib.sha256(data).hexdigest()
            return self._own_plan(data)
        found = self.read_plan()
        if found is None:
            raise self.replaced()
        # A put whose acknowledgement was lost is found as another one's.
        self.is_same_plan = self.plan_sha256 == hashlib.sha256(data).hexdigest()
        return found

    def _plan_bytes(self) -> bytes | None:
        with as_read_error(self.path / PLAN):
            try:
                data, found = self.store.get(PLAN)
            except FileNotFoundError:
                return None
        self._plan_etag = found.etag
        return data

    def check_plan(self) -> None:
        """See OutputFolder."""
        if self.plan_sha256 is None:
            return
        with as_read_error(self.path / PLAN):
            try:
                found = self.store.head(PLAN)
                if not is_same_etag(found.etag, self._plan_etag):
                    data, found = self.store.get(PLAN)
                    if hashlib.sha256(data).hexdigest() != self.plan_sha256:
                        raise self.replaced()
                    self._plan_etag = found.etag
            except FileNotFoundError:
                raise self.replaced() from None

    def read_scan(self, index: int) -> bytes | None:
        """See OutputFolder."""
        with as_read_error(self.path):
            try:
                return self.store.get(scan_name(index))[0]
            except FileNotFoundError:
                return None

    def write_scan(self, index: int, data: bytes, is_stale: Callable[[bytes], bool]) -> None:
        """See OutputFolder."""
        with as_output_error(self.path):
            try:
                self.store.put(scan_name(index), data, if_absent=True)
            except FileExistsError:
                former = self.read_scan(index)
                if former is None or is_stale(former):
                    self.store.put(scan_name(index), data)

    def remove_scans(self) -> None:
        """See OutputFolder."""
        with contextlib.suppress(OSError):
            self.store.delete([found.key for found in self.store.list(SEGMENTS) if is_own(found.key)])

    def remove_leftovers(self) -> None:
        """See OutputFolder. There is nothing to remove: a put is whole or absent."""

    def check_no_links(self) -> None:
        """See OutputFolder. A store has no links."""

    def write_manifest(self, manifest: Manifest) -> None:
        """See OutputFolder. Before that, all is listed once more.

        Raises:
            OutputError: see OutputFolder; or a shard is no longer as it was committed.
        """
        records = self.committed()
        self.remove_obsolete()
        if len(records) != manifest.shards:
            raise OutputError(
                f"{self.path}: {manifest.shards - len(records)} committed shards were removed or changed",
                hint="leave the output alone while embedkit writes it; --on-exists resume computes them again",
            )
        with as_read_error(self.path):
            plan_sha256, records_sha256 = self.hashes()
        data = replace(manifest, plan_sha256=plan_sha256, records_sha256=records_sha256).serialize(indent=2)
        self.check_plan()
        with as_output_error(self.path / MANIFEST):
            self.store.put(MANIFEST, data)

    def acknowledgement(self, record: ShardRecord) -> Json:
        """See OutputFolder."""
        known = self._seen.known[record.index]
        return {**super().acknowledgement(record), "etag": known.etag, "etags": known.etags}

    def adopt(self, acknowledgement: Json) -> None:
        """See OutputFolder. A record that has another ETag when it is listed is read all the same."""
        record = ShardRecord.from_json(acknowledgement["record"])
        etag, etags = acknowledgement["etag"], acknowledgement["etags"]
        self._seen.known[record.index] = KnownRecord(etag, record, None, etags)

    def known_records(self) -> dict[int, ShardRecord]:
        """Returns the records that this process has written or read, or was told of; lists nothing."""
        records = (known.record for _, known in sorted(self._seen.known.items()))
        return {
            record.index: record
            for record in records
            if record is not None and is_of_plan(record, self.plan_sha256)
        }

    def hashes(self) -> tuple[str, str]:
        """See OutputFolder; the records are those of the last `committed`, whose content is known."""
        records = hashlib.sha256()
        for _, known in sorted(self._seen.known.items()):
            if known.data is not None:
                records.update(known.data)
            elif known.record is not None:
                records.update(known.record.serialize())
        return self.plan_sha256 or hashlib.sha256(self.store.get(PLAN)[0]).hexdigest(), records.hexdigest()

    def committed(self, *, verify: bool = False) -> dict[int, ShardRecord]:
        """See OutputFolder. All is listed once; only records that are new are read, 64 at a time."""
        with as_read_error(self.path):
            there = {found.key: found for found in self.store.list()}
            if PLAN in there and self.plan_sha256 is None:
                self.read_plan()
            listed = {number: there[key] for key in there if (number := record_number(key)) is not None}
            self._seen.update(listed)
            self._obsolete = {}
            records: dict[int, ShardRecord] = {}
            doubtful: list[ShardRecord] = []
            for number, known in sorted(self._seen.known.items()):
                record = known.record
                is_ours = record is not None and record.index == number and is_of_plan(record, self.plan_sha256)
                # What replaced a claim after the listing is of files that the listing may lack.
                is_newer = known.etag is not None and not is_same_etag(known.etag, listed[number].etag)
                if is_newer or is_claim(known.data, self.plan_sha256):
                    continue
                if record is None or not is_ours or not have_sizes(record, there):
                    self._obsolete[number] = known.etag
                elif verify or known.etags not in {
                    None,
                    digest_of_files(record, there),
                }:
                    doubtful.append(record)
                else:
                    records[number] = record
            with ThreadPoolExecutor(_HASHES, "embedkit-hash") as pool:
                for record, is_whole in zip(doubtful, pool.map(self._has_hashes, doubtful), strict=True):
                    if is_whole:
                        records[record.index] = record
                    else:
                        self._obsolete[record.index] = self._seen.known[record.index].etag
            return dict(sorted(records.items()))

    def _has_hashes(self, record: ShardRecord) -> bool:
        try:
            contents = (self.store.get(file.path)[0] for file in record.files)
            digests = [hashlib.sha256(content).hexdigest() for content in contents]
        except FileNotFoundError:
            return False
        return digests == [file.sha256 for file in record.files]

    @contextlib.contextmanager
    def shard(self, index: int) -> Iterator[ObjectShardWriter]:
        """See OutputFolder."""
        writer = ObjectShardWriter(self, self.store, self._seen, index)
        with as_output_error(self.path):
            try:
                yield writer
            finally:
                writer.discard()

    def remove_obsolete(self) -> None:
        """Removes the records that did not count in the last `committed`, unless they were replaced meanwhile.

        A shard that is computed again could not be committed beside its former record.
        """
        with as_output_error(self.path):
            while self._obsolete:
                number, etag = self._obsolete.popitem()
                with contextlib.suppress(FileNotFoundError):
                    if etag is None or is_same_etag(self.store.head(record_name(number)).etag, etag):
                        self.store.delete([record_name(number)])
                        self._seen.known.pop(number, None)

    def clear(self) -> None:
        """See OutputFolder. A run that still writes here ends at its next shard, since its plan is gone.

        The manifest goes first, so that no reader takes a half for the whole; then the plan; then the records,
        since a record without its files would be in doubt; then all else.
        """
        with as_output_error(self.path):
            there = [found.key for found in self.store.list() if is_own(found.key)]
            records = [key for key in there if key.startswith(f"{COMMITS}/")]
            others = [key for key in there if key not in {MANIFEST, PLAN, *records}]
            for keys in (
                [MANIFEST] if MANIFEST in there else [],
                [PLAN] if PLAN in there else [],
                records,
                others,
            ):
                if keys:
                    self.store.delete(keys)
        self.plan_sha256, self._plan_etag, self._seen.known, self._obsolete = None, None, {}, {}

    def withdraw(self) -> None:
        """See OutputFolder."""
        if not self.began:
            return
        with contextlib.suppress(OutputError, OSError):
            self.check_plan()
            if not any(True for _ in self.store.list(COMMITS)):
                self.clear()

    def _has(self, key: str) -> bool:
        with as_read_error(self.path / key):
            try:
                self.store.head(key)
            except FileNotFoundError:
                return False
            return True
