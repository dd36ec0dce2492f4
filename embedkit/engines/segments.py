"""Planning by segments: each is scanned alone, by any process, and together they give one plan.

A segment follows from names and sizes alone: consecutive files of up to 1 GiB together, or 1 GiB of a larger file
of JSON Lines or Parquet. Shards do not span segments. An input that must be read in one go is one segment: a
query, one with a limit, or with a file of spans, all of whose ids must be found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from msgspec import to_builtins

from embedkit.config import RunConfig
from embedkit.errors import EmbedkitError
from embedkit.manifest.schema import Sharding
from embedkit.manifest.shards import ShardCutter
from embedkit.manifest.versioned_file import Json, VersionedFile
from embedkit.sources import Part, PartScan, Place, SourceFile, SpanBook, Table
from embedkit.sources.content_hash import hashes_columns
from embedkit.sources.file_hashes import columns_sha256, content_sha256

#: Most bytes of a segment that has more than one file, or a piece of one. Tests make it smaller.
SEGMENT_BYTES = 2**30
#: Formats whose files are cut into pieces, if they are not compressed.
_CUT = frozenset({"jsonl", "parquet"})


@dataclass(frozen=True, slots=True)
class Cut:
    """How shards are cut; see ShardCutter."""

    shard_rows: int
    shard_characters: int
    longest: int | None = None

    def cutter(self) -> ShardCutter:
        """Returns a cutter for one segment."""
        return ShardCutter(self.shard_rows, self.shard_characters, self.longest)


@dataclass(frozen=True, slots=True)
class SegmentScan(VersionedFile):
    """`segments/00000.json`: what the scan of a segment has found: numbers, names of types, hashes; no content."""

    KIND: ClassVar = "segment's scan"

    index: int  # number of the segment
    key: str  # see `scan_key`
    #: None if the segment cannot be read: who merges the scans reads it again, and gets the error.
    scan: PartScan | None
    starts: tuple[int, ...] = ()  # first row of each shard, from the first row of the segment
    characters: tuple[int, ...] = ()  # see Sharding
    digests: tuple[str | None, ...] = ()  # of each file's content, or of the piece; see `digest_of`
    unseen: int = 0  # ids of the file of spans that no row has
    unreadable: int = 0  # rows that may have one of them

    @classmethod
    def fields(cls, content: Json) -> dict[str, Any]:
        """See VersionedFile."""
        return dict(content)

    def to_json(self) -> dict[str, Any]:
        """See VersionedFile."""
        content: dict[str, Any] = to_builtins(self)
        return content


def cut_segments(table: Table, spans: SpanBook | None, config: RunConfig) -> list[Part]:
    """Returns the segments of an input, in order; none if there are no files."""
    if config.input.sql is not None or config.input.limit is not None or spans is not None:
        return [table.whole]
    parts: list[Part] = []
    first, size = 0, 0
    for number, file in enumerate(table.files):
        of_file, pieces = file.size or 0, pieces_of(file)
        if number > first and (len(pieces) > 1 or size + of_file > SEGMENT_BYTES):
            parts.append(Part(first, number))
            first, size = number, 0
        size += of_file
        if len(pieces) > 1:
            parts += [Part(number, number + 1, piece) for piece in pieces]
            first, size = number + 1, 0
    if first < len(table.files) or not parts:
        parts.append(Part(first, len(table.files)))
    return parts


def pieces_of(file: SourceFile) -> list[tuple[int, int]]:
    """Returns the bytes [first, stop) of the pieces of a file that are scanned alone; one if it is not large."""
    size = file.size or 0
    if file.format not in _CUT or file.compression is not None or size <= SEGMENT_BYTES:
        return [(0, size)]
    return [(first, min(size, first + SEGMENT_BYTES)) for first in range(0, size, SEGMENT_BYTES)]


def scan_key(table: Table, config: RunConfig, cut: Cut) -> str:
    """Returns a hash of all that scans depend on: those of another input or of other options are not used."""
    facts = {
        "files": [asdict(file) for file in table.files],
        "columns": asdict(table.columns),
        "cut": asdict(cut),
        "segment": SEGMENT_BYTES,
        "hashes": "of the columns in use of Parquet, also of objects",  # once of all bytes, and of objects none
        "reading": [config.input.delimiter, config.input.quoting, config.input.limit],
        "rows": [config.groups.by, config.units.spans_column, config.units.spans],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def scan_segment(
    table: Table,
    spans: SpanBook | None,
    part: Part,
    cut: Cut,
    *,
    index: int = 0,
    key: str = "",
    first: int = 0,
) -> SegmentScan:
    """Scans one segment.

    Args:
        table: the input.
        spans: the file of spans, if any.
        part: the segment.
        cut: how shards are cut.
        index: number of the segment.
        key: see `scan_key`.
        first: number of its first row, for error messages.

    Raises:
        InputError: see `Table.records`.
    """
    cutter = cut.cutter()
    scan = table.scan_part(part, cutter.opens_shard, first=first)
    return SegmentScan(
        index=index,
        key=key,
        scan=scan,
        starts=tuple(cutter.starts),
        characters=tuple(cutter.characters),
        digests=tuple(digest_of(table, number, part.piece) for number in range(part.first, part.stop)),
        unseen=0 if spans is None else len(spans.unseen),
        unreadable=0 if spans is None else spans.unreadable,
    )


def try_segment(
    table: Table, part: Part, cut: Cut, index: int, key: str, raises: type[EmbedkitError] | tuple[()] = ()
) -> SegmentScan:
    """Scans a segment whose first row is unknown; notes an error, unless it is one of `raises`."""
    try:
        return scan_segment(table, None, part, cut, index=index, key=key)
    except raises:
        raise
    except EmbedkitError:
        return SegmentScan(index=index, key=key, scan=None)


def sharding_of(cut: Cut, parts: Sequence[Part], scans: Sequence[SegmentScan]) -> Sharding:
    """Returns the shards of an input whose segments have been scanned."""
    starts: list[int] = []
    characters: list[int] = []
    places: list[Place] = []
    file_rows: dict[int, int] = {}
    rows = 0
    for part, of in zip(parts, scans, strict=True):
        if of.scan is None:
            continue
        starts += [rows + start for start in of.starts]
        characters += of.characters
        places += of.scan.places
        for number, row in enumerate(of.scan.first_rows, part.first):
            file_rows.setdefault(number, rows + row)
        rows += of.scan.rows
    return Sharding(
        cut.shard_rows,
        cut.shard_characters,
        rows,
        tuple(starts),
        tuple(characters),
        file_rows=tuple(file_rows.values()),
        offsets=tuple(place.offset for place in places),
        stretches=_stretches(places),
    )


def digest_of(table: Table, number: int, piece: tuple[int, int] | None) -> str | None:
    """Returns the hash of a file's content or of a piece of it: of Parquet, of the columns in use."""
    if hashes_columns(table.files[number]):
        return columns_sha256(table, number, piece)
    return content_sha256(table, number, piece)


