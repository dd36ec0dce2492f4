"""The check at load: texts in a batch must have the states that they have alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from embedkit.errors import ModelError
from embedkit.models.base import LayerEncoder
from embedkit.types import Batch, Tokens

#: Largest difference between two correct ways to compute the states of a text: the root mean square, after each
#: dimension is divided by its own size, since one that is a thousand times larger would hide the others. In
#: MiniLM, texts that attend to each other differ by 0.6 after one layer, and states of the next layer by 1.2, in
#: fp32 and bf16.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 2e-2}
#: The notice where a way to batch texts fails this check and another one is used.
SLOWER = "this model does not give the same vectors in embedkit's fast path: a slower one is used"


def states_alone(encoder: LayerEncoder, probe: Tokens, dtype: str) -> list[dict[int, Tensor]]:
    """Runs each probe text by itself, and returns for each its states [T, D] by layer; `dtype` is for the hint.

    Raises:
        ModelError: a state is not finite.
    """
    states: list[dict[int, Tensor]] = []

    def take(layer: int, hidden_states: Tensor) -> None:
        of_text = hidden_states[0, : int(probe.lengths[len(states) - 1])]
        if not bool(of_text.isfinite().all()):
            raise ModelError(
                f"the states of this model are not finite (NaN or infinite) from layer {layer} on",
                hint="check the weights"
                if dtype in {"fp32", "int8"}
                else "use --dtype fp32, or check the weights",
            )
        states[-1][layer] = of_text

    for text in range(len(probe.lengths)):
        states.append({})
        encoder.run(probe, Batch(np.array([text]), probe.lengths[[text]]), take)
    return states


def matches_reference(encoder: LayerEncoder, expected: Sequence[dict[int, Tensor]], probe: Tokens) -> bool:
    """Checks that the probe texts, batched as the encoder wants them, have the states of `states_alone`."""
    order = np.argsort(probe.lengths, kind="stable")
    cuts = np.flatnonzero(np.diff(probe.lengths[order])) + 1
    groups = np.split(order, cuts) if encoder.equal_lengths else [order]
    sizes = {layer: _sizes([of_text[layer] for of_text in expected]) for layer in encoder.layers}
    verdicts: list[bool] = []

    def compare(layer: int, hidden_states: Tensor) -> None:
        start = 0
        for place, (text, length) in enumerate(zip(batch.texts.tolist(), batch.lengths.tolist(), strict=True)):
            found = hidden_states[0, start : start + length] if encoder.packed else hidden_states[place, :length]
            start += length
            wanted = expected[text][layer]
            verdicts.append(
                found.shape == wanted.shape
                and float(((found.float() - wanted.float()) / sizes[layer]).square().mean().sqrt())
                <= _TOLERANCE[wanted.dtype]
            )

    for texts in groups:
        batch = Batch(texts, probe.lengths[texts])
        encoder.run(probe, batch, compare)
    return len(verdicts) == len(probe.lengths) * len(encoder.layers) and all(verdicts)


def _sizes(states: Sequence[Tensor]) -> Tensor:
    """Returns the root mean square of each dimension, float32 [D]; at least a tenth of the median."""
    sizes = torch.cat(list(states)).float().square().mean(dim=0).sqrt()
    return sizes.clamp_min(max(1e-12, 0.1 * float(sizes.median())))
