"""One shard being written to an object store: its files are put, then its record; see commit_objects.py."""

from __future__ import annotations

import contextlib
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
    digest_of_etags,
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
        etags = [self._put_file(name, file) for name, file in self.files.items()]
        record = replace(record, files=tuple(published), plan_sha256=folder.plan_sha256)
        folder.check_plan()
        self._put_record(record, etags)
        return record

    def discard(self) -> None:
        """Frees the memory and the temporary files."""
        for file in self.files.values():
            file.discard()
        self.files.clear()

    def _put_file(self, name: str, file: SpooledFile) -> str | None:
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
            known = self.records.read(self.index)
            if (
                known is not None
                and known.record is not None
                and is_of_plan(known.record, self.folder.plan_sha256)
            ):
                recorded = {of.path: of.sha256 for of in known.record.files}
                if recorded.get(name) != file.sha256:
                    self._fail_other_bytes()
                return None
            if known is not None:
                self.store.delete([record_name(self.index)])
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                etag = self.store.head(name).etag
                return self.store.put(name, file.content, if_match=etag)
        raise self._contended(name)

    def _put_record(self, record: ShardRecord, etags: Sequence[str | None]) -> None:
        """Puts a record, unless there is one of the same bytes.

        Raises:
            OutputError: there is a record of other bytes.
        """
        name, data, digest = record_name(self.index), record.serialize(), digest_of_etags(etags)
        metadata = {} if digest is None else {ETAGS: digest}
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(FileExistsError):
                etag = self.store.put(name, data, if_absent=True, metadata=metadata)
                self.records.known[self.index] = KnownRecord(etag, record, None, digest)
                return
            known = self.records.read(self.index)
            if known is None:
                continue
            if known.record == record:
                self.records.known[self.index] = known
                return
            if known.record is None or not is_of_plan(known.record, self.folder.plan_sha256):
                self.store.delete([name])  # of a run that this one has replaced, or damaged
                continue
            self._remove_unfit(known.record, record, etags)
            self._fail_other_bytes()
        raise self._contended(name)

    def _remove_unfit(self, found: ShardRecord, record: ShardRecord, etags: Sequence[str | None]) -> None:
        """Removes another process's record if this one has replaced a file just before that was put."""
        expected = {file.path: file.sha256 for file in found.files}
        for file, etag in zip(record.files, etags, strict=True):
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
