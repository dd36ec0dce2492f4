"""The needed columns of a remote Parquet file, which a child process parses before this one does."""

from __future__ import annotations

from collections.abc import Collection

from embedkit.storage.parser_probe import probe_file
from embedkit.storage.partial_copy import PartialCopy, chunk_ranges, footer_of_parquet
from embedkit.storage.ranged_reader import RangedReader


def probed_copy(
    remote: RangedReader, *, part: str = "all", without: Collection[str] = ()
) -> tuple[PartialCopy, str | None]:
    """Copies a file, and checks that it can be parsed without ending the process.

    Args:
        remote: the file.
        part: all, or none for the footer alone.
        without: columns that are left out.

    Returns:
        The copy, and the fault that the child found; see `probe_file`.

    Raises:
        OSError: the file cannot be read.
    """
    footer = footer_of_parquet(remote)
    copy = PartialCopy(remote, (), footer)
    fault = probe_file(copy.path, "parquet", part="none")
    if fault is not None or part == "none":
        return copy, fault
    # Not before, so that `--help` is fast.
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(copy.path)
    names = {name for name in metadata.schema.to_arrow_schema().names if name not in without}
    groups = (metadata.row_group(at) for at in range(metadata.num_row_groups))
    copy = PartialCopy(remote, [chunk for group in groups for chunk in chunk_ranges(group, names)], footer)
    return copy, probe_file(copy.path, "parquet", part=part, without=without)
