"""States of rows that poolers are fitted to; those of tokens are memory-mapped, with only a batch in memory."""

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
from embedkit.output.open import open_stored
from embedkit.pooling.poolers import Pooler

#: Texts that are padded to one length.
_POOLED_AT_ONCE = 8


class States:
    """States of rows, in order, with concatenated layers.

    Args:
        rows: for each row [tokens, L * hidden_size], or [L * hidden_size] if they are not of tokens.
        n_layers: the layers L of a row.
        of_tokens: True if a row has a state for each token.
        token_ids: for each row int32 [tokens]; None if they are not known.
        columns: the columns of `rows` that are used, whole layers; None for all.
    """

    def __init__(
        self,
        rows: Sequence[NDArray[np.floating]],
        *,
        n_layers: int,
        of_tokens: bool,
        token_ids: Sequence[NDArray[np.int32]] | None = None,
        columns: NDArray[np.int64] | None = None,
    ) -> None:
        self.n_layers = n_layers
        self.of_tokens = of_tokens
        self.token_ids = token_ids
        self._rows = rows
        self._columns = columns
        self.hidden_size = (rows[0].shape[-1] if columns is None else len(columns)) // n_layers

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, rows: NDArray[np.int64]) -> States:
        """Returns the states of these rows, without copying them."""
        return States(
            [self._rows[row] for row in rows.tolist()],
            n_layers=self.n_layers,
            of_tokens=self.of_tokens,
            token_ids=None if self.token_ids is None else [self.token_ids[row] for row in rows.tolist()],
            columns=self._columns,
        )

    def select_layers(self, places: Sequence[int]) -> States:
        """Returns the states of some of the layers, by their places among all, without copying them."""
        width = self.hidden_size
        columns = np.concatenate([np.arange(place * width, (place + 1) * width) for place in places])
        return States(
            self._rows,
            n_layers=len(places),
            of_tokens=self.of_tokens,
            token_ids=self.token_ids,
            columns=columns if self._columns is None else self._columns[columns],
        )

    def pooled(self, pooler: Pooler, rows: NDArray[np.int64], device: torch.device) -> Tensor:
        """Returns the vectors of some rows, float32 [n, D'], with gradients."""
        if not self.of_tokens:
            # Made by `fit` for vectors of layers, not of tokens.
            combined: Tensor = pooler.of_layers(self._layers(rows).to(device))  # type: ignore[attr-defined]
            return combined
        # Texts of about one length together: a batch of them all would be two thirds padding.
        order = np.argsort([len(self._rows[row]) for row in rows.tolist()], kind="stable")
        vectors = []
        for part in np.array_split(order, -(-len(order) // _POOLED_AT_ONCE)):
            states, mask, ids = self._tokens(rows[part])
            vectors.append(pooler(states.to(device), mask.to(device), ids.to(device)))
        return torch.cat(vectors)[torch.from_numpy(np.argsort(order)).to(device)]

    def blocks(self, size: int = 4096) -> Iterator[NDArray[np.float64]]:
        """Yields all rows' vectors in blocks, float64 [n, n_layers * hidden_size]."""
        for start in range(0, len(self), size):
            yield np.stack([self._row(row) for row in range(start, min(start + size, len(self)))]).astype(
                np.float64
            )

    def _row(self, row: int) -> NDArray[np.floating]:
        return self._rows[row] if self._columns is None else self._rows[row][..., self._columns]

    def _layers(self, rows: NDArray[np.int64]) -> Tensor:
        """Returns float32 [L, n, D]."""
        flat = np.stack([self._row(row) for row in rows.tolist()])
        by_layer = flat.reshape(len(rows), self.n_layers, self.hidden_size).transpose(1, 0, 2)
        return torch.from_numpy(np.ascontiguousarray(by_layer, np.float32))

    def _tokens(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns float32 [L, n, T, D], padded with zeros, the mask, bool [n, T], and the ids, int64 [n, T]."""
        found = [self._row(row) for row in rows.tolist()]
        lengths = np.array([len(states) for states in found])
        padded = np.zeros((len(rows), lengths.max(), self.n_layers * self.hidden_size), np.float32)
        ids = np.zeros(padded.shape[:2], np.int64)
        for place, (row, states) in enumerate(zip(rows.tolist(), found, strict=True)):
            padded[place, : len(states)] = states
            if self.token_ids is not None:
                ids[place, : len(states)] = self.token_ids[row]
        mask = torch.from_numpy(np.arange(lengths.max()) < lengths[:, None])
        by_layer = torch.from_numpy(padded).view(*padded.shape[:2], self.n_layers, self.hidden_size)
        return by_layer.permute(2, 0, 1, 3), mask, torch.from_numpy(ids)


def open_states(
    folder: Path, *, n_layers: int, token_ids: Sequence[NDArray[np.int32]] | None = None
) -> tuple[States, NDArray[np.bool_]]:
    """Opens the `.arrow` files of states that a run has written.

    Args:
        folder: of the run.
        n_layers: layers of a row.
        token_ids: of each row of the input, int32 [tokens]; None if they are not needed.

    Returns:
        The states of the rows that have any, and bool [R], the rows of the input that have.

    Raises:
        OutputError: no row has states.
    """
    stored = open_stored(folder)
    of_tokens = stored.layout.token_vectors
    rows: list[NDArray[np.floating]] = []
    has_states: list[NDArray[np.bool_]] = []
    for files in stored.parts:
        column = map_table(files[0]).column(stored.layout.variants[0].column)
        rows += (_token_rows if of_tokens else _vector_rows)(column)
        has_states.append(column.is_valid().to_numpy())
    if not rows:
        raise OutputError("no row has a text to learn from", hint="check --text-column")
    found = np.concatenate(has_states)
    ids = None if token_ids is None else [token_ids[row] for row in np.flatnonzero(found).tolist()]
    return States(rows, n_layers=n_layers, of_tokens=of_tokens, token_ids=ids), found


def _vector_rows(column: pa.ChunkedArray) -> Iterator[NDArray[np.floating]]:
    """Yields the vector [width] of each cell that is not null, as views of the mapped file."""
    for chunk in column.chunks:
        flat = chunk.values.to_numpy(zero_copy_only=True).reshape(-1, chunk.type.list_size)
        for row, is_valid in enumerate(chunk.is_valid().to_pylist(), chunk.offset):
            if is_valid:
                yield flat[row]


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
