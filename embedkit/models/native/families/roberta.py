"""RoBERTa (Liu et al. 2019, arXiv 1907.11692), CamemBERT and XLM-RoBERTa."""

from dataclasses import replace

from embedkit.models.native.families.bert import BERT_DEFAULTS
from embedkit.models.native.families.family import Family

ROBERTA = Family(
    model_type="roberta",
    prefixes=("roberta.",),
    defaults={**BERT_DEFAULTS, "pad_token_id": 1},
    positions_after_pad=True,
)
CAMEMBERT = replace(ROBERTA, model_type="camembert")
XLM_ROBERTA = replace(ROBERTA, model_type="xlm-roberta")
