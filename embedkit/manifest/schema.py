"""The JSON files of an output folder as frozen dataclasses: `plan.json`, `commits/*.json`, `manifest.json`.

Each has one reader (`parse`) and one writer (`serialize`). A file without a `version` is of version 1. Unknown
keys are ignored: a change that a reader of this version must not ignore needs a higher version.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from embedkit.errors import OutputError
from embedkit.storage.checksummed_json import dump_checksummed, load_checksummed, load_json
from embedkit.storage.filesystem import PublishedFile
from embedkit.types import EncodedShard, TextCounts, Variant

#: Of the plan, the records and the manifest that this embedkit writes.
VERSION = 1

#: A JSON object whose values are of any type.
Json = Mapping[str, Any]
#: Name of a variant → {"min": [D], "max": [D]}.
Int8Ranges = Mapping[str, Mapping[str, Sequence[float]]]


class MalformedFileError(ValueError):
    """A file whose checksum fits has content that this embedkit does not write."""


class VersionedFile(ABC):
    """JSON object with a format version and a checksum, in a file of its own."""

    __slots__ = ()
    KIND: ClassVar[str]

    @classmethod
    @abstractmethod
    def from_json(cls, content: Json) -> Self:
        """Returns the object that JSON of this or an earlier version describes.

        Raises:
            LookupError, TypeError, ValueError, AttributeError: a value is missing or of another type.
        """

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Returns the object as JSON of this version."""

    @classmethod
    def parse(cls, data: bytes, path: Path | str, *, needs_checksum: bool = True) -> Self:
        """Reads a file's bytes.

        Args:
            data: the bytes.
            path: where they are from, for the error.
            needs_checksum: False accepts a file without a checksum, such as one written by hand.

        Raises:
            OutputError: a newer embedkit wrote the file.
            MalformedFileError: the content is not that of such a file.
            ValueError: the file is not JSON, or its checksum does not fit.
        """
        content = load_checksummed(data) if needs_checksum else load_json(data)
        try:
            version = int(content.get("version", 1))
            if version <= VERSION:
                return cls.from_json(content)
        except (LookupError, TypeError, ValueError, AttributeError):
            raise MalformedFileError(f"not a {cls.KIND} as embedkit writes it") from None
        raise OutputError(
            f"{path} has format version {version}, and this embedkit reads versions up to {VERSION}",
            hint="upgrade embedkit, or write to another output",
        )

    def serialize(self, *, indent: int | None = None) -> bytes:
        """Returns the file's bytes, checksum included."""
        return dump_checksummed(self.to_json(), indent=indent)


@dataclass(frozen=True, slots=True)
class InputFile:
    """File of the input, as it was when the run was planned.

    Attributes:
        name: as typed, or as expanded from a glob or a folder; `-` for stdin.
        format: csv, tsv, jsonl, parquet, arrow or txt.
        compression: gz, zst, bz2 or xz; None if there is none.
        size: bytes on disk; None for stdin, as are the next three.
        mtime_ns: modification time; not compared.
        sha256: of the first and the last MiB on disk together; of all bytes if there are fewer.
        content_sha256: of all bytes; None if they were not hashed, as in older plans.
    """

    name: str
    format: str
    compression: str | None
    size: int | None
    mtime_ns: int | None
    sha256: str | None
    content_sha256: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns plan.json's entry for the file."""
        content = asdict(self)
        if self.content_sha256 is None:
            del content["content_sha256"]
        return content


