"""The folder of an output in an object store, and how shards are committed to it.

A put is whole or absent, and "put if absent" has one winner. So there is no rename, no temporary name and no lock:

1. `plan.json` is put if absent; who comes second reads the first one's and compares.
2. A shard's files are put. One that is there already is replaced only while the shard has no record.
3. Its record is put if absent. Where there is one of the same bytes, another process has done the same work. One
   of other bytes is from a machine that computes other bits, and ends the run.
4. `manifest.json` is put last, once a listing has shown every file of every record.

A killed writer leaves a shard without a record, which is computed again. A record's metadata identify the ETags
of the shard's files: a file that was replaced later is noticed by listing alone. Where the ETags differ, as in a
copy of the bucket, the files are hashed. An acknowledgement that is lost makes a put look as if another process
had been first; what is there is then compared, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import BinaryIO, Never

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
from embedkit.output.object_records import KnownRecord, digest_of_etags, digest_of_files, have_sizes, is_same_etag
from embedkit.storage.atomic import temporary_name
from embedkit.storage.disk_errors import as_output_error, as_read_error
from embedkit.storage.object_store import ObjectStore, StoredObject, object_store_for
from embedkit.storage.protocol import PublishedFile
from embedkit.storage.remote_path import RemotePath
from embedkit.storage.spool import SpooledFile

#: Records that are read at a time, and files that are hashed.
_GETS, _HASHES = 64, 4
#: Records whose bytes are held while they are read.
_READ_AHEAD = 4096
#: Attempts of a put that another process may get in the way of.
_ATTEMPTS = 5
#: Key of a record's metadata.
_ETAGS = "etags"


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
        self._known: dict[int, KnownRecord] = {}
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
        """Puts an object twice, if absent: True if the store takes one of them, False if it ignores the condition.

        Raises:
            OutputError: nothing can be written there.
        """
        key = temporary_name(f"probe-{secrets.token_hex(4)}")
        with as_output_error(self.path):
            try:
                self.store.put(key, b"probe of embedkit\n", if_absent=True)
                self.store.put(key, b"probe of embedkit\n", if_absent=True)
            except FileExistsError:
                return True
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
        known = self._known[record.index]
        return {**super().acknowledgement(record), "etag": known.etag, "etags": known.etags}

    def adopt(self, acknowledgement: Json) -> None:
        """See OutputFolder. A record that has another ETag when it is listed is read all the same."""
        record = ShardRecord.from_json(acknowledgement["record"])
        etag, etags = acknowledgement["etag"], acknowledgement["etags"]
        self._known[record.index] = KnownRecord(etag, record, None, etags)

    def known_records(self) -> dict[int, ShardRecord]:
        """Returns the records that this process has written or read, or was told of; lists nothing."""
        records = (known.record for _, known in sorted(self._known.items(), key=lambda item: item[0]))
        return {record.index: record for record in records if record is not None and self._is_of_plan(record)}

    def hashes(self) -> tuple[str, str]:
        """See OutputFolder; the records are those of the last `committed`, whose content is known."""
        records = hashlib.sha256()
        for _, known in sorted(self._known.items(), key=lambda item: item[0]):
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
            self._known = dict(self._with_content(listed))
            self._obsolete = {}
            records: dict[int, ShardRecord] = {}
            doubtful: list[ShardRecord] = []
            for number, known in sorted(self._known.items(), key=lambda item: item[0]):
                record = known.record
                is_ours = record is not None and record.index == number and self._is_of_plan(record)
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
                        self._obsolete[record.index] = self._known[record.index].etag
            return dict(sorted(records.items()))

    def _is_of_plan(self, record: ShardRecord) -> bool:
        return self.plan_sha256 is None or record.plan_sha256 in {None, self.plan_sha256}

    def _has_hashes(self, record: ShardRecord) -> bool:
        try:
            contents = (self.store.get(file.path)[0] for file in record.files)
            digests = [hashlib.sha256(content).hexdigest() for content in contents]
        except FileNotFoundError:
            return False
        return digests == [file.sha256 for file in record.files]

    def _with_content(self, listed: Mapping[int, StoredObject]) -> Iterator[tuple[int, KnownRecord]]:
        """Yields the records of a listing; those that are known and have their ETags are not read again."""
        new: list[int] = []
        for number, found in listed.items():
            known = self._known.get(number)
            if known is not None and is_same_etag(known.etag, found.etag):
                yield number, known
            else:
                new.append(number)
        with ThreadPoolExecutor(_GETS, "embedkit-get") as pool:
            for start in range(0, len(new), _READ_AHEAD):
                some = new[start : start + _READ_AHEAD]
                for number, known in zip(some, pool.map(self._read_record, some), strict=True):
                    if known is not None:
                        yield number, known

    def _read_record(self, number: int) -> KnownRecord | None:
        """Reads a record; None if there is none."""
        try:
            data, found = self.store.get(record_name(number))
        except FileNotFoundError:
            return None
        try:
            record = ShardRecord.parse(data, self.path / record_name(number))
        except ValueError:
            return KnownRecord(found.etag, None, data, None)
        is_plain = record.serialize() == data
        return KnownRecord(found.etag, record, None if is_plain else data, found.metadata.get(_ETAGS))

    @contextlib.contextmanager
    def shard(self, index: int) -> Iterator[ObjectShardWriter]:
        """See OutputFolder."""
        writer = ObjectShardWriter(self, index)
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
                        self._known.pop(number, None)

    def put_data(self, number: int, name: str, file: SpooledFile) -> str | None:
        """Puts a file of a shard.

        Returns:
            Its ETag; None if it was there, with its record.

        Raises:
            OutputError: the shard has a record of a file with other bytes.
        """
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(FileExistsError):
                return self.store.put(name, file.content, if_absent=True)
            # It is of a killed writer, of this call (an acknowledgement was lost), or of another process.
            known = self._read_record(number)
            if known is not None and known.record is not None and self._is_of_plan(known.record):
                recorded = {of.path: of.sha256 for of in known.record.files}
                if recorded.get(name) != file.sha256:
                    self._fail_other_bytes(number)
                return None
            if known is not None:
                self.store.delete([record_name(number)])
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                etag = self.store.head(name).etag
                return self.store.put(name, file.content, if_match=etag)
        raise self._contended(name)

    def put_record(self, record: ShardRecord, etags: Sequence[str | None]) -> None:
        """Puts a record, unless there is one of the same bytes.

        Raises:
            OutputError: there is a record of other bytes.
        """
        name, data, digest = record_name(record.index), record.serialize(), digest_of_etags(etags)
        metadata = {} if digest is None else {_ETAGS: digest}
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(FileExistsError):
                etag = self.store.put(name, data, if_absent=True, metadata=metadata)
                self._known[record.index] = KnownRecord(etag, record, None, digest)
                return
            known = self._read_record(record.index)
            if known is None:
                continue
            if known.record == record:
                self._known[record.index] = known
                return
            if known.record is None or not self._is_of_plan(known.record):
                self.store.delete([name])  # of a run that this one has replaced, or damaged
                continue
            self._remove_unfit(known.record, record, etags)
            self._fail_other_bytes(record.index)
        raise self._contended(name)

    def _remove_unfit(self, found: ShardRecord, record: ShardRecord, etags: Sequence[str | None]) -> None:
        """Removes another process's record if this one has replaced a file just before that was put."""
        expected = {file.path: file.sha256 for file in found.files}
        for file, etag in zip(record.files, etags, strict=True):
            with contextlib.suppress(FileNotFoundError):
                is_mine = is_same_etag(self.store.head(file.path).etag, etag)
                if is_mine and expected.get(file.path) != file.sha256:
                    self.store.delete([record_name(record.index)])
                    return

    def _fail_other_bytes(self, number: int) -> Never:
        raise OutputError(
            f"{self.path / record_name(number)}: another process has committed this shard with other bytes",
            hint="their machines compute other last bits: use devices of one kind, and one version of embedkit, "
            "for all processes that write one output",
        )

    def _contended(self, name: str) -> OutputError:
        return OutputError(
            f"{self.path / name} is replaced again and again by another process",
            hint="start it once, or leave the output alone while embedkit writes it",
        )

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
        self.plan_sha256, self._plan_etag, self._known, self._obsolete = None, None, {}, {}

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


@dataclass(slots=True)
class ObjectShardWriter:
    """One shard being written."""

    folder: ObjectFolder
    index: int
    files: dict[str, SpooledFile] = field(default_factory=dict)

    def create(self, name: str) -> BinaryIO:
        """See ShardWriter."""
        self.files[name] = file = SpooledFile()
        return file  # type: ignore[return-value]  # all that writers use

    def commit(self, record: ShardRecord) -> ShardRecord:
        """See ShardWriter.

        Raises:
            OutputError: the store does not take them, another run has taken the place of this one, or another
                process has committed the shard with other bytes.
        """
        folder = self.folder
        folder.check_plan()
        published = [PublishedFile(name, file.size, file.sha256) for name, file in self.files.items()]
        etags = [folder.put_data(self.index, name, file) for name, file in self.files.items()]
        record = replace(record, files=tuple(published), plan_sha256=folder.plan_sha256)
        folder.check_plan()
        folder.put_record(record, etags)
        return record

    def discard(self) -> None:
        """Frees the memory and the temporary files."""
        for file in self.files.values():
            file.discard()
        self.files.clear()
