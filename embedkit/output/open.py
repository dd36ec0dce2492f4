"""Opens finished outputs: their files, their columns, their vectors as numbers. Needs no model and no options.

An output describes itself: a folder by its `manifest.json`, a Parquet or Arrow file by its schema metadata, an
.npy array by its metadata file, JSON Lines by their keys. No file is parsed before its SHA-256 was that of its
record, or a child process has parsed it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedkit.errors import OutputError
from embedkit.manifest.schema import InputFacts, Int8Ranges, Manifest, ModelSource, ShardRecord
from embedkit.output.formats import FORMATS, make_sink
from embedkit.output.formats.arrow_format import map_table
from embedkit.output.formats.columns import VERIFY, RecordBatch
from embedkit.output.formats.jsonl_format import sniff
from embedkit.output.formats.layout import (
    ARRAYS_KEY,
    HASH_KEY_KEY,
    REJECTS_KEY,
    REUSED_KEY,
    SCORES_KEY,
    VERSIONS_KEY,
    Layout,
)
from embedkit.output.formats.npy_format import metadata_name
from embedkit.output.formats.parquet_format import file_schema
from embedkit.output.formats.sink import Sink
from embedkit.output.rejects import rejects_path
from embedkit.output.safe_reading import check_parsable, read_versioned, readable
from embedkit.pooling.postprocess import Int8Range
from embedkit.pooling.units import COLUMNS
from embedkit.storage.disk_errors import as_read_error
from embedkit.storage.filesystem import (
    exists,
    file_names,
    is_folder,
    real_path,
    seems_folder,
    seems_there,
    sha256_of_ends,
    sha256_of_file,
    stat_file,
)
from embedkit.storage.opener import IN_PLACE, Fetched, FileOpener, sha256_of
from embedkit.storage.protocol import AnyPath, FilePath, OnePath
from embedkit.storage.typed_json import convert
from embedkit.suggest import closest_names
from embedkit.types import Variant

_NOT_OURS = "give a file or folder made by `embedkit encode`"
_WHERE = "check the path given to `embedkit encode -o`"
#: Files in the folder of a missing one that are searched for a similar name.
_SIBLINGS = 10_000
_MIXED = (
    "a run was stopped while it replaced them: the same command with --on-exists resume goes on, "
    "or encode again with --on-exists overwrite"
)


@dataclass(frozen=True, slots=True)
class Stored:
    """A finished output."""

    format: str  # parquet, npy, jsonl or arrow
    sink: Sink  # with the layout of this output; its kept types are unknown, and not needed to read
    parts: tuple[tuple[FilePath, ...], ...]  # the files of each shard, in order; of a single-file output, one part
    recipe: Mapping[str, Any]  # {} for JSON Lines, which cannot hold it
    fingerprint: str | None  # of the recipe; None without one
    int8_ranges: Mapping[str, Int8Range]  # by the variant's name; of int8 only
    source: ModelSource
    input: InputFacts | None  # None if the output does not say
    rows: int | None = None  # by the manifest, as are `vectors`; None without one
    vectors: int | None = None
    scores: tuple[str, ...] = ()  # columns of a head; () as well if the output does not say
    records: tuple[FilePath, ...] = ()  # of the shards, in the order of `parts`; () for a single file
    hash_key: str | None = None  # identifies the key of the hashes of texts; None if there are none
    reused: int = 0  # rows whose vectors are from earlier outputs
    versions: tuple[Mapping[str, str], ...] = ()  # of what computed the vectors; () if unknown
    #: True if files are compared with their hashes, or parsed by a child process, before they are read.
    checks: bool = True
    #: Files that were found safe, and the columns that were left out of the check.
    _safe: dict[FilePath, frozenset[str]] = field(default_factory=dict, compare=False)

    @property
    def layout(self) -> Layout:
        """The columns."""
        return self.sink.layout

    def batches(self, asked: Sequence[Variant]) -> Iterator[RecordBatch]:
        """Yields all rows in order, with the vectors of the variants `asked`, in the stored precision.

        Raises:
            OutputError: a file is missing or damaged.
        """
        for part in range(len(self.parts)):
            yield from self.read_part(part, asked)

    def read_part(
        self, part: int, asked: Sequence[Variant], *, checked: Sequence[Variant] = (), only: int | None = None
    ) -> Iterator[RecordBatch]:
        """Yields the batches of one part; of an object store, each file is fetched once to be checked and read.

        Args:
            part: its number.
            asked: variants whose vectors the batches have.
            checked: further variants to check.
            only: number of the only batch to read; None for all.

        Raises:
            OutputError: a file is missing or damaged.
        """
        files = self.parts[part]
        with readable(files[0]):
            opener = self.check_part(part, [*asked, *(variant for variant in checked if variant not in asked)])
            yield from self.sink.read(files, asked, only=only, opener=opener)

    def check_part(self, part: int, asked: Sequence[Variant]) -> FileOpener:
        """Checks that the files of one part can be parsed to read the variants `asked`; each is checked once.

        Returns:
            What opens the files that were checked.

        Raises:
            OutputError: a file is missing, differs from its record, or cannot be parsed.
        """
        if not self.checks:
            return IN_PLACE
        files, variants = self.parts[part], self.layout.variants
        unasked = frozenset(variant.column for variant in variants if variant not in asked)
        if self.format == "npy":
            files = (*(files[variants.index(variant)] for variant in asked), files[-1])
        new = [file for file in files if not self._safe.get(file, unasked | {""}) <= unasked]
        hashes = _recorded(self.records[part], self.parts[part]) if self.records and new else {}
        fetched: dict[AnyPath, Fetched] = {}
        for file in new:
            if hashes.get(file):
                if sha256_of(file, fetched) != hashes[file]:
                    raise OutputError(f"{file} is damaged: its SHA-256 is not that of its record", hint=VERIFY)
                self._safe[file] = frozenset()
            else:
                fetched |= check_parsable(file, without=unasked)
                self._safe[file] = unasked
        return FileOpener(fetched)

    def finite_floats(self, vectors: NDArray[Any], variant: Variant) -> NDArray[np.float32]:
        """Does as `floats`, and checks for NaN and infinities, which are never committed.

        Raises:
            OutputError: a number is not finite; see also `floats`.
        """
        numbers = self.floats(vectors, variant)
        if not np.isfinite(numbers).all():
            raise OutputError(f"{variant.column} holds a number that is not finite: it is damaged", hint=VERIFY)
        return numbers

    def floats(self, vectors: NDArray[Any], variant: Variant) -> NDArray[np.float32]:
        """Converts [V, width] as stored → float32 [V, D]: widened, dequantised, or one value per bit.

        Raises:
            OutputError: int8 without the ranges that it was quantised with.
        """
        match self.layout.precision:
            case "binary":
                return np.unpackbits(vectors, axis=-1, count=variant.dims).astype(np.float32)
            case "int8":
                if variant.name not in self.int8_ranges:
                    raise OutputError(
                        f"{variant.column} is int8, and its ranges are missing",
                        hint="read the folder whose manifest.json has `int8_ranges`",
                    )
                return self.int8_ranges[variant.name].restore(vectors)
            case _:
                return vectors.astype(np.float32, copy=False)


def open_stored(path: FilePath, *, checks: bool = True) -> Stored:
    """Opens a folder, or a .parquet, .arrow, .npy or .jsonl file; for `checks` see Stored.

    Raises:
        OutputError: there is no output, it is not finished, or embedkit did not write it.
    """
    check_exists(path)
    with as_read_error(path):
        if is_folder(path):
            return replace(_open_folder(path), checks=checks)
    form = path.suffix.removeprefix(".")
    if form not in FORMATS:
        raise OutputError(
            f"{path}: an output is a folder or a file that ends in {', '.join('.' + f for f in FORMATS)}",
            hint=_NOT_OURS,
        )
    describing = describing_file(path)
    with as_read_error(describing):
        if not exists(describing):
            raise OutputError(
                f"{describing}, which goes with {path.name}, does not exist",
                hint="copy both files, under one name",
            )
    with readable(describing):
        if checks:
            check_parsable(describing, part="none")
        return replace(_open_file(path, form, _own_layout(describing, form)), checks=checks)


def level_of(recipe: Mapping[str, Any], schema: pa.Schema) -> str:
    """Returns what a row stands for: text, chunk, word, token or span.

    JSON Lines hold no recipe: there the columns decide.
    """
    if "level" in recipe:
        return str(recipe["level"])
    types = dict(zip(schema.names, schema.types, strict=True))
    found = "text"
    for level, columns in COLUMNS.items():
        if columns and columns.keys() <= types.keys() and pa.types.is_integer(types[level]):
            found = level
    return found


def describing_file(path: OnePath) -> OnePath:
    """Returns the file that describes a single-file output: its own, or the metadata of an .npy array."""
    return path.with_name(metadata_name(path.name)) if path.suffix == ".npy" else path


def check_exists(path: FilePath) -> None:
    """Checks that there is a file or folder.

    Raises:
        OutputError: there is none, or the path cannot be accessed.
    """
    # Arrays of several variants have other names; the metadata file has this one.
    if path.suffix == ".npy" and seems_there(path.with_name(metadata_name(path.name))):
        return
    with readable(path):
        if exists(path):
            if seems_there(path):
                return
            raise OutputError(f"{path} is a link to {real_path(path)}, which does not exist", hint=_WHERE)
        near: tuple[str, ...] = ()
        with suppress(OSError):
            near = closest_names(path.name, sorted(file_names(path.parent)[:_SIBLINGS]))
    if near:
        hint = f"did you mean {' or '.join(str(path.with_name(name)) for name in near)}?"
    elif not seems_folder(path.parent):
        hint = f"there is no folder {path.parent} either: check the path"
    else:
        hint = _WHERE
    raise OutputError(f"{path} does not exist", hint=hint)


def _recorded(record: FilePath, files: Sequence[FilePath]) -> dict[FilePath, str]:
    """Returns the SHA-256 of a shard's files by its record; {} without a record."""
    if not exists(record):
        return {}
    by_name = {file.path: file.sha256 for file in read_versioned(ShardRecord, record).files}
    root = f"{record.parent.parent}/"
    return {file: by_name.get(str(file).removeprefix(root), "") for file in files}


