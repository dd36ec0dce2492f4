"""Whether an output is as it was written: every file, size, hash, page checksum, row and count.

What the hashes do not say, the files are read for: rows, order, receipts, finite numbers. Knows nothing of
models, nor of the input.
"""

from __future__ import annotations

from pathlib import Path

from embedkit.errors import OutputError
from embedkit.output.commit import COMMITS, MANIFEST, PLAN
from embedkit.storage.disk_errors import as_read_error
from embedkit.storage.filesystem import is_folder, list_files
from embedkit.verify.check_folder import FolderCheck
from embedkit.verify.check_single_file import verify_file
from embedkit.verify.findings import Finding, Verification

__all__ = ["Finding", "Verification", "verify_output"]


def verify_output(path: Path) -> Verification:
    """Check a folder, finished or not, or a .parquet, .arrow, .npy or .jsonl file.

    Raises:
        OutputError: there is nothing, or embedkit did not write it.
    """
    with as_read_error(path):
        if not is_folder(path):
            return verify_file(path)
        there = dict(list_files(path))
        has_records = is_folder(path / COMMITS)
    if PLAN not in there and MANIFEST not in there and not has_records:
        raise OutputError(
            f"{path} is not an output of embedkit: it has neither plan.json nor manifest.json",
            hint="give a file or folder made by `embedkit encode`",
        )
    check = FolderCheck(path, there)
    try:
        with as_read_error(path):
            check.run()
    except (LookupError, TypeError, ValueError):
        check.tell(PLAN, "and its records are sealed, yet not what this version of embedkit writes")
    return check.found
