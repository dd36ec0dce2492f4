"""What a run writes down: the plan, the layout of its files, the manifest. Computes nothing, imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from embedkit.config import InputConfig, RunConfig
from embedkit.engines.faults import unreadable_rows
from embedkit.errors import UsageError
from embedkit.inference.build import ModelFacts
from embedkit.inference.model_spec import ModelSpec, rough_width
from embedkit.manifest.recipe import canonical_json, files_digest, fingerprint
from embedkit.manifest.shards import (
    SHARD_CHARACTERS,
    ShardCutter,
    by_content,
    default_shard_characters,
    default_shard_rows,
)
from embedkit.output.formats import Layout
from embedkit.output.formats.npy_format import metadata_name
from embedkit.output.formats.schema import RECEIPT
from embedkit.output.formats.values import fits_parquet
from embedkit.pooling.units import COLUMNS
from embedkit.sources import SourceFile, SpanBook, SpanColumn, Table, open_table
from embedkit.sources.locate import check_not_read, unreadable
from embedkit.storage.filesystem import seems_folder, sha256_of_file
from embedkit.types import Variant

#: Of English text in most vocabularies; only the time that is left depends on it.
_CHARACTERS_A_TOKEN = 4
#: Files of more bytes than this are hashed from end to end when they are planned, and after that only if their
#: name or time has changed: on 2 cores 1 GiB takes about a second.
_LARGE = 2**30


def table_of(config: RunConfig) -> tuple[Table, SpanBook | None]:
    """The input, each row with its spans where vectors of spans are asked for; and the book of these.

    Raises:
        InputError: it cannot be read, or the file of spans cannot.
    """
    table = open_table(config.table)
    book = None if config.units.spans is None else SpanBook(config.units.spans, table)
    if book is not None:
        table.map_rows(book.attach)
    if config.units.spans_column is not None:
        table.map_rows(SpanColumn(table, config.units.spans_column).attach)
    table.refuse_nulls(config.groups.by)
    return table, book


def check_inputs_are_safe(output: str, form: str, table: Table, spans: SpanBook | None) -> None:
    """Refuse to write over a file that is read, before anything is touched.

    Args:
        output: as the user named it.
        form: its format.
        table: the input.
        spans: the file of spans, which is read, too.

    Raises:
        UsageError: a file of the input would be replaced, by a file or as one of a folder's.
    """
    if output == "-":
        return
    names = [file.name for file in (*table.files, *(spans.table.files if spans else ())) if file.name != "-"]
    path = Path(output)
    if path.suffix != f".{form}" or seems_folder(path):
        check_not_read([path], names, whole_folders=True)
        return
    beside = [path.with_name(f"{path.stem}.rejects.jsonl")]
    beside += [path.with_name(metadata_name(path.name))] if form == "npy" else []
    check_not_read([path, *beside], names)
    check_not_read([path.with_name(f"{path.name}.partial")], names, whole_folders=True)


def cutter_of(spec: ModelSpec, config: RunConfig, shard_rows: int | None = None) -> ShardCutter:
    """What cuts the input into shards.

    Args:
        spec: the model, found.
        config: what the user asked for.
        shard_rows: what a plan that is there says; counts where the user does not.
    """
    width = rough_width(spec)
    rows = config.output.shard_rows or shard_rows
    return ShardCutter(
        default_shard_rows(width, to_stdout=config.output.is_stdout) if rows is None else rows,
        default_shard_characters(width) if spec.many else SHARD_CHARACTERS,
        _longest(spec, config),
    )


def _longest(spec: ModelSpec, config: RunConfig) -> int | None:
    """Characters of a text that a model reads of it, about; None where it reads all, or nobody knows."""
    if config.text.on_long != "truncate":
        return None
    keys = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    there = (spec.folder.config.get(key) for key in keys)
    length = config.text.max_length or next((of for of in there if isinstance(of, int)), None)
    return None if length is None else _CHARACTERS_A_TOKEN * length


def scan(
    table: Table,
    spans: SpanBook | None,
    config: RunConfig,
    cutter: ShardCutter,
    scores: Mapping[str, str],
) -> dict[str, Any]:
    """Rows and shards of a table; finds faulty rows before a model is loaded.

    `scores` are the columns that a head adds, and their types.

    Raises:
        InputError: rows are faulty and may not be, or spans are of ids that no row has.
        UsageError: a kept column has the name of one that tells of a unit.
    """
    if table.streaming:
        return {
            "rows": None,
            "shards": None,
            "starts": None,
            "characters": None,
            "kept_types": planned_kept_types(table.kept_types(), config, scores),
        }
    found = table.scan(cutter.count)
    if found.n_faults and config.output.on_bad_row == "fail":
        raise unreadable_rows(found.faults, found.n_faults)
    if spans is not None and config.input.limit is None:
        spans.refuse_strangers()
    kept = planned_kept_types(found.kept_types, config, scores)
    return {
        "rows": found.rows,
        "shards": len(cutter.starts),
        "starts": cutter.starts,
        "characters": cutter.characters,
        "kept_types": kept,
    }


def planned_kept_types(found: Mapping[str, str], config: RunConfig, scores: Mapping[str, str]) -> dict[str, str]:
    """The types of the columns beside the receipt: those kept, those that tell of a unit, those of a head."""
    units = {**COLUMNS[config.units.unit], **scores}
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
    taken = next((name for name in kept if name in units), None)
    if taken is not None:
        why = "with the scores of a head" if taken in scores else f"with vectors of a {config.units.unit}"
        raise UsageError(
            f"--keep {taken}: {why}, embedkit writes a column of that name",
            hint="leave it out of --keep, or rename it in the input",
        )
    return {**kept, **units}


def _kept_type(found: str, config: RunConfig) -> str:
    """The type of a kept column in the output."""
    if config.groups.by and found == "text":
        # Rows that are yet to be pooled are written so that they are read back as they were.
        return "mixed"
    if config.output.format in {"parquet", "npy"} and not fits_parquet(found):
        return "json"
    return found


def non_finite_notes(config: RunConfig, found: Mapping[str, int]) -> Iterator[str]:
    """What the user should know of kept numbers that JSON Lines cannot hold.

    Args:
        config: what the user asked for.
        found: for each kept column, the rows that hold NaN or an infinity.
    """
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
    stored: Mapping[str, Any] | None = None,
    *,
    whole: bool = True,
) -> dict[str, Any]:
    """The plan's `input`: the files as they are now, and what is read of them.

    Args:
        table: the input.
        spans: the file of spans, if there is one.
        config: how it is read.
        stored: the `input` of the plan that is there. Files that look unchanged by it, and are large, are not
            hashed from end to end again.
        whole: False hashes none from end to end: another process of this run has, or nobody will compare them.
    """
    known = {of["name"]: of for of in _files(stored) if of.get("content_sha256")} if stored and whole else {}

    def facts(file: SourceFile) -> dict[str, Any]:
        of = asdict(file) | {"name": file.shown}
        if not whole or file.sha256 is None or (stored and not known):
            return of  # not asked for; stdin; a plan of an older version, which has nothing to compare it with
        before = known.get(file.shown, {})
        looks_same = all(before.get(name) == of[name] for name in ("size", "mtime_ns", "sha256"))
        if looks_same and (file.size or 0) > _LARGE:
            return of | {"content_sha256": before["content_sha256"]}
        try:
            return of | {"content_sha256": sha256_of_file(Path(file.name))}
        except OSError as error:
            raise unreadable(file.shown, error) from None

    return {
        **({} if spans is None else {"spans": [facts(file) for file in spans.table.files]}),
        "files": [facts(file) for file in table.files],
        "columns": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(table.columns).items()
        },
        "limit": config.limit,
        **dialect_of(config),
    }


def dialect_of(config: InputConfig) -> dict[str, str]:
    """How csv and tsv are read, where that is not the default: it decides what the rows are."""
    told = {"delimiter": config.delimiter, "quoting": None if config.quoting == "auto" else config.quoting}
    return {name: value for name, value in told.items() if value is not None}


def input_digests(plan: Mapping[str, Any]) -> tuple[str, str]:
    """What a single file says of its input: by content alone, and as embedkit said it before 0.2, by names too."""
    by_name = {
        key: [{name: value for name, value in of.items() if name != "content_sha256"} for of in value]
        if key in {"files", "spans"}
        else value
        for key, value in plan["input"].items()
    }
    apart = {key: plan[key] for key in ("on_bad_row", "kept_types")}
    return (
        fingerprint({"input": by_content(plan["input"]), **apart}),
        fingerprint({"input": by_name, **apart}),
    )


def _files(stored: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from stored["files"]
    yield from stored.get("spans", ())


def output_facts(model: ModelFacts, config: RunConfig) -> dict[str, Any]:
    """The plan's part that is known once a model is loaded; `int8_ranges` are still to come."""
    return {
        "recipe": model.recipe,
        "fingerprint": model.fingerprint,
        "source": model.source,
        "engine": model.engine,
        "format": config.output.format,
        "precision": config.pooling.precision,
        "variants": [asdict(variant) for variant in model.variants],
        "on_bad_row": config.output.on_bad_row,
        "int8_ranges": None,
        # What is batched together is the plan's: another card, or fewer workers on it, keeps to it.
        **({} if model.batch_tokens is None else {"batch_tokens": model.batch_tokens}),
    }