def schema_metadata(path: FilePath, opener: FileOpener | None = None) -> Mapping[str, str]:
    """Returns the schema metadata of a single-file output: recipe, fingerprint, input; {} for JSON Lines.

    Args:
        path: of the output.
        opener: of its files, if their hashes were compared; None checks first that they can be parsed.

    Raises:
        OutputError: it cannot be read.
    """
    if path.suffix == ".jsonl":
        return {}
    describing = describing_file(path)
    with readable(describing):
        if opener is None:
            check_parsable(describing, part="none")
        return _text_metadata(_schema(describing, opener or IN_PLACE))


def _open_folder(path: FilePath) -> Stored:
    manifest_path = path / "manifest.json"
    if not exists(manifest_path):
        if exists(path / "plan.json") or is_folder(path / "commits"):
            raise OutputError(
                f"{path} is not finished: it has no manifest.json",
                hint="run the same `embedkit encode` again with --on-exists resume; "
                "`embedkit inspect` shows which rows are done",
            )
        raise OutputError(f"{path} is not an output of embedkit: it has no manifest.json", hint=_NOT_OURS)
    manifest = read_versioned(Manifest, manifest_path)
    with readable(manifest_path):
        plan = path / "plan.json"
        # A copy may lack the plan, and manifests of older versions do not name it.
        if manifest.plan_sha256 and exists(plan) and sha256_of_file(plan) != manifest.plan_sha256:
            raise OutputError(f"{path}: manifest.json and plan.json are not of one run", hint=VERIFY)
        form, shards = manifest.format, manifest.stored_shards
        layout = Layout(manifest.variants, manifest.precision, bool(manifest.token_vectors), {}, {})
        sink = make_sink(form, layout)
        if manifest.token_vectors is None and shards and form != "npy":
            first = path / sink.files(shards[0])[0]
            check_parsable(first, part="none")
            sink = make_sink(form, replace(layout, token_vectors=_own_layout(first, form).token_vectors))
        return Stored(
            form,
            sink,
            tuple(tuple(path / file for file in sink.files(index)) for index in shards),
            manifest.recipe,
            manifest.fingerprint,
            _int8_ranges(manifest.int8_ranges or {}),
            manifest.source,
            manifest.input,
            manifest.totals.rows,
            manifest.totals.vectors,
            manifest.scores,
            records=tuple(path / "commits" / f"{index:05d}.json" for index in shards),
            hash_key=manifest.hash_key,
            reused=manifest.totals.reused,
            versions=manifest.versions,
        )


