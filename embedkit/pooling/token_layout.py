"""Where the tokens of a batch lie, and which of them take part in the pooling.

The numbers are made in numpy, in whichever thread, and are tensors on the device of the states when these come.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedkit.pooling.batch_pooler import BatchPooler, PoolingPlan, TokenGroup
from embedkit.pooling.segments import Arrays, Segments, segment_arrays
from embedkit.types import Batch


@dataclass(frozen=True, slots=True)
class Layout:
    """How a batch lies before the pooling.

    Attributes:
        batch: its texts.
        packed: whether they lie end to end, [1, T]; else they are a rectangle [n, longest].
        before, behind: tokens at the ends of each text that take no part.
        by_segments: pool a packed batch in one go; else one length after another, which is as fast on a CPU.
    """

    batch: Batch
    packed: bool
    before: int = 0
    behind: int = 0
    by_segments: bool = False

    @property
    def kept(self) -> NDArray[np.int64]:
        """How many tokens of each text take part: int64 [n]."""
        starts, stops = self._borders()
        return stops - starts

    def arrays(self, plan: PoolingPlan, input_ids: NDArray[np.int64] | None) -> Arrays:
        """What `pooler` needs.

        Args:
            plan: what is computed.
            input_ids: int64 [T] of the texts laid end to end; None where no pooler wants them.
        """
        lengths = self.batch.lengths
        width = int(lengths[-1])
        starts, stops = self._borders()
        opens = np.cumsum(lengths) - lengths if self.packed else np.arange(len(lengths)) * width
        if not plan.poolings:
            if self.packed and not (self.before or self.behind):
                return {}
            counts = stops - starts
            place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            return {"token_places": np.repeat(opens + starts, counts) + place}
        arrays: Arrays = {}
        if input_ids is not None:
            arrays["token_ids"] = input_ids
            if not self.packed:
                arrays["token_ids"] = np.zeros((len(lengths), width), np.int64)
                arrays["token_ids"][np.arange(width) < lengths[:, None]] = input_ids
        if not self.packed:
            arrays["token_stops"] = (lengths - self.behind)[:, None]
        elif self.by_segments:
            weights_from = plan.skipped if "weightedmean" in plan.poolings else None
            arrays |= segment_arrays(opens + starts, opens + stops, self.batch.tokens, weights_from=weights_from)
        return arrays

    def pooler(self, plan: PoolingPlan, arrays: Mapping[str, Tensor], device: torch.device) -> BatchPooler:
        """What takes the layers of this batch.

        Args:
            plan: what is computed.
            arrays: those of `arrays`, on the device.
            device: of the states.
        """
        if not plan.poolings:
            return BatchPooler(plan, (), places=arrays.get("token_places"))
        ids = arrays.get("token_ids")
        if not self.packed:
            place = torch.arange(int(self.batch.lengths[-1]), device=device)
            mask = (place >= self.before) & (place < arrays["token_stops"])
            return BatchPooler(plan, [TokenGroup(slice(0, len(self.batch.texts)), None, mask, ids)])
        segments = Segments(arrays) if self.by_segments else None
        wants_groups = segments is None or plan.poolers
        return BatchPooler(plan, self._groups(ids, device) if wants_groups else (), segments)

    def _groups(self, ids: Tensor | None, device: torch.device) -> list[TokenGroup]:
        groups, text = [], 0
        for run in self.batch.length_groups():
            mask = None
            if self.before or self.behind:
                place = torch.arange(run.length, device=device)
                mask = ((place >= self.before) & (place < run.length - self.behind)).expand(run.count, -1)
            of_run = None if ids is None else ids[run.start :][: run.count * run.length].view(run.count, -1)
            groups.append(TokenGroup(slice(text, text + run.count), run, mask, of_run))
            text += run.count
        return groups

    def _borders(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The tokens [start, stop) of each text that take part, from the text's first: int64 [n] both."""
        starts = np.minimum(self.before, self.batch.lengths)
        return starts, np.maximum(starts, self.batch.lengths - self.behind)