def layout(plan: dict[str, Any]) -> Layout:
    """What every shard looks like, by the plan."""
    return Layout(
        variants=tuple(Variant(**variant) for variant in plan["variants"]),
        precision=plan["precision"],
        token_vectors=_has_token_vectors(plan),
        kept_types=plan["kept_types"],
        metadata={
            "embedkit.recipe": canonical_json(plan["recipe"]),
            "embedkit.fingerprint": plan["fingerprint"],
            "embedkit.model": canonical_json(_model_of(plan["source"])),
            "embedkit.input": input_digests(plan)[0],
            "embedkit.read": canonical_json(_read_of(plan)),
            **({"embedkit.int8_ranges": canonical_json(ranges)} if (ranges := plan["int8_ranges"]) else {}),
        },
    )


def counts(records: Iterable[dict[str, Any]], rows: int | None) -> dict[str, Any]:
    """Sums over shards' records; `rows` of the input, or None if the records alone tell.

    Statuses and tokens are those of the texts, of which each counts once, however many units it has.
    """
    records = list(records)
    by_text = [record.get("texts", record) for record in records]
    statuses: dict[str, int] = {}
    for record in by_text:
        for word, count in record["status_counts"].items():
            statuses[word] = statuses.get(word, 0) + count
    return {
        "input_rows": sum(record["stop"] - record["start"] for record in records) if rows is None else rows,
        "rows": sum(record["rows"] for record in records),
        "vectors": sum(record["vectors"] for record in records),
        "statuses": statuses,
        "rejects": sum(record["rejects"] for record in records),
        "n_tokens": sum(record["tokens"]["n_tokens"] for record in by_text),
        "n_used": sum(record["tokens"]["n_used"] for record in by_text),
        **_unknown(record["vocabulary"] for record in records),
    }


