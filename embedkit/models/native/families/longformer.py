"""Longformer (Beltagy et al. 2020, arXiv 2004.05150).

Without global attention, which transformers gives to no token unless it is asked to.
"""

from embedkit.models.native.config_reader import ConfigReader, NotNativeError
from embedkit.models.native.families.bert import BERT_DEFAULTS
from embedkit.models.native.families.family import Family, Heads, LayerAttention, Layout


def _attention(reader: ConfigReader, heads: Heads) -> tuple[LayerAttention, ...]:
    """Returns layers with half of their window on each side of a token."""
    windows = reader.get("attention_window", 512)
    windows = windows if isinstance(windows, list) else [windows] * heads.n_layers
    if len(windows) != heads.n_layers or any(type(size) is not int or size < 2 or size % 2 for size in windows):
        raise NotNativeError("its layers have windows of unknown sizes")
    return tuple(LayerAttention(window=size // 2 + 1) for size in windows)


LONGFORMER = Family(
    model_type="longformer",
    prefixes=("longformer.",),
    layouts=(
        # Of tokens with global attention.
        Layout(unused=tuple(f"attention.self.{part}_global" for part in ("query", "key", "value"))),
    ),
    defaults={**BERT_DEFAULTS, "pad_token_id": 1},
    fixed={"attention_mode": ("longformer",)},
    harmless=frozenset(("ignore_attention_mask", "onnx_export")),
    positions_after_pad=True,
    attention=_attention,
)
