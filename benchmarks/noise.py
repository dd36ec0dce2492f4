"""How often a sweep of pure noise says that something beats a baseline: make check-noise.

    python -m benchmarks.noise [--sweeps N] [--rows N] [-o RESULTS.json]

Vectors are random and know nothing of the labels; a layer resembles the one before, as in an encoder. The sentence
of a sweep should say "beats" in 5 % of such sweeps at most. Beside it is how often the winner's own interval would
have said so, and how often the interval of the nested estimate covers the truth, which should be in about 95 %.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import sklearn

from benchmarks.peers.__main__ import machine, versions
from embedkit.study.candidates import Candidate, baselines
from embedkit.study.cross_validation import cross_validate_all
from embedkit.study.labels import Labels
from embedkit.study.splits import make_folds
from embedkit.study.verdict import Verdict, decide

_POOLINGS = ("cls", "mean", "max")


def of_noise(seed: int, *, rows: int = 60, dims: int = 6, layers: int = 4, folds: int = 5) -> Verdict:
    """Returns the verdict of a sweep of random vectors with two classes of equal size."""
    random = np.random.default_rng(seed)
    targets = random.permutation(np.arange(rows) % 2)
    labels = Labels("classification", np.arange(rows), targets, ("a", "b"), None)
    states = np.cumsum(random.normal(size=(layers, len(_POOLINGS), rows, dims)), axis=0).astype(np.float32)
    vectors = {
        Candidate((layer,), "concat", (pool,)): states[layer, place]
        for layer in range(layers)
        for place, pool in enumerate(_POOLINGS)
    }
    divided = make_folds(labels, None, count=folds, seed=seed)
    makers = [lambda found=found: found for found in vectors.values()]
    scores = list(cross_validate_all(makers, labels, divided, ("accuracy",), "ridge"))
    compared = baselines(range(layers), _POOLINGS)
    return decide(list(vectors), scores, [dims] * len(vectors), compared, labels, divided)


def says_beats(verdict: Verdict) -> bool:
    """Returns True if the sentence says that the winner beats something."""
    return " beats " in verdict.sentence


def own_interval_says_beats(verdict: Verdict) -> bool:
    """Returns True if the winner's own differences, which its choice makes too large, would say so."""
    return any(difference.low > 0 for difference in verdict.winner.versus.values())


def main() -> None:
    """Prints and writes the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=400)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    verdicts = [of_noise(seed, rows=options.rows) for seed in range(options.sweeps)]
    nested = [verdict.nested["accuracy"] for verdict in verdicts]
    found = {
        "machine": machine(),
        "versions": {**versions(sys.executable), "numpy": np.__version__, "scikit-learn": sklearn.__version__},
        "sweeps": options.sweeps,
        "rows": options.rows,
        "candidates": verdicts[0].n_candidates,
        "says_beats": float(np.mean([says_beats(verdict) for verdict in verdicts])),
        "own_interval_says_beats": float(np.mean([own_interval_says_beats(verdict) for verdict in verdicts])),
        "nested_interval_covers_chance": float(np.mean([of.low <= 0.5 <= of.high for of in nested])),
    }
    print(json.dumps(found, indent=2))
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