def _open_file(path: FilePath, form: str, layout: Layout) -> Stored:
    sink = make_sink(form, layout)
    files = tuple(path.with_name(name) for name in sink.merged_files(path.name))
    for problem in mixed_files(path, files, layout, whole=False):
        raise OutputError(problem, hint=_MIXED)
    recipe, ranges, source, read = (
        json.loads(layout.metadata.get(f"embedkit.{key}", "{}"))
        for key in ("recipe", "int8_ranges", "model", "read")
    )
    if not isinstance(recipe, dict):
        raise TypeError("the recipe is not a JSON object")
    return Stored(
        *(form, sink, (files,), recipe, layout.metadata.get("embedkit.fingerprint"), _int8_ranges(ranges)),
        source=convert(source, ModelSource),
        input=convert(InputFacts.fields(read), InputFacts) if read else None,
        scores=convert(json.loads(layout.metadata.get(SCORES_KEY, "[]")), tuple[str, ...]),
        hash_key=layout.metadata.get(HASH_KEY_KEY),
        reused=int(layout.metadata.get(REUSED_KEY, "0")),
        versions=convert(json.loads(layout.metadata.get(VERSIONS_KEY, "[]")), tuple[dict[str, str], ...]),
    )


def _int8_ranges(stored: Int8Ranges) -> dict[str, Int8Range]:
    return {name: Int8Range.from_json(of) for name, of in stored.items()}


