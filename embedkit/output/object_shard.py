"""One shard being written to an object store: its files are put, then its record; see commit_objects.py."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import BinaryIO, Never

from embedkit.errors import OutputError
from embedkit.manifest.schema import ShardRecord
from embedkit.output.commit import OutputFolder, record_name
from embedkit.output.object_records import (
    ETAGS,
    KnownRecord,
    ObjectRecords,
    claim_of,
    digest_of_etags,
    is_claim,
    is_of_plan,
    is_same_etag,
)
from embedkit.storage.object_store import ObjectStore
from embedkit.storage.protocol import PublishedFile
from embedkit.storage.spool import SpooledFile

#: Attempts of a put that another process may get in the way of.
_ATTEMPTS = 5


@dataclass(slots=True)
class ObjectShardWriter:
    """One shard being written.

    Attributes:
        folder: of the output.
        store: the objects in it.
        records: those that are known there; receives that of this shard.
        index: number of the shard.
        files: what was written and not yet put, by name.
    """

    folder: OutputFolder
    store: ObjectStore
    records: ObjectRecords
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
        record = replace(record, files=tuple(published), plan_sha256=folder.plan_sha256)
        for _ in range(_ATTEMPTS):
            etags = list(itertools.chain(*(self._put_file(record, *of) for of in self.files.items())))
            folder.check_plan()
            if self._put_record(record, etags):
                return record
        raise self._contended(record_name(self.index))

    def discard(self) -> None:
        """Frees the memory and the temporary files."""
        for file in self.files.values():
            file.discard()
        self.files.clear()

    def _put_file(self, record: ShardRecord, name: str, file: SpooledFile) -> list[str | None]:
        """Puts a file of a shard.

        A file of other bytes is replaced only under a claim: else another process, between this one's look for a
        record and its put, could commit the shard and end, and its vectors would be lost.

        Returns:
            Its ETag; nothing if it was there, with its record.

        Raises:
            OutputError: the shard has a record or a claim of a process whose files have other bytes.
        """
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(FileExistsError):
                return [self.store.put(name, file.content, if_absent=True)]
            # It is of a killed writer, of this call (an acknowledgement was lost), or of another process.
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                # The file before the claim: what replaces it while the claim still stands has another ETag.
                seen = self.store.head(name)
                there = self._record_there()
                if there is not None and there.record is not None:
                    recorded = {of.path: of.sha256 for of in there.record.files}
                    if recorded.get(name) != file.sha256:
                        self._fail_other_bytes()
                    return []
                data, found = self.store.get(name)
                if hashlib.sha256(data).hexdigest() == file.sha256:
                    return [found.etag]
                self._claim(record, there)
                return [self.store.put(name, file.content, if_match=seen.etag)]
        raise self._contended(name)

    def _claim(self, record: ShardRecord, there: KnownRecord | None) -> None:
        """Puts a claim where a record will be, so that no other process commits the shard meanwhile.

        Args:
            record: what will be put there.
            there: a claim that is there; None for nothing.

        Raises:
            FileExistsError: something else is there by now.
            OutputError: another process has a claim.
        """
        claim, name = claim_of(record), record_name(self.index)
        if there is None:
            self.store.put(name, claim, if_absent=True)
        elif not self._may_replace(there, record):
            self._fail_other_bytes()
        elif there.data != claim:
            self.store.put(name, claim, if_match=there.etag)

    def _may_replace(self, claim: KnownRecord, record: ShardRecord) -> bool:
        """Returns True for a claim of this process, or one that it found at its start: of a killed writer."""
        found = self.records.known.get(self.index)
        is_old = found is not None and found.data == claim.data and found.etag == claim.etag
        return is_old or claim.data == claim_of(record)

    def _record_there(self) -> KnownRecord | None:
        """Reads the record or claim of the shard, and removes one that is damaged or of a replaced run."""
        known = self.records.read(self.index)
        if known is None:
            return None
        if known.record is None:
            counts = is_claim(known.data, self.folder.plan_sha256)
        else:
            counts = is_of_plan(known.record, self.folder.plan_sha256)
        if not counts:
            self.store.delete([record_name(self.index)])
        return known if counts else None

    def _put_record(self, record: ShardRecord, etags: Sequence[str | None]) -> bool:
        """Puts a record, unless there is one of the same bytes.

        Returns:
            False if files that were there with a record have none any more.

        Raises:
            OutputError: there is a record or a claim of other bytes.
        """
        name, data, digest = record_name(self.index), record.serialize(), digest_of_etags(etags)
        metadata = {} if digest is None else {ETAGS: digest}
        had_record = len(etags) < len(record.files)
        there: KnownRecord | None = None
        for attempt in range(_ATTEMPTS):
            if attempt or had_record:
                there = self._record_there()
            if there is None or (there.record is None and self._may_replace(there, record)):
                if had_record:
                    return False
                if_match = None if there is None else there.etag
                with contextlib.suppress(FileExistsError, FileNotFoundError):
                    etag = self.store.put(
                        name, data, if_absent=there is None, if_match=if_match, metadata=metadata
                    )
                    self.records.known[self.index] = KnownRecord(etag, record, None, digest)
                    return True
            elif there.record == record:
                self.records.known[self.index] = there
                return True
            else:
                if there.record is not None:
                    self._remove_unfit(there.record, record, etags)
                self._fail_other_bytes()
        raise self._contended(name)

    def _remove_unfit(self, found: ShardRecord, record: ShardRecord, etags: Sequence[str | None]) -> None:
        """Removes another process's record if this one has replaced a file just before that was put."""
        expected = {file.path: file.sha256 for file in found.files}
        for file, etag in zip(record.files, etags, strict=False):
            with contextlib.suppress(FileNotFoundError):
                is_mine = is_same_etag(self.store.head(file.path).etag, etag)
                if is_mine and expected.get(file.path) != file.sha256:
                    self.store.delete([record_name(self.index)])
                    return

    def _fail_other_bytes(self) -> Never:
        place = self.folder.path / record_name(self.index)
        raise OutputError(
            f"{place}: another process has committed this shard with other bytes",
            hint="their machines compute other last bits: use devices of one kind, and one version of embedkit, "
            "for all processes that write one output",
        )

    def _contended(self, name: str) -> OutputError:
        return OutputError(
            f"{self.folder.path / name} is replaced again and again by another process",
            hint="start it once, or leave the output alone while embedkit writes it",
        )
