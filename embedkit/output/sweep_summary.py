"""The names of the files in the folder of a sweep, and the reader of its summary."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from embedkit.storage.disk_errors import as_read_error
from embedkit.storage.filesystem import exists, read_file, sha256_of_file
from embedkit.storage.protocol import FilePath

#: Published last: if it exists, all the others do.
SUMMARY = "summary.json"
RESULTS = "results.parquet"
EVALUATION = "evaluation.json"
PREDICTIONS = "predictions.parquet"
#: The probe that won, for `--pool`.
WINNER = "winner.safetensors"
#: The measured cost of encoding each model, written when that is done.
COSTS = "costs.json"
#: The output with the vectors of all candidates; of several models, `vectors-MODEL` each.
VECTORS = "vectors"
#: Without a suffix; each is there as PNG and as SVG.
PICTURES = ("heatmap", "cost")
#: All files of a sweep that may be in its folder.
NAMES = (
    *(SUMMARY, "summary.txt", RESULTS, EVALUATION, PREDICTIONS, WINNER, COSTS),
    *(f"{name}.{form}" for name in PICTURES for form in ("png", "svg")),
)


def is_of_vectors(name: str) -> bool:
    """Checks whether a name in the folder of a sweep is that of an output with vectors."""
    return name in {VECTORS, f"{VECTORS}.next"} or name.startswith(f"{VECTORS}-")


def read_summary(folder: FilePath, files: Collection[str]) -> dict[str, Any] | None:
    """Reads the summary of a finished sweep; None if it is missing, damaged, or of another sweep than `files`.

    Raises:
        OutputError: a file exists and cannot be read.
    """
    path = folder / SUMMARY
    with as_read_error(path):
        if not exists(path):
            return None
        try:
            summary = dict(json.loads(read_file(path)))
            hashes = dict(summary.get("files", {}))
        except (ValueError, TypeError):
            return None
        recorded = {folder / name: hashes[name] for name in files if name in hashes}
        is_intact = all(exists(file) and sha256_of_file(file) == digest for file, digest in recorded.items())
    return summary if is_intact else None
