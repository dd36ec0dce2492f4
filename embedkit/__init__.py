"""embedkit: exact embeddings of tables of texts from frozen transformer encoders.

    embedkit.Encoder("minilm", pool="mean").encode(["a text", "another"])   # float32 [2, 384]
    embedkit.read("notes.embeddings").vectors                                # float32 [N, D]

Attributes are imported on first use, so that `embedkit --help` does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import embedkit.models.load_lock  # noqa: F401 - before any fork, so that a child knows it is one

if TYPE_CHECKING:
    from embedkit.errors import EmbedkitError
    from embedkit.inference.encoder import Encoder
    from embedkit.output.read import read
    from embedkit.pooling.pooler_files import read_head

__all__ = ["EmbedkitError", "Encoder", "__version__", "read", "read_head"]

_MODULES = {
    "EmbedkitError": "embedkit.errors",
    "Encoder": "embedkit.inference.encoder",
    "read": "embedkit.output.read",
    "read_head": "embedkit.pooling.pooler_files",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("embedkit-cli")
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'embedkit' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
