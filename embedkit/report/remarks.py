"""What there is to tell of one output: all numbers of its section, before anything is drawn.

Two passes over the rows: one counts and samples, the other finds the neighbours of rows that are known then.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedkit.errors import UsageError
from embedkit.manifest.schema import InputFacts, Totals
from embedkit.output.formats.schema import RECEIPT
from embedkit.output.inspect import recorded_totals
from embedkit.output.open import Stored, open_stored
from embedkit.report.blocks import Block, blocks, chosen_variant
from embedkit.report.charts import CATEGORIES, category
from embedkit.report.geometry import Map, Nearest, NearPairs, near_pairs, principal_map, unit
from embedkit.report.report_config import ReportConfig
from embedkit.report.scan_output import Sample, Survey, shortened, survey
from embedkit.suggest import did_you_mean
from embedkit.types import Variant

_QUERIES = 5
_NEIGHBOURS = 10
#: Names under which texts are kept, and counts of grouped rows: they colour a map only where they are named.
_NO_LABELS = frozenset({"text", "note", "sentence", "content", "body", "n_rows", "n_pooled"})


@dataclass(frozen=True, slots=True)
class Told:
    """What the page says of a row: its name, and the cells of the columns that were asked for."""

    name: str
    cells: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Findings:
    """All of one output.

    Attributes:
        path: the folder or file.
        variant: the column of vectors that the rest is about.
        model: what the model is called; None where the output does not say.
        totals: counts over all rows, those without a vector too.
        color: the column that colours the map, or None.
        shown: columns whose cells are told of the points of the map.
        columns: these, after the one that colours the map: told beside neighbours.
        near: nearly equal pairs among the sample; `closest` are places in the sample.
        queries: rows whose neighbours are listed.
        nearest: for each, (cosine, row), nearest first.
        told: row → what the page says of it.
    """

    path: Path
    stored: Stored
    variant: Variant
    model: str | None
    totals: Totals
    survey: Survey
    color: str | None
    shown: tuple[str, ...]
    columns: tuple[str, ...]
    map: Map
    near: NearPairs
    queries: Sequence[int]
    nearest: Sequence[Sequence[tuple[float, int]]]
    told: Mapping[int, Told]

    @property
    def sample(self) -> Sample:
        """The rows of the map."""
        return self.survey.sample


def find_out(path: Path, config: ReportConfig) -> Findings:
    """Read an output.

    Raises:
        OutputError: there is nothing, it is not finished, a file is damaged, or embedkit did not write it.
        UsageError: it has no such variant, kept column or id.
    """
    stored = open_stored(path)
    variant = chosen_variant(stored, config.variant)
    _check_columns(path, stored, config)
    seen = survey(stored, variant, size=config.sample, seed=config.seed, wanted=set(config.neighbours))
    sample = seen.sample
    color = config.color or _few_values(sample, _texts_of(stored.input))
    columns = tuple(dict.fromkeys([*([color] if color else []), *config.show]))
    queries, vectors = _queries(path, seen, config)
    nearest = Nearest(vectors, queries, _NEIGHBOURS)
    repeated = {row for rows in seen.repeats.largest for row in rows}
    told = _tell(blocks(stored, variant), nearest, {*queries, *repeated}, columns)
    return Findings(
        path=path,
        stored=stored,
        variant=variant,
        model=stored.source.describe(),
        totals=recorded_totals(path) or _totals(seen),
        survey=seen,
        color=color,
        shown=tuple(dict.fromkeys(config.show)),
        columns=columns,
        map=principal_map(sample.vectors),
        near=near_pairs(sample.vectors, config.seed),
        queries=queries,
        nearest=nearest.found,
        told=told,
    )


def name_of(identity: str | None, row: int) -> str:
    """What a row is called: its id, or its place where the id is null."""
    return f"row {row:,} (no id)" if identity is None else identity


def _totals(seen: Survey) -> Totals:
    n_tokens = sum(tokens * rows for tokens, rows in seen.lengths.items())
    return Totals(seen.rows, seen.vectors, dict(seen.status), n_tokens, seen.n_used)


def _check_columns(path: Path, stored: Stored, config: ReportConfig) -> None:
    """See that the columns that were asked for are there, by the first rows, before all of them are read."""
    first = next(stored.pieces(()), None)
    kept = [] if first is None else [name for name in first.facts.column_names if name not in {"id", *RECEIPT}]
    asked = [*([("--color", config.color)] if config.color else []), *(("--show", name) for name in config.show)]
    for option, name in asked:
        if name not in kept:
            near = did_you_mean(name, kept, "", prefix=f"{option} ")
            there = f"it has {', '.join(kept) or 'none'}; `embedkit encode --keep COL` keeps one"
            raise UsageError(
                f"{option} {name}: {path.name} has no kept column of this name", hint=f"{near} {there}".lstrip()
            )


def _texts_of(read: InputFacts | None) -> set[str]:
    """Columns that were embedded, as far as the output says so."""
    return set() if read is None else {*read.text, *re.findall(r"\{(\w+)", read.template or "")}


def _few_values(sample: Sample, texts: set[str]) -> str | None:
    """The first kept column whose values are short and come again; never one of texts.

    Most rows must have one of the values that get a colour of their own.
    """
    for name, cells in sample.kept.items():
        counted = Counter(category(cell) for cell in cells)
        common = sum(rows for _, rows in counted.most_common(CATEGORIES) if rows > 1)
        short = all(len(word) <= 40 for word in counted)
        if name not in texts | _NO_LABELS and short and len(counted) > 1 and 2 * common > len(cells):
            return name
    return None


def _queries(path: Path, seen: Survey, config: ReportConfig) -> tuple[list[int], np.ndarray]:
    """Rows whose neighbours are asked for, and their vectors [Q, D] of length 1."""
    sample = seen.sample
    if not config.neighbours:
        count = min(_QUERIES, len(sample.rows))
        places = np.sort(np.random.default_rng(config.seed).choice(len(sample.rows), count, replace=False))
        return sample.rows[places].tolist(), unit(sample.vectors[places])
    for identity in config.neighbours:
        if identity not in seen.wanted:
            raise UsageError(
                f"--neighbours {identity}: no row of {path.name} with this id has a vector",
                hint="ids are text, letter for letter as in the output's column `id`",
            )
    found = [seen.wanted[identity] for identity in dict.fromkeys(config.neighbours)]
    return [row for row, _ in found], np.stack([vector for _, vector in found])


def _tell(through: Iterable[Block], nearest: Nearest, wanted: set[int], columns: Sequence[str]) -> dict[int, Told]:
    """Find the neighbours, and what is said of each row that is on the page in the end."""
    told: dict[int, Told] = {}
    for block in through:
        nearest.add(block.vectors, block.rows)
        current = wanted | {row for found in nearest.found for _, row in found}
        told = {row: told[row] for row in told.keys() & current}
        rows = np.array([row for row in block.rows.tolist() if row in current], np.int64)
        cells = [[shortened(cell) for cell in block.column(name, rows)] for name in columns]
        for row, identity, *rest in zip(rows.tolist(), block.column("id", rows), *cells, strict=True):
            told[row] = Told(name_of(identity, row), tuple(rest))
    return told
