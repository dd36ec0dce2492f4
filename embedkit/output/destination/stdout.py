"""JSON Lines on stdout."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from embedkit.errors import OutputError, ReaderGone
from embedkit.manifest.schema import Manifest, Plan, ShardRecord
from embedkit.output.formats import Sink, jsonl_lines
from embedkit.storage.standard_streams import rows_out
from embedkit.types import EncodedShard


class Stdout:
    """JSON Lines on stdout, shard by shard. A run cannot be resumed."""

    notices: Sequence[str] = ()

    def open(self) -> None:
        """See Destination."""

    def is_complete(self, sink: Sink, inputs: Collection[str]) -> bool:  # noqa: ARG002
        """See Destination."""
        return False

    def committed(self) -> dict[int, ShardRecord]:
        """See Destination."""
        return {}

    def begin(self, plan: Plan) -> Plan:
        """See Destination."""
        return plan

    def abandon(self) -> None:
        """See Destination."""

    def write(self, shard: EncodedShard, sink: Sink) -> ShardRecord:
        """See Destination.

        Raises:
            ReaderGone: the reader has closed the pipe.
            OutputError: stdout cannot be written, such as to a full disk.
        """
        try:
            stdout = rows_out()
            stdout.writelines(jsonl_lines(shard, sink.layout))
            stdout.flush()
        except BrokenPipeError:
            raise ReaderGone from None
        except OSError as fault:
            raise OutputError(
                f"cannot write to stdout: {os.strerror(fault.errno or 0)}",
                hint="free some space, or write to a folder with -o, which can be resumed",
            ) from None
        return ShardRecord.of(shard)

    def finish(self, sink: Sink, manifest: Manifest) -> None:
        """See Destination."""
