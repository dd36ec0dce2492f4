"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108)."""

from embedkit.models.native.families.family import Family

DISTILBERT = Family(
    model_type="distilbert",
    prefix="distilbert.",
    layer="transformer.layer.{}.",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_out="attention.out_lin",
    attention_norm="sa_layer_norm",
    up="ffn.lin1",
    down="ffn.lin2",
    output_norm="output_layer_norm",
    config_keys={
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
    },
    layer_norm_eps=1e-12,
    token_types=False,
)
