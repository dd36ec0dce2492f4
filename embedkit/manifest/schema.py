"""The JSON files of an output folder as frozen dataclasses: `plan.json`, `commits/*.json`, `manifest.json`."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from msgspec import to_builtins

from embedkit.manifest.versioned_file import VERSION, Json, VersionedFile
from embedkit.storage.protocol import PublishedFile
from embedkit.types import EncodedShard, TextCounts, Variant

#: Name of a variant → {"min": [D], "max": [D]}.
Int8Ranges = Mapping[str, Mapping[str, Sequence[float]]]


def _omit(content: Json, *names: str) -> dict[str, Any]:
    """Returns JSON without those of the named keys that are null or an empty list."""
    return {key: value for key, value in content.items() if key not in names or value not in (None, ())}


@dataclass(frozen=True, slots=True)
class InputFile:
    """File of the input, as it was when the run was planned. Of stdin, size, time and hashes are None.

    Of a query, size and hashes are those of its rows: `sha256` of ids and texts, `content_sha256` of kept values
    too. Its text is not recorded, since it may name patients.
    """

    name: str  # as typed, or as expanded from a glob or a folder; `-` for stdin; host and name of a database
    format: str  # csv, tsv, jsonl, parquet, arrow, txt, postgresql, sqlite or duckdb
    compression: str | None  # gz, zst, bz2 or xz
    size: int | None  # bytes on disk
    mtime_ns: int | None  # not compared
    sha256: str | None  # of the first and the last MiB on disk together; of all bytes if there are fewer
    content_sha256: str | None = None  # of all bytes; None if they were not hashed, as in older plans
    #: Of a file that is scanned in pieces, instead: of the hashes of its pieces.
    pieces_sha256: str | None = None
    #: Of Parquet, instead: of the columns in use. Older plans have one of the others.
    columns_sha256: str | None = None
    etag: str | None = None  # of an object in a store, which changes whenever its content does


@dataclass(frozen=True, slots=True)
class InputFacts:
    """The input of a run, and how it is read."""

    files: tuple[InputFile, ...]  # of the table, in order; () if unknown, as for a single-file output
    text: tuple[str, ...]  # columns that make the text, in order
    template: str | None  # how they are combined; None if joined by a newline
    id: str | None  # the id column; None if ids are row numbers
    keep: tuple[str, ...]  # columns passed through to the output
    limit: int | None  # first rows that are read; None if all are
    spans: tuple[InputFile, ...] | None = None  # the file of spans
    delimiter: str | None = None  # of csv and tsv, as is `quoting`: see `InputConfig`
    quoting: str = "auto"

    @property
    def all_files(self) -> tuple[InputFile, ...]:
        """Files of the table, then those of the spans."""
        return (*self.files, *(self.spans or ()))

    @staticmethod
    def fields(content: Json) -> dict[str, Any]:
        """Returns the `input` of a plan, manifest or single file, nested as the fields of the class are."""
        return {"files": (), "keep": (), **content, **content["columns"]}

    def to_json(self) -> dict[str, Any]:
        """Returns the plan's `input`."""
        content = to_builtins(self)
        for file in (*content["files"], *(content["spans"] or ())):
            for name in ("content_sha256", "pieces_sha256", "columns_sha256", "etag"):
                if file[name] is None:
                    del file[name]
        content["columns"] = {name: content.pop(name) for name in ("text", "template", "id", "keep")}
        absent = [name for name in ("spans", "delimiter") if content[name] is None]
        if self.quoting == "auto":
            absent.append("quoting")
        return {name: value for name, value in content.items() if name not in absent}

    def summary(self) -> dict[str, Any]:
        """Returns what a single-file output says of its input: enough to find the same texts, no file names."""
        content = self.to_json()
        del content["columns"]["keep"]
        return {name: value for name, value in content.items() if name not in {"files", "spans"}}


