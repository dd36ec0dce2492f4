"""Samples random rows of an output, with their stored vectors and scores, and their texts.

The vectors of one shard at a time are in memory, and of the input only the chosen texts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedkit.config import InputConfig
from embedkit.errors import InputError, OutputError
from embedkit.manifest.identity import QUERIES, files_digest
from embedkit.manifest.schema import InputFacts
from embedkit.output.commit import OutputFolder
from embedkit.output.rejects import rejected_rows, rejects_path
from embedkit.output.safe_reading import readable
from embedkit.sources import Table, open_table
from embedkit.storage.filesystem import exists, is_folder
from embedkit.storage.protocol import FilePath
from embedkit.types import Record
from embedkit.verify.provenance import Provenance

#: No limit on decompression: `encode` has read the same files with one.
_ANY = 10**9


@dataclass(frozen=True, slots=True)
class Sampled:
    """A row of the output that has a vector."""

    row: int  # its number in the input
    id: str | None
    vectors: Mapping[str, NDArray[np.float32]]  # by variant, as floats: [1, D], or [n, D] of token vectors
    scores: Mapping[str, Any]  # cells of the columns that a head added


@dataclass(frozen=True, slots=True)
class _Shard:
    """Files with the row numbers they hold, and the number of vectors."""

    files: Sequence[FilePath]
    rows: Sequence[int]
    vectors: int


def opened_input(provenance: Provenance, inputs: Sequence[str], sql: str | None = None) -> Table:
    """Opens the table that the output was made of; `sql` is the query, if the input was a database.

    Raises:
        InputError: it has changed, or its place is unknown.
    """
    read = provenance.input
    names = tuple(inputs) or tuple(file.name for file in read.files)
    if not names or "-" in names:
        what = "was stdin" if names else "is not recorded in a single file"
        raise InputError(f"the input {what}, and its texts are needed", hint="name the files with --input FILE")
    formats = {file.format for file in read.files}
    if sql is None and formats & QUERIES:
        raise InputError(
            "the input was a query, whose text is not recorded because it may name patients",
            hint="give it with --sql; for PostgreSQL with --input postgresql://USER@HOST/DATABASE",
        )
    table = open_table(
        InputConfig(
            names,
            format=formats.pop() if len(formats) == 1 and sql is None else "auto",
            text_columns=() if read.template else read.text,
            template=read.template,
            id_column=read.id,
            limit=read.limit,
            delimiter=read.delimiter,
            quoting=read.quoting,
            max_expansion=_ANY,
            max_decompressed_gb=_ANY,
            sql=sql,
        )
    )
    table.identify()
    digest = files_digest((file.size, file.sha256) for file in table.files)
    if provenance.files_digest not in {None, digest}:
        raise InputError(
            f"the input has changed: {_first_changed(read, table)}",
            hint="name the files that were encoded, in their order, with --input"
            if sql is None
            else "give the query that was encoded, on the database as it was",
        )
    return table


def choose(path: FilePath, provenance: Provenance, rows: int, seed: int) -> list[Sampled]:
    """Chooses random rows that have a vector, with equal probability over all shards; returned in order.

    Raises:
        OutputError: a file is damaged, or has more rows than the input.
    """
    shards = list(_of_folder(path, provenance) if is_folder(path) else _of_file(path, provenance))
    total = sum(shard.vectors for shard in shards)
    wanted = sorted(random.Random(seed).sample(range(total), min(rows, total)))  # noqa: S311 - a sample, no secret
    sampled: list[Sampled] = []
    before = 0
    for shard in shards:
        inside = [place - before for place in wanted if before <= place < before + shard.vectors]
        before += shard.vectors
        if inside:
            sampled += _picked(provenance, shard, inside)
    return sampled


def texts_of(sampled: Sequence[Sampled], table: Table) -> dict[int, str]:
    """Returns the texts of the sampled rows, by row number.

    Raises:
        InputError: a row is missing, or has another id.
    """
    ids = {one.row: one.id for one in sampled}
    texts: dict[int, str] = {}
    last = max(ids, default=-1)
    for item in table.records() if ids else ():
        if item.row in ids and isinstance(item, Record) and item.id == ids[item.row]:
            texts[item.row] = item.text or ""
        if item.row == last:
            break
    lost = [row for row in ids if row not in texts]
    if lost:
        raise InputError(
            f"row {lost[0]} of the input differs from the row that the output has a vector of",
            hint="name the files that were encoded, in their order, with --input",
        )
    return texts


def _of_folder(path: FilePath, provenance: Provenance) -> Iterator[_Shard]:
    sink = provenance.stored.sink
    for index, record in OutputFolder(path).committed().items():
        if record.vectors:
            rejects = [path / file.path for file in record.files if file.path.startswith("rejects/")]
            rows = _rows(range(record.start, record.stop), _absent(rejects, provenance))
            yield _Shard([path / name for name in sink.files(index)], rows, record.vectors)


def _of_file(path: FilePath, provenance: Provenance) -> Iterator[_Shard]:
    stored = provenance.stored
    n_rows = n_vectors = 0
    for batch in stored.batches(stored.layout.variants[:1]):
        n_rows += len(batch.facts)
        n_vectors += int(batch.has_vector.sum())
    rejects = rejects_path(path)
    absent = _absent([rejects] if exists(rejects) else [], provenance)
    yield _Shard(stored.parts[0], _rows(range(n_rows + len(absent)), absent), n_vectors)


def _rows(span: range, absent: set[int]) -> Sequence[int]:
    return [row for row in span if row not in absent] if absent else span


def _absent(rejects: Sequence[FilePath], provenance: Provenance) -> set[int]:
    """Returns the rejected rows that are not stored."""
    rows: set[int] = set()
    if provenance.stored.format == "npy" or provenance.on_bad_row == "skip":
        for path in rejects:
            with readable(path):
                rows.update(rejected_rows(path))
    return rows


def _picked(provenance: Provenance, shard: _Shard, inside: Sequence[int]) -> Iterator[Sampled]:
    """Yields the vectors at the indices `inside` of a shard."""
    stored, variants = provenance.stored, provenance.stored.layout.variants
    row = vector = 0
    wanted = set(inside)
    with readable(shard.files[0]):
        for batch in stored.sink.read(shard.files, variants):
            with_vector = np.flatnonzero(batch.has_vector).tolist()
            for place, of_batch in enumerate(with_vector):
                if vector + place in wanted:
                    cells = {v.name: np.asarray(batch.vectors[v.name][place]) for v in variants}
                    if row + of_batch >= len(shard.rows):
                        raise OutputError(
                            f"{shard.files[0]} has more rows than the input has for it",
                            hint="`embedkit verify` without --resample names damaged files",
                        )
                    yield Sampled(
                        shard.rows[row + of_batch],
                        batch.facts["id"][of_batch].as_py(),
                        {v.name: np.atleast_2d(stored.floats(cells[v.name], v)) for v in variants},
                        {name: batch.facts[name][of_batch].as_py() for name in stored.scores},
                    )
            row += len(batch.facts)
            vector += len(with_vector)


def _first_changed(read: InputFacts, table: Table) -> str:
    if len(read.files) != len(table.files):
        return "other files" if not read.files else f"{len(table.files)} files, and {len(read.files)} were read"
    for was, now in zip(read.files, table.files, strict=True):
        if was.size != now.size:
            of = " of ids and texts" if now.format in QUERIES else ""
            return f"{now.name} has {now.size:,} bytes{of} and had {was.size:,}"
        if was.sha256 != now.sha256:
            return f"the content of {now.name} has changed"
    return "other files"
