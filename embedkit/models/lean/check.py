"""Whether texts that lie end to end get the states that they get alone, with the weights at hand."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from embedkit.models.lean.encoder import LeanEncoder
from embedkit.records import Batch, Tokens

#: Largest |Δ| as a share of the largest state; where texts see each other, it is a hundred times larger.
_TOLERANCE = 1e-4


def keeps_texts_apart(encoder: LeanEncoder, probe: Tokens) -> bool:
    """Whether all probe texts in one batch come out as each alone; False too where a state is not finite."""
    order = np.argsort(probe.lengths, kind="stable")
    together = _states(encoder, probe, order)
    start = 0
    for text, length in zip(order.tolist(), probe.lengths[order].tolist(), strict=True):
        alone = _states(encoder, probe, np.array([text]))
        for wanted, found in zip(alone, together, strict=True):
            apart = (found[start : start + length] - wanted).abs().max()
            if not bool(apart <= _TOLERANCE * max(1.0, float(wanted.abs().max()))):
                return False
        start += length
    return True


def _states(encoder: LeanEncoder, probe: Tokens, texts: NDArray[np.int64]) -> list[Tensor]:
    states: list[Tensor] = []
    encoder.run(probe, Batch(texts, probe.lengths[texts]), lambda _, of_layer: states.append(of_layer[0]))
    return states
