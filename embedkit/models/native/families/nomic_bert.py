"""Nomic BERT (Nussbaum et al. 2024, arXiv 2402.01613)."""

from embedkit.models.native.families.family import Family, Layout, NormNames, rotary_attention, with_gate

#: As transformers' class has them; the published checkpoints' names are the other layout's.
LAYOUT = Layout(
    positions=None,
    pooler=None,
    layer="layers.{}.",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attention_out="self_attn.o_proj",
    attention_norms=NormNames(after="post_attention_layernorm"),
    up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    ffn_norms=NormNames(after="post_mlp_layernorm"),
)
_PUBLISHED = Layout(
    positions=None,
    embedding_norm="emb_ln",
    pooler=None,
    layer="encoder.layers.{}.",
    qkv=("attn.Wqkv",),
    attention_out="attn.out_proj",
    attention_norms=NormNames(after="norm1"),
    up=("mlp.fc12", "mlp.fc11"),
    down="mlp.fc2",
    ffn_norms=NormNames(after="norm2"),
)


NOMIC_BERT = Family(
    model_type="nomic_bert",
    prefixes=("nomic_bert.",),
    layouts=(LAYOUT, _PUBLISHED),
    # The published config.json has other names, which transformers' class does not read: it has these sizes.
    defaults={
        "vocab_size": 30528,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 2048,
        "type_vocab_size": 2,
        "hidden_act": "silu",
        "layer_norm_eps": 1e-12,
    },
    fixed={
        "activation_function": ("swiglu",),
        "causal": (False,),
        "layer_norm_epsilon": (1e-12,),
        "mlp_fc1_bias": (False,),
        "mlp_fc2_bias": (False,),
        "qkv_proj_bias": (False,),
        "n_embd": (768,),
        "n_head": (12,),
        "n_inner": (3072,),
        "n_layer": (12,),
        "parallel_block": (False,),
        "parallel_block_tied_norm": (False,),
        "prenorm": (False,),
        "rotary_emb_base": (1000,),
        "rotary_emb_fraction": (1.0,),
        "rotary_emb_interleaved": (False,),
        "rotary_emb_scale_base": (None,),
        "rotary_scaling_factor": (None,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "use_rms_norm": (False, None),
    },
    harmless=frozenset(
        (
            *("attn_pdrop", "auto_map", "dense_seq_output", "embd_pdrop", "fused_bias_fc", "fused_dropout_add_ln"),
            *("max_trained_positions", "n_positions", "pad_vocab_size_multiple", "reorder_and_upcast_attn"),
            *("resid_pdrop", "summary_first_dropout", "summary_proj_to_labels", "use_flash_attn", "use_xentropy"),
        )
    ),
    biases={"qkv": False, "out": False, "up": False, "down": False},
    own_head_width=True,
    activation=with_gate,
    attention=rotary_attention(1000.0),
)
