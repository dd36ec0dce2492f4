"""Opens and checks the input of a run, and cuts it into shards. Imports no torch."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from embedkit.config import InputConfig, RunConfig
from embedkit.engines.accounting import unreadable_rows
from embedkit.engines.reuse import TextReuse
from embedkit.engines.scanning import Scanner, Shared, scan_input
from embedkit.engines.segments import Cut, combined_digest, digest_fields, digest_of, pieces_of
from embedkit.errors import UsageError
from embedkit.inference.build import ModelFacts
from embedkit.inference.model_spec import ModelSpec, rough_width
from embedkit.manifest.identity import input_digests
from embedkit.manifest.schema import InputFacts, InputFile, Plan, Sharding
from embedkit.manifest.shards import SHARD_CHARACTERS, default_shard_characters, default_shard_rows
from embedkit.manifest.versions import vector_versions
from embedkit.output.formats.layout import RECEIPT
from embedkit.output.formats.npy_format import metadata_name
from embedkit.output.formats.values import fits_parquet
from embedkit.output.rejects import rejects_path
from embedkit.pooling.heads import SCORE
from embedkit.pooling.units import COLUMNS
from embedkit.sources import SpanBook, Table
from embedkit.sources.file_hashes import content_sha256, is_small
from embedkit.sources.locate import check_not_read, shown_name
from embedkit.storage.filesystem import seems_folder
from embedkit.storage.remote_path import RemotePath, is_uri
from embedkit.types import HASH_COLUMNS

#: In English, for most vocabularies; used to estimate the remaining time only.
_CHARACTERS_A_TOKEN = 4
#: Files of more bytes are hashed in full when they are planned, and again only if their name or time has changed:
#: 1 GiB takes about a second.
_LARGE = 2**30


def check_inputs_are_safe(output: str, form: str, table: Table, spans: SpanBook | None) -> None:
    """Checks, before anything is written, that the output (of format `form`) replaces no file of the input.

    Raises:
        UsageError: the output would replace a file of the input, or a folder that contains it.
    """
    if output == "-":
        return
    names = [file.name for file in (*table.files, *(spans.table.files if spans else ())) if file.name != "-"]
    if is_uri(output):
        below = f"{RemotePath(output)}/"
        hit = next((name for name in names if f"{name}/".startswith(below)), None)
        if hit is not None:
            raise UsageError(
                f"{shown_name(hit)}, which is an input, is in the output's folder",
                hint="choose another place with -o",
            )
        return
    path = Path(output)
    if path.suffix != f".{form}" or seems_folder(path):
        check_not_read([path], names, whole_folders=True)
        return
    others = [rejects_path(path)]
    others += [path.with_name(metadata_name(path.name))] if form == "npy" else []
    check_not_read([path, *others], names)
    check_not_read([path.with_name(f"{path.name}.partial")], names, whole_folders=True)


def cut_of(spec: ModelSpec, config: RunConfig, shard_rows: int | None = None) -> Cut:
    """Returns how the input is cut; `shard_rows` is that of a stored plan, if the user gives none."""
    width = rough_width(spec)
    rows = config.output.shard_rows or shard_rows
    return Cut(
        default_shard_rows(width, to_stdout=config.output.is_stdout) if rows is None else rows,
        default_shard_characters(width) if not spec.poolings else SHARD_CHARACTERS,
        _longest(spec),
    )


def _longest(spec: ModelSpec) -> int | None:
    """Estimates the characters of a text that the model reads; None if all, or if unknown."""
    if spec.config.text.on_long != "truncate":
        return None
    keys = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    stated = (spec.folder.config.get(key) for key in keys)
    length = spec.config.text.max_length or next((value for value in stated if isinstance(value, int)), None)
    return None if length is None else _CHARACTERS_A_TOKEN * length


def trust_planned_files(table: Table, planned: InputFacts) -> None:
    """Has the table read Parquet files without a probe of the parser, where they are those that planning has read.

    Args:
        table: the input.
        planned: what the plan says of it.
    """
    for number, (file, before) in enumerate(zip(table.files, planned.files, strict=False)):
        if file.format != "parquet" or file.compression is not None:
            continue
        facts = ("size", "sha256", "etag", "mtime_ns")
        is_same = all(getattr(file, name) == getattr(before, name) for name in facts)
        if is_same and before.columns_sha256 is not None:
            table.trust(number)


class InputDigests:
    """Digests of an input as outputs name it: of this version, then of versions that hashed other bytes of a file.

    Those versions hashed all bytes of a Parquet file, and none of a large object. Their digests are found when
    they are asked for, which takes another pass over Parquet files.
    """

    def __init__(self, plan: Plan, table: Table) -> None:
        self._plan = plan
        self._table = table

    def __iter__(self) -> Iterator[str]:
        yield from input_digests(self._plan)
        files = self._plan.input.files
        if not any(file.columns_sha256 or file.etag for file in files):
            return
        former = tuple(self._former(number, file) for number, file in enumerate(files))
        yield input_digests(replace(self._plan, input=replace(self._plan.input, files=former)))[0]

    def _former(self, number: int, file: InputFile) -> InputFile:
        if file.etag is not None and not is_small(self._table.files[number]):
            return replace(file, columns_sha256=None, pieces_sha256=None, content_sha256=None)
        if file.columns_sha256 is None:
            return file
        return replace(file, columns_sha256=None, content_sha256=content_sha256(self._table, number))


@dataclass(frozen=True, slots=True)
class InputPlan:
    """The part of a plan that the input alone decides; see Plan."""

    input: InputFacts
    sharding: Sharding
    kept_types: Mapping[str, str]
    scores: tuple[str, ...]

    def complete(self, model: ModelFacts, config: RunConfig, reuse: TextReuse | None = None) -> Plan:
        """Returns the plan, without `int8_ranges`, once a model is loaded."""
        hash_key = reuse.key.id if reuse and config.keeps_hashes else None
        return Plan(
            input=self.input,
            sharding=self.sharding,
            kept_types=self.kept_types,
            recipe=model.recipe,
            fingerprint=model.fingerprint,
            source=model.source,
            engine=model.engine,
            format=config.output.format,
            precision=config.pooling.precision,
            variants=model.variants,
            on_bad_row=config.output.on_bad_row,
            batch_tokens=model.batch_tokens,
            scores=self.scores,
            hash_key=hash_key,
            update=tuple(output.digest for output in reuse.earlier) if reuse else (),
            versions=reuse.versions(model.engine) if reuse else (vector_versions(model.engine),),
        )


def plan_input(
    table: Table,
    spans: SpanBook | None,
    config: RunConfig,
    spec: ModelSpec,
    stored: Plan | None,
    *,
    scanner: Scanner | None = None,
    shared: Shared | None = None,
    stop: threading.Event | None = None,
) -> InputPlan:
    """Plans rows and shards of a table; finds faulty rows before a model is loaded.

    Args:
        table: the input.
        spans: the file of spans, if any.
        config: the user's options.
        spec: the model, found.
        stored: the plan of a run to be resumed: the table is not read again, and compared with that plan later.
        scanner: see `scan_input`.
        shared: see `scan_input`.
        stop: see `scan_input`.

    Raises:
        InputError: rows are faulty and may not be, or spans are of ids that no row has.
        UsageError: a kept column has the name of one that embedkit writes.
    """
    scores = spec.head.columns if spec.head else {}
    cut = cut_of(spec, config, stored.sharding.shard_rows if stored else None)
    if stored is not None:
        table.identify()
        # Each of several ranks would hash the files that the one which planned has hashed just before.
        large = 0 if config.share.several else _LARGE
        read = input_facts(table, spans, config.input, stored.input, large=large)
        return InputPlan(
            read, replace(stored.sharding, shard_rows=cut.shard_rows), stored.kept_types, tuple(scores)
        )
    if table.streaming:
        sharding = Sharding(cut.shard_rows, cut.shard_characters, None, None, None)
        read = input_facts(table, spans, config.input)
        return InputPlan(
            read, sharding, planned_kept_types(table.facts.kept_types(), config, scores), tuple(scores)
        )
    scanned = scan_input(table, spans, config, cut, scanner=scanner, shared=shared, stop=stop)
    found = scanned.scan
    read = input_facts(table, spans, config.input, digests=scanned.digests)
    if found.n_faults and config.output.on_bad_row == "fail":
        raise unreadable_rows(found.faults, found.n_faults)
    if spans is not None and config.input.limit is None:
        spans.check_unknown_ids(scanned.unseen, scanned.unreadable)
    kept_types = planned_kept_types(found.kept_types, config, scores)
    return InputPlan(read, scanned.sharding, kept_types, tuple(scores))


def planned_kept_types(found: Mapping[str, str], config: RunConfig, scores: Mapping[str, str]) -> dict[str, str]:
    """Returns the types of the columns besides the receipt: kept ones, those of units, of a head, of hashes."""
    hashes = HASH_COLUMNS if config.keeps_hashes else {}
    units = {**COLUMNS[config.units.unit], **scores, **hashes}
    kept = {name: _kept_type(kind, config) for name, kind in found.items() if name in config.input.keep}
    ours = next((name for name in kept if name in {"id", *RECEIPT, "embedding"}), None)
    if ours is not None and ours in config.group_columns:
        option = "--group-by" if ours in config.groups.by else "--order-by"
        raise UsageError(
            f"{option} {ours}: embedkit writes a column of that name",
            hint="rename it in the input" + (", or use --id-column id" if ours == "id" else ""),
        )
    if ours is not None:
        raise UsageError(
            f"--keep {ours}: embedkit writes a column of that name",
            hint="leave it out of --keep, or rename it in the input",
        )
    is_unclear = bool(scores) and config.output.is_jsonl_alone
    unclear = next((name for name in kept if is_unclear and name.startswith(SCORE)), None)
    if unclear is not None:
        raise UsageError(
            f"--keep {unclear}: a single JSON Lines file cannot say which of its {SCORE} columns are of the head",
            hint="leave it out of --keep, rename it in the input, or write to a folder or a .parquet file",
        )
    taken = next((name for name in kept if name in units), None)
    if taken is not None:
        why = "with the scores of a head" if taken in scores else f"with vectors of a {config.units.unit}"
        why = "with hashes of texts" if taken in hashes else why
        raise UsageError(
            f"--keep {taken}: {why}, embedkit writes a column of that name",
            hint="leave it out of --keep, or rename it in the input",
        )
    return {**kept, **units}


def _kept_type(found: str, config: RunConfig) -> str:
    """Returns the type of a kept column in the output."""
    if config.groups.by and found == "text":
        # The rows of groups are read back, so they keep text and other values apart.
        return "mixed"
    if config.output.format in {"parquet", "npy"} and not fits_parquet(found):
        return "json"
    return found


def non_finite_notes(config: RunConfig, found: Mapping[str, int]) -> Iterator[str]:
    """Yields notices about kept columns with NaN or infinities, in `found` rows each, for JSON Lines."""
    if config.output.format != "jsonl":
        return
    for name, rows in found.items():
        if rows and name in config.input.keep:
            yield (
                f"column {name}: NaN or infinite in {rows:,} {'row' if rows == 1 else 'rows'}, for which JSON has"
                " no number: it is null there; Parquet and Arrow keep it"
            )


def input_facts(
    table: Table,
    spans: SpanBook | None,
    config: InputConfig,
    stored: InputFacts | None = None,
    *,
    whole: bool = True,
    large: int = _LARGE,
    digests: Mapping[int, Mapping[str, Any]] | None = None,
) -> InputFacts:
    """Returns the plan's `input`: the files as they are now, and how they are read.

    Args:
        table: the input.
        spans: the file of spans, if any.
        config: how it is read.
        stored: the `input` of a run to be resumed: files over `large` bytes that look unchanged are not hashed in
            full again.
        whole: False hashes no file in full: another process of this run has.
        large: see `stored`.
        digests: hashes of the content of the table's files, if they are known; see `digests_of`.
    """
    former = stored.all_files if stored and whole else ()
    known = {old.name: old for old in former if any(_hashes(old).values())}

    def facts(of: Table, number: int) -> InputFile:
        file = of.files[number]
        now = InputFile(**{**asdict(file), "name": file.shown})
        if of is table and digests is not None:
            return replace(now, **digests[number])
        is_hashed = now.sha256 is None or now.content_sha256 is not None
        if not whole or is_hashed or (stored and (not known or now.etag is not None)):
            # Not asked for; stdin; a query; a plan of an older version, which has nothing to compare it with; an
            # object, of which the ETag says as much.
            return now
        before = known.get(file.shown)
        if before is not None and (file.size or 0) > large:
            unchanged = replace(now, **_hashes(before))
            if unchanged == before:
                return unchanged
        if of is not table:
            return replace(now, content_sha256=content_sha256(of, number, is_fetched=True))
        # It may have another name now.
        planned = stored.files[number] if stored and number < len(stored.files) else None
        return replace(now, **_hashed_as(planned, of, number))

    def all_facts(of: Table) -> tuple[InputFile, ...]:
        return tuple(facts(of, number) for number in range(len(of.files)))

    columns = table.columns
    return InputFacts(
        *(all_facts(table), columns.text, columns.template, columns.id, columns.keep),
        limit=config.limit,
        spans=None if spans is None else all_facts(spans.table),
        delimiter=config.delimiter,
        quoting=config.quoting,
    )


def _hashes(file: InputFile) -> dict[str, Any]:
    return {name: getattr(file, name) for name in ("content_sha256", "pieces_sha256", "columns_sha256")}


def _hashed_as(planned: InputFile | None, table: Table, number: int) -> dict[str, Any]:
    """Returns the hash of a file's content, of the kind that the stored plan has of it, if any."""
    file = table.files[number]
    pieces = pieces_of(file)
    if planned is not None and planned.content_sha256 is not None:
        return {"content_sha256": content_sha256(table, number)}
    if planned is not None and planned.pieces_sha256 is not None:
        # Of Parquet, older versions hashed each piece as a whole.
        return {"pieces_sha256": combined_digest(content_sha256(table, number, piece) for piece in pieces)}
    in_pieces = len(pieces) > 1
    digests = [digest_of(table, number, piece) for piece in (pieces if in_pieces else (None,))]
    return digest_fields(file, digests, in_pieces=in_pieces)
