"""One `embedkit encode --group-by`: encodes rows into a folder next to the output, then pools these into groups.

Encoding the rows is an ordinary run, which can be resumed, and most of the work. Pooling is cheap and starts again
after a kill. The folder of rows is removed when the output is complete.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embedkit.arrow_values import first_alike, has_non_finite, is_missing, order_keys, plain_values, text_of
from embedkit.config import RunConfig
from embedkit.engines.base import Callbacks
from embedkit.engines.encode_rows import encode_rows, plan_rows
from embedkit.engines.open_input import table_of
from embedkit.engines.planning import InputDigests, non_finite_notes
from embedkit.engines.summary import Summary, summary_of_finished
from embedkit.errors import UsageError
from embedkit.inference.model_spec import ModelSpec, find_model
from embedkit.inference.pipeline import as_stored, cut_variants
from embedkit.manifest.identity import check_same_plan
from embedkit.manifest.recipe import fingerprint
from embedkit.manifest.schema import Manifest, Plan, Totals
from embedkit.output.commit import PLAN
from embedkit.output.destination import Destination, Folder, destination_of
from embedkit.output.formats import layout_of, make_sink
from embedkit.output.formats.values import kept_values_of
from embedkit.output.open import Stored, open_stored
from embedkit.output.rejects import lists_of_shards, rejects_path
from embedkit.output.safe_reading import read_versioned
from embedkit.pooling.groups import Grouping, Item, last_rows
from embedkit.pooling.postprocess import finish
from embedkit.sources.locate import check_not_read, expanded
from embedkit.storage.disk_errors import as_read_error
from embedkit.storage.filesystem import exists, seems_file, write_file
from embedkit.types import EncodedShard, Fault, Variant

#: Columns that are written besides those of --keep.
_COUNTS = {"n_rows": "int32", "n_pooled": "int32"}


def encode_groups(
    config: RunConfig, callbacks: Callbacks, stop: threading.Event, spec: ModelSpec | None = None
) -> Summary:
    """Carries out one `embedkit encode --group-by`; see `run`."""
    out = Path(config.output.output)
    rows = out.with_name(f"{out.name}.rows.partial")
    taken = next((name for name in config.input.keep if name in _COUNTS), None)
    if taken is not None:
        raise UsageError(
            f"--keep {taken}: with --group-by, embedkit writes a column of that name",
            hint="leave it out of --keep, or rename it in the input",
        )
    began = time.monotonic()
    if "-" not in config.input.inputs:
        names = [*expanded(config.input.inputs, []), *([config.units.spans] if config.units.spans else ())]
        check_not_read([out, rejects_path(out)], names)
        check_not_read([rows, *([] if seems_file(out) else [out])], names, whole_folders=True)
    destination = destination_of(config.output)
    stored = destination.open()
    spec = spec or find_model(config)
    if spec.truncate_dim is not None and config.pooling.truncate_dim is None and spec.normalize:
        raise UsageError(
            "the recipe of the model truncates its vectors before those of groups are scaled",
            hint="use --no-normalize, or give --truncate-dim",
        )
    of_rows = replace(
        config,
        input=config.input_of_rows,
        output=replace(config.output, output=str(rows), format="parquet"),
        pooling=replace(config.pooling, normalize=False, truncate_dim=None, precision="float32"),
    )
    with as_read_error(out):
        # A folder of rows without a plan is from a run that was killed after the groups were complete.
        left = Folder(rows, "overwrite")
        may_be_complete = config.output.on_exists == "resume" and exists(out) and not left.has_plan()
    spec_of_rows = find_model(of_rows, spec.folder)
    if may_be_complete:
        plan, model = plan_rows(of_rows, callbacks, stop, spec_of_rows)
        plan = _plan_of_groups(config, plan, normalize=spec.normalize)
        if _is_complete(destination, stored, plan, of_rows):
            left.remove()
            for sentence in (f"{out} is already complete: made by this recipe from this input", *left.notices):
                callbacks.notice(sentence)
            model = replace(model, recipe=plan.recipe, fingerprint=plan.fingerprint, variants=plan.variants)
            return summary_of_finished(config, model, began)
    summary = encode_rows(of_rows, callbacks, stop, spec_of_rows)
    plan = _plan_of_groups(config, read_versioned(Plan, rows / PLAN), normalize=spec.normalize)
    return _GroupWriter(config, rows, plan, callbacks).write(summary)


def _plan_of_groups(config: RunConfig, plan: Plan, *, normalize: bool) -> Plan:
    """Returns the plan of the groups, without their number, from that of their rows."""
    recipe = {
        **plan.recipe,
        "normalize": normalize,
        "truncate_dim": config.pooling.truncate_dim,
        "precision": config.pooling.precision,
    }
    truncate_dim = config.pooling.truncate_dim
    kept_types = ((name, plan.kept_types[name]) for name in config.input.keep)
    return replace(
        plan,
        sharding=replace(plan.sharding, characters=None),
        recipe=recipe,
        fingerprint=fingerprint(recipe),
        groups=recipe["groups"],
        kept_types={**{name: kept.replace("mixed", "text") for name, kept in kept_types}, **_COUNTS},
        format=config.output.format,
        precision=config.pooling.precision,
        variants=cut_variants(plan.variants, truncate_dim),
        on_bad_row="null",
    )


def _is_complete(destination: Destination, stored: Plan | None, plan: Plan, of_rows: RunConfig) -> bool:
    """Checks whether a former run has completed the groups.

    Raises:
        OutputError: they are of another recipe or another input.
    """
    if stored is None:
        inputs = InputDigests(plan, table_of(of_rows)[0])
        return destination.is_complete(make_sink(plan.format, layout_of(plan)), inputs)
    check_same_plan(stored, plan)
    return len(destination.committed()) == stored.sharding.shards


class _GroupWriter:
    """Pools the rows in the folder `rows` into groups, and writes these; `plan` lacks the number of groups."""

    def __init__(self, config: RunConfig, rows: Path, plan: Plan, callbacks: Callbacks) -> None:
        self.config = config
        self.rows = rows
        self.plan = plan
        self.callbacks = callbacks
        self.keep = config.input.keep
        self.stored = open_stored(rows)
        self.variants = plan.variants
        self.row_types = read_versioned(Plan, rows / PLAN).kept_types
        self.kept: dict[str, list[Any]] = {}
        self.non_finite = Counter[str]()
        self.mixed: set[str] = set()

    def write(self, summary: Summary) -> Summary:
        """Writes the output, and removes the rows."""
        groups, how = self.config.groups, self.config.groups.pool or "mean"
        facts = [piece.facts for piece in self.stored.batches(())]
        keys = _keys([self._values(facts, name) for name in groups.by])
        closes = last_rows((key for key in keys if key is not None), len(groups.by))
        self.kept = {name: self._values(facts, name) for name in self.keep}
        alike = [first_alike(values) for values in self.kept.values()]
        shard_rows, n_groups = self.plan.sharding.shard_rows, int(closes[-1].sum())
        ordered = None if groups.order_by is None else self._order(facts, groups.order_by)
        starts = tuple(range(0, n_groups, shard_rows))
        plan = replace(self.plan, sharding=replace(self.plan.sharding, rows=n_groups, starts=starts))
        sink = make_sink(self.config.output.format, layout_of(plan))
        destination = destination_of(replace(self.config.output, on_exists="overwrite", verify=False))
        destination.open()
        destination.begin(plan)
        pooled = Grouping(closes, how).groups(_items(self.stored, keys, alike, ordered))
        records = [
            destination.write(self._shard(index, starts[index], members), sink)
            for index in range(len(starts))
            for members in [tuple(islice(pooled, shard_rows))]
        ]
        # The texts of groups are those of their rows.
        totals = replace(Totals.of(records, n_groups), n_content=summary.n_content, n_unknown=summary.n_unknown)
        destination.finish(sink, Manifest.of(plan, records, totals))
        for sentence in non_finite_notes(self.config, self.non_finite):
            self.callbacks.notice(sentence)
        for name in sorted(self.mixed):
            self.callbacks.notice(f"column {name} has several values in some groups: it is null there")
        self._keep_rejects()
        rows = Folder(self.rows, "overwrite")
        rows.remove()
        for sentence in (*destination.notices, *rows.notices):
            self.callbacks.notice(sentence)
        dims = {variant.name: variant.dims for variant in self.variants}
        return replace(
            summary,
            path=self.config.output.output,
            rows=n_groups,
            vectors=totals.vectors,
            dims=dims,
            recipe=dict(plan.recipe),
            fingerprint=plan.fingerprint,
        )

    def _shard(self, index: int, start: int, groups: Sequence[Item]) -> EncodedShard:
        with_vector = [group for group in groups if group.vectors is not None]
        kept: dict[str, list[Any]] = {"n_rows": [], "n_pooled": []}
        for place, name in enumerate(self.keep):
            first_rows = [group.kept[place] for group in groups]
            values = self.kept[name]
            kept[name] = [
                values[rows[0]] if len(rows) == 1 and rows[0] is not None else None for rows in first_rows
            ]
            if any(len(rows) > 1 for rows in first_rows):
                self.mixed.add(name)
            self.non_finite[name] += sum(map(has_non_finite, plain_values(kept[name])))
        kept["n_rows"] = [group.rows for group in groups]
        kept["n_pooled"] = [group.pooled for group in groups]
        nulls = self.config.output.format == "npy"
        return EncodedShard(
            index=index,
            start=start,
            stop=start + len(groups),
            ids=[group.key[0] for group in groups],
            kept=kept,
            n_tokens=np.array([group.n_tokens for group in groups], np.int32),
            n_used=np.array([group.n_used for group in groups], np.int32),
            n_chunks=np.array([group.n_chunks for group in groups], np.int32),
            status=[group.status for group in groups],
            has_vector=np.array([group.vectors is not None for group in groups], np.bool_),
            vectors={variant.name: self._vectors(variant, with_vector) for variant in self.variants},
            rejects=[
                Fault(start + place, "", None, group.status)
                for place, group in enumerate(groups)
                if nulls and group.vectors is None
            ],
        )

    def _values(self, facts: Sequence[pa.Table], name: str) -> list[Any]:
        return [
            value for table in facts for value in kept_values_of(table[name], self.row_types.get(name, "string"))
        ]

    def _order(self, facts: Sequence[pa.Table], name: str) -> list[Any]:
        """Returns the keys that rows are ordered by; reports a column ordered as text."""
        keys, others, is_doubtful = order_keys(self._values(facts, name))
        if others:
            self.callbacks.notice(
                f"--order-by {name}: not a number in {others:,} {'row' if others == 1 else 'rows'}, so all are"
                " ordered as text"
            )
        elif is_doubtful:
            self.callbacks.notice(
                f"--order-by {name}: ordered as text, letter by letter, where 10 comes before 9: neither numbers"
                " nor dates such as 2020-01-31, all in one form and of one time zone"
            )
        return keys

    def _vectors(self, variant: Variant, groups: Sequence[Item]) -> Any:
        width = next(stored.dims for stored in self.stored.layout.variants if stored.name == variant.name)
        flat = np.zeros((len(groups), width), np.float32)
        for place, group in enumerate(groups):
            flat[place] = (group.vectors or {})[variant.name]
        truncate_dim = self.config.pooling.truncate_dim
        done = finish(flat, normalize=self.plan.recipe["normalize"], truncate_dim=truncate_dim)
        return as_stored(done, None, self.config.pooling.precision)

    def _keep_rejects(self) -> None:
        """Keeps the list of unreadable rows next to the output."""
        with as_read_error(self.rows):
            content = b"".join(lists_of_shards(self.rows))
        if content:
            out = Path(self.config.output.output)
            name = f"{out.name}.rows.rejects.jsonl"
            write_file(out.parent, name, content)
            self.callbacks.notice(f"rows that are in no group are listed in {out.with_name(name)}")


def _keys(columns: Sequence[Sequence[Any]]) -> list[tuple[str, ...] | None]:
    """Returns for each row the values of its group columns as text.

    None for a faulty row that is kept as null: it is in no group, and listed as a reject.
    """
    rows = zip(*(plain_values(values) for values in columns), strict=True)
    return [None if any(map(is_missing, row)) else tuple(map(text_of, row)) for row in rows]


def _items(
    stored: Stored,
    keys: Iterable[tuple[str, ...] | None],
    alike: Sequence[Sequence[int | None]],
    ordered: Sequence[Any] | None,
) -> Iterator[Item]:
    """Yields the rows.

    Args:
        stored: their vectors and receipts.
        keys: [R] of their groups.
        alike: for each kept column [R] the first row with the same value; None for null.
        ordered: [R] keys that order the rows of a group, if any.
    """
    numbered = enumerate(keys)
    for piece in stored.batches(stored.layout.variants):
        place = 0
        receipts = (piece.facts[name].to_pylist() for name in ("n_tokens", "n_used", "n_chunks", "status"))
        for has_vector, n_tokens, n_used, n_chunks, status in zip(
            piece.has_vector.tolist(), *receipts, strict=True
        ):
            row, key = next(numbered)
            vectors = {name: of[place] for name, of in piece.vectors.items()} if has_vector else None
            place += has_vector
            if key is None:
                continue
            yield Item(
                key=key,
                vectors=vectors,
                weight=n_used if has_vector else 0,
                rows=1,
                pooled=int(has_vector),
                n_tokens=n_tokens,
                n_used=n_used,
                n_chunks=n_chunks,
                statuses={status},
                kept=tuple([(of_column[row],) for of_column in alike]),
                order=None if ordered is None else ordered[row],
            )
