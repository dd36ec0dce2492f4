"""GTE (Zhang et al. 2024, arXiv 2407.19669)."""

from embedkit.models.native.families.bert import BERT_DEFAULTS
from embedkit.models.native.families.family import Family, Layout, NormNames, rotary_attention, with_gate
from embedkit.models.native.families.nomic_bert import LAYOUT

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


GTE = Family(
    model_type="gte",
    prefixes=("gte.", "new."),
    layouts=(LAYOUT, _PUBLISHED),
    defaults={**BERT_DEFAULTS, "type_vocab_size": 1},
    may_lack_types=True,
    biases={"up": False},
    activation=with_gate,
    attention=rotary_attention(160_000.0),
)
