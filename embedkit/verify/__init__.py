"""Checks outputs: every file against the manifest, and random rows against reference vectors.

check_output.py   files, hashes, rows and counts, of folders (check_folder.py) and single files
recompute.py      random rows (sample.py), computed again from their input (provenance.py)
compare.py        tolerances and deviations of the two
"""

from embedkit.verify.check_output import verify_output
from embedkit.verify.findings import Finding, Verification

__all__ = ["Finding", "Verification", "verify_output"]
