"""Rows that a reader of the output would miss: where they are and why. No content."""

from __future__ import annotations

import json

from embedkit.records import EncodedShard
from embedkit.sinks.layout import Create, shard_name


def write_rejects(shard: EncodedShard, create: Create) -> None:
    """Write `rejects/part-00000.jsonl`, {row, file, offset, code} a line, if there is anything to list."""
    if not shard.rejects:
        return
    with create(f"rejects/{shard_name(shard.index, '.jsonl')}") as file:
        for fault in sorted(shard.rejects, key=lambda fault: fault.row):
            line = {"row": fault.row, "file": fault.file or None, "offset": fault.offset, "code": fault.code}
            file.write(json.dumps(line).encode() + b"\n")
