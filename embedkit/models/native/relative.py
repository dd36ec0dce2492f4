"""Tables by the distance of two tokens, and the buckets that families put distances into."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

#: Zeros on either side of a table: vectors of 16 numbers of 8 queries and of keys begin before it or end after it.
_PADDING = 48
#: Short texts share a table: laying one out has several steps, each of them by all threads of torch.
_LEAST_REACH = 64


class DistanceTable:
    """A table with a row for each bucket of distances, laid out by distance.

    That is done for the longest text so far, and kept. Threads may share it: at worst, two of them do the same.
    """

    def __init__(self, rows: Tensor, row_of: Callable[[Tensor], Tensor]) -> None:
        """Makes the table.

        Args:
            rows: [..., rows], one number of a row for each place before it.
            row_of: returns the row for each distance, the key's position minus the query's: int64 [n] to [n].
        """
        self._rows = rows
        self._row_of = row_of
        self._laid_out = rows.new_empty(*rows.shape[:-1], 0)

    def reaching(self, length: int) -> Tensor:
        """Returns the table for texts of up to n tokens, n being `length` or more: [..., 2 n - 1].

        The number at n - 1 + d is that of a key d tokens after the query. Before the first and after the last are
        zeros, which kernels that read whole vectors may reach.
        """
        laid_out = self._laid_out
        if laid_out.shape[-1] < 2 * length - 1:
            reach = max(_LEAST_REACH, 1 << (length - 1).bit_length())
            padded = self._rows.new_zeros(*self._rows.shape[:-1], 2 * (reach + _PADDING) - 1)
            laid_out = padded[..., _PADDING : 2 * reach - 1 + _PADDING]
            laid_out.copy_(self._rows.index_select(-1, self._row_of(torch.arange(1 - reach, reach))))
            self._laid_out = laid_out
        return laid_out

    def between(self, length: int) -> Tensor:
        """Returns the table for the distances within a text of `length` tokens: [..., 2 length - 1]."""
        table = self.reaching(length)
        spare = (table.shape[-1] + 1) // 2 - length
        return table[..., spare : table.shape[-1] - spare]

    def of_pairs(self, length: int) -> Tensor:
        """Returns the table for each query and key of a text of `length` tokens: [..., length, length]."""
        # Window w of the distances begins with the first key's distance from query length - 1 - w.
        return self.between(length).unfold(-1, length, 1).flip(-2)


def t5_buckets(distances: Tensor, n_buckets: int = 32, farthest: int = 128) -> Tensor:
    """Assigns T5's buckets to distances (Raffel et al. 2019, arXiv 1910.10683).

    A half of the buckets is for each side: of these, half for one distance each, the others by the logarithm.

    Args:
        distances: int64, the key's position minus the query's.
        n_buckets: their number, a multiple of 4.
        farthest: the distance from which on all have the last bucket.

    Returns:
        int64 of the same shape.
    """
    a_side = n_buckets // 2
    exact = a_side // 2
    distance = distances.abs()
    # The same operations in the same order as in transformers: at a border, rounding decides.
    share = torch.log(distance.float() / exact) / math.log(farthest / exact) * (a_side - exact)
    far = (exact + share.to(torch.int64)).clamp(max=a_side - 1)
    return (distances > 0) * a_side + torch.where(distance < exact, distance, far)


def deberta_rows(distances: Tensor, n_buckets: int, farthest: int) -> Tensor:
    """Assigns the rows of DeBERTa's position embeddings to distances (He et al. 2020, arXiv 2006.03654).

    Args:
        distances: int64, the key's position minus the query's.
        n_buckets: the buckets of a side, half for one distance each, the others by the logarithm; 0 if each
            distance up to `farthest` has a row.
        farthest: the distance from which on all have the last row of a side.

    Returns:
        int64 of the same shape.
    """
    before = -distances
    span = n_buckets or farthest
    if n_buckets:
        middle = n_buckets // 2
        distance = torch.where(before.abs() < middle, middle - 1, before.abs())
        # As above. The scale is a tensor there, too, so that its logarithm is that of a float32.
        scale = torch.log(torch.tensor((farthest - 1) / middle))
        far = torch.ceil(torch.log(distance / middle) / scale * (middle - 1)) + middle
        before = torch.where(distance <= middle, before.to(far.dtype), far * before.sign()).to(torch.int64)
    return (before + span).clamp(0, 2 * span - 1)
