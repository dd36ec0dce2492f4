"""Lists of rejects: rows that are missing from an output or have no vector, where they are and why. No content."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from embedkit.manifest.schema import ShardRecord
from embedkit.output.formats.layout import Create, shard_name
from embedkit.storage.filesystem import list_files, open_file, read_file
from embedkit.storage.protocol import FilePath, OnePath
from embedkit.types import EncodedShard

_KEYS = frozenset({"row", "file", "offset", "code"})
_FIRST_LINE = 2**20


def rejects_path(path: OnePath) -> OnePath:
    """Returns the path of the list of rejects of a single-file output."""
    return path.with_name(f"{path.stem}.rejects.jsonl")


def lists_rejects(path: FilePath) -> bool:
    """Returns True if a file is a list of rejects, by the keys of its first line.

    Raises:
        OSError: it cannot be read.
    """
    with open_file(path) as file:
        line = file.readline(_FIRST_LINE)
    try:
        first = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and first.keys() - {"layer"} == _KEYS


def write_rejects(shard: EncodedShard, create: Create) -> None:
    """Writes `rejects/part-00000.jsonl`, a line {row, file, offset, code} per reject, unless there are none.

    A row whose vector is not finite also has the `layer` from which on its states are not.
    """
    if not shard.rejects:
        return
    with create(f"rejects/{shard_name(shard.index, '.jsonl')}") as file:
        for fault in sorted(shard.rejects, key=lambda fault: fault.row):
            line: dict[str, Any] = {
                "row": fault.row,
                "file": fault.file or None,
                "offset": fault.offset,
                "code": fault.code,
            }
            line |= {} if fault.layer is None else {"layer": fault.layer}
            file.write(json.dumps(line).encode() + b"\n")


def lists_of_shards(folder: FilePath) -> Iterator[bytes]:
    """Yields the lists of rejects in a folder of shards, by number."""
    names = (name for name, _ in list_files(folder / "rejects") if name.endswith(".jsonl"))
    for name in sorted(names, key=lambda name: (len(name), name)):  # of more than 100,000 shards too
        yield read_file(folder / "rejects" / name)


def rejected_rows(path: FilePath) -> list[int]:
    """Returns the row numbers of a list of rejects, in its order.

    Raises:
        ValueError, TypeError, LookupError: the list is damaged.
    """
    return [json.loads(line)["row"] for line in read_file(path).splitlines()]


def are_rejects_damaged(path: FilePath, record: ShardRecord) -> bool:
    """Returns True if a list of rejects does not have as many rows of the shard, in order, as its record says."""
    try:
        rows = rejected_rows(path)
        ordered = all(before <= after for before, after in pairwise(rows))
        inside = all(record.start <= row < record.stop for row in rows)
    except (ValueError, TypeError, LookupError):
        return True
    return not (len(rows) == record.rejects and ordered and inside)
