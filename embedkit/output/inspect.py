"""Inspects an output, finished or not: rows, vectors, receipts, norms, files. A batch at a time is in memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedkit.manifest.schema import Plan, ShardRecord, Totals
from embedkit.manifest.versioned_file import Json
from embedkit.output.commit import OutputFolder
from embedkit.output.open import Stored, level_of, open_stored
from embedkit.output.output_path import output_path
from embedkit.output.safe_reading import read_all_versioned, read_versioned
from embedkit.output.vector_norms import NormCounter, VectorNorms
from embedkit.percent import percent
from embedkit.storage.disk_errors import as_read_error
from embedkit.storage.filesystem import exists, stat_file
from embedkit.storage.protocol import FilePath
from embedkit.storage.remote_path import as_path
from embedkit.types import STATUSES, Variant


@dataclass(frozen=True, slots=True)
class Inspection:
    """The result of `embedkit inspect`."""

    path: FilePath
    complete: bool  # True if every row is accounted for
    rows: int  # of the whole output; of an unfinished one, rows planned
    shards: tuple[int, int]  # done, planned
    done: tuple[tuple[int, int], ...]  # row ranges [start, stop) that are committed, adjacent ones merged
    totals: Totals  # counts over the rows that are done
    format: str
    precision: str
    variants: tuple[Variant, ...]
    recipe: Json
    fingerprint: str | None
    norms: Mapping[str, VectorNorms]  # by the variant's name; only of finished outputs whose numbers are floats
    files: int  # of vectors and metadata, without the records, as are `bytes`
    bytes: int
    model: str | None  # None if the output does not say

    def as_json(self) -> dict[str, Any]:
        """Returns all fields as JSON values; row ranges as `[start, stop]`, vectors by column."""
        done, planned = self.shards
        variants = {
            variant.column: {
                "dims": variant.dims,
                "precision": self.precision,
                "norms": asdict(self.norms[variant.name]) if variant.name in self.norms else None,
            }
            for variant in self.variants
        }
        return {
            "path": str(self.path),
            "complete": self.complete,
            "rows": self.rows,
            "shards": {"done": done, "planned": planned},
            "done": [list(span) for span in self.done],
            "counts": self.totals.to_json(),
            "format": self.format,
            "vectors": variants,
            "files": self.files,
            "bytes": self.bytes,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "recipe": self.recipe,
        }


def inspect_output(path: str | FilePath) -> Inspection:
    """Inspects a folder, finished or not, or a .parquet, .arrow, .npy or .jsonl file.

    Raises:
        OutputError: there is no output, a file is damaged, or embedkit did not write it.
    """
    path = output_path(path) if isinstance(path, str) else path
    with as_read_error(path):
        is_unfinished = exists(path / "plan.json") and not exists(path / "manifest.json")
    if is_unfinished:
        return _unfinished(path)
    stored = open_stored(path)
    seen, norms = _walk(stored)
    totals = recorded_totals(path) or replace(seen, reused=stored.reused)
    rows = totals.rows if stored.rows is None else stored.rows
    files = [file for part in stored.parts for file in part]
    return Inspection(
        path=path,
        complete=True,
        rows=rows,
        shards=(len(stored.parts), len(stored.parts)),
        done=((0, rows),) if rows else (),
        totals=totals,
        format=stored.format,
        precision=stored.layout.precision,
        variants=stored.layout.variants,
        recipe=stored.recipe,
        fingerprint=stored.fingerprint,
        norms=norms,
        files=len(files),
        bytes=sum(stat_file(file).size for file in files),
        model=stored.source.describe(),
    )


def lines(inspection: Inspection) -> list[str]:
    """Returns the lines that `embedkit inspect` prints; none has content of a row."""
    it, totals = inspection, inspection.totals
    shards_done, shards = it.shards
    shown = [
        f"{it.path}: {'complete' if it.complete else f'NOT FINISHED, {shards_done} of {shards} shards done'}",
        f"rows       {it.rows:,}, {totals.vectors:,} with a vector",
    ]
    if not it.complete:
        ranges = ", ".join(f"{start:,} to {stop - 1:,}" for start, stop in it.done) or "none"
        shown.append(f"done       {totals.rows:,} rows: {ranges}")
    if totals.reused:
        shown.append(f"reused     {totals.reused:,} vectors from earlier outputs (--update)")
    shown += [f"vectors    {of.name or 'embedding'}: {of.dims} x {it.precision}" for of in it.variants]
    shown += [
        f"norms      {name or 'embedding'}: min {n.minimum:.4g}, median {n.median:.4g}, max {n.maximum:.4g}"
        for name, n in it.norms.items()
    ]
    words = sorted(totals.statuses)
    words.sort(key=lambda word: STATUSES.index(word) if word in STATUSES else len(STATUSES))
    shown.append("status     " + (", ".join(f"{word} {totals.statuses[word]:,}" for word in words) or "none"))
    shown.append(
        f"tokens     {totals.n_tokens:,}, {totals.n_used:,} used; "
        f"{percent(totals.truncated_share)} of rows truncated, {percent(totals.lost_share)} of tokens lost"
    )
    shown.append(f"files      {it.files:,} ({it.format}), {it.bytes / 1e6:,.1f} MB")
    if it.model is not None:
        shown.append(f"model      {it.model}")
    shown.append(f"recipe     {it.fingerprint or 'not in this file; a folder or a .parquet file carries it'}")
    return shown + [f"           {line}" for line in _recipe_lines(it.recipe)]


def _recipe_lines(recipe: Json) -> Iterator[str]:
    """Yields a line of JSON for each field; of the model's files the weights only."""
    for key, value in recipe.items():
        if not (isinstance(value, dict) and "files" in value):
            yield f"{key}: {json.dumps(value, ensure_ascii=False)}"
            continue
        weights = [name for name in value["files"] if name.endswith((".safetensors", ".bin"))]
        hashes = ", ".join(f"{name} {value['files'][name]}" for name in weights)
        yield f"{key}: {value.get('type')}, {len(value['files'])} files; {hashes}"


