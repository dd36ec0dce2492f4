"""Whether an output holds what the model says: random rows of it computed again, in the plainest way there is.

origin.py      what an output tells of its making: recipe, input, model
sample.py      which rows, and what the output holds for them
plainly.py     the same rows through the model: each alone, unbatched, in fp32
comparison.py  how far the two may be apart, and how far they are
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embedkit.verify.compare import Resampled
from embedkit.verify.provenance import provenance_of
from embedkit.verify.recompute import Again
from embedkit.verify.sample import choose, opened_input, texts_of

__all__ = ["Again", "Resampled", "resample"]


def resample(path: Path, rows: int, *, seed: int, inputs: Sequence[str], again: Again) -> Resampled:
    """Compute random rows of an output again, and compare.

    Args:
        path: a folder, or a .parquet, .arrow or .npy file.
        rows: how many, of those that have a vector; all of them where there are fewer.
        seed: of the choice.
        inputs: where the input's files are now; () = where the output says.
        again: what to compute with.

    Raises:
        OutputError: it is not finished, does not tell how it was made, or is of a recipe that this version cannot
            carry out.
        InputError: the input is gone, or is not what it was.
        ModelError: the model is gone, or is not what it was.
    """
    provenance = provenance_of(path)
    table = opened_input(provenance, inputs)
    sampled = choose(path, provenance, rows, seed)
    texts = texts_of(sampled, table)
    return again.compare(provenance, sampled, texts)
