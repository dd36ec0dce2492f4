"""The head that `fit` trained on a pooler's vectors: its scores, as columns of the output.

A linear layer, applied in float32. Knows nothing of how the vectors came about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Head:
    """W v + b: a logit a class, or the predicted value.

    Attributes:
        weight: float32 [C, D]; C is 1 for regression.
        bias: float32 [C].
        classes: names of the C classes; () for regression.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    classes: tuple[str, ...]

    @property
    def columns(self) -> dict[str, str]:
        """The columns that it adds to an output, and their types."""
        if not self.classes:
            return {"prediction": "float32"}
        return {**{f"score_{name}": "float32" for name in self.classes}, "predicted": "string"}

    def scores(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """[N, D] to float32 [N, C]: the classes' probabilities (softmax), or [N, 1] the values."""
        logits = vectors @ self.weight.T + self.bias
        if not self.classes:
            return logits
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: NDArray[np.float32] = odds / odds.sum(axis=1, keepdims=True)
        return probabilities

    def cells(self, vectors: NDArray[np.float32]) -> dict[str, list[Any]]:
        """For each column its N values."""
        scores = self.scores(vectors)
        # The shortest text that reads back as the same float32: JSON Lines would show a double's noise.
        values = [[float(str(score)) for score in column] for column in scores.T]
        if not self.classes:
            return {"prediction": values[0]}
        best = [self.classes[number] for number in scores.argmax(axis=1)]
        return {**dict(zip(self.columns, values, strict=False)), "predicted": best}
