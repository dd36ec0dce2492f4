"""ModernBERT (Warner et al. 2024, arXiv 2412.13663)."""

from embedkit.models.native.config_reader import ConfigReader
from embedkit.models.native.families.family import Family, Heads, LayerAttention, Layout, NormNames, with_gate
from embedkit.models.native.families.layer_types import GLOBAL, LOCAL, layer_types
from embedkit.models.native.rotation import read_rotations


def _attention(reader: ConfigReader, heads: Heads) -> tuple[LayerAttention, ...]:
    """Returns layers of which every third attends to the whole text, the others to neighbours on both sides."""
    bases = {GLOBAL: ("global_rope_theta", 160_000.0), LOCAL: ("local_rope_theta", 10_000.0)}
    rotations = read_rotations(reader, heads.width, bases, scaled=(GLOBAL, LOCAL))
    every = reader.size("global_attn_every_n_layers", 3)
    types = layer_types(reader, [LOCAL if number % every else GLOBAL for number in range(heads.n_layers)])
    window = reader.size("local_attention", 128) // 2 + 1
    return tuple(
        LayerAttention(window=window if kind == LOCAL else None, rotation=rotations[kind]) for kind in types
    )


MODERNBERT = Family(
    model_type="modernbert",
    prefixes=("model.",),
    layouts=(
        Layout(
            words="embeddings.tok_embeddings",
            positions=None,
            types=None,
            embedding_norm="embeddings.norm",
            final_norm="final_norm",
            pooler=None,
            layer="layers.{}.",
            qkv=("attn.Wqkv",),
            attention_out="attn.Wo",
            attention_norms=NormNames(before="attn_norm"),
            up=("mlp.Wi",),
            down="mlp.Wo",
            ffn_norms=NormNames(before="mlp_norm"),
        ),
    ),
    config_keys={"hidden_act": "hidden_activation", "layer_norm_eps": "norm_eps"},
    harmless=frozenset(
        (
            *(
                "classifier_activation",
                "classifier_bias",
                "classifier_pooling",
                "decoder_bias",
                "embedding_dropout",
            ),
            *("deterministic_flash_attn", "initializer_cutoff_factor", "mlp_dropout", "reference_compile"),
            *("repad_logits_with_grad", "sparse_pred_ignore_index", "sparse_prediction"),
            # An older name of norm_eps, which stands beside it and is not read.
            "layer_norm_eps",
        )
    ),
    token_types=False,
    # The embeddings' norm precedes it.
    skips_first_norm=True,
    biases={
        "norm": "norm_bias",
        "qkv": "attention_bias",
        "out": "attention_bias",
        "up": "mlp_bias",
        "down": "mlp_bias",
    },
    activation=with_gate,
    attention=_attention,
)