@dataclass(frozen=True, slots=True)
class InputFacts:
    """The input of a run, and how it is read.

    Attributes:
        files: of the table, in order; () if unknown, as for a single-file output.
        text: columns that make the text, in order.
        template: how they are combined; None if joined by a newline.
        id: the id column; None if ids are row numbers.
        keep: columns passed through to the output.
        limit: first rows that are read; None if all are.
        spans: the file of spans; None without one.
        delimiter, quoting: of csv and tsv, see `InputConfig`.
    """

    files: tuple[InputFile, ...]
    text: tuple[str, ...]
    template: str | None
    id: str | None
    keep: tuple[str, ...]
    limit: int | None
    spans: tuple[InputFile, ...] | None = None
    delimiter: str | None = None
    quoting: str = "auto"

    @property
    def all_files(self) -> tuple[InputFile, ...]:
        """Files of the table, then those of the spans."""
        return (*self.files, *(self.spans or ()))

    @classmethod
    def from_json(cls, content: Json) -> InputFacts:
        """Reads the `input` of a plan or a manifest, or the description that a single-file output carries."""
        columns, spans = content["columns"], content.get("spans")
        return cls(
            files=_input_files(content.get("files", ())),
            text=tuple(columns["text"]),
            template=columns["template"],
            id=columns["id"],
            keep=tuple(columns.get("keep", ())),
            limit=content["limit"],
            spans=None if spans is None else _input_files(spans),
            delimiter=content.get("delimiter"),
            quoting=content.get("quoting", "auto"),
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the plan's `input`."""
        spans = {} if self.spans is None else {"spans": [file.to_json() for file in self.spans]}
        return {
            **spans,
            "files": [file.to_json() for file in self.files],
            "columns": {**self._text_columns(), "keep": list(self.keep)},
            **self._rules(),
        }

    def summary(self) -> dict[str, Any]:
        """Returns what a single-file output says of its input: enough to find the same texts, no file names."""
        return {"columns": self._text_columns(), **self._rules()}

    def _text_columns(self) -> dict[str, Any]:
        return {"text": list(self.text), "template": self.template, "id": self.id}

    def _rules(self) -> dict[str, Any]:
        delimiter = {} if self.delimiter is None else {"delimiter": self.delimiter}
        quoting = {} if self.quoting == "auto" else {"quoting": self.quoting}
        return {"limit": self.limit, **delimiter, **quoting}


def _input_files(content: Iterable[Json]) -> tuple[InputFile, ...]:
    required = ("name", "format", "compression", "size", "mtime_ns", "sha256")
    return tuple(
        InputFile(**{name: file[name] for name in required}, content_sha256=file.get("content_sha256"))
        for file in content
    )


@dataclass(frozen=True, slots=True)
class Sharding:
    """The division of an input into shards. A stream is divided while it is read: the last three are None.

    Attributes:
        shard_rows: most rows in a shard.
        shard_characters: most characters of text in a shard of more than one row.
        rows: of the input.
        starts: first row of each shard, ascending.
        characters: of each shard, those that go through the model, about; None if they were not counted.
    """

    shard_rows: int
    shard_characters: int
    rows: int | None
    starts: tuple[int, ...] | None
    characters: tuple[int, ...] | None

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
    """The origin of a run's model: names only, so no part of the recipe.

    Attributes:
        model: what people call it; None in outputs of old versions.
        name: what `--model` took.
        hub: its id on the hub, if it has one.
        revision: the hub's commit.
        pool: the `--pool` that finds poolers which are not part of embedkit; None without such poolers.
    """

    model: str | None = None
    name: str | None = None
    hub: str | None = None
    revision: str | None = None
    pool: str | None = None

    @classmethod
    def from_json(cls, content: Json | None) -> ModelSource:
        """Reads the `source` of a plan or a manifest, or the `embedkit.model` of a schema."""
        return cls(**{name: (content or {}).get(name) for name in cls.__slots__})

    def to_json(self) -> dict[str, Any]:
        """Returns the plan's `source`."""
        content = {name: getattr(self, name) for name in ("name", "model", "hub", "revision")}
        return content if self.pool is None else {**content, "pool": self.pool}

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


@dataclass(frozen=True, slots=True)
class Plan(VersionedFile):
    """`plan.json`: what a run computes, from which input, in which shards.

    Attributes:
        input: what is read.
        sharding: how it is cut.
        kept_types: column beside the receipt → its type, see `output/formats/values.py`.
        recipe: all that decides the numbers.
        fingerprint: SHA-256 of the recipe.
        source: where the model came from.
        engine: backend that computes the states: backends differ in the last bits, so a run keeps to one.
        format: parquet, npy, jsonl or arrow.
        precision: float32, float16, int8 or binary.
        variants: columns of vectors.
        on_bad_row: fail, null or skip.
        int8_ranges: of int8 only.
        batch_tokens: tokens of a batch, if a GPU's memory decided them: what is batched together is the plan's.
        scores: columns that a trained head adds.
        groups: how rows become groups, in the plan of an output of groups.
    """

    KIND: ClassVar = "plan"

    input: InputFacts
    sharding: Sharding
    kept_types: Mapping[str, str]
    recipe: Json
    fingerprint: str
    source: ModelSource
    engine: str
    format: str
    precision: str
    variants: tuple[Variant, ...]
    on_bad_row: str
    int8_ranges: Int8Ranges | None = None
    batch_tokens: int | None = None
    scores: tuple[str, ...] = ()
    groups: Json | None = None

    @property
    def has_token_vectors(self) -> bool:
        """True if a row has a vector for each token."""
        return bool(self.recipe["pool"] == ["none"])

    @classmethod
    def from_json(cls, content: Json) -> Plan:
        """See VersionedFile."""
        rows, starts, characters = content["rows"], content["starts"], content.get("characters")
        return cls(
            input=InputFacts.from_json(content["input"]),
            sharding=Sharding(
                int(content["shard_rows"]),
                int(content["shard_characters"]),
                None if rows is None else int(rows),
                None if starts is None else tuple(map(int, starts)),
                None if characters is None else tuple(map(int, characters)),
            ),
            kept_types=dict(content["kept_types"]),
            engine=content["engine"],
            on_bad_row=str(content["on_bad_row"]),
            **_shared(content),
            batch_tokens=content.get("batch_tokens"),
            scores=tuple(content.get("scores", ())),
            groups=content.get("groups"),
        )

    def to_json(self) -> dict[str, Any]:
        """See VersionedFile."""
        cut = self.sharding
        optional = {"scores": list(self.scores), "batch_tokens": self.batch_tokens, "groups": self.groups}
        return {
            "version": VERSION,
            "shard_rows": cut.shard_rows,
            "shard_characters": cut.shard_characters,
            "input": self.input.to_json(),
            "rows": cut.rows,
            "shards": cut.shards,
            "starts": cut.starts and list(cut.starts),
            **({} if cut.characters is None else {"characters": list(cut.characters)}),
            "kept_types": dict(self.kept_types),
            "engine": self.engine,
            "on_bad_row": self.on_bad_row,
            **_shared_json(self),
            **{name: value for name, value in optional.items() if value},
        }


@dataclass(frozen=True, slots=True)
class ShardRecord(VersionedFile):
    """`commits/00000.json`: a shard is done once its record exists.

    Attributes:
        index: number of the shard.
        start, stop: its rows [start, stop) of the input.
        vectors: rows of the output that have one.
        rejects: rows listed as rejects.
        by_row: counts over the rows of the output.
        by_text: counts over texts, each once however many rows it has in the output.
        has_units: True if a text may have several rows.
        n_content: tokens of all texts before any cut, special ones left out.
        n_unknown: of these, the ones that the vocabulary has no entry for; None if it covers every character.
        files: of the shard.
        plan_sha256: of the plan that the shard was computed by; None in outputs of old versions and on stdout.
    """

    KIND: ClassVar = "shard's record"

    index: int
    start: int
    stop: int
    vectors: int
    rejects: int
    by_row: TextCounts
    by_text: TextCounts
    has_units: bool
    n_content: int = 0
    n_unknown: int | None = None
    files: tuple[PublishedFile, ...] = ()
    plan_sha256: str | None = None

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
        )

    @classmethod
    def from_json(cls, content: Json) -> ShardRecord:
        """See VersionedFile."""
        by_row, texts = _counts(content), content.get("texts")
        vocabulary = content.get("vocabulary") or {}
        return cls(
            index=int(content["index"]),
            start=int(content["start"]),
            stop=int(content["stop"]),
            vectors=int(content["vectors"]),
            rejects=int(content.get("rejects", 0)),
            by_row=by_row,
            by_text=by_row if texts is None else _counts(texts),
            has_units=texts is not None,
            n_content=vocabulary.get("n_content") or 0,
            n_unknown=vocabulary.get("n_unknown"),
            files=tuple(
                PublishedFile(str(file["path"]), int(file["bytes"]), str(file["sha256"]))
                for file in content["files"]
            ),
            plan_sha256=content.get("plan_sha256"),
        )

    def to_json(self) -> dict[str, Any]:
        """See VersionedFile."""
        return {
            "version": VERSION,
            "index": self.index,
            "start": self.start,
            "stop": self.stop,
            "vectors": self.vectors,
            **_counts_json(self.by_row),
            "vocabulary": {"n_content": self.n_content, "n_unknown": self.n_unknown},
            "rejects": self.rejects,
            **({"texts": _counts_json(self.by_text)} if self.has_units else {}),
            **({} if self.plan_sha256 is None else {"plan_sha256": self.plan_sha256}),
            "files": [asdict(file) for file in self.files],
        }


