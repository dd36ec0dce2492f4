"""Destinations that `-o` names: a folder of shards, on a disk or in an object store, a single file, or stdout.

A single file is made of a folder of shards, `OUT.partial`, so that a killed run of any format can be resumed. The
file appears when that folder is complete, and the folder is removed.

Several ranks may write at the same time: the first one writes the plan, the others join it, and none removes what
another may be writing.
"""

from __future__ import annotations

from embedkit.config import OutputConfig, ShareConfig
from embedkit.output.destination.base import AlreadyCompleted, Destination
from embedkit.output.destination.folder import Folder
from embedkit.output.destination.objects import Objects
from embedkit.output.destination.single_file import SingleFile
from embedkit.output.destination.stdout import Stdout
from embedkit.storage.disk_errors import as_read_error
from embedkit.storage.filesystem import is_folder
from embedkit.storage.remote_path import RemotePath, as_path

__all__ = ["AlreadyCompleted", "Destination", "Folder", "Objects", "destination_of"]

_ALONE = ShareConfig()


def destination_of(config: OutputConfig, share: ShareConfig = _ALONE) -> Destination:
    """Returns the destination that `-o` names: stdout for `-`, a URI, a file by its suffix, else a folder."""
    if config.is_stdout:
        return Stdout()
    path = as_path(config.output)
    if isinstance(path, RemotePath):
        return Objects(path, config.on_exists, verify=config.verify, several=share.several)
    with as_read_error(path):
        is_file = config.is_single_file and not is_folder(path)
    if is_file:
        # Beside .npy, which has no rows without a vector, empty texts are rejects as well.
        may_reject = config.on_bad_row != "fail" or path.suffix == ".npy"
        return SingleFile(
            *(path, config.on_exists), verify=config.verify, several=share.several, may_reject=may_reject
        )
    return Folder(path, config.on_exists, verify=config.verify, several=share.several)
