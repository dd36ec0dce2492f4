"""Reads the origin of an output, recipe, input and model, from its JSON files and schemas."""

from __future__ import annotations

import json
from dataclasses import dataclass

from embedkit.errors import OutputError
from embedkit.manifest.identity import files_digest
from embedkit.manifest.schema import InputFacts, Plan
from embedkit.output.commit import PLAN
from embedkit.output.open import Stored, open_stored, schema_metadata
from embedkit.output.safe_reading import read_versioned
from embedkit.storage.filesystem import is_folder
from embedkit.storage.protocol import FilePath


@dataclass(frozen=True, slots=True)
class Provenance:
    """The origin of an output."""

    stored: Stored  # `stored.source.name` is what was given as `--model`; None for a single file
    input: InputFacts  # without files for a single file, which has no plan
    on_bad_row: str  # fail, null or skip
    files_digest: str | None  # one hash of the input's files; None if the input was stdin


def provenance_of(path: FilePath) -> Provenance:
    """Reads the origin of an output.

    Raises:
        OutputError: the output is not finished, or does not describe its origin.
    """
    stored = open_stored(path)
    if is_folder(path):
        plan = read_versioned(Plan, path / PLAN)
        digest = files_digest((file.size, file.sha256) for file in plan.input.files)
        return Provenance(stored, plan.input, plan.on_bad_row, digest)
    if stored.input is None or not stored.recipe:
        raise OutputError(
            f"{path} does not say how it was made, so its rows cannot be computed again",
            hint="JSON Lines cannot hold that: give a folder, or a .parquet, .arrow or .npy file",
        )
    described = json.loads(schema_metadata(path)["embedkit.read"])
    return Provenance(stored, stored.input, described["on_bad_row"], described["files_digest"])
