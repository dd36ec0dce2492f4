"""Checks a folder: files against records, records against plan, manifest against both.

No byte is left out: the records hold the hashes of the files; plan, records and manifest have checksums; and the
manifest holds the hashes of plan and records.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from embedkit.errors import OutputError
from embedkit.manifest.recipe import fingerprint
from embedkit.manifest.schema import Manifest, Plan, ShardRecord, Totals
from embedkit.manifest.versioned_file import MalformedFileError, VersionedFile
from embedkit.output.commit import COMMITS, MANIFEST, PLAN, SEGMENTS, OutputFolder, record_name
from embedkit.output.contents import contents_of
from embedkit.output.formats import Sink, layout_of, make_sink, shard_name
from embedkit.output.open import schema_metadata
from embedkit.output.rejects import are_rejects_damaged
from embedkit.storage.atomic import is_temporary
from embedkit.storage.filesystem import read_file, sha256_of_file
from embedkit.storage.opener import Fetched, FileOpener, sha256_of
from embedkit.storage.protocol import AnyPath, FilePath
from embedkit.storage.store_errors import StoreError
from embedkit.verify.findings import Finding, Verification, wrong_counts, wrong_rows

_COUNTS = ("input_rows", "rows", "vectors", "rejects", "n_tokens", "n_used")
_File = TypeVar("_File", bound=VersionedFile)


class FolderCheck:
    """Check of one folder.

    Args:
        path: of the folder.
        there: every file in it, and its size; None for a link or a device.
    """

    def __init__(self, path: FilePath, there: Mapping[str, int | None]) -> None:
        self.path = path
        self.there = there
        self.known = {PLAN, MANIFEST}
        self.plan_sha256 = ""
        self.found = Verification(
            way_out="the command of the first run with --on-exists resume --verify makes damaged shards again; "
            "a damaged plan.json needs --on-exists overwrite",
            files=len(there),
            bytes=sum(size or 0 for size in there.values()),
        )

    def run(self) -> None:
        """Checks everything.

        Raises:
            OutputError: a newer embedkit wrote the folder.
        """
        plan = self._read(Plan, PLAN, "is missing")
        records = self._records()
        if plan is not None:
            self.plan_sha256 = sha256_of_file(self.path / PLAN)
            if fingerprint(plan.recipe) != plan.fingerprint:
                self.add(PLAN, "its fingerprint is not that of its recipe")
            self._check_ranges(plan, records)
            sink = make_sink(plan.format, layout_of(plan))
            for record in records.values():
                self._check_shard(record, plan, sink)
        else:
            for record in records.values():
                self._check_files(record)
        manifest = self._read(Manifest, MANIFEST, "is missing: the run is not finished")
        if manifest is not None and plan is not None:
            self._check_manifest(manifest, plan, records)
        for name, size in sorted(self.there.items()):
            self._check_known(name, size)

    def _check_known(self, name: str, size: int | None) -> None:
        if is_temporary(Path(name).name):
            self.found.notes.append(Finding(name, "left by a run that was killed; the next one removes it"))
        elif size is None:
            self.add(name, "is a link or a device, no file")
        elif name.startswith(f"{SEGMENTS}/"):
            self.found.notes.append(Finding(name, "left by a rank that came late; nobody needs it"))
        elif name not in self.known:
            self.add(name, "is in no record: embedkit did not write it, or its record is gone")

    def add(self, name: str, what: str) -> None:
        """Adds a problem."""
        self.found.problems.append(Finding(name, what))

    def _read(self, kind: type[_File], name: str, if_missing: str) -> _File | None:
        """Returns one of embedkit's own JSON files; None after adding what is wrong with it."""
        if self.there.get(name) is None:
            self.add(name, if_missing)
            return None
        path = self.path / name
        try:
            return kind.parse(read_file(path), path)
        except StoreError:
            raise
        except OSError as fault:
            self.add(name, f"cannot be read: {os.strerror(fault.errno or 0)}")
        except MalformedFileError:
            self.add(name, "has a checksum that fits, yet not the content that embedkit writes")
        except ValueError:
            self.add(name, "is damaged: the SHA-256 in its last line is not that of the rest")
        return None

    def _records(self) -> dict[int, ShardRecord]:
        """Returns the undamaged records by number."""
        records: dict[int, ShardRecord] = {}
        for index, path in sorted(OutputFolder(self.path).record_paths()):
            name = f"{COMMITS}/{path.rpartition('/')[2]}"
            self.known.add(name)
            record = self._read(ShardRecord, name, "is missing")
            if record is not None and record.index != index:
                self.add(name, f"is the record of shard {record.index}")
            elif record is not None:
                records[index] = record
        return records

    def _check_ranges(self, plan: Plan, records: Mapping[int, ShardRecord]) -> None:
        """Checks that every planned shard has one record, and that the records cover each row once."""
        ranges = plan.sharding.ranges
        if ranges is None:  # a stream, cut while it was read
            ends = [0, *(record.stop for record in records.values())]
            ranges = {
                index: (start, record.stop)
                for (index, record), (start, _) in zip(records.items(), pairwise(ends), strict=True)
            }
            if list(records) != list(range(len(records))):
                self.add(COMMITS, f"{len(records)} records do not have the numbers from 0")
        for index in ranges.keys() - records.keys():
            if record_name(index) not in self.known:
                self.add(record_name(index), "is missing: the shard is not done")
        for index, record in records.items():
            if ranges.get(index) != (record.start, record.stop):
                planned = "is not planned" if index not in ranges else "has {} to {}".format(*ranges[index])
                self.add(
                    record_name(index),
                    f"has the rows {record.start} to {record.stop}, and the plan's shard {planned}",
                )

    def _check_shard(self, record: ShardRecord, plan: Plan, sink: Sink) -> None:
        name = record_name(record.index)
        if record.plan_sha256 not in {None, self.plan_sha256}:
            self.add(name, "is of another run: it names another plan")
        for what in wrong_counts(record, plan):
            self.add(name, what)
        data = sink.files(record.index) if plan.format != "npy" or record.vectors else ()
        rejects = (f"rejects/{shard_name(record.index, '.jsonl')}",) if record.rejects else ()
        if sorted(file.path for file in record.files) != sorted((*data, *rejects)):
            self.add(name, "does not list the files that such a shard has")
        opener = self._check_files(record)
        if opener is None:
            return
        if rejects and are_rejects_damaged(self.path / rejects[0], record):
            self.add(rejects[0], f"does not list {record.rejects} rows of the shard in their order")
        if data:
            self._check_rows(record, plan, sink, opener)

    def _check_files(self, record: ShardRecord) -> FileOpener | None:
        """Returns what opens the record's files; None if one lacks its size or hash."""
        before = len(self.found.problems)
        fetched: dict[AnyPath, Fetched] = {}
        for file in record.files:
            self.known.add(file.path)
            size = self.there.get(file.path)
            if size is None:
                self.add(file.path, "is missing")
                continue
            if size != file.bytes:
                self.add(file.path, f"has {size:,} bytes, and its record says {file.bytes:,}")
                continue
            path = self.path / file.path
            try:
                if sha256_of(path, fetched) != file.sha256:
                    self.add(file.path, "is damaged: its SHA-256 is not that of its record")
            except StoreError:  # says nothing about the output
                raise
            except OSError as fault:
                self.add(file.path, f"cannot be read: {os.strerror(fault.errno or 0)}")
        return FileOpener(fetched) if len(self.found.problems) == before else None

    def _check_rows(self, record: ShardRecord, plan: Plan, sink: Sink, opener: FileOpener) -> None:
        files = [self.path / name for name in sink.files(record.index)]
        name = sink.files(record.index)[0]
        try:
            contents = contents_of(sink, files, opener)
            own = schema_metadata(files[-1], opener).get("embedkit.fingerprint", plan.fingerprint)
        except OutputError as error:
            self.add(name, error.message)
            return
        if own != plan.fingerprint:
            self.add(name, "is by another recipe than the plan's")
        for what in wrong_rows(contents, record, plan):
            self.add(name, what)
        self.found.rows += contents.rows
        self.found.vectors += contents.vectors

    def _check_manifest(self, manifest: Manifest, plan: Plan, records: Mapping[int, ShardRecord]) -> None:
        for key in Manifest.REPEATED:
            if getattr(manifest, key) != getattr(plan, key):
                self.add(MANIFEST, f"its {key} is not the plan's")
        totals = Totals.of(records.values())
        for name in _COUNTS:
            stated, found = getattr(manifest.totals, name), getattr(totals, name)
            if stated != found:
                self.add(MANIFEST, f"counts {stated:,} {name}, and the records {found:,}")
        if manifest.shards != len(records):
            self.add(MANIFEST, f"counts {manifest.shards:,} shards, and there are {len(records):,} records")
        names = ("plan_sha256", "records_sha256")
        for name, digest in zip(names, OutputFolder(self.path).hashes(), strict=True):
            if getattr(manifest, name) != digest:
                self.add(MANIFEST, f"its {name} differs from that of the present files")
