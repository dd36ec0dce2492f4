"""GTE (Zhang et al. 2024, arXiv 2407.19669)."""

from embedkit.models.native.config_reader import ConfigReader
from embedkit.models.native.families.bert import BERT_DEFAULTS
from embedkit.models.native.families.family import Family, Heads, LayerAttention, Layout, NormNames, with_gate
from embedkit.models.native.families.nomic_bert import LAYOUT
from embedkit.models.native.rotation import read_rotation

_PUBLISHED = Layout(
    positions=None,
    pooler=None,
    qkv=("attention.qkv_proj",),
    attention_out="attention.o_proj",
    attention_norms=NormNames(after="attn_ln"),
    up=("mlp.up_gate_proj",),
    gate_is_first=False,
    down="mlp.down_proj",
    ffn_norms=NormNames(after="mlp_ln"),
)


def _attention(reader: ConfigReader, heads: Heads) -> tuple[LayerAttention, ...]:
    rotation = read_rotation(reader, heads.width, 160_000.0)
    return (LayerAttention(rotation=rotation),) * heads.n_layers


GTE = Family(
    model_type="gte",
    prefixes=("gte.", "new."),
    layouts=(LAYOUT, _PUBLISHED),
    defaults={**BERT_DEFAULTS, "type_vocab_size": 1},
    may_lack_types=True,
    biases={"up": False},
    activation=with_gate,
    attention=_attention,
)
