"""Encoded states of the rows, memory-mapped; only a batch of them is in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedkit.errors import OutputError
from embedkit.output.formats.arrow_format import map_table
from embedkit.output.formats.npy_format import map_array
from embedkit.output.open import open_stored
from embedkit.pooling.poolers import LayerwisePooler
from embedkit.pooling.trained import TrainedPooler


class States:
    """States of the rows with a text, in the order of the input.

    Attributes:
        facts: id and kept columns of these rows.
        n_layers, hidden_size: layers are concatenated.
        of_tokens: True if a row is [tokens, n_layers * hidden_size], False if it is [n_layers * hidden_size].
    """

    def __init__(
        self, facts: pa.Table, rows: Sequence[NDArray[np.floating]], *, n_layers: int, of_tokens: bool
    ) -> None:
        self.facts = facts
        self.n_layers = n_layers
        self.of_tokens = of_tokens
        self._rows = rows
        self.hidden_size = rows[0].shape[-1] // n_layers

    def __len__(self) -> int:
        return len(self._rows)

    def pooled(self, pooler: TrainedPooler, rows: NDArray[np.int64], device: torch.device) -> Tensor:
        """Returns the vectors of some rows, float32 [n, D'], with gradients."""
        if isinstance(pooler, LayerwisePooler):
            return pooler.of_layers(self._layers(rows).to(device))
        states, mask = self._tokens(rows)
        vectors: Tensor = pooler(states.to(device), mask.to(device))
        return vectors

    def blocks(self, size: int = 4096) -> Iterator[NDArray[np.float64]]:
        """Yields all rows' vectors in blocks, float64 [n, n_layers * hidden_size]."""
        for start in range(0, len(self), size):
            yield np.stack(self._rows[start : start + size]).astype(np.float64)

    def _layers(self, rows: NDArray[np.int64]) -> Tensor:
        """Returns float32 [L, n, D]."""
        flat = np.stack([self._rows[row] for row in rows.tolist()])
        by_layer = flat.reshape(len(rows), self.n_layers, self.hidden_size).transpose(1, 0, 2)
        return torch.from_numpy(np.ascontiguousarray(by_layer, np.float32))

    def _tokens(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Returns float32 [L, n, T, D], padded with zeros, and the mask, bool [n, T]."""
        found = [self._rows[row] for row in rows.tolist()]
        lengths = np.array([len(states) for states in found])
        padded = np.zeros((len(rows), lengths.max(), self.n_layers * self.hidden_size), np.float32)
        for place, states in enumerate(found):
            padded[place, : len(states)] = states
        mask = torch.from_numpy(np.arange(lengths.max()) < lengths[:, None])
        by_layer = torch.from_numpy(padded).view(*padded.shape[:2], self.n_layers, self.hidden_size)
        return by_layer.permute(2, 0, 1, 3), mask


def open_states(folder: Path, *, n_layers: int) -> States:
    """Opens the states that a run has written: `.npy` of vectors, or `.arrow` of token vectors."""
    stored = open_stored(folder)
    of_tokens = stored.layout.token_vectors
    rows: list[NDArray[np.floating]] = []
    facts: list[pa.Table] = []
    for files in stored.parts:
        if of_tokens:
            table = map_table(files[0])
            column = table.column(stored.layout.variants[0].column)
            rows += _token_rows(column)
            columns = [variant.column for variant in stored.layout.variants]
            facts.append(table.drop_columns(columns).filter(column.is_valid()))
        else:
            rows += list(map_array(files[0]))
            facts += [piece.facts for piece in stored.sink.read(files, ())]
    if not rows:
        raise OutputError("no row has a text to learn from", hint="check --text-column")
    return States(
        pa.concat_tables(facts, promote_options="permissive"), rows, n_layers=n_layers, of_tokens=of_tokens
    )


def _token_rows(column: pa.ChunkedArray) -> Iterator[NDArray[np.floating]]:
    """Yields the tokens [n, width] of each cell that is not null, as views of the mapped file."""
    for chunk in column.chunks:
        # Not `chunk.flatten()`, which copies all values if there is a null.
        values = chunk.values
        flat = values.flatten().to_numpy(zero_copy_only=True).reshape(-1, values.type.list_size)
        offsets = chunk.offsets.to_numpy().tolist()
        for row, is_valid in enumerate(chunk.is_valid().to_pylist()):
            if is_valid:
                yield flat[offsets[row] : offsets[row + 1]]
