"""Rows that a reader of the output would miss: where they are and why. No content."""

from __future__ import annotations

import json
from typing import Any

from embedkit.records import EncodedShard
from embedkit.sinks.layout import Create, shard_name


def write_rejects(shard: EncodedShard, create: Create) -> None:
    """Write `rejects/part-00000.jsonl`, {row, file, offset, code} a line, if there is anything to list.

    A row whose vector is not finite also tells the `layer` from which on its states are not.
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
