"""Counts the content of a shard's files, or of a single-file output, by reading all of it, a batch at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from embedkit.errors import OutputError
from embedkit.output.formats.sink import Sink
from embedkit.output.safe_reading import readable
from embedkit.storage.opener import IN_PLACE, FileOpener
from embedkit.storage.protocol import FilePath


@dataclass(frozen=True, slots=True)
class Contents:
    """Counts over all rows of some files."""

    rows: int
    vectors: int  # rows that have a vector, in every variant
    statuses: Mapping[str, int]  # status → rows
    tokens: tuple[int, int]  # sums of `n_tokens` and of `n_used`
    finite: bool  # True if no number is NaN or infinite
    ids: Sequence[str | None]  # [rows], in order

    def ids_as_numbers(self) -> list[int] | None:
        """Returns the ids as row numbers; None if one of them is not a number as embedkit writes it.

        Nulls are left out: a row that could not be read and was kept as null has no id.
        """
        ids = [identity for identity in self.ids if identity is not None]
        try:
            numbers = [int(identity) for identity in ids]
        except ValueError:
            return None
        return numbers if [str(number) for number in numbers] == ids else None


def contents_of(sink: Sink, files: Sequence[FilePath], opener: FileOpener = IN_PLACE) -> Contents:
    """Reads the files of one shard or one output, and verifies their page checksums.

    Raises:
        OutputError: a file cannot be read, or two files do not have the same rows.
    """
    rows = vectors = 0
    statuses, tokens = Counter[str](), Counter[str](n_tokens=0, n_used=0)
    finite = True
    ids: list[str | None] = []
    with readable(files[0]):
        for batch in sink.read(files, sink.layout.variants, opener=opener):
            rows += len(batch.facts)
            vectors += int(batch.has_vector.sum())
            statuses.update(batch.facts["status"].to_pylist())
            tokens.update({name: pc.sum(batch.facts[name]).as_py() or 0 for name in tokens})
            ids += batch.facts["id"].to_pylist()
            for stored in batch.vectors.values():
                if len(stored) != batch.has_vector.sum():
                    raise OutputError(
                        f"holds {len(stored):,} vectors for {int(batch.has_vector.sum()):,} rows that have one",
                        hint="encode again with --on-exists overwrite",
                    )
                arrays = [stored] if isinstance(stored, np.ndarray) else stored
                finite &= all(bool(np.isfinite(array).all()) for array in arrays)
    return Contents(
        rows, vectors, dict(sorted(statuses.items())), (tokens["n_tokens"], tokens["n_used"]), finite, ids
    )