@dataclass(frozen=True, slots=True)
class Sharding:
    """The division of an input into shards. A stream is divided while it is read: all but the first two are None.

    Places are where reading of a shard can begin; older plans have none.
    """

    shard_rows: int  # most rows in a shard
    shard_characters: int  # most characters of text in a shard of more than one row
    rows: int | None  # of the input
    starts: tuple[int, ...] | None  # first row of each shard, ascending
    #: Of each shard, about how many go through the model; None if they were not counted.
    characters: tuple[int, ...] | None = None
    file_rows: tuple[int, ...] | None = None  # the first row of each file
    #: Of each shard, the place of its first row in its file: the byte, or the number of the row in the file.
    offsets: tuple[int, ...] | None = None
    #: Numbers of the shards with which a stretch begins that one process reads best, in order, such as those of a
    #: row group. None if any shard can be read for itself.
    stretches: tuple[int, ...] | None = None

    def place(self, shard: int) -> tuple[int, int] | None:
        """Returns the number of the file and the offset in it where a shard begins; None if it is unknown."""
        if self.starts is None or self.file_rows is None or self.offsets is None:
            return None
        return bisect_right(self.file_rows, self.starts[shard]) - 1, self.offsets[shard]

    def stretch(self, shard: int) -> int:
        """Returns the shard with which the stretch of this one begins; the first one if places are unknown."""
        if self.offsets is None:
            return 0
        if self.stretches is None:
            return shard
        return self.stretches[bisect_right(self.stretches, shard) - 1]

    def is_one_stretch(self, shard: int, other: int) -> bool:
        """Returns True if two shards are of one stretch."""
        return self.stretch(shard) == self.stretch(other)

    @property
    def shards(self) -> int | None:
        """Number of shards; None for a stream."""
        return None if self.starts is None else len(self.starts)

    @property
    def ranges(self) -> dict[int, tuple[int, int]] | None:
        """Rows [start, stop) of each shard by its number; None for a stream."""
        if self.starts is None or self.rows is None:
            return None
        stops = (*self.starts[1:], self.rows)
        return dict(enumerate(zip(self.starts, stops, strict=False)))


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The origin of a run's model: names only, so no part of the recipe."""

    model: str | None = None  # its name for people; None in outputs of old versions
    name: str | None = None  # the value of `--model`
    hub: str | None = None  # its id on the hub
    revision: str | None = None  # the hub's commit
    pool: str | None = None  # the `--pool` that finds poolers which are not part of embedkit, if there are any

    def to_json(self) -> dict[str, Any]:
        """Returns the plan's `source`."""
        return _omit(to_builtins(self), "pool")

    def summary(self) -> dict[str, Any]:
        """Returns what a single-file output says of its model: no path."""
        return {name: getattr(self, name) for name in ("model", "hub", "revision")}

    def describe(self) -> str | None:
        """Returns the model in one line; None if nothing is known of it."""
        name = self.model or (self.hub and self.name) or (self.name and Path(self.name).name) or self.hub
        if not name:
            return None
        commit = f" at {self.revision}" if self.revision else ""
        return f"{name} ({self.hub}{commit})" if self.hub and self.hub != name else f"{name}{commit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(VersionedFile):
    """`plan.json`: what a run computes, from which input, in which shards."""

    KIND: ClassVar = "plan"

    input: InputFacts
    sharding: Sharding
    kept_types: Mapping[str, str]  # stored column that is no receipt → its type, see `output/formats/values.py`
    recipe: Json  # all that decides the numbers
    fingerprint: str  # SHA-256 of the recipe
    source: ModelSource
    engine: str  # backend of the model: backends differ in the last bits, so that a run keeps to one
    format: str  # parquet, npy, jsonl or arrow
    precision: str  # float32, float16, int8 or binary
    variants: tuple[Variant, ...]  # columns of vectors
    on_bad_row: str  # fail, null or skip
    int8_ranges: Int8Ranges | None = None  # of int8 only
    batch_tokens: int | None = None  # of a batch, if a GPU's memory decided them: batches change the last bits
    scores: tuple[str, ...] = ()  # columns that a trained head adds
    groups: Json | None = None  # how rows become groups, in the plan of an output of groups
    hash_key: str | None = None  # identifies the key of the hashes of texts; None if there are none
    update: tuple[str, ...] = ()  # earlier outputs that vectors are taken from: SHA-256 of what describes each
    #: Name → version of what computes vectors: of this run, then others by which earlier outputs were computed.
    versions: tuple[Mapping[str, str], ...] = ()  # () in outputs of old versions

    @property
    def has_token_vectors(self) -> bool:
        """True if a row has a vector for each token."""
        return bool(self.recipe["pool"] == ["none"])

    @classmethod
    def fields(cls, content: Json) -> dict[str, Any]:
        """See VersionedFile."""
        read, source = InputFacts.fields(content["input"]), content.get("source") or {}
        return {**content, "input": read, "sharding": content, "source": source}

    def to_json(self) -> dict[str, Any]:
        """See VersionedFile."""
        content = to_builtins(self)
        content |= {"input": self.input.to_json(), "source": self.source.to_json(), "shards": self.sharding.shards}
        sharding = content.pop("sharding")
        optional = (
            "characters",
            "file_rows",
            "offsets",
            "stretches",
            "scores",
            "batch_tokens",
            "groups",
            "hash_key",
            "update",
            "versions",
        )
        return {"version": VERSION} | _omit(sharding | content, *optional)


