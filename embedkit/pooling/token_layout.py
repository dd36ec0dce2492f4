"""The layout of a batch's tokens, and the tokens that take part in the pooling.

Its arrays are made in numpy, in any thread, and are on the device before the states are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedkit.pooling.batch_pooler import BatchPooler, TokenGroup
from embedkit.pooling.functions import Arrays, Inputs, segment_arrays
from embedkit.pooling.pooling_spec import PoolingSpec
from embedkit.types import Batch, ranges


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """The layout of a batch before the pooling."""

    batch: Batch
    packed: bool  # whether they are concatenated, [1, T]; else they are padded, [n, longest]
    skipped_start: int = 0  # tokens at the ends of each text that take no part
    skipped_end: int = 0
    #: Pool a packed batch in one call; else one length after another, which is as fast on a CPU.
    by_segments: bool = False

    def part(self, texts: slice) -> TokenLayout:
        """Returns the layout of consecutive texts of the batch alone."""
        return replace(self, batch=Batch(self.batch.texts[texts], self.batch.lengths[texts]))

    @property
    def kept(self) -> NDArray[np.int64]:
        """Number of tokens of each text that take part: int64 [n]."""
        starts, stops = self._borders()
        return stops - starts

    def arrays(self, spec: PoolingSpec, input_ids: NDArray[np.int64] | None) -> Arrays:
        """Makes the arrays of `pooler`; `input_ids`, int64 [T], packed, are None unless a pooler needs them."""
        lengths = self.batch.lengths
        width = int(lengths[-1])
        starts, stops = self._borders()
        opens = np.cumsum(lengths) - lengths if self.packed else np.arange(len(lengths)) * width
        if not spec.poolings:
            if self.packed and not (self.skipped_start or self.skipped_end):
                return {}
            return {"token_places": ranges(opens + starts, stops - starts)}
        arrays: Arrays = {}
        if input_ids is not None:
            arrays["token_ids"] = input_ids
            if not self.packed:
                arrays["token_ids"] = np.zeros((len(lengths), width), np.int64)
                arrays["token_ids"][np.arange(width) < lengths[:, None]] = input_ids
        if not self.packed:
            arrays["token_stops"] = (lengths - self.skipped_end)[:, None]
        elif self.by_segments:
            skipped = spec.skipped if "weightedmean" in spec.poolings else None
            arrays |= segment_arrays(opens + starts, opens + stops, self.batch.tokens, skipped=skipped)
        return arrays

    def pooler(self, spec: PoolingSpec, arrays: Inputs, device: torch.device) -> BatchPooler:
        """Returns the pooler of this batch; `arrays` is the result of that method, on the device."""
        if not spec.poolings:
            return BatchPooler(spec, (), places=arrays.get("token_places"))
        ids = arrays.get("token_ids")
        if not self.packed:
            position = torch.arange(int(self.batch.lengths[-1]), device=device)
            mask = (position >= self.skipped_start) & (position < arrays["token_stops"])
            return BatchPooler(spec, [TokenGroup(None, mask, ids)])
        segments = arrays if self.by_segments else None
        needs_groups = segments is None or spec.poolers
        return BatchPooler(spec, self._groups(ids, device) if needs_groups else (), segments)

    def _groups(self, ids: Tensor | None, device: torch.device) -> list[TokenGroup]:
        groups = []
        for group in self.batch.length_groups():
            mask = None
            if self.skipped_start or self.skipped_end:
                position = torch.arange(group.length, device=device)
                takes_part = (position >= self.skipped_start) & (position < group.length - self.skipped_end)
                mask = takes_part.expand(group.count, -1)
            of_group = None
            if ids is not None:
                of_group = ids[group.start :][: group.count * group.length].view(group.count, -1)
            groups.append(TokenGroup(group, mask, of_group))
        return groups

    def _borders(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the tokens [start, stop) of each text that take part, from the text's first: int64 [n] both."""
        starts = np.minimum(self.skipped_start, self.batch.lengths)
        return starts, np.maximum(starts, self.batch.lengths - self.skipped_end)


class PartPoolers:
    """Pools parts of a batch each for itself, so that threads may do it at once.

    Args:
        spec: layers and poolings, which need no more than the states of a text.
        layout: of the batch.
        device: of the states.
    """

    def __init__(self, spec: PoolingSpec, layout: TokenLayout, device: torch.device) -> None:
        self._spec = spec
        self._layout = layout
        self._device = device
        self._parts: list[BatchPooler] = []

    @staticmethod
    def can_pool(spec: PoolingSpec, layout: TokenLayout) -> bool:
        """Checks that the states of a text suffice: poolers of others may not bear several threads."""
        return layout.packed and not (layout.by_segments or spec.poolers or "pooler" in spec.poolings)

    def take_part(self, texts: slice) -> Callable[[int, Tensor], None]:
        """Returns what takes the layers of these texts of the batch; to be called in order."""
        layout = self._layout.part(texts)
        of_part = layout.arrays(self._spec, None)
        arrays = {name: torch.from_numpy(array).to(self._device) for name, array in of_part.items()}
        # The head is for all texts of the batch at once.
        self._parts.append(layout.pooler(replace(self._spec, head=None), arrays, self._device))
        return self._parts[-1].take

    def vectors(self) -> dict[str, Tensor]:
        """Returns float32 [n, D] for each variant, or [T', D] for token vectors; see BatchPooler."""
        of_parts = [part.vectors() if self._spec.poolings else part.token_vectors() for part in self._parts]
        vectors = {name: torch.cat([of_part[name] for of_part in of_parts]) for name in of_parts[0]}
        head = self._spec.head
        return vectors if head is None else {name: head(of_name) for name, of_name in vectors.items()}
