"""Checks an output against its manifest and records: files, sizes, hashes, page checksums, rows and counts.

Beyond the hashes, all files are read: rows, order, receipts, finite numbers. Needs neither model nor input.
"""

from __future__ import annotations

from pathlib import Path

from embedkit.errors import OutputError
from embedkit.manifest.recipe import fingerprint
from embedkit.output.commit import COMMITS, MANIFEST, PLAN
from embedkit.output.contents import contents_of
from embedkit.output.formats import FORMATS
from embedkit.output.open import check_exists, describing_file, mixed_files, open_stored
from embedkit.storage.disk_errors import as_read_error
from embedkit.storage.filesystem import exists, is_folder, list_files, stat_file
from embedkit.storage.protocol import FilePath
from embedkit.verify.check_folder import FolderCheck
from embedkit.verify.findings import Finding, Verification


def verify_output(path: FilePath) -> Verification:
    """Checks a folder, finished or not, or a .parquet, .arrow, .npy or .jsonl file.

    Raises:
        OutputError: there is no output, or embedkit, or this version of it, did not write it.
    """
    with as_read_error(path):
        if not is_folder(path):
            return _verify_file(path)
        there = dict(list_files(path))
        has_records = is_folder(path / COMMITS)
    if PLAN not in there and MANIFEST not in there and not has_records:
        raise OutputError(
            f"{path} is not an output of embedkit: it has neither plan.json nor manifest.json",
            hint="give a file or folder made by `embedkit encode`",
        )
    check = FolderCheck(path, there)
    with as_read_error(path):
        check.run()
    return check.found


def _verify_file(path: FilePath) -> Verification:
    """Checks what a single file, which has no record, says of itself: structure, checksums, layout, counts.

    Raises:
        OutputError: there is no such file, or its name is not that of an output.
    """
    check_exists(path)
    found = Verification(
        way_out="the command of the run with --on-exists resume, if that was stopped; else encode again with "
        "--on-exists overwrite"
    )
    if path.suffix.removeprefix(".") not in FORMATS or not exists(describing_file(path)):
        open_stored(path)  # raises the error that names the problem
    if path.suffix != ".parquet":
        what = "has no checksums: a flipped bit in a number cannot be found; a folder (-o FOLDER) has them"
        found.notes.append(Finding(path.name, what))
    partial = path.with_name(f"{path.name}.partial")
    if isinstance(path, Path) and exists(partial):  # single files are written to local paths alone
        found.notes.append(Finding(partial.name, "exists: a run that writes this file has not finished"))
    try:
        stored = open_stored(path)
        stored.check_part(0, stored.layout.variants)
        contents = contents_of(stored.sink, stored.parts[0])
        if stored.fingerprint is not None and fingerprint(stored.recipe) != stored.fingerprint:
            found.problems.append(Finding(path.name, "its fingerprint is not that of its recipe"))
        if not contents.finite:
            found.problems.append(Finding(path.name, "holds a number that is not finite"))
        files = stored.parts[0]
        mixed = mixed_files(path, files, stored.layout, whole=True)
        found.problems += [Finding(path.name, problem) for problem in mixed]
        found.rows, found.vectors = contents.rows, contents.vectors
        found.files, found.bytes = len(files), sum(stat_file(file).size for file in files)
    except OutputError as error:
        found.problems.append(Finding(path.name, error.message))
    return found
