"""Megatron-BERT (Shoeybi et al. 2019, arXiv 1909.08053), such as GatorTron."""

from embedkit.models.native.families.bert import BERT_DEFAULTS
from embedkit.models.native.families.family import Family, Layout, NormNames

MEGATRON_BERT = Family(
    model_type="megatron-bert",
    prefixes=("bert.",),
    layouts=(
        Layout(
            embedding_norm=None,
            final_norm="encoder.ln",
            attention_norms=NormNames(before="attention.ln"),
            ffn_norms=NormNames(before="ln"),
        ),
    ),
    defaults=BERT_DEFAULTS,
)
