"""What an output tells of its making: recipe, input and model. Reads its JSON files and schemas, no vectors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedkit.errors import OutputError
from embedkit.manifest.recipe import files_digest
from embedkit.output.commit import PLAN
from embedkit.output.open import Stored, made_by, open_stored, read_json
from embedkit.storage.filesystem import is_folder


@dataclass(frozen=True, slots=True)
class Origin:
    """How an output was made.

    Attributes:
        stored: the output, opened.
        columns: those that the text and the id come from: `text`, `template`, `id`.
        limit: no more rows than this were read; None = all.
        on_bad_row: fail, null or skip.
        files: of the input, as plan.json has them; () for a single file, which has no plan beside it.
        files_digest: one hash for the sizes and hashes of them all; None where the input was stdin.
        model: what was given as --model; None for a single file.
        revision: the hub's commit.
        delimiter, quoting: how its csv and tsv were read; see `InputConfig`.
        pool: what finds the poolers again that are no part of embedkit; None where there are none.
    """

    stored: Stored
    columns: Mapping[str, Any]
    limit: int | None
    on_bad_row: str
    files: Sequence[Mapping[str, Any]]
    files_digest: str | None
    model: str | None
    revision: str | None
    pool: str | None = None
    delimiter: str | None = None
    quoting: str = "auto"


def origin_of(path: Path) -> Origin:
    """Read how an output was made.

    Raises:
        OutputError: it is not finished, or does not tell.
    """
    stored = open_stored(path)
    if is_folder(path):
        plan = read_json(path / PLAN)
        read, source = plan["input"], plan.get("source") or {}
        return Origin(
            *(stored, read["columns"], read["limit"], plan["on_bad_row"], read["files"]),
            files_digest=files_digest(read["files"]),
            model=source.get("name"),
            revision=source.get("revision"),
            pool=source.get("pool"),
            delimiter=read.get("delimiter"),
            quoting=read.get("quoting", "auto"),
        )
    told = json.loads(made_by(path).get("embedkit.read", "{}"))
    if not told or not stored.recipe:
        raise OutputError(
            f"{path} does not tell how it was made, so its rows cannot be computed again",
            hint="JSON Lines have no place for it: give a folder, or a .parquet, .arrow or .npy file",
        )
    return Origin(
        *(stored, told["columns"], told["limit"], told["on_bad_row"], ()),
        files_digest=told["files_digest"],
        model=None,
        revision=None,
        delimiter=told.get("delimiter"),
        quoting=told.get("quoting", "auto"),
    )