def mixed_files(path: FilePath, files: Sequence[FilePath], layout: Layout, *, whole: bool) -> Iterator[str]:
    """Yields a sentence for each file of a single-file output that was not written with the others.

    Args:
        path: of the output.
        files: of the output; the last one describes the others.
        layout: read from that one. Outputs of old versions do not name the others, and are not checked.
        whole: compare hashes of whole files, and the list of rejects; else only sizes and samples of arrays.

    Raises:
        OSError: a file cannot be read.
    """
    arrays = json.loads(layout.metadata.get(ARRAYS_KEY, "{}"))
    for variant, array in zip(layout.variants, files, strict=False):
        if variant.name not in arrays:
            continue
        of = arrays[variant.name]
        is_same = stat_file(array).size == of["bytes"] and sha256_of_ends(array) == of["sampled"]
        if not is_same or (whole and sha256_of_file(array) != of["sha256"]):
            yield f"{array.name} is not the array that {files[-1].name} was written with"
    if whole and layout.metadata.get(REJECTS_KEY):
        rejects = rejects_path(path)
        if exists(rejects) and sha256_of_file(rejects) != layout.metadata[REJECTS_KEY]:
            yield f"{rejects.name} is not the list of rejects that {files[-1].name} was written with"


def _own_layout(path: FilePath, form: str) -> Layout:
    """Returns the layout that a file describes, in its schema's metadata or by its keys."""
    if form == "jsonl":
        return sniff(path)
    schema = _schema(path)
    layout = Layout.described_by(_text_metadata(schema))
    if layout is None or not (form == "npy" or {of.column for of in layout.variants} <= set(schema.names)):
        raise OutputError(f"{path} is not an output of embedkit: its schema names no vectors", hint=_NOT_OURS)
    return layout


def _schema(path: FilePath, opener: FileOpener = IN_PLACE) -> pa.Schema:
    return map_table(path, opener).schema if path.suffix == ".arrow" else file_schema(path, opener)


def _text_metadata(schema: pa.Schema) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
