"""MPNet (Song et al. 2020, arXiv 2004.09297)."""

from embedkit.models.native.config_reader import ConfigReader
from embedkit.models.native.families.bert import BERT_DEFAULTS
from embedkit.models.native.families.family import Family, Heads, LayerAttention, Layout, NormNames, RelativeBias


def _attention(_: ConfigReader, heads: Heads) -> tuple[LayerAttention, ...]:
    """Returns layers that all have the same bias, in 32 buckets."""
    return (LayerAttention(bias=RelativeBias()),) * heads.n_layers


MPNET = Family(
    model_type="mpnet",
    prefixes=("mpnet.",),
    layouts=(
        Layout(
            types=None,
            relative_bias="encoder.relative_attention_bias",
            qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
            attention_out="attention.attn.o",
            attention_norms=NormNames(after="attention.LayerNorm"),
        ),
    ),
    defaults=BERT_DEFAULTS,
    token_types=False,
    positions_after_pad=True,
    # Whatever config.json has as pad_token_id.
    pad_id=1,
    attention=_attention,
)