def _unfinished(path: FilePath) -> Inspection:
    plan, records = read_versioned(Plan, path / "plan.json"), _records(path)
    files = [file for record in records for file in record.files]
    totals = Totals.of(records)
    done: list[tuple[int, int]] = []
    for record in sorted(records, key=lambda record: record.start):
        touches = bool(done) and done[-1][1] == record.start
        done.append((done.pop()[0] if touches else record.start, record.stop))
    return Inspection(
        path=path,
        complete=False,
        rows=plan.sharding.rows or totals.rows,
        shards=(len(records), plan.sharding.shards or len(records)),
        done=tuple(done),
        totals=totals,
        format=plan.format,
        precision=plan.precision,
        variants=plan.variants,
        recipe=plan.recipe,
        fingerprint=plan.fingerprint,
        norms={},
        files=len(files),
        bytes=sum(file.bytes for file in files),
        model=plan.source.describe(),
    )


def _records(path: FilePath) -> list[ShardRecord]:
    """Returns the records of committed shards, in order; none for a single file."""
    with as_read_error(path):
        paths = [as_path(record) for _, record in sorted(OutputFolder(path).record_paths())]
    return read_all_versioned(ShardRecord, paths)


def recorded_totals(path: FilePath) -> Totals | None:
    """Returns the sums over a folder's records, which count rows without a vector even for .npy.

    None for a single file, which has no records.
    """
    records = _records(path)
    return Totals.of(records) if records else None


def _walk(stored: Stored) -> tuple[Totals, Mapping[str, VectorNorms]]:
    """Returns counts and norms by reading the files."""
    variants = stored.layout.variants
    has_floats = stored.layout.precision.startswith("float") or stored.int8_ranges
    counters = {variant.name: NormCounter() for variant in variants if has_floats}
    total, statuses = Counter[str](), Counter[str]()
    last: tuple[str | None, int] | None = None
    for batch in stored.batches(variants):
        total.update(rows=len(batch.facts), vectors=int(batch.has_vector.sum()))
        texts, last = _texts(batch.facts, level_of(stored.recipe, batch.facts.schema), last)
        total.update({name: pc.sum(texts[name]).as_py() or 0 for name in ("n_tokens", "n_used")})
        statuses.update(
            _status_of_text(text) for text in texts.select(["status", "n_tokens", "n_used"]).to_pylist()
        )
        for variant in variants if has_floats else ():
            vectors = batch.vectors[variant.name]
            if not isinstance(vectors, np.ndarray):
                vectors = np.concatenate(vectors) if vectors else np.empty((0, variant.dims), np.float32)
            counters[variant.name].add(stored.finite_floats(vectors, variant))
    totals = Totals(total["rows"], total["vectors"], dict(statuses), total["n_tokens"], total["n_used"])
    return totals, {name: counter.norms() for name, counter in counters.items() if counter.count}


def _texts(
    facts: pa.Table, level: str, last: tuple[str | None, int] | None
) -> tuple[pa.Table, tuple[str | None, int] | None]:
    """Returns the first row of each text: where the id changes, or the unit's number does not increase.

    Args:
        facts: consecutive rows.
        level: of the output.
        last: id and unit's number of the row before these, which is returned for the next rows.
    """
    if level == "text" or not len(facts):
        return facts, last
    ids, numbers = facts["id"].to_pylist(), facts[level].fill_null(-1).to_pylist()
    rows = [last or (None, numbers[0]), *zip(ids, numbers, strict=True)]
    starts = [row[0] != before[0] or row[1] <= before[1] for before, row in pairwise(rows)]
    return facts.filter(pa.array(starts)), rows[-1]


def _status_of_text(row: Json) -> str:
    """Returns the status of a text by its first row; `outside` is the status of a span only."""
    if row["status"] == "outside":
        return "truncated" if row["n_used"] < row["n_tokens"] else "ok"
    return str(row["status"])
