"""The configuration of a report, and all numbers of an output's section.

Two passes over the rows: the first counts and samples, the second finds the neighbours of sampled or requested
rows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedkit.comparison.similarity import unit
from embedkit.config import MOST_SEED, at_least, one_of
from embedkit.errors import UsageError
from embedkit.manifest.schema import InputFacts, Totals
from embedkit.output.formats.layout import RECEIPT
from embedkit.output.inspect import recorded_totals
from embedkit.output.open import Stored, open_stored
from embedkit.report.charts import CATEGORIES, category
from embedkit.report.geometry import Map, Nearest, NearPairs, near_pairs, principal_map
from embedkit.report.scan_output import Block, OutputScan, Sample, blocks, chosen_variant, scan_output, shortened
from embedkit.storage.protocol import FilePath
from embedkit.suggest import did_you_mean
from embedkit.types import HASH_COLUMNS, Variant

_QUERIES = 5
_NEIGHBOURS = 10
#: Usual names of texts and counts of grouped rows, which colour a map only if requested.
_NOT_LABELS = frozenset({"text", "note", "sentence", "content", "body", "n_rows", "n_pooled", *HASH_COLUMNS})


@dataclass(frozen=True, slots=True)
class ReportConfig:
    """The options of `embedkit report`.

    Raises:
        UsageError: a value is not allowed.
    """

    paths: tuple[FilePath, ...]  # outputs of encode, folders of sweep, files of poolers, in the order of the page
    page: Path
    on_exists: str = "error"  # or overwrite
    variant: str | None = None  # column of vectors; None takes the first
    color: str | None = None  # kept column that colours the map; None takes the first with few values
    show: tuple[str, ...] = ()  # kept columns shown for points of the map and for neighbours
    neighbours: tuple[str, ...] = ()  # ids whose nearest rows are listed; () takes five random rows
    sample: int = 20_000  # most rows of the map
    seed: int = 0
    title: str = "embedkit report"
    compare: FilePath | None = None  # an output that the only one of `paths` is compared with

    def __post_init__(self) -> None:
        one_of("--on-exists", self.on_exists, ("error", "overwrite"))
        at_least("--sample", self.sample, 1)
        at_least("--seed", self.seed, 0, most=MOST_SEED)


@dataclass(frozen=True, slots=True)
class RowLabel:
    """A row's name on the page, and its cells in the requested columns."""

    name: str
    cells: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Findings:
    """The numbers of one output.

    Attributes:
        model: name of the model; None if the output has none.
        color: the column that colours the map, or None.
        shown: columns shown for points of the map.
        columns: columns shown for neighbours: `color` and `shown`.
        near: nearly equal pairs in the sample; `closest` are positions in the sample.
        queries: rows whose neighbours are listed.
        nearest: for each, (cosine, row), nearest first.
        labels: row → its name and cells.
    """

    path: FilePath
    stored: Stored
    variant: Variant
    model: str | None
    totals: Totals
    scan: OutputScan
    color: str | None
    shown: tuple[str, ...]
    columns: tuple[str, ...]
    map: Map
    near: NearPairs
    queries: Sequence[int]
    nearest: Sequence[Sequence[tuple[float, int]]]
    labels: Mapping[int, RowLabel]


def read_findings(path: FilePath, config: ReportConfig) -> Findings:
    """Reads an output; raises as `write_report`."""
    stored = open_stored(path)
    variant = chosen_variant(stored, config.variant)
    _check_columns(path, stored, config)
    scan = scan_output(stored, variant, size=config.sample, seed=config.seed, ids=set(config.neighbours))
    sample = scan.sample
    n_tokens = sum(tokens * rows for tokens, rows in scan.lengths.items())
    color = config.color or _few_values(sample, _texts_of(stored.input))
    columns = tuple(dict.fromkeys([*([color] if color else []), *config.show]))
    queries, vectors = _queries(path, scan, config)
    nearest = Nearest(vectors, queries, _NEIGHBOURS)
    duplicates = {row for rows, _ in scan.duplicates.largest for row in rows}
    labels = _find_neighbours(blocks(stored, variant), nearest, {*queries, *duplicates}, columns)
    return Findings(
        path=path,
        stored=stored,
        variant=variant,
        model=stored.source.describe(),
        totals=recorded_totals(path) or Totals(scan.rows, scan.vectors, scan.status, n_tokens, scan.n_used),
        scan=scan,
        color=color,
        shown=tuple(dict.fromkeys(config.show)),
        columns=columns,
        map=principal_map(sample.vectors),
        near=near_pairs(sample.vectors, config.seed),
        queries=queries,
        nearest=nearest.found,
        labels=labels,
    )


