"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108)."""

from embedkit.models.native.families.bert import BERT_DEFAULTS
from embedkit.models.native.families.family import Family, Layout, NormNames

DISTILBERT = Family(
    model_type="distilbert",
    prefixes=("distilbert.",),
    layouts=(
        Layout(
            pooler=None,
            layer="transformer.layer.{}.",
            qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
            attention_out="attention.out_lin",
            attention_norms=NormNames(after="sa_layer_norm"),
            up=("ffn.lin1",),
            down="ffn.lin2",
            ffn_norms=NormNames(after="output_layer_norm"),
        ),
    ),
    config_keys={
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
    },
    defaults=BERT_DEFAULTS,
    norm_eps=1e-12,
    token_types=False,
)