@dataclass(frozen=True, slots=True)
class ShardRecord(VersionedFile):
    """`commits/00000.json`: a shard is done once its record exists."""

    KIND: ClassVar = "shard's record"

    index: int  # number of the shard
    start: int  # its rows [start, stop) of the input
    stop: int
    vectors: int  # rows of the output that have one
    rejects: int  # rows listed as rejects
    by_row: TextCounts  # counts over the rows of the output
    by_text: TextCounts  # counts over texts, each once however many rows it has in the output
    has_units: bool  # True if a text may have several rows
    n_content: int = 0  # tokens of all texts before any cut, special ones left out
    n_unknown: int | None = None  # of these, those not in the vocabulary; None if it covers every character
    files: tuple[PublishedFile, ...] = ()
    plan_sha256: str | None = None  # of the shard's plan; None in outputs of old versions and on stdout
    reused: int | None = None  # rows whose vectors are from an earlier output; None without `--update`

    @classmethod
    def of(cls, shard: EncodedShard) -> ShardRecord:
        """Returns the record of a shard that has no files yet."""
        statuses = dict(sorted(Counter(shard.status).items()))
        by_row = TextCounts(len(shard.ids), statuses, int(shard.n_tokens.sum()), int(shard.n_used.sum()))
        return cls(
            index=shard.index,
            start=shard.start,
            stop=shard.stop,
            vectors=int(shard.has_vector.sum()),
            rejects=len(shard.rejects),
            by_row=by_row,
            by_text=shard.texts or by_row,
            has_units=shard.texts is not None,
            n_content=shard.n_content,
            n_unknown=shard.n_unknown,
            reused=shard.reused or None,
        )

    @classmethod
    def fields(cls, content: Json) -> dict[str, Any]:
        """See VersionedFile."""
        texts, vocabulary = content.get("texts"), content.get("vocabulary") or {}
        return {
            "rejects": 0,
            **content,
            "by_row": _counts(content),
            "by_text": _counts(texts or content),
            "has_units": texts is not None,
            "n_content": vocabulary.get("n_content") or 0,
            "n_unknown": vocabulary.get("n_unknown"),
        }

    def to_json(self) -> dict[str, Any]:
        """See VersionedFile."""
        content = to_builtins(self)
        texts = _counts_json(content.pop("by_text"))
        return _omit(
            {
                "version": VERSION,
                **_counts_json(content.pop("by_row")),
                "vocabulary": {name: content.pop(name) for name in ("n_content", "n_unknown")},
                "texts": texts if content.pop("has_units") else None,
                **content,
            },
            "texts",
            "plan_sha256",
            "reused",
        )


def _counts(content: Json) -> dict[str, Any]:
    """Returns the fields of a TextCounts by the keys of a record."""
    return {"rows": content["rows"], "statuses": content["status_counts"], **content["tokens"]}