def digests_of(table: Table, parts: Sequence[Part], scans: Sequence[SegmentScan]) -> dict[int, dict[str, Any]]:
    """Returns for each file, by its number, the fields of InputFile that hold the hash of its content."""
    found: dict[int, list[str | None]] = {}
    pieces: set[int] = set()
    for part, scan in zip(parts, scans, strict=True):
        for number, digest in enumerate(scan.digests, part.first):
            found.setdefault(number, []).append(digest)
            if part.piece is not None:
                pieces.add(number)
    return {
        number: digest_fields(table.files[number], digests, in_pieces=number in pieces)
        for number, digests in found.items()
    }


def digest_fields(file: SourceFile, digests: Sequence[str | None], *, in_pieces: bool) -> dict[str, Any]:
    """Returns the field of InputFile with one hash of those of a file's pieces, or of the whole file."""
    if hashes_columns(file):
        return {"columns_sha256": combined_digest(digests)}
    return {"pieces_sha256": combined_digest(digests)} if in_pieces else {"content_sha256": digests[0]}


def combined_digest(digests: Iterable[str | None]) -> str | None:
    """Returns one hash of those of all pieces of a file; None if they have none."""
    known = [digest for digest in digests if digest is not None]
    return hashlib.sha256("".join(known).encode()).hexdigest() if known else None


def _stretches(places: Sequence[Place]) -> tuple[int, ...] | None:
    """Returns the shards with which a stretch begins, from the places of all shards; see Sharding."""
    if all(place.stretch is None for place in places):
        return None
    keys = [(place.file, place.stretch) for place in places]
    return tuple(shard for shard, key in enumerate(keys) if None in key or not shard or key != keys[shard - 1])
