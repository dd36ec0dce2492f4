"""Opens and checks the input of a run, cuts it into shards, and reads these. Imports no torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from embedkit.config import InputConfig, RunConfig
from embedkit.engines.accounting import unreadable_rows
from embedkit.engines.reuse import TextReuse
from embedkit.errors import InputError, UsageError
from embedkit.inference.build import ModelFacts
from embedkit.inference.model_spec import ModelSpec, rough_width
from embedkit.inference.pipeline import ReadShard
from embedkit.manifest.schema import InputFacts, InputFile, Plan, Sharding
from embedkit.manifest.shards import SHARD_CHARACTERS, ShardCutter, default_shard_characters, default_shard_rows
from embedkit.manifest.versions import vector_versions
from embedkit.output.formats.layout import RECEIPT
from embedkit.output.formats.npy_format import metadata_name
from embedkit.output.formats.values import fits_parquet
from embedkit.output.rejects import rejects_path
from embedkit.pooling.heads import SCORE
from embedkit.pooling.units import COLUMNS
from embedkit.sources import SourceFile, SpanBook, SpanColumn, Table, Wanted, every, open_table
from embedkit.sources.locate import check_not_read, unreadable
from embedkit.storage.filesystem import seems_folder, sha256_of_file
from embedkit.types import HASH_COLUMNS, Fault, Record

#: In English, for most vocabularies; used to estimate the remaining time only.
_CHARACTERS_A_TOKEN = 4
#: Files of more bytes are hashed in full when they are planned, and again only if their name or time has changed:
#: 1 GiB takes about a second.
_LARGE = 2**30


def table_of(config: RunConfig) -> tuple[Table, SpanBook | None]:
    """Opens the input, with the spans of each row if vectors of spans are asked for; and the file of spans.

    Raises:
        InputError: the input or the file of spans cannot be read.
    """
    table = open_table(config.table)
    book = None if config.units.spans is None else SpanBook(config.units.spans, table)
    if book is not None:
        table.map_rows(book.attach)
    if config.units.spans_column is not None:
        table.map_rows(SpanColumn(table, config.units.spans_column).attach)
    table.reject_nulls(config.groups.by)
    return table, book


def check_inputs_are_safe(output: str, form: str, table: Table, spans: SpanBook | None) -> None:
    """Checks, before anything is written, that the output (of format `form`) replaces no file of the input.

    Raises:
        UsageError: the output would replace a file of the input, or a folder that contains it.
    """
    if output == "-":
        return
    names = [file.name for file in (*table.files, *(spans.table.files if spans else ())) if file.name != "-"]
    path = Path(output)
    if path.suffix != f".{form}" or seems_folder(path):
        check_not_read([path], names, whole_folders=True)
        return
    others = [rejects_path(path)]
    others += [path.with_name(metadata_name(path.name))] if form == "npy" else []
    check_not_read([path, *others], names)
    check_not_read([path.with_name(f"{path.name}.partial")], names, whole_folders=True)


def cutter_of(spec: ModelSpec, config: RunConfig, shard_rows: int | None = None) -> ShardCutter:
    """Returns the cutter of the input; `shard_rows` is that of a stored plan, if the user gives none."""
    width = rough_width(spec)
    rows = config.output.shard_rows or shard_rows
    return ShardCutter(
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
            versions=reuse.versions() if reuse else (vector_versions(),),
        )


def plan_input(
    table: Table, spans: SpanBook | None, config: RunConfig, spec: ModelSpec, stored: Plan | None
) -> InputPlan:
    """Plans rows and shards of a table; finds faulty rows before a model is loaded.

    Args:
        table: the input.
        spans: the file of spans, if any.
        config: the user's options.
        spec: the model, found.
        stored: the plan of a run to be resumed: the table is not read again, and compared with that plan later.

    Raises:
        InputError: rows are faulty and may not be, or spans are of ids that no row has.
        UsageError: a kept column has the name of one that embedkit writes.
    """
    scores = spec.head.columns if spec.head else {}
    cutter = cutter_of(spec, config, stored.sharding.shard_rows if stored else None)
    if stored is not None:
        table.identify()
        read = input_facts(table, spans, config.input, stored.input)
        return InputPlan(
            read, replace(stored.sharding, shard_rows=cutter.shard_rows), stored.kept_types, tuple(scores)
        )
    sharding = Sharding(cutter.shard_rows, cutter.shard_characters, None, None, None)
    if table.streaming:
        read = input_facts(table, spans, config.input)
        return InputPlan(read, sharding, planned_kept_types(table.kept_types(), config, scores), tuple(scores))
    found = table.scan(cutter.opens_shard)
    read = input_facts(table, spans, config.input)
    if found.n_faults and config.output.on_bad_row == "fail":
        raise unreadable_rows(found.faults, found.n_faults)
    if spans is not None and config.input.limit is None:
        spans.check_unknown_ids()
    sharding = replace(sharding, rows=found.rows, starts=tuple(cutter.starts), characters=tuple(cutter.characters))
    return InputPlan(read, sharding, planned_kept_types(found.kept_types, config, scores), tuple(scores))


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


def read_shards(
    table: Table, sharding: Sharding, on_bad_row: str, wanted: Iterable[int] | None = None
) -> Iterator[ReadShard]:
    """Reads the rows of a table as shards.

    Args:
        table: the rows; read no further than the last wanted shard.
        sharding: where the rows are cut; a stream is cut while it is read.
        on_bad_row: fail, null or skip.
        wanted: numbers of the wanted shards, ascending; None = all. Asked for the next one when one has been read.

    Raises:
        InputError: a row cannot be read and `on_bad_row` is fail, or there are not as many rows as planned.
    """
    cutter = ShardCutter(sharding.shard_rows, sharding.shard_characters)
    starts = None if sharding.starts is None else set(sharding.starts)
    numbers = iter(itertools.count() if wanted is None else wanted)
    next_wanted = next(numbers, None)
    if next_wanted is None:
        return
    index, start, row = -1, 0, 0
    records: list[Record] = []
    faults: list[Fault] = []
    rows = table.records(_wanted_rows(sharding, lambda: next_wanted))
    for row, item in enumerate(rows):
        text = item.text if isinstance(item, Record) else None
        opens = cutter.opens_shard(len(text or "")) if starts is None else row in starts
        if opens:
            if index == next_wanted:
                yield ReadShard(index, start, row, records, faults)
                next_wanted = next(numbers, None)
                if next_wanted is None:
                    return
            index, start, records, faults = index + 1, row, [], []
        if index == next_wanted:
            kept = _kept(item, on_bad_row, len(table.columns.keep), faults)
            records += [kept] if kept else []
    found = row + 1 if index >= 0 else 0
    if sharding.rows is not None and found != sharding.rows:
        raise InputError(
            f"the input has {found} rows now and had {sharding.rows} when the run was planned",
            hint="keep the input as it is while embedkit reads it; start again with --on-exists overwrite",
        )
    if index == next_wanted:
        yield ReadShard(index, start, row + 1, records, faults)


def _wanted_rows(sharding: Sharding, next_wanted: Callable[[], int | None]) -> Wanted:
    """Returns the check that rows are of the shard that is wanted next; rows of a stream always may be."""
    ranges = sharding.ranges
    if ranges is None:
        return every

    def is_wanted(first: int, stop: int) -> bool:
        number = next_wanted()
        if number is None:
            return True
        start, end = ranges[number]
        # The row after the shard is read as well: only then is the next wanted shard known.
        return start < stop and first <= end

    return is_wanted


def _kept(item: Record | Fault, on_bad_row: str, n_keep: int, faults: list[Fault]) -> Record | None:
    """Returns the record of a row, or None if it is skipped; adds a faulty row to `faults`."""
    if isinstance(item, Record):
        return item
    if on_bad_row == "fail":
        raise unreadable_rows([item], 1)
    faults.append(item)
    return Record(item.row, None, None, (None,) * n_keep) if on_bad_row == "null" else None


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
) -> InputFacts:
    """Returns the plan's `input`: the files as they are now, and how they are read.

    Args:
        table: the input.
        spans: the file of spans, if any.
        config: how it is read.
        stored: the `input` of a run to be resumed: large files that look unchanged are not hashed in full again.
        whole: False hashes no file in full: another process of this run has.
    """
    known = {old.name: old for old in stored.all_files if old.content_sha256} if stored and whole else {}

    def facts(file: SourceFile) -> InputFile:
        now = InputFile(**{**asdict(file), "name": file.shown})
        if not whole or now.sha256 is None or now.content_sha256 is not None or (stored and not known):
            # Not asked for; stdin; a query; a plan of an older version, which has nothing to compare it with.
            return now
        before = known.get(file.shown)
        if before is not None and (file.size or 0) > _LARGE:
            unchanged = replace(now, content_sha256=before.content_sha256)
            if unchanged == before:
                return unchanged
        try:
            return replace(now, content_sha256=sha256_of_file(file.name))
        except OSError as error:
            raise unreadable(file.shown, error) from None

    columns = table.columns
    return InputFacts(
        *(tuple(map(facts, table.files)), columns.text, columns.template, columns.id, columns.keep),
        limit=config.limit,
        spans=None if spans is None else tuple(map(facts, spans.table.files)),
        delimiter=config.delimiter,
        quoting=config.quoting,
    )
