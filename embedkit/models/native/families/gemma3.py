"""Gemma 3 (2025, arXiv 2503.19786), as a decoder and, in both directions, as EmbeddingGemma."""

from dataclasses import replace

from embedkit.models.native.config_reader import ConfigReader
from embedkit.models.native.families.family import Family, Heads, LayerAttention, NormNames, with_gate
from embedkit.models.native.families.layer_types import GLOBAL, LOCAL, layer_types
from embedkit.models.native.families.llama import LAYOUT
from embedkit.models.native.rotation import read_rotations


def _attention(reader: ConfigReader, heads: Heads) -> tuple[LayerAttention, ...]:
    """Returns layers of which every sixth attends to all of a text, or all that precedes; others have a window."""
    bases = {GLOBAL: ("rope_theta", 1_000_000.0), LOCAL: ("rope_local_base_freq", 10_000.0)}
    rotations = read_rotations(reader, heads.width, bases, scaled=(GLOBAL,))
    every = reader.size("sliding_window_pattern", 6)
    types = layer_types(reader, [LOCAL if (number + 1) % every else GLOBAL for number in range(heads.n_layers)])
    both_ways = reader.get("use_bidirectional_attention") is True
    window = reader.size("sliding_window", 4096)
    # Of a window for both directions, a half is on each side.
    window = window // 2 + 1 if both_ways else window
    return tuple(
        LayerAttention(not both_ways, window if kind == LOCAL else None, rotations[kind]) for kind in types
    )


def _scale(reader: ConfigReader, _: int) -> float:
    return float(reader.number("query_pre_attn_scalar") ** -0.5)


GEMMA3_TEXT = Family(
    model_type="gemma3_text",
    prefixes=("model.",),
    layouts=(
        replace(
            LAYOUT,
            query_norm="self_attn.q_norm",
            key_norm="self_attn.k_norm",
            attention_norms=NormNames(before="input_layernorm", inner="post_attention_layernorm"),
            ffn_norms=NormNames(before="pre_feedforward_layernorm", inner="post_feedforward_layernorm"),
        ),
    ),
    config_keys={"hidden_act": "hidden_activation", "layer_norm_eps": "rms_norm_eps"},
    defaults={"head_dim": 256, "num_key_value_heads": 4, "query_pre_attn_scalar": 256},
    fixed={"attn_logit_softcapping": (None,)},
    harmless=frozenset(("_sliding_window_pattern", "final_logit_softcapping")),
    token_types=False,
    scales_embeddings=True,
    rms_norms=True,
    norms_add_one=True,
    biases={"norm": False, "qkv": "attention_bias", "out": "attention_bias", "up": False, "down": False},
    own_head_width=True,
    scale=_scale,
    activation=with_gate,
    attention=_attention,
)
