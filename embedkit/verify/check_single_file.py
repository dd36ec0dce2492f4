"""A single file: it has no record, so only what it says of itself can be checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embedkit.errors import OutputError
from embedkit.manifest.recipe import fingerprint
from embedkit.output.contents import contents_of
from embedkit.output.formats import FORMATS
from embedkit.output.formats.npy_format import metadata_name
from embedkit.output.open import check_exists, mixed_files, open_stored
from embedkit.storage.filesystem import exists, stat_file
from embedkit.verify.findings import Finding, Verification


def verify_file(path: Path) -> Verification:
    """Check structure, page checksums, layout and counts.

    Raises:
        OutputError: there is no such file, or its name is none of an output.
    """
    check_exists(path)
    found = Verification(
        way_out="the command of the run with --on-exists resume, if that was stopped; else encode again with "
        "--on-exists overwrite"
    )
    explains = path.with_name(metadata_name(path.name)) if path.suffix == ".npy" else path
    if path.suffix.removeprefix(".") not in FORMATS or not exists(explains):
        open_stored(path)  # which says what is wrong
    if path.suffix != ".parquet":
        what = (
            "has no checksums: a bit that flipped inside a number cannot be found; a folder (-o FOLDER) has them"
        )
        found.notes.append(Finding(path.name, what))
    partial = path.with_name(f"{path.name}.partial")
    if exists(partial):
        found.notes.append(Finding(partial.name, "is there: a run that writes this file has not ended"))
    try:
        stored = open_stored(path)
        stored.check_part(0, stored.layout.variants)
        contents = contents_of(stored.sink, stored.parts[0])
        if stored.fingerprint is not None and fingerprint(stored.recipe) != stored.fingerprint:
            found.problems.append(Finding(path.name, "its fingerprint is not that of its recipe"))
        if not contents.finite:
            found.problems.append(Finding(path.name, "holds a number that is not finite"))
        files: Sequence[Path] = stored.parts[0]
        found.problems += [
            Finding(path.name, problem) for problem in mixed_files(files, stored.layout, whole=True)
        ]
        found.rows, found.vectors = contents.rows, contents.vectors
        found.files, found.bytes = len(files), sum(stat_file(file).size for file in files)
    except OutputError as error:
        found.problems.append(Finding(path.name, error.message))
    return found