def _counts_json(counts: dict[str, Any]) -> dict[str, Any]:
    return {"rows": counts.pop("rows"), "status_counts": counts.pop("statuses"), "tokens": counts}


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts over an output."""

    rows: int  # of the output
    vectors: int  # rows that have one
    statuses: Mapping[str, int] = field(default_factory=dict)  # status → texts, each once whatever its rows
    n_tokens: int = 0  # tokens of all texts before any cut
    n_used: int = 0  # of these, the ones that went through the model
    input_rows: int = 0
    rejects: int = 0  # rows listed as rejects
    n_content: int = 0  # of `n_tokens`, those that are not special
    n_unknown: int | None = None  # of `n_content`, those not in the vocabulary; None if it covers every character
    reused: int = 0  # rows whose vectors are from earlier outputs

    @classmethod
    def of(cls, records: Iterable[ShardRecord], input_rows: int | None = None) -> Totals:
        """Returns the sums over records; `input_rows` if the input has rows in no record yet."""
        records = list(records)
        statuses = Counter[str]()
        for record in records:
            statuses.update(record.by_text.statuses)
        unknown = [record.n_unknown for record in records if record.n_unknown is not None]
        return cls(
            rows=sum(record.by_row.rows for record in records),
            vectors=sum(record.vectors for record in records),
            statuses=dict(statuses),
            n_tokens=sum(record.by_text.n_tokens for record in records),
            n_used=sum(record.by_text.n_used for record in records),
            input_rows=sum(of.stop - of.start for of in records) if input_rows is None else input_rows,
            rejects=sum(record.rejects for record in records),
            n_content=sum(record.n_content for record in records),
            n_unknown=sum(unknown) if unknown and len(unknown) == len(records) else None,
            reused=sum(record.reused or 0 for record in records),
        )

    @property
    def unknown_share(self) -> float | None:
        """Share of `n_content` that is unknown, 0 to 1; None if the vocabulary covers every character."""
        return None if self.n_unknown is None else round(self.n_unknown / max(1, self.n_content), 6)

    @property
    def truncated_share(self) -> float:
        """Share of texts that were cut, 0 to 1."""
        texts = sum(self.statuses.values())
        return self.statuses.get("truncated", 0) / texts if texts else 0.0

    @property
    def lost_share(self) -> float:
        """Share of tokens that are in no vector, 0 to 1."""
        return max(0.0, 1 - self.n_used / self.n_tokens) if self.n_tokens else 0.0

    def to_json(self) -> dict[str, Any]:
        """Returns the manifest's counts, which are those of a Summary as well."""
        content = {**to_builtins(self), "unknown_share": self.unknown_share}
        return content if self.reused else {k: v for k, v in content.items() if k != "reused"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest(VersionedFile):
    """`manifest.json`: describes a finished output, so that it can be read without its plan."""

    KIND: ClassVar = "manifest"
    #: Fields that repeat the plan's.
    REPEATED: ClassVar = (
        *("format", "precision", "variants", "recipe", "fingerprint", "int8_ranges", "input", "scores"),
        *("hash_key", "versions"),
    )

    format: str
    precision: str
    variants: tuple[Variant, ...]
    recipe: Json
    fingerprint: str
    source: ModelSource
    int8_ranges: Int8Ranges | None = None
    input: InputFacts | None = None  # None if the file does not say
    token_vectors: bool | None = None  # True if a row has a vector for each token; None if the file does not say
    scores: tuple[str, ...] = ()  # columns that a trained head adds
    totals: Totals  # counts over all shards
    shards: int  # how many there are
    empty_shards: tuple[int, ...] = ()  # numbers of those that have no files of vectors
    hash_key: str | None = None  # identifies the key of the hashes of texts; None if there are none
    versions: tuple[Mapping[str, str], ...] = ()  # see Plan
    plan_sha256: str | None = None  # of plan.json; None in outputs of old versions
    records_sha256: str | None = None  # of all records, concatenated by number

    @classmethod
    def of(cls, plan: Plan, records: Sequence[ShardRecord], totals: Totals) -> Manifest:
        """Returns the manifest of an output whose shards are all done."""
        return cls(
            **{name: getattr(plan, name) for name in cls.REPEATED},
            source=plan.source,
            token_vectors=plan.has_token_vectors,
            totals=totals,
            shards=len(records),
            # The .npy arrays of a shard without vectors are not written.
            empty_shards=tuple(of.index for of in records if plan.format == "npy" and not of.vectors),
        )

    @property
    def stored_shards(self) -> list[int]:
        """Numbers of the shards that have files of vectors."""
        return sorted(set(range(self.shards)) - set(self.empty_shards))

    @classmethod
    def fields(cls, content: Json) -> dict[str, Any]:
        """See VersionedFile."""
        read, source = content.get("input"), content.get("source") or {}
        return {**content, "totals": content, "input": read and InputFacts.fields(read), "source": source}

    def to_json(self) -> dict[str, Any]:
        """See VersionedFile."""
        content = {"version": VERSION, **to_builtins(self), "source": self.source.to_json()}
        del content["totals"]
        content |= {"input": self.input and self.input.to_json(), **self.totals.to_json()}
        return _omit(content, "plan_sha256", "records_sha256", "scores", "hash_key", "versions")
