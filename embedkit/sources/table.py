"""All files of an input as one table, with rows numbered across them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from embedkit.arrow_values import is_missing
from embedkit.config import InputConfig
from embedkit.errors import InputError, UsageError
from embedkit.sources.changes import changed, check_same, is_unchanged
from embedkit.sources.columnar import Columnar
from embedkit.sources.columns import (
    Wanted,
    check_columns,
    every,
    requested_columns,
)
from embedkit.sources.content_hash import PassHash
from embedkit.sources.delimited import Delimited
from embedkit.sources.headers import shown
from embedkit.sources.jsonl import JsonLines
from embedkit.sources.kept_types import KeptTypes
from embedkit.sources.locate import STDIN
from embedkit.sources.query import RowsDigest
from embedkit.sources.readers import Reader, Seeking, as_input_error, reading
from embedkit.sources.scan import FAULTS_LISTED, Part, PartScan, Place, Scan
from embedkit.sources.table_facts import TableFacts
from embedkit.storage.filesystem import stat_file
from embedkit.types import Fault, Record


class Table:
    """The rows of all files, in order. Made by `open_table`.

    Attributes:
        facts: what opening it has found.
        files: of the input; size and hashes of a query are known after its first pass.
        columns: the columns in use.
        streaming: True for stdin, which can be read only once.
        first_rows: number of the first row of each file that was read; filled while it is read.
        digests: hashes of what `scan_part` has read, by file and piece; see `content_hash`.
        non_finite: for each kept column that has any, the number of rows with NaN or an infinity; filled by
            `scan`, or while a stream is read.
    """

    def __init__(
        self,
        facts: TableFacts,
        config: InputConfig,
        reader: Reader | None = None,
        notes: Sequence[str] = (),
        *,
        is_known: bool = False,
    ) -> None:
        self.facts = facts
        #: Numbers of the files that must be compared with `facts` before they are read.
        self._unseen = set(range(len(facts.files))) if is_known and config.sql is None else set[int]()
        self.files = facts.files
        self._notes = list(notes)
        self.columns = facts.columns
        self.streaming = reader is not None
        self.first_rows: list[int] = []
        self.digests: dict[tuple[int, tuple[int, int] | None], str] = {}
        self.non_finite: Mapping[str, int] = {}
        self._config = config
        self._reader = reader
        #: For each file, the number of rows with stray quotes, and the first of them.
        self._stray: dict[str, tuple[int, int]] = {}
        self._groups: tuple[str, ...] = ()
        self._each: list[Callable[[Record | Fault], Record | Fault]] = []
        #: Numbers of the files that the parser is known to survive.
        self._sound = set[int]()
        #: True if the last pass of a query was of the rows that `files` describes, and vectors come from it.
        self._is_confirmed = False

    @property
    def shown(self) -> str:
        """Name of the table for errors."""
        return self.files[0].shown if len(self.files) == 1 else "the input"

    def map_rows(self, change: Callable[[Record | Fault], Record | Fault]) -> None:
        """Applies a function to every row; it may turn a record into a fault."""
        self._each.append(change)

    def reject_nulls(self, columns: Sequence[str]) -> None:
        """Turns rows with a null, empty or NaN cell in one of these columns (kept, or the id) into faults."""
        places = [self.columns.keep.index(name) for name in columns if name in self.columns.keep]
        is_by_id = len(places) < len(columns)
        self._groups = tuple(name for name in columns if name in self.columns.keep)

        def change(item: Record | Fault) -> Record | Fault:
            if isinstance(item, Fault):
                return item
            if not (any(is_missing(item.kept[place]) for place in places) or (is_by_id and is_missing(item.id))):
                return item
            return Fault(item.row, self.shown, None, "no_group")

        self.map_rows(change)

    @property
    def whole(self) -> Part:
        """All files."""
        return Part(0, len(self.files))

    def records(self, wanted: Wanted = every) -> Iterator[Record | Fault]:
        """Reads every row, lazily, up to the limit, with at most a batch in memory.

        Args:
            wanted: returns whether any of the rows [first, stop) is wanted; called just before they are read.
                Others are skipped, and may come as a `Fault` with the code `unread`.

        Raises:
            InputError: a file is damaged, or can no longer be split into rows.
            UsageError: stdin has been read already.
        """
        if self.streaming and self._reader is None:
            raise _read_once()
        if self._config.sql is not None:
            # Skipped rows would be missing in the hash; the query has the limit.
            return self._changed_rows(self._identified(self._rows(every, self.whole)))
        rows = self._rows(wanted, self.whole) if self._reader is None else self._streamed(self._reader)
        self._reader = None
        return islice(self._changed_rows(rows), self._config.limit)

    def records_from(self, file: int, offset: int, row: int, wanted: Wanted = every) -> Iterator[Record | Fault]:
        """Reads as `records` does, from a row on that a scan has found at this place.

        Raises:
            InputError: as `records`; or the file is another one now.
        """
        if self._config.sql is not None:
            return islice(self.records(), row, None)
        rows = self._changed_rows(self._rows_from(file, offset, row, wanted))
        return islice(rows, None if self._config.limit is None else max(0, self._config.limit - row))

    def _changed_rows(self, rows: Iterator[Record | Fault]) -> Iterator[Record | Fault]:
        for change in self._each:
            rows = map(change, rows)
        return rows

    def scan(self, on_row: Callable[[int], object] | None = None) -> Scan:
        """Reads everything once: counts rows, collects faults, finds the types of kept columns.

        Args:
            on_row: see `scan_part`.

        Raises:
            InputError: as `records`.
            UsageError: it is stdin.
        """
        return self.combine([self.scan_part(self.whole, on_row)])

    def scan_part(self, part: Part, on_row: Callable[[int], object] | None = None, *, first: int = 0) -> PartScan:
        """Reads a part once; the limit counts from its first row.

        Args:
            part: which rows.
            on_row: called with the number of characters of each row's text, in order; 0 for null or a fault. Where
                it returns True, the place of the row is recorded.
            first: number of the first row, for error messages.

        Raises:
            InputError: as `records`.
            UsageError: it is stdin.
        """
        if self.streaming:
            raise _read_once()
        row = first
        n_faults = 0
        faults: list[Fault] = []
        places: list[Place] = []
        found = self.facts.types_to_find()
        for item in self._measured(part, first, found):
            if isinstance(item, Record):
                found.add(item.kept)
                characters = len(item.text or "")
            elif isinstance(item, Fault):
                n_faults += 1
                characters = 0
                if n_faults <= FAULTS_LISTED:
                    faults.append(replace(item, row=item.row - first))
            else:
                characters = item
            if on_row is not None and on_row(characters) is True:
                places.append(self._place(row))
            row += 1
        self._is_confirmed = False  # vectors come from a later pass
        stray, self._stray = self._stray, {}
        return PartScan(
            rows=row - first,
            faults=tuple(faults),
            n_faults=n_faults,
            found=found.found(),
            first_rows=tuple(of_file - first for of_file in self.first_rows),
            stray={file: (rows, of_first - first) for file, (rows, of_first) in stray.items()},
            places=tuple(places),
        )

    def combine(self, scans: Sequence[PartScan]) -> Scan:
        """Returns what a pass over all parts, in their order, would have found; keeps notices for `take_notes`.

        Raises:
            InputError: groups would be split by the types of a column.
        """
        rows = n_faults = 0
        faults: list[Fault] = []
        found = self.facts.types_to_find()
        self._stray = {}
        for scan in scans:
            faults += [replace(fault, row=rows + fault.row) for fault in scan.faults]
            n_faults += scan.n_faults
            found.merge(scan.found)
            self._stray |= {file: (count, rows + first) for file, (count, first) in scan.stray.items()}
            rows += scan.rows
        self.non_finite = found.non_finite
        self._check_split_groups(found)
        return Scan(rows, tuple(faults[:FAULTS_LISTED]), n_faults, found.names())

    def _measured(self, part: Part, first: int, found: KeptTypes) -> Iterator[int | Record | Fault]:
        """Reads the rows of a part for planning: of those that need no more, the number of characters alone."""
        if self._config.sql is not None:
            return self.records()
        if not self._each:
            return islice(self._rows(every, part, first, found, is_hashed=True), self._config.limit)
        rows = self._rows(every, part, first, is_hashed=True)
        return islice(self._changed_rows(rows), self._config.limit)

    def _check_split_groups(self, found: KeptTypes) -> None:
        """Refuses groups by a column of several types: one patient might be `1` here and `1.0` there."""
        for name, types in self.facts.declared_types().items():
            if name in self._groups and len(types) > 1 and found.splits(name):
                raise InputError(
                    f"column {shown(name)}, by which rows are grouped, has several types"
                    f" ({', '.join(sorted(types))}): one value may be two groups, such as 1 and 1.0",
                    hint="cast it to one type in all files; integers and text together are fine",
                )

    def take_notes(self) -> list[str]:
        """Returns the notices about the input, each one once."""
        notes, self._notes = self._notes, []
        if self._stray:
            count = sum(rows for rows, _ in self._stray.values())
            file, (_, first) = next(iter(self._stray.items()))
            have = "row has" if count == 1 else "rows have"
            notes.append(
                f"{count:,} {have} a quote inside an unquoted cell, first row {first} of {file}: "
                "if it was meant to quote a cell, the cells of the row are wrong"
            )
            self._stray.clear()
        return notes

    def check_unchanged(self) -> None:
        """Checks that no file was changed since it was located, and that a query still has the same rows.

        A query is read again, unless the last pass was of all rows.

        Raises:
            InputError: one of them was.
        """
        if self._config.sql is not None:
            if not self._is_confirmed:
                self._read_through()
            return
        for file in self.files:
            if not self.streaming and not is_unchanged(file):
                raise changed(file)

    def trust(self, number: int) -> None:
        """Takes a Parquet file for sound as long as it does not change: planning has read it as it is."""
        self._sound.add(number)

    def identify(self) -> None:
        """Reads a query once, so that `files` describes its rows; files are described already."""
        if self._config.sql is not None and self.files[0].sha256 is None:
            self._read_through()
            self._is_confirmed = False  # vectors come from a later pass

    def _read_through(self) -> None:
        deque(self._identified(self._rows(every, self.whole)), maxlen=0)

    def _identified(self, rows: Iterator[Record | Fault]) -> Iterator[Record | Fault]:
        """Passes on the rows of a query, and compares them with those of the first pass at the end."""
        self._is_confirmed = False
        digest = RowsDigest()
        for item in rows:
            digest.add(item)
            yield item
        (file,) = self.files
        found = digest.of(file)
        if file.sha256 is not None and file != found:
            raise changed(file)
        self.files = (found,)
        self._is_confirmed = True

    def _streamed(self, reader: Reader) -> Iterator[Record | Fault]:
        found = self.facts.types_to_find()
        self.non_finite = found.non_finite
        with as_input_error(STDIN):
            for item in reader.rows(self.columns, 0):
                if isinstance(item, Record):
                    found.add(item.kept)
                yield item
        self._count_stray(reader, STDIN)

    def _rows(
        self,
        wanted: Wanted,
        part: Part,
        row: int = 0,
        found: KeptTypes | None = None,
        *,
        is_hashed: bool = False,
    ) -> Iterator[Any]:
        """Reads the rows of a part, numbered from `row`; with `found` as `Columnar.measured` does where it can."""
        self.first_rows = []
        for number in range(part.first, part.stop):
            self.first_rows.append(row)
            hashing = PassHash(self.files[number], self.columns.named, part.piece) if is_hashed else None
            with self.reader(number, hashing) as reader:
                if part.piece is None and reader.columns is not None:
                    typed, file = requested_columns(self._config).named, self.files[number]
                    check_columns(
                        self.columns, reader.columns, file=file.shown, file_format=file.format, typed=typed
                    )
                start, stop = None, None
                if part.piece is not None and isinstance(reader, JsonLines | Columnar):
                    start, stop = reader.piece(*part.piece)
                self._now = _Now(number, reader, row - (start or 0))
                if hashing is not None:
                    hashing.begin(reader)
                rows: Iterator[int | Record | Fault]
                if found is not None and isinstance(reader, Columnar):
                    rows = reader.measured(self.columns, row, found, start, stop)
                elif stop is not None and isinstance(reader, JsonLines | Columnar):
                    rows = reader.rows(self.columns, row, wanted, start, stop)
                else:
                    rows = reader.rows(self.columns, row, wanted)
                for item in rows:
                    yield item
                    row += 1
                if hashing is not None and (digest := hashing.digest()) is not None:
                    self.digests[number, part.piece] = digest
                self._count_stray(reader, self.files[number].shown)

    def _rows_from(self, file: int, offset: int, row: int, wanted: Wanted) -> Iterator[Record | Fault]:
        """Reads the rows from a place on, without another look at what planning has checked."""
        for number in range(file, len(self.files)):
            with self.reader(number) as reader:
                start = offset if number == file else None
                if start is None or not isinstance(reader, Seeking):
                    rows = reader.rows(self.columns, row, wanted)
                elif reader.seekable:
                    rows = reader.rows(self.columns, row, wanted, start)
                else:
                    rows = islice(reader.rows(self.columns, row - start, _from(row, wanted)), start, None)
                for item in rows:
                    yield item
                    row = item.row + 1

    def _place(self, row: int) -> Place:
        """Returns the place of the row that was just read."""
        now = self._now
        if isinstance(now.reader, Columnar):
            offset = row - now.first
            return Place(now.file, offset, now.reader.stretch_of(offset))
        if isinstance(now.reader, Seeking) and now.reader.seekable:
            return Place(now.file, now.reader.place, None)
        return Place(now.file, row - now.first, 0)

    @contextmanager
    def reader(self, number: int, hashing: PassHash | None = None) -> Iterator[Reader]:
        """Opens a file or a query for one pass, which may be hashed.

        Raises:
            InputError: it cannot be read.
            OtherFileError: it is not the file of which another process has told.
        """
        if number in self._unseen:
            check_same(self.files[number])
            self._unseen.discard(number)
        wrap = None if hashing is None else hashing.wrap
        with reading(
            self.files[number], self.columns.named, self._config, wrap, sound=self._sound_columns(number)
        ) as reader:
            yield reader

    def _sound_columns(self, number: int) -> Sequence[str]:
        """Returns the columns that planning has read of a file that has not changed since."""
        if number not in self._sound:
            return ()
        file = self.files[number]
        if file.etag is not None:  # every read is of this version
            return self.columns.named
        with suppress(OSError):
            now = stat_file(file.name)
            if (now.size, now.mtime_ns) == (file.size, file.mtime_ns):
                return self.columns.named
        return ()

    def _count_stray(self, reader: Reader, file: str) -> None:
        if isinstance(reader, Delimited) and reader.first_stray is not None:
            self._stray[file] = (reader.stray_quotes, reader.first_stray)


@dataclass(frozen=True, slots=True)
class _Now:
    """What is being read."""

    file: int  # number of the file
    reader: Reader
    first: int  # number that the first row of the file has, or would have if the file were read from there


def _from(row: int, wanted: Wanted) -> Wanted:
    return lambda first, stop: stop > row and wanted(first, stop)


def _read_once() -> UsageError:
    return UsageError("stdin can be read only once", hint="save it to a file first, and name the file")
