"""A folder: files against records, records against plan, manifest against both.

No byte is left out: the records hold the hashes of the files; plan, records and manifest are sealed; and the
manifest binds them together.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from embedkit.errors import OutputError
from embedkit.manifest.recipe import fingerprint
from embedkit.manifest.shards import planned_ranges
from embedkit.output.commit import COMMITS, MANIFEST, PLAN, OutputFolder
from embedkit.output.contents import contents_of, damaged_rejects
from embedkit.output.formats import Layout, Sink, make_sink, shard_name
from embedkit.output.open import made_by
from embedkit.storage.atomic import is_temporary
from embedkit.storage.checksummed_json import unsealed
from embedkit.storage.filesystem import read_file, sha256_of_file
from embedkit.types import Variant
from embedkit.verify.check_rows import wrong_counts, wrong_rows
from embedkit.verify.findings import Finding, Verification

#: What the manifest repeats of the plan.
_REPEATED = ("version", "format", "precision", "variants", "recipe", "fingerprint", "int8_ranges", "input")


class FolderCheck:
    """A folder being checked.

    Args:
        path: of the folder.
        there: every file in it, and its size.
    """

    def __init__(self, path: Path, there: Mapping[str, int | None]) -> None:
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
        """Look at everything."""
        plan = self._sealed(PLAN, "is missing")
        records = self._records()
        if plan is not None:
            self.plan_sha256 = sha256_of_file(self.path / PLAN)
            if fingerprint(plan["recipe"]) != plan["fingerprint"]:
                self.tell(PLAN, "its fingerprint is not that of its recipe")
            self._check_ranges(plan, records)
            sink = make_sink(plan["format"], _layout(plan))
            for index, record in records.items():
                self._check_shard(index, record, plan, sink)
        elif records:
            for record in records.values():
                self._check_files(record)
        manifest = self._sealed(MANIFEST, "is missing: the run is not finished")
        if manifest is not None and plan is not None:
            self._check_manifest(manifest, plan, records)
        self._check_others()

    def _check_others(self) -> None:
        """Tell of files that no record names."""
        for name, size in sorted(self.there.items()):
            if is_temporary(Path(name).name):
                self.found.notes.append(Finding(name, "left by a run that was killed; the next one removes it"))
            elif size is None:
                self.tell(name, "is a link or a device, no file")
            elif name not in self.known:
                self.tell(name, "is in no record: embedkit did not write it, or its record is gone")

    def tell(self, name: str, what: str) -> None:
        """Note a problem."""
        self.found.problems.append(Finding(name, what))

    def _sealed(self, name: str, if_missing: str) -> dict[str, Any] | None:
        """The content of one of embedkit's own JSON files, or None after telling what is wrong with it."""
        if self.there.get(name) is None:
            self.tell(name, if_missing)
            return None
        try:
            return unsealed(read_file(self.path / name))
        except OSError as fault:
            self.tell(name, f"cannot be read: {os.strerror(fault.errno or 0)}")
            return None
        except ValueError:
            self.tell(name, "is damaged: the SHA-256 in its last line is not that of the rest")
            return None

    def _records(self) -> dict[int, dict[str, Any]]:
        """The records that can be believed, by number."""
        records: dict[int, dict[str, Any]] = {}
        for index, path in sorted(OutputFolder(self.path).record_paths()):
            name = f"{COMMITS}/{Path(path).name}"
            self.known.add(name)
            record = self._sealed(name, "is missing")
            if record is not None and record["index"] != index:
                self.tell(name, f"is the record of shard {record['index']}")
            elif record is not None:
                records[index] = record
        return records

    def _check_ranges(self, plan: Mapping[str, Any], records: Mapping[int, Mapping[str, Any]]) -> None:
        """Every planned shard has one record, and the records' rows are all rows, each once."""
        ranges = planned_ranges(plan)
        if ranges is None:  # a stream, which was cut as it came
            ends = [0, *(record["stop"] for record in records.values())]
            ranges = {
                index: (start, record["stop"])
                for (index, record), (start, _) in zip(records.items(), pairwise(ends), strict=True)
            }
            if list(records) != list(range(len(records))):
                self.tell(COMMITS, f"{len(records)} records do not have the numbers from 0")
        for index in ranges.keys() - records.keys():
            if f"{COMMITS}/{index:05d}.json" not in self.known:
                self.tell(f"{COMMITS}/{index:05d}.json", "is missing: the shard is not done")
        for index, record in records.items():
            if ranges.get(index) != (record["start"], record["stop"]):
                planned = "is not planned" if index not in ranges else "has {} to {}".format(*ranges[index])
                self.tell(
                    f"{COMMITS}/{index:05d}.json",
                    f"has the rows {record['start']} to {record['stop']}, and the plan's shard {planned}",
                )

    def _check_shard(self, index: int, record: Mapping[str, Any], plan: Mapping[str, Any], sink: Sink) -> None:
        name = f"{COMMITS}/{index:05d}.json"
        if record.get("plan_sha256", self.plan_sha256) != self.plan_sha256:
            self.tell(name, "is of another run: it names another plan")
        for what in wrong_counts(record, plan):
            self.tell(name, what)
        data = sink.files(index) if plan["format"] != "npy" or record["vectors"] else ()
        rejects = (f"rejects/{shard_name(index, '.jsonl')}",) if record["rejects"] else ()
        if sorted(file["path"] for file in record["files"]) != sorted((*data, *rejects)):
            self.tell(name, "does not list the files that such a shard has")
        if not self._check_files(record):
            return
        if rejects and damaged_rejects(self.path / rejects[0], record):
            self.tell(rejects[0], f"does not list {record['rejects']} rows of the shard in their order")
        if data:
            self._check_rows(index, record, plan, sink)

    def _check_files(self, record: Mapping[str, Any]) -> bool:
        """Whether the files of a record are there with its sizes and hashes."""
        before = len(self.found.problems)
        for file in record["files"]:
            self.known.add(file["path"])
            size = self.there.get(file["path"])
            if size is None:
                self.tell(file["path"], "is missing")
            elif size != file["bytes"]:
                self.tell(file["path"], f"has {size:,} bytes, and its record says {file['bytes']:,}")
            else:
                self._check_hash(file)
        return len(self.found.problems) == before

    def _check_hash(self, file: Mapping[str, Any]) -> None:
        try:
            if sha256_of_file(self.path / file["path"]) != file["sha256"]:
                self.tell(file["path"], "is damaged: its SHA-256 is not that of its record")
        except OSError as fault:
            self.tell(file["path"], f"cannot be read: {os.strerror(fault.errno or 0)}")

    def _check_rows(self, index: int, record: Mapping[str, Any], plan: Mapping[str, Any], sink: Sink) -> None:
        files = [self.path / name for name in sink.files(index)]
        name = sink.files(index)[0]
        try:
            contents = contents_of(sink, files)
            own = made_by(files[-1]).get("embedkit.fingerprint", plan["fingerprint"])
        except OutputError as error:
            self.tell(name, error.message)
            return
        if own != plan["fingerprint"]:
            self.tell(name, "is by another recipe than the plan's")
        for what in wrong_rows(contents, record, plan):
            self.tell(name, what)
        self.found.rows += contents.rows
        self.found.vectors += contents.vectors

    def _check_manifest(
        self, manifest: Mapping[str, Any], plan: Mapping[str, Any], records: Mapping[int, Mapping[str, Any]]
    ) -> None:
        for key in _REPEATED:
            if manifest[key] != plan[key]:
                self.tell(MANIFEST, f"its {key} is not the plan's")
        sums = Counter[str]()
        for record in records.values():
            sums.update(
                {name: record[name] for name in ("rows", "vectors", "rejects")},
                input_rows=record["stop"] - record["start"],
                **record.get("texts", record)["tokens"],
            )
        for name in ("input_rows", "rows", "vectors", "rejects", "n_tokens", "n_used"):
            if manifest[name] != sums[name]:
                self.tell(MANIFEST, f"counts {manifest[name]:,} {name}, and the records {sums[name]:,}")
        if manifest["shards"] != len(records):
            self.tell(MANIFEST, f"counts {manifest['shards']:,} shards, and there are {len(records):,} records")
        for name, digest in OutputFolder(self.path).hashes().items():
            if manifest[name] != digest:
                self.tell(MANIFEST, f"its {name} is not that of what is there now")


def _layout(plan: Mapping[str, Any]) -> Layout:
    variants = tuple(Variant(variant["name"], variant["dims"]) for variant in plan["variants"])
    return Layout(variants, plan["precision"], plan["recipe"]["pool"] == ["none"], {}, {})
