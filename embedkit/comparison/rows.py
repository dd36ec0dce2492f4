"""The rows of an output with their receipts, and the pairs of rows of two outputs that belong together.

Rows belong together by their id and, where a text has several rows, by the number of the unit. Of an id that
occurs more than once, the first row belongs to the first, the second to the second. Ids are kept as hashes of 64
bits: among ten million ids, the odds of two with one hash are 1 in 370,000.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedkit.errors import UsageError
from embedkit.output.formats.arrays import column_numbers, number_array
from embedkit.output.formats.layout import RECEIPT
from embedkit.output.open import Stored, level_of
from embedkit.output.read import columns_of_head
from embedkit.pooling.units import COLUMNS
from embedkit.types import ranges

#: Columns of `--group-by`.
_OF_GROUPS = ("n_rows", "n_pooled")


@dataclass(frozen=True, slots=True)
class Rows:
    """R rows of an output.

    Attributes:
        count: rows stored, of which R are compared.
        numbers: int64 [R] their numbers in the output, ascending.
        keys: uint64 [R] hashes of their ids and units.
        counts: int32 [R, 3] n_tokens, n_used and n_chunks.
        status: int64 [R] places in `statuses`.
        level: text, chunk, word, token or span.
        columns: name → [R] what else was computed: scores of a head, places of units, counts of groups.
        scores: those of a head, whose names are names of classes.
    """

    count: int
    numbers: NDArray[np.int64]
    keys: NDArray[np.uint64]
    counts: NDArray[np.int32]
    status: NDArray[np.int64]
    statuses: Sequence[str]
    level: str
    columns: Mapping[str, pa.ChunkedArray]
    scores: frozenset[str]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Rows of two outputs that belong together, as places among the rows of `Rows`.

    Attributes:
        first, second: int64 [M] in the order of the first output.
        only_first, only_second: int64 rows without a partner.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    only_first: NDArray[np.int64]
    only_second: NDArray[np.int64]


def read_rows(stored: Stored, *, with_vector: bool) -> Rows:
    """Reads ids and receipts of all rows, or of those `with_vector` only.

    Raises:
        OutputError: a file is missing or damaged.
    """
    numbers, keys, status = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    counts = [np.empty((0, 3), np.int32)]
    statuses: dict[str, int] = {}
    count, level = 0, level_of(stored.recipe, pa.schema([]))
    computed: dict[str, list[pa.ChunkedArray]] = {}
    scores: tuple[str, ...] = ()
    for batch in stored.batches(stored.layout.variants[:1] if with_vector else ()):
        chosen = batch.has_vector if with_vector else np.ones(len(batch.facts), np.bool_)
        facts = batch.facts.filter(number_array(chosen))
        level = level_of(stored.recipe, facts.schema)
        numbers.append(count + np.flatnonzero(chosen))
        keys.append(_hashes(facts, level))
        counts.append(np.stack([column_numbers(facts[name]) for name in RECEIPT[:3]], axis=1).astype(np.int32))
        words = facts["status"].to_pylist()
        status.append(np.array([statuses.setdefault(word, len(statuses)) for word in words], np.int64))
        count += len(batch.facts)
        scores = columns_of_head(stored, facts.column_names)
        for name in _computed(stored, level, scores, facts.column_names):
            computed.setdefault(name, []).append(facts[name])
    return Rows(
        count,
        *(np.concatenate(numbers), np.concatenate(keys), np.concatenate(counts), np.concatenate(status)),
        statuses=tuple(statuses),
        level=level,
        columns={
            name: pa.chunked_array([chunk for part in parts for chunk in part.chunks], parts[0].type)
            for name, parts in computed.items()
        },
        scores=frozenset(scores),
    )


def _computed(stored: Stored, level: str, scores: Sequence[str], names: Sequence[str]) -> list[str]:
    """Returns the computed columns; neither receipts nor the numbers of units, which rows are matched by."""
    of_units = [name for name in COLUMNS.get(level, ()) if name not in {level, "label"}]
    of_groups = _OF_GROUPS if "groups" in stored.recipe else ()
    return [name for name in (*scores, *of_units, *of_groups) if name in names]


def _hashes(facts: pa.Table, level: str) -> NDArray[np.uint64]:
    """Returns uint64 [R] a hash of each row's id and unit; a null is another id than any text."""
    ids = [b"0" if one is None else b"1" + one.encode("utf-8", "surrogatepass") for one in facts["id"].to_pylist()]
    if level != "text":
        units = facts[level].to_pylist()
        ids = [one + f"\0{number}".encode() for one, number in zip(ids, units, strict=True)]
    return np.frombuffer(b"".join(blake2b(one, digest_size=8).digest() for one in ids), "<u8").astype(np.uint64)


def check_alike(paths: Sequence[object], outputs: Sequence[Stored], rows: Sequence[Rows]) -> None:
    """Checks that a row of both outputs stands for the same thing.

    Raises:
        UsageError: one has a row for each text and the other for each word, or a group of texts.
    """
    kinds = []
    for stored, of in zip(outputs, rows, strict=True):
        kind = "group of texts" if "groups" in stored.recipe else of.level
        kinds.append(f"a row for each {kind}{', with a vector for each token' * stored.layout.token_vectors}")
    if kinds[0] != kinds[1]:
        raise UsageError(
            f"{paths[0]} has {kinds[0]}, and {paths[1]} has {kinds[1]}: their rows cannot be compared",
            hint="encode both with the same --level, --group-by and kind of --pool",
        )


def matched(first: Rows, second: Rows) -> Pairs:
    """Matches rows by key and, of a repeated key, by occurrence."""
    if np.array_equal(first.keys, second.keys):
        places, none = np.arange(len(first.keys)), np.empty(0, np.int64)
        return Pairs(places, places, none, none)
    orders = [np.argsort(of.keys, kind="stable") for of in (first, second)]
    found = [
        np.unique(of.keys[order], return_index=True, return_counts=True)
        for of, order in zip((first, second), orders, strict=True)
    ]
    _, in_first, in_second = np.intersect1d(found[0][0], found[1][0], assume_unique=True, return_indices=True)
    common = np.minimum(found[0][2][in_first], found[1][2][in_second])
    paired = [
        order[ranges(starts[of], common)]
        for order, (_, starts, _), of in zip(orders, found, (in_first, in_second), strict=True)
    ]
    order = np.argsort(paired[0], kind="stable")
    rest = [
        np.setdiff1d(np.arange(len(of.keys)), of_pairs)
        for of, of_pairs in zip((first, second), paired, strict=True)
    ]
    return Pairs(paired[0][order], paired[1][order], rest[0], rest[1])
