"""What folders of shards have in common, on a disk and in an object store."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from embedkit.errors import OutputError
from embedkit.manifest.schema import ShardRecord
from embedkit.manifest.versioned_file import Json
from embedkit.output.commit import OutputFolder
from embedkit.output.destination.base import SHARED_WAYS
from embedkit.output.formats import Sink
from embedkit.output.rejects import write_rejects
from embedkit.storage.remote_path import RemotePath
from embedkit.types import EncodedShard


class ShardFolder:
    """A folder of shards.

    Args:
        path: of the folder, or its URI.
        output: the folder that this run writes.
        on_exists: error, resume or overwrite.
        verify: a shard is done only if its files have the recorded hashes as well.
        several: True if other ranks write here at the same time.
    """

    def __init__(
        self, path: Path | RemotePath, output: OutputFolder, on_exists: str, *, verify: bool, several: bool
    ) -> None:
        self.path = path
        self.output = output
        self.on_exists = on_exists
        self.verify = verify
        self.several = several
        self.was_complete = False
        self.notices: list[str] = []

    def is_complete(self, sink: Sink, inputs: Iterable[str]) -> bool:  # noqa: ARG002
        """See Destination. The records say what of a folder is complete, shard by shard."""
        if self.was_complete and self.on_exists == "error":
            raise OutputError(f"{self.path} holds the output of another run", hint=f"use {SHARED_WAYS}")
        return False

    def committed(self) -> dict[int, ShardRecord]:
        """See Destination. Hashes are compared once."""
        verify, self.verify = self.verify, False
        return self.output.committed(verify=verify)

    def recorded(self) -> dict[int, ShardRecord]:
        """See Destination."""
        return self.committed()

    def acknowledgement(self, record: ShardRecord) -> Json:
        """See Destination."""
        return self.output.acknowledgement(record)

    def adopt(self, acknowledgement: Json) -> None:
        """See Destination."""
        self.output.adopt(acknowledgement)

    def abandon(self) -> None:
        """See Destination."""
        if not self.several:
            self.output.withdraw()

    def write(self, shard: EncodedShard, sink: Sink) -> ShardRecord:
        """See Destination."""
        with self.output.shard(shard.index) as writer:
            # A shard of empty texts has no .npy files: embedding-reader skips an array of no rows but not its
            # metadata, and the pairs would shift.
            if sink.suffix != ".npy" or shard.has_vector.any():
                sink.write(shard, writer.create)
            write_rejects(shard, writer.create)
            return writer.commit(ShardRecord.of(shard))
