"""Llama (Touvron et al. 2023, arXiv 2302.13971), Mistral, Qwen2, Qwen3 and EuroBERT."""

from dataclasses import replace

from embedkit.models.native.config_reader import ConfigReader, NotNativeError
from embedkit.models.native.families.family import (
    Family,
    Heads,
    LayerAttention,
    Layout,
    NormNames,
    rotary_attention,
    with_gate,
)
from embedkit.models.native.families.layer_types import GLOBAL, LOCAL, layer_types

LAYOUT = Layout(
    words="embed_tokens",
    positions=None,
    types=None,
    embedding_norm=None,
    final_norm="norm",
    pooler=None,
    layer="layers.{}.",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attention_out="self_attn.o_proj",
    attention_norms=NormNames(before="input_layernorm"),
    up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    ffn_norms=NormNames(before="post_attention_layernorm"),
)


_BASE = 10_000.0
_causal = rotary_attention(_BASE, causal=True)


def _windowed(reader: ConfigReader, heads: Heads) -> tuple[LayerAttention, ...]:
    """Returns the layers of Mistral: every one has the same window, or none."""
    window = reader.size("sliding_window") if reader.get("sliding_window") is not None else None
    return tuple(replace(layer, window=window) for layer in _causal(reader, heads))


def _partly_windowed(reader: ConfigReader, heads: Heads) -> tuple[LayerAttention, ...]:
    """Returns the layers of Qwen: some may have a window."""
    window = reader.size("sliding_window", 4096) if reader.flag("use_sliding_window") else None
    # Read in any case: it is a known key.
    reader.get("sliding_window")
    first = reader.size("max_window_layers", 28, least=0)
    default = [LOCAL if window is not None and number >= first else GLOBAL for number in range(heads.n_layers)]
    types = layer_types(reader, default)
    if window is None and LOCAL in types:
        raise NotNativeError("its layers have a window of unknown size")
    return tuple(
        replace(layer, window=window if kind == LOCAL else None)
        for layer, kind in zip(_causal(reader, heads), types, strict=True)
    )


LLAMA = Family(
    model_type="llama",
    prefixes=("model.",),
    layouts=(LAYOUT,),
    config_keys={"layer_norm_eps": "rms_norm_eps"},
    harmless=frozenset(("pretraining_tp",)),
    token_types=False,
    rms_norms=True,
    biases={
        "norm": False,
        "qkv": "attention_bias",
        "out": "attention_bias",
        "up": "mlp_bias",
        "down": "mlp_bias",
    },
    own_head_width=True,
    activation=with_gate,
    attention=_causal,
)
EUROBERT = replace(
    LLAMA,
    model_type="eurobert",
    harmless=LLAMA.harmless | {"classifier_pooling"},
    attention=rotary_attention(_BASE),
)
MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    biases=dict.fromkeys(("norm", "qkv", "out", "up", "down"), False),
    attention=_windowed,
)
QWEN2 = replace(
    LLAMA,
    model_type="qwen2",
    biases={"norm": False, "qkv": True, "out": False, "up": False, "down": False},
    attention=_partly_windowed,
)
QWEN3 = replace(
    LLAMA,
    model_type="qwen3",
    layouts=(replace(LAYOUT, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm"),),
    defaults={"head_dim": 128},
    biases={"norm": False, "qkv": "attention_bias", "out": "attention_bias", "up": False, "down": False},
    attention=_partly_windowed,
)
