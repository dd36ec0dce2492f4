"""Candidates of a sweep: layers, their aggregation and poolings, as options of `embedkit encode`.

All candidates are made of the same stored columns, a pooled vector for each layer and pooling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedkit.output.open import open_stored

#: Poolings for which the vector of the layers' mean is the mean of the layers' vectors; for `max` and `min` it is
#: not.
LINEAR = ("cls", "mean", "mean_sqrt_len", "weightedmean", "lasttoken")
#: Concatenations of poolings that are compared, too, if all of them are requested.
_CONCATENATED = (("cls", "mean"), ("mean", "max"), ("mean", "max", "min"))
_LAST = 4


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to make a vector."""

    layers: tuple[int, ...]  # ascending
    layer_agg: str  # concat or mean; concat for a single layer
    poolings: tuple[str, ...]  # in the order in which their vectors are concatenated
    model: str = ""  # its name if several models are compared

    @property
    def pool(self) -> str:
        """The value of `--pool`."""
        return ",".join(self.poolings)

    @property
    def layers_text(self) -> str:
        """The layers in words: `layer 9`, `layers 9-12 joined`, `mean of layers 0-12`."""
        if len(self.layers) == 1:
            return f"layer {self.layers[0]}"
        first, last = self.layers[0], self.layers[-1]
        span = f"{first}-{last}" if last - first + 1 == len(self.layers) else ",".join(map(str, self.layers))
        return f"layers {span} joined" if self.layer_agg == "concat" else f"mean of layers {span}"

    @property
    def name(self) -> str:
        """Model (of several), layers and poolings in words."""
        return f"{f'{self.model} ' * bool(self.model)}{self.layers_text} {'+'.join(self.poolings)}"

    @property
    def baseline_name(self) -> str:
        """The name as a baseline: `last-layer CLS`, of several models `minilm last-layer mean`."""
        pool = "CLS" if self.pool == "cls" else self.pool
        return f"{f'{self.model} ' * bool(self.model)}last-layer {pool}"

    def dims(self, hidden_size: int) -> int:
        """Returns the dimensions of its vectors."""
        return hidden_size * len(self.poolings) * (len(self.layers) if self.layer_agg == "concat" else 1)

    @property
    def options(self) -> dict[str, str]:
        """The options of `embedkit encode` that make it."""
        several = {"layer_agg": self.layer_agg} if len(self.layers) > 1 else {}
        return {"layers": ",".join(map(str, self.layers)), **several, "pool": self.pool}


def all_candidates(layers: Sequence[int], poolings: Sequence[str]) -> list[Candidate]:
    """Returns each layer with each pooling and usual concatenation, the last four layers joined, and means."""
    layers = sorted(layers)
    last = tuple(layers[-_LAST:])
    pools = [(name,) for name in poolings] + [names for names in _CONCATENATED if set(names) <= set(poolings)]
    found = [Candidate((layer,), "concat", names) for layer in layers for names in pools]
    if len(last) == _LAST:
        found += [Candidate(last, "concat", (name,)) for name in poolings]
    averaged = [span for span in dict.fromkeys([last, tuple(layers)]) if len(span) > 1]
    found += [Candidate(span, "mean", (name,)) for span in averaged for name in poolings if name in LINEAR]
    return found


def baselines(layers: Sequence[int], poolings: Sequence[str]) -> list[Candidate]:
    """Returns the usual choices, the last layer's CLS and mean, if they were encoded."""
    return [Candidate((max(layers),), "concat", (name,)) for name in ("cls", "mean") if name in poolings]


class PooledVectors:
    """The vectors of an output encoded with `--layer-agg separate`, from which those of any candidate are made.

    Files are memory-mapped, and only what a candidate needs is copied.

    Raises:
        OutputError: the output is not finished, or a file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._stored = open_stored(path)
        self.recipe = self._stored.recipe
        self.layers = tuple(int(layer) for layer in self._stored.recipe["layers"])
        self.poolings = tuple(self._stored.recipe["pool"])
        variants = self._stored.layout.variants
        self.hidden_size = variants[0].dims // len(self.poolings)
        self._variants = dict(zip(self.layers, variants, strict=True))
        pieces = [(piece.has_vector, piece.facts["id"]) for piece in self._stored.batches(variants[:1])]
        #: bool [R], the rows of the input that have a vector.
        self.has_vector = np.concatenate([has_vector for has_vector, _ in pieces])
        #: string [R], of all rows of the input.
        self.ids = pa.chunked_array([chunk for _, ids in pieces for chunk in ids.chunks], pa.string())

    def of(self, candidate: Candidate, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns a candidate's vectors, float32 [N, D], of rows [N], ascending among those with a vector."""
        vectors = np.zeros((len(rows), candidate.dims(self.hidden_size)), np.float32)
        before = 0
        requested = [self._variants[layer] for layer in candidate.layers]
        for piece in self._stored.batches(requested):
            stop = before + int(piece.has_vector.sum())
            first, last = np.searchsorted(rows, (before, stop))
            here = rows[first:last] - before
            layers = [np.asarray(piece.vectors[variant.name]) for variant in requested]
            for columns, part in self._parts(candidate, layers):
                vectors[first:last, columns] += part[here]
            before = stop
        if candidate.layer_agg == "mean":
            vectors /= len(candidate.layers)
        return vectors

    def _parts(
        self, candidate: Candidate, layers: Sequence[NDArray[np.float32]]
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yields for each layer and pooling its columns in the candidate's vector, and the stored vectors."""
        width, place = self.hidden_size, 0
        for name in candidate.poolings:
            stored = self.poolings.index(name) * width
            for of_layer in layers:
                yield slice(place, place + width), of_layer[:, stored : stored + width]
                place += width if candidate.layer_agg == "concat" else 0
            place += width if candidate.layer_agg == "mean" else 0
