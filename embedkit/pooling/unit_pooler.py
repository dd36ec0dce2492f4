"""Vectors of units from the states of their tokens, and vectors of texts from those of their windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedkit.pooling.units import Members
from embedkit.types import Tokens, ranges


class UnitPooler:
    """Takes the token states of all batches, and returns the units' vectors at the end.

    The tokens of a unit may be in several windows, and these in several batches.

    Args:
        poolings: mean, max, min, first, last or mean_sqrt_len (the sum divided by the square root of the number of
            tokens); several are concatenated.
        members: the tokens of the units.
        n_units: the number of units.
        tokens: the shard's W windows.
        duplicate_of: int64 [W], for each window the equal one that is computed.
    """

    def __init__(
        self,
        poolings: Sequence[str],
        members: Members,
        n_units: int,
        tokens: Tokens,
        duplicate_of: NDArray[np.int64],
    ) -> None:
        self.poolings = poolings
        self.n_units = n_units
        self.sums: dict[tuple[str, str], NDArray[np.float32]] = {}
        lengths = tokens.lengths
        opens = np.cumsum(lengths) - lengths
        self._tokens = tokens
        self._where = np.full(len(tokens.input_ids), -1, np.int64)
        self._parts: dict[str, tuple[Members, NDArray[np.int64], NDArray[np.int64]]] = {}
        for how in poolings:
            of_how = members.only(how) if how in {"first", "last"} else members
            window = np.searchsorted(opens, of_how.place, side="right") - 1
            computed = duplicate_of[window]
            moved = Members(of_how.unit, of_how.place - opens[window] + opens[computed])
            order = np.argsort(computed, kind="stable")
            self._parts[how] = (moved, order, computed[order])
        self._counts = np.bincount(members.unit, minlength=n_units)

    def prepare(
        self, windows: NDArray[np.int64]
    ) -> tuple[dict[str, NDArray[np.int64]], dict[str, NDArray[np.int64]]]:
        """Makes the arrays of `reduce` for a batch of windows, and for `add` the units by pooling.

        Uses numpy alone, so one other thread may call it ahead.
        """
        places, _ = self._tokens.indices_of(windows)
        self._where[places] = np.arange(len(places))
        arrays, found = {}, {}
        for how, (members, order, computed) in self._parts.items():
            first = np.searchsorted(computed, windows)
            inside = np.sort(order[ranges(first, np.searchsorted(computed, windows, side="right") - first)])
            if not len(inside):
                continue
            found[how], counts = np.unique(members.unit[inside], return_counts=True)
            arrays[f"unit_rows_{how}"] = self._where[members.place[inside]]
            if len(inside) > len(counts):
                arrays[f"unit_lengths_{how}"] = counts
        return arrays, found

    def reduce(self, arrays: Mapping[str, Tensor], states: Mapping[str, Tensor]) -> dict[tuple[str, str], Tensor]:
        """Reduces the tokens of a batch by unit, on its device.

        Args:
            arrays: those of `prepare`, on the device.
            states: variant → float32 [T, D], the states of all tokens of the batch, packed.

        Returns:
            float32 [units of the batch, D] by variant and pooling.
        """
        parts = {}
        for how in self.poolings:
            rows, lengths = arrays.get(f"unit_rows_{how}"), arrays.get(f"unit_lengths_{how}")
            if rows is None:
                continue
            for name, of_variant in states.items():
                part = of_variant.index_select(0, rows)
                if lengths is not None:
                    # Scattered additions would have another order each time on a GPU. Unsafe: its checks would
                    # wait for the device.
                    part = torch.segment_reduce(part, _kind(how), lengths=lengths, unsafe=True)
                parts[name, how] = part
        return parts

    def add(
        self, units: Mapping[str, NDArray[np.int64]], parts: Mapping[tuple[str, str], NDArray[np.float32]]
    ) -> None:
        """Adds the result of `reduce`, copied from the device, to the units of `prepare`."""
        for (name, how), found in parts.items():
            kind = _kind(how)
            if (name, how) not in self.sums:
                start = {"max": -np.inf, "min": np.inf, "sum": 0.0}[kind]
                self.sums[name, how] = np.full((self.n_units, found.shape[1]), start, np.float32)
            sums, of_batch = self.sums[name, how], units[how]
            combine = {"max": np.maximum, "min": np.minimum, "sum": np.add}[kind]
            sums[of_batch] = combine(sums[of_batch], found)

    def vectors(self, lost: Sequence[int]) -> dict[str, NDArray[np.float32]]:
        """Returns variant → float32 [U, D x poolings].

        Args:
            lost: windows that did not fit into memory; units with a token in one of them are NaN, as are those
                without tokens.
        """
        for how, (members, order, computed) in self._parts.items():
            units = members.unit[order[np.isin(computed, lost)]]
            for (_, pooling), sums in self.sums.items():
                if pooling == how:
                    sums[units] = np.nan
        counts = np.maximum(self._counts, 1).astype(np.float32)[:, None]
        by = {"mean": counts, "mean_sqrt_len": np.sqrt(counts)}
        for (name, how), sums in self.sums.items():
            self.sums[name, how] = sums / by[how] if how in by else sums
            self.sums[name, how][self._counts == 0] = np.nan
        names = dict.fromkeys(name for name, _ in self.sums)
        for name in names:
            # If memory ran out, a pooling may have seen none of its tokens.
            width = next(sums.shape[1] for (variant, _), sums in self.sums.items() if variant == name)
            for how in self.poolings:
                self.sums.setdefault((name, how), np.full((self.n_units, width), np.nan, np.float32))
        return {name: np.concatenate([self.sums[name, how] for how in self.poolings], axis=1) for name in names}


def _kind(how: str) -> str:
    """Returns the reduction of `segment_reduce` for a pooling."""
    return how if how in {"max", "min"} else "sum"


def combine_windows(
    vectors: NDArray[np.float32], texts: NDArray[np.int64], weights: NDArray[np.int64], how: str
) -> NDArray[np.float32]:
    """Combines the vectors of a long text's windows to one vector, whatever the pooling in each window.

    Args:
        vectors: float32 [W, D], of the windows.
        texts: int64 [W], the text that each is of, ascending.
        weights: int64 [W], tokens that each adds to those before it: tokens in two windows count once.
        how: `mean` = sum(weight x vector) / sum(weight); `max` = largest value of each dimension; `first` = the
            first window's.

    Returns:
        float32 [texts that have a window, D]; a text of one window keeps its vector, bit for bit.
    """
    opens = np.flatnonzero(np.diff(texts, prepend=-1))
    if len(opens) == len(texts) or how == "first":
        return vectors[opens]
    if how == "max":
        return np.maximum.reduceat(vectors, opens, axis=0)
    # A text without tokens but with a prompt has one window that adds nothing: its weight is 1.
    own = np.maximum(weights, 1).astype(np.float64)[:, None]
    sums = np.add.reduceat(vectors * own, opens, axis=0)
    combined: NDArray[np.float32] = (sums / np.add.reduceat(own, opens)).astype(np.float32)
    alone = np.diff(opens, append=len(texts)) == 1
    combined[alone] = vectors[opens[alone]]
    return combined
