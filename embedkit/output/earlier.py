"""Vectors of an earlier output, found by the hashes of their texts: the source of `--update`.

An index of an output takes 24 bytes of memory a row, and about 60 while it is made: 240 MB and 600 MB for
10 million rows. Vectors are read a batch of rows at a time (a row group of Parquet; .npy and Arrow are mapped),
and the batches last used are kept, so that a table in about the same order is read once.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedkit.errors import OutputError
from embedkit.manifest.identity import first_difference
from embedkit.manifest.versioned_file import Json
from embedkit.output.commit import MANIFEST
from embedkit.output.formats.arrays import valid_rows
from embedkit.output.formats.columns import VERIFY, RecordBatch
from embedkit.output.formats.layout import RECEIPT
from embedkit.output.open import Stored, describing_file, open_stored
from embedkit.output.safe_reading import readable
from embedkit.storage.filesystem import is_folder, read_file, sha256_of_ends
from embedkit.storage.hash_key import HASH_BYTES
from embedkit.storage.remote_path import as_path
from embedkit.types import HASH_COLUMNS, EarlierRows, Variant

#: Bytes of batches that are kept: 8 row groups of Parquet.
_KEPT_BYTES = 2**29
_HASH, _UNKNOWN = HASH_COLUMNS
_HASH_TYPE = f"S{HASH_BYTES}"
_SAME_OPTIONS = "use the options and the model of the earlier output (`embedkit inspect` shows them), or leave "


@dataclass(frozen=True, slots=True)
class _Index:
    """Where the texts of an output are."""

    hashes: NDArray[np.bytes_]  # S16 [n] of rows with a vector, distinct, ascending
    rows: NDArray[np.int64]  # [n] the first row of each
    places: Sequence[tuple[int, int]]  # of each batch of rows, its part and its number in the part
    starts: NDArray[np.int64]  # of each batch, its first row


class EarlierOutput:
    """An earlier output with hashes of its texts.

    Args:
        path: as the user named it.

    Raises:
        OutputError: there is no output, it is not finished, or it has no hashes.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.stored: Stored = open_stored(as_path(path))
        if self.stored.hash_key is None:
            raise OutputError(
                f"--update {path}: it has no hashes of its texts, by which they would be recognised",
                hint="encode it once more with --keep-hashes: outputs made from it by --update then have them"
                if self.stored.recipe
                else "JSON Lines alone cannot hold what is needed: encode to a folder with --keep-hashes",
            )
        self.hash_key: str = self.stored.hash_key
        place = as_path(path)
        with readable(place):
            #: Changes with any file of a folder; of a single file, with its size, beginning or end.
            self.digest = (
                hashlib.sha256(read_file(place / MANIFEST)).hexdigest()
                if is_folder(place)
                else sha256_of_ends(describing_file(place))
            )
        self._kept: OrderedDict[tuple[int, int], RecordBatch] = OrderedDict()

    def check_recipe(self, recipe: Json, scores: Sequence[str], *, without: Collection[str] = ()) -> None:
        """Checks that its vectors are those that this run would compute.

        Args:
            recipe: of this run.
            scores: columns that a head adds.
            without: fields of the recipe that are not known yet.

        Raises:
            OutputError: its recipe is another one; names the first field that differs. Or it lacks a column of
                the scores of a head.
        """
        one, other = ({k: v for k, v in of.items() if k not in without} for of in (self.stored.recipe, recipe))
        difference = first_difference(one, other)
        if difference is not None:
            field, was, now = difference
            raise OutputError(
                f"--update {self.path}: another recipe made it: {field} was {was} and is {now} now",
                hint=f"{_SAME_OPTIONS}out --update",
            )
        missing = next((name for name in scores if name not in self._columns), None)
        if missing is not None:
            raise OutputError(
                f"--update {self.path}: it lacks the column {missing}, which --with-head adds",
                hint="encode it with --with-head, or leave that out",
            )

    def version_difference(self, now: Mapping[str, str]) -> str | None:
        """Returns how the versions that computed its vectors differ from those of now; None if they do not."""
        for stored in self.stored.versions or ({},):
            versions = {"attention": "fp32", **stored}
            changed = [
                f"{name} was {versions.get(name, 'unknown')} and is {version} now"
                for name, version in now.items()
                if versions.get(name) != version
            ]
            if changed:
                return ", ".join(changed)
        return None

    @cached_property
    def _columns(self) -> list[str]:
        """Names of the columns besides vectors."""
        batch = next(self.stored.batches(()), None)
        return [] if batch is None else list(batch.facts.column_names)

    @cached_property
    def _index(self) -> _Index:
        hashes, rows = [np.empty(0, _HASH_TYPE)], [np.empty(0, np.int64)]
        places: list[tuple[int, int]] = []
        starts: list[int] = []
        start = 0
        for part, files in enumerate(self.stored.parts):
            with readable(files[0]):
                # All of the part is checked: damage is found before anything is computed.
                found = self.stored.read_part(part, (), checked=self.stored.layout.variants)
                for number, batch in enumerate(found):
                    column = batch.facts[_HASH]
                    places.append((part, number))
                    starts.append(start)
                    rows.append(start + np.flatnonzero(valid_rows(column)))
                    digits = bytes.fromhex("".join(column.drop_null().to_pylist()))
                    hashes.append(np.frombuffer(digits, _HASH_TYPE))
                    start += len(batch.facts)
        distinct, first = np.unique(np.concatenate(hashes), return_index=True)
        return _Index(distinct, np.concatenate(rows)[first], places, np.array(starts, np.int64))

    def find(self, hashes: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """Looks up texts by their hashes [N].

        Returns:
            int64 [N] the first row of each text; -1 where there is none with a vector.

        Raises:
            OutputError: a file is missing or damaged.
        """
        index = self._index
        if not len(index.hashes):
            return np.full(len(hashes), -1, np.int64)
        at = np.minimum(np.searchsorted(index.hashes, hashes), len(index.hashes) - 1)
        return np.where(index.hashes[at] == hashes, index.rows[at], -1)

    def rows(self, rows: NDArray[np.int64], scores: Mapping[str, str]) -> EarlierRows:
        """Reads rows, int64 [K] from `find`, in the order given.

        Args:
            rows: their numbers in the output.
            scores: columns that a head added, and their types.

        Raises:
            OutputError: a file is missing or damaged.
        """
        columns = [*RECEIPT, _UNKNOWN, *scores]
        values: dict[str, list[Any]] = {name: [None] * len(rows) for name in columns}
        variants = self.stored.layout.variants
        vectors: dict[str, Any] = {}
        batch_of = np.searchsorted(self._index.starts, rows, side="right") - 1
        for number in np.unique(batch_of).tolist():
            batch = self._batch(*self._index.places[number])
            asked = np.flatnonzero(batch_of == number)
            within = rows[asked] - self._index.starts[number]
            if not batch.has_vector[within].all():
                raise OutputError(f"{self.path} is damaged: a row with a hash has no vector", hint=VERIFY)
            nth = (np.cumsum(batch.has_vector) - 1)[within]
            facts = batch.facts.select(columns).take(pa.array(within))
            for name in columns:
                for place, value in zip(asked.tolist(), _values(facts[name], scores.get(name, "")), strict=True):
                    values[name][place] = value
            for variant in variants:
                found = batch.vectors[variant.name]
                if isinstance(found, np.ndarray):
                    empty = np.empty((len(rows), found.shape[1]), found.dtype)
                    taken = vectors.setdefault(variant.name, empty)
                    taken[asked] = found[nth]
                else:
                    taken = vectors.setdefault(variant.name, [None] * len(rows))
                    for place, vector in zip(asked.tolist(), nth.tolist(), strict=True):
                        taken[place] = found[vector]
                self._check_finite(variant, taken, asked)
        return EarlierRows(values, vectors)

    def _check_finite(self, variant: Variant, taken: Any, asked: NDArray[np.int64]) -> None:
        arrays = [taken[asked]] if isinstance(taken, np.ndarray) else [taken[place] for place in asked.tolist()]
        if not all(np.isfinite(array).all() for array in arrays):
            raise OutputError(
                f"{self.path} is damaged: {variant.column} holds a number that is not finite", hint=VERIFY
            )

    def _batch(self, part: int, number: int) -> RecordBatch:
        """Returns a batch with its vectors; those last used are kept."""
        key = (part, number)
        if key not in self._kept:
            self._kept[key] = next(self.stored.read_part(part, self.stored.layout.variants, only=number))
            while len(self._kept) > 1 and sum(map(_size, self._kept.values())) > _KEPT_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def _values(column: pa.ChunkedArray, kind: str) -> list[Any]:
    """Returns the values of a column of a type, as a head gives them.

    Those of float32 are the shortest text that gives the same number. Lists are text if they are from JSON Lines.
    """
    if column.type == pa.float32():
        return [float(str(value)) for value in column.to_numpy()]
    if kind.startswith("list") and column.type == pa.string():
        return [json.loads(value) for value in column.to_pylist()]
    return list(column.to_pylist())


def _size(batch: RecordBatch) -> int:
    """Returns the bytes of a batch, those of mapped files too."""
    arrays = (array for of in batch.vectors.values() for array in ([of] if isinstance(of, np.ndarray) else of))
    return int(batch.facts.nbytes) + sum(array.nbytes for array in arrays)
