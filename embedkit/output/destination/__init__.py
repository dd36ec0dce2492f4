"""What `-o` means: a folder of shards, a single file, or stdout; and what to do if it is there already.

A single file is made of a folder of shards too, `OUT.partial` beside it, so that a killed run can be resumed
whatever it writes. The file appears when that folder is whole, and the folder goes.

Several ranks may be at it at once. The first one writes the plan, and the others join it; nobody removes what
another might be writing.
"""

from __future__ import annotations

from pathlib import Path

from embedkit.config import OutputConfig, ShareConfig
from embedkit.output.destination.base import AlreadyCompleted, Destination
from embedkit.output.destination.folder import Folder
from embedkit.output.destination.single_file import SingleFile
from embedkit.output.destination.stdout import Stdout
from embedkit.storage.disk_errors import as_read_error
from embedkit.storage.filesystem import is_folder

__all__ = ["AlreadyCompleted", "Destination", "Folder", "destination_of"]

_ALONE = ShareConfig()


def destination_of(config: OutputConfig, share: ShareConfig = _ALONE) -> Destination:
    """The destination that `-o` names: by `-`, by the suffix of a file, else a folder."""
    if config.is_stdout:
        return Stdout()
    path = Path(config.output)
    with as_read_error(path):
        is_file = config.is_single_file and not is_folder(path)
    if is_file:
        return SingleFile(path, config.on_exists, verify=config.verify, several=share.several)
    return Folder(path, config.on_exists, verify=config.verify, several=share.several)
