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
    """JSON Lines on stdout, shard by shard. Nothing stays, so nothing can be resumed."""

    notices: Sequence[str] = ()

    def open(self) -> None:
        """See Destination."""

    def is_whole(self, sink: Sink, inputs: Collection[str]) -> bool:  # noqa: ARG002
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
            ReaderGone: whoever read has had enough.
            OutputError: it goes to a disk that is full.
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
                hint="free some space where it goes, or write to a folder with -o, which can be resumed",
            ) from None
        return ShardRecord.of(shard)

    def finish(self, sink: Sink, manifest: Manifest) -> None:
        """See Destination."""