def row_name(identity: str | None, row: int) -> str:
    """Returns the id of a row, or its number if the id is null."""
    return f"row {row:,} (no id)" if identity is None else identity


def _check_columns(path: FilePath, stored: Stored, config: ReportConfig) -> None:
    """Checks by the first rows that the requested columns exist, before all rows are read."""
    first = next(stored.batches(()), None)
    kept = (
        []
        if first is None
        else [name for name in first.facts.column_names if name not in {"id", *RECEIPT, *HASH_COLUMNS}]
    )
    for option, name in [("--color", config.color), *(("--show", name) for name in config.show)]:
        if name and name not in kept:
            near = did_you_mean(name, kept, "", prefix=f"{option} ")
            columns = f"it has {', '.join(kept) or 'none'}; `embedkit encode --keep COL` keeps one"
            raise UsageError(
                f"{option} {name}: {path.name} has no kept column of this name", hint=f"{near} {columns}".lstrip()
            )


def _texts_of(read: InputFacts | None) -> set[str]:
    """Returns the names of the embedded columns, if the output records them."""
    return set() if read is None else {*read.text, *re.findall(r"\{(\w+)", read.template or "")}


def _few_values(sample: Sample, texts: set[str]) -> str | None:
    """Returns the first kept column of short values, most of which are repeated; never an embedded text."""
    for name, cells in sample.kept.items():
        counted = Counter(category(cell) for cell in cells)
        common = sum(rows for _, rows in counted.most_common(CATEGORIES) if rows > 1)
        short = all(len(word) <= 40 for word in counted)
        if name not in texts | _NOT_LABELS and short and len(counted) > 1 and 2 * common > len(cells):
            return name
    return None


def _queries(path: FilePath, scan: OutputScan, config: ReportConfig) -> tuple[list[int], np.ndarray]:
    """Returns the rows whose neighbours are listed, and their unit vectors [Q, D]."""
    sample = scan.sample
    if not config.neighbours:
        count = min(_QUERIES, len(sample.rows))
        places = np.sort(np.random.default_rng(config.seed).choice(len(sample.rows), count, replace=False))
        return sample.rows[places].tolist(), unit(sample.vectors[places])
    for identity in config.neighbours:
        if identity not in scan.by_id:
            raise UsageError(
                f"--neighbours {identity}: no row of {path.name} with this id has a vector",
                hint="give the id exactly as in the output's column `id`",
            )
    found = [scan.by_id[identity] for identity in dict.fromkeys(config.neighbours)]
    return [row for row, _ in found], np.stack([vector for _, vector in found])


def _find_neighbours(
    rows_in_blocks: Iterable[Block], nearest: Nearest, listed: set[int], columns: Sequence[str]
) -> dict[int, RowLabel]:
    """Fills `nearest`, and returns the labels of its rows and of the `listed` ones."""
    labels: dict[int, RowLabel] = {}
    for block in rows_in_blocks:
        nearest.add(block.vectors, block.rows)
        current = listed | {row for found in nearest.found for _, row in found}
        labels = {row: labels[row] for row in labels.keys() & current}
        rows = np.array([row for row in block.rows.tolist() if row in current], np.int64)
        cells = [[shortened(cell) for cell in block.column(name, rows)] for name in columns]
        for row, identity, *rest in zip(rows.tolist(), block.column("id", rows), *cells, strict=True):
            labels[row] = RowLabel(row_name(identity, row), tuple(rest))
    return labels
