"""Paths of outputs as users name them. Imports neither pyarrow nor numpy."""

from __future__ import annotations

from pathlib import Path

from embedkit.config.remote_inputs import split_secret
from embedkit.storage.fsspec_filesystem import keep_secrets
from embedkit.storage.protocol import FilePath
from embedkit.storage.remote_path import RemotePath, is_uri
from embedkit.storage.store_options import StoreOptions


def output_path(name: str, store: StoreOptions | None = None) -> FilePath:
    """Returns the path of an output that is read. A secret in its address is kept for this process, and not in it.

    Args:
        name: as typed: a local path or a URI.
        store: options of its object store; None for those of this process.

    Raises:
        UsageError: it has a secret where none belongs.
    """
    shown, secret = split_secret(name)
    if secret is not None:
        keep_secrets([secret])
    return RemotePath(shown, store) if is_uri(shown) else Path(shown)
