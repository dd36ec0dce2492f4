"""embedkit: exact embeddings of tables of texts from frozen transformer encoders.

    embedkit.Encoder("minilm", pool="mean").encode(["a text", "another"])   # float32 [2, 384]
    embedkit.read("notes.embeddings").vectors                                # float32 [N, D]

Nothing heavy is imported before it is used: `embedkit --help` never waits for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import embedkit.models.load_lock  # noqa: F401 - before any fork, so that a child knows that it is one

if TYPE_CHECKING:
    from embedkit.errors import EmbedkitError
    from embedkit.inference.encoder import Encoder
    from embedkit.output.read import read

__all__ = ["EmbedkitError", "Encoder", "__version__", "read"]

_HOMES = {
    "EmbedkitError": "embedkit.errors",
    "Encoder": "embedkit.inference.encoder",
    "read": "embedkit.output.read",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("embedkit-cli")
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'embedkit' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