def _counts(content: Json) -> TextCounts:
    tokens = content["tokens"]
    statuses = dict(content["status_counts"])
    return TextCounts(int(content["rows"]), statuses, int(tokens["n_tokens"]), int(tokens["n_used"]))


def _counts_json(counts: TextCounts) -> dict[str, Any]:
    return {
        "rows": counts.rows,
        "status_counts": dict(counts.statuses),
        "tokens": {"n_tokens": counts.n_tokens, "n_used": counts.n_used},
    }


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts over an output.

    Attributes:
        rows: of the output.
        vectors: rows that have one.
        statuses: status → texts; a text has one row, or one for each of its units.
        n_tokens: tokens of all texts before any cut.
        n_used: of these, the ones that went through the model.
        input_rows: rows of the input.
        rejects: rows listed as rejects.
        n_content: of `n_tokens`, those that are not special.
        n_unknown: of `n_content`, those that the vocabulary has no entry for; None if it covers every character.
    """

    rows: int = 0
    vectors: int = 0
    statuses: Mapping[str, int] = field(default_factory=dict)
    n_tokens: int = 0
    n_used: int = 0
    input_rows: int = 0
    rejects: int = 0
    n_content: int = 0
    n_unknown: int | None = None

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
        names = ("input_rows", "rows", "vectors", "statuses", "rejects", "n_tokens", "n_used", "n_content")
        counts = {name: getattr(self, name) for name in names}
        return {**counts, "n_unknown": self.n_unknown, "unknown_share": self.unknown_share}


@dataclass(frozen=True, slots=True)
class Manifest(VersionedFile):
    """`manifest.json`: describes a finished output, so that it can be read without its plan.

    Attributes:
        format, precision, variants, recipe, fingerprint, source, int8_ranges, input: of the plan; `input` is None
            if the file does not say.
        token_vectors: True if a row has a vector for each token; None if the file does not say.
        totals: counts over all shards.
        shards: how many there are.
        empty_shards: numbers of those that have no files of vectors.
        plan_sha256: of plan.json; None in outputs of old versions.
        records_sha256: of all records, concatenated by number.
    """

    KIND: ClassVar = "manifest"

    format: str
    precision: str
    variants: tuple[Variant, ...]
    recipe: Json
    fingerprint: str
    source: ModelSource
    int8_ranges: Int8Ranges | None
    input: InputFacts | None
    token_vectors: bool | None
    totals: Totals
    shards: int
    empty_shards: tuple[int, ...] = ()
    plan_sha256: str | None = None
    records_sha256: str | None = None

    #: Fields that repeat the plan's.
    REPEATED: ClassVar = ("format", "precision", "variants", "recipe", "fingerprint", "int8_ranges", "input")

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
    def from_json(cls, content: Json) -> Manifest:
        """See VersionedFile."""
        names = ("input_rows", "rejects", "n_tokens", "n_used", "n_content")
        read = content.get("input")
        return cls(
            **_shared(content),
            input=None if read is None else InputFacts.from_json(read),
            token_vectors=content.get("token_vectors"),
            totals=Totals(
                rows=int(content["rows"]),
                vectors=int(content["vectors"]),
                statuses=dict(content.get("statuses", {})),
                n_unknown=content.get("n_unknown"),
                **{name: int(content.get(name, 0)) for name in names},
            ),
            shards=int(content["shards"]),
            empty_shards=tuple(content.get("empty_shards", ())),
            plan_sha256=content.get("plan_sha256"),
            records_sha256=content.get("records_sha256"),
        )

    def to_json(self) -> dict[str, Any]:
        """See VersionedFile."""
        hashes = {"plan_sha256": self.plan_sha256, "records_sha256": self.records_sha256}
        return {
            "version": VERSION,
            **_shared_json(self),
            "input": None if self.input is None else self.input.to_json(),
            "token_vectors": self.token_vectors,
            **self.totals.to_json(),
            "shards": self.shards,
            "empty_shards": list(self.empty_shards),
            **{name: digest for name, digest in hashes.items() if digest is not None},
        }


def _shared(content: Json) -> dict[str, Any]:
    """Reads the fields that the manifest repeats of the plan."""
    return {
        **{name: str(content[name]) for name in ("format", "precision", "fingerprint")},
        "variants": tuple(Variant(str(of["name"]), int(of["dims"])) for of in content["variants"]),
        "recipe": dict(content["recipe"]),
        "source": ModelSource.from_json(content.get("source")),
        "int8_ranges": content.get("int8_ranges"),
    }


def _shared_json(file: Plan | Manifest) -> dict[str, Any]:
    return {
        **{name: getattr(file, name) for name in ("format", "precision", "fingerprint", "int8_ranges")},
        "variants": [asdict(variant) for variant in file.variants],
        "recipe": dict(file.recipe),
        "source": file.source.to_json(),
    }
