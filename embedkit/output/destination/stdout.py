"""JSON Lines on stdout."""

from __future__ import annotations

import os
from collections.abc import Sequence

from embedkit.errors import OutputError, ReaderGone
from embedkit.manifest.schema import ShardRecord
from embedkit.output.destination.base import Destination
from embedkit.output.formats import Sink, jsonl_lines
from embedkit.storage.standard_streams import rows_out
from embedkit.types import EncodedShard


class Stdout(Destination):
    """JSON Lines on stdout, shard by shard. A run cannot be resumed."""

    notices: Sequence[str] = ()

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