def _unknown(counted: Iterable[Mapping[str, int | None]]) -> dict[str, Any]:
    """Tokens that the vocabulary has no entry for, and their share; None where it spells every character."""
    counted = list(counted)
    content = sum(of["n_content"] or 0 for of in counted)
    if not counted or any(of["n_unknown"] is None for of in counted):
        return {"n_content": content, "n_unknown": None, "unknown_share": None}
    unknown = sum(of["n_unknown"] or 0 for of in counted)
    return {"n_content": content, "n_unknown": unknown, "unknown_share": round(unknown / max(1, content), 6)}


def manifest_of(plan: dict[str, Any]) -> dict[str, Any]:
    """What the manifest takes from the plan."""
    names = (
        "version",
        "format",
        "precision",
        "variants",
        "recipe",
        "fingerprint",
        "source",
        "int8_ranges",
        "input",
    )
    return {**{name: plan[name] for name in names}, "token_vectors": _has_token_vectors(plan)}


def _read_of(plan: dict[str, Any]) -> dict[str, Any]:
    """What a single file tells of its input: enough to know the same texts again, no names of files."""
    read = plan["input"]
    return {
        "columns": {name: read["columns"][name] for name in ("text", "template", "id")},
        "limit": read["limit"],
        **{name: read[name] for name in ("delimiter", "quoting") if name in read},
        "on_bad_row": plan["on_bad_row"],
        "files_digest": files_digest(read["files"]),
    }


def _model_of(source: Mapping[str, Any]) -> dict[str, Any]:
    """What a single file tells of its model: what people call it, no path."""
    return {name: source.get(name) for name in ("model", "hub", "revision")}


def _has_token_vectors(plan: dict[str, Any]) -> bool:
    return bool(plan["recipe"]["pool"] == ["none"])
