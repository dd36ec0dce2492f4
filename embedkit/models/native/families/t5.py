"""The encoder of T5 (Raffel et al. 2019, arXiv 1910.10683), mT5 and UMT5."""

from dataclasses import replace
from typing import Any

from embedkit.models.native.config_reader import ConfigReader, NotNativeError
from embedkit.models.native.families.family import Family, Heads, LayerAttention, Layout, NormNames, RelativeBias

_PLAIN = Layout(
    words="shared",
    copies=("encoder.embed_tokens",),
    positions=None,
    types=None,
    embedding_norm=None,
    final_norm="encoder.final_layer_norm",
    pooler=None,
    relative_bias="encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
    layer="encoder.block.{}.",
    qkv=("layer.0.SelfAttention.q", "layer.0.SelfAttention.k", "layer.0.SelfAttention.v"),
    attention_out="layer.0.SelfAttention.o",
    attention_norms=NormNames(before="layer.0.layer_norm"),
    up=("layer.1.DenseReluDense.wi",),
    down="layer.1.DenseReluDense.wo",
    ffn_norms=NormNames(before="layer.1.layer_norm"),
)
_GATED = replace(_PLAIN, up=("layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi_1"))
#: With "shared", or the encoder's name for it alone.
_LAYOUTS = (
    *(_PLAIN, _GATED),
    *(replace(layout, words="encoder.embed_tokens", copies=()) for layout in (_PLAIN, _GATED)),
)


def _attention(reader: ConfigReader, heads: Heads) -> tuple[LayerAttention, ...]:
    buckets = reader.size("relative_attention_num_buckets", 32, least=4)
    farthest = reader.size("relative_attention_max_distance", 128)
    if buckets % 4 or farthest <= buckets // 4:
        raise NotNativeError("its buckets of distances are not as usual")
    return (LayerAttention(bias=RelativeBias(buckets, farthest)),) * heads.n_layers


def _activation(reader: ConfigReader) -> tuple[Any, bool]:
    stated = reader.get("feed_forward_proj")
    if not isinstance(stated, str):
        raise NotNativeError("its activation is not stated")
    gate, _, name = stated.rpartition("-")
    if gate not in {"", "gated"}:
        raise NotNativeError(f"its activation is {stated[:80]!r}")
    name = "gelu_new" if stated == "gated-gelu" else name
    # transformers takes these if they are there; it also writes them.
    if reader.get("dense_act_fn", name) != name or reader.get("is_gated_act", bool(gate)) is not bool(gate):
        raise NotNativeError("its config.json states two activations")
    return name, bool(gate)


def _unscaled(_reader: ConfigReader, _width: int) -> float:
    return 1.0


T5 = Family(
    model_type="t5",
    prefixes=("transformer.",),
    layouts=_LAYOUTS,
    config_keys={
        "hidden_size": "d_model",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "head_dim": "d_kv",
        "intermediate_size": "d_ff",
        "layer_norm_eps": "layer_norm_epsilon",
    },
    defaults={"head_dim": 64, "layer_norm_eps": 1e-6, "feed_forward_proj": "relu"},
    fixed={"is_encoder_decoder": (True, False)},
    harmless=frozenset(
        (
            *("decoder_start_token_id", "dropout_rate", "n_positions", "num_decoder_layers", "scalable_attention"),
            *("scale_decoder_outputs", "task_specific_params", "tokenizer_class"),
        )
    ),
    token_types=False,
    limits_positions=False,
    rms_norms=True,
    biases=dict.fromkeys(("norm", "qkv", "out", "up", "down"), False),
    own_head_width=True,
    scale=_unscaled,
    activation=_activation,
    attention=_attention,
)
MT5 = replace(T5, model_type="mt5", defaults={**T5.defaults, "feed_forward_proj": "gated-gelu"})
UMT5 = replace(
    MT5,
    model_type="umt5",
    # Each layer has a bias of its own.
    layouts=tuple(
        replace(layout, relative_bias="encoder.block.{}.layer.0.SelfAttention.relative_attention_bias")
        for layout in _LAYOUTS
    ),
)
