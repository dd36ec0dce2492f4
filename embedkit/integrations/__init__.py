"""embedkit in other libraries' pipelines: Ray Data, datasets, Daft, Spark, pandas, polars and scikit-learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedkit.integrations.embed_texts import EmbedTexts
    from embedkit.integrations.embed_transformer import EmbedTransformer

__all__ = ["EmbedTexts", "EmbedTransformer"]


def __getattr__(name: str) -> Any:
    # On first use: scikit-learn is needed by EmbedTransformer only.
    match name:
        case "EmbedTexts":
            from embedkit.integrations.embed_texts import EmbedTexts

            return EmbedTexts
        case "EmbedTransformer":
            from embedkit.integrations.embed_transformer import EmbedTransformer

            return EmbedTransformer
    raise AttributeError(f"module 'embedkit.integrations' has no attribute '{name}'")
