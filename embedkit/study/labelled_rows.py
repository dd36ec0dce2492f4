"""One pass over the input before a model is needed: labels, groups, and what texts are nearly the same.

A text is read, its signature taken, and let go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedkit.arrow_values import array_of, plain_values
from embedkit.config import InputConfig
from embedkit.output.formats.values import json_text
from embedkit.sources import Table, open_table
from embedkit.study.near_duplicates import signatures
from embedkit.types import Record


@dataclass(frozen=True, slots=True)
class InputRows:
    """What is known of the R rows of an input.

    Attributes:
        table: the files, to see in the end whether they are still the same.
        labels: [R] the columns of labels and groups; null for rows that cannot be read.
        signed: uint32 [R, 64] a signature for each text.
        has_text: bool [R], whether the text has any content.
    """

    table: Table
    labels: pa.Table
    signed: NDArray[np.uint32]
    has_text: NDArray[np.bool_]


def read_rows(config: InputConfig, columns: tuple[str, ...]) -> InputRows:
    """Go through the input once.

    Args:
        config: what is read.
        columns: names of the columns of labels and groups.

    Raises:
        InputError: a file or a column is missing, or can no longer be read.
    """
    columns = tuple(dict.fromkeys(columns))
    table = open_table(replace(config, keep=columns))
    values: list[tuple[Any, ...]] = []
    has_text: list[bool] = []

    def texts() -> Iterator[str]:
        for item in table.records():
            record = item if isinstance(item, Record) else None
            values.append(record.kept if record else (None,) * len(columns))
            text = (record and record.text) or ""
            has_text.append(bool(text.strip()))
            yield text

    signed = signatures(texts())
    arrays = [_array([of_row[place] for of_row in values]) for place in range(len(columns))]
    return InputRows(
        table, pa.table(dict(zip(columns, arrays, strict=True))), signed, np.array(has_text, np.bool_)
    )


def _array(values: list[Any]) -> pa.Array:
    """The values of a column as they are; as text where they are of several types."""
    try:
        return array_of(values)
    except (pa.ArrowException, TypeError, OverflowError):
        return pa.array([None if value is None else json_text(value) for value in plain_values(values)])
