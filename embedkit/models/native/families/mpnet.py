"""MPNet (Song et al. 2020, arXiv 2004.09297)."""

from embedkit.models.native.families.family import Family

MPNET = Family(
    model_type="mpnet",
    prefix="mpnet.",
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    attention_out="attention.attn.o",
    attention_norm="attention.LayerNorm",
    token_types=False,
    positions_after_pad=True,
    # Whatever config.json has as pad_token_id.
    pad_id=1,
    relative_bias="encoder.relative_attention_bias",
)
