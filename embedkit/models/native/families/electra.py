"""ELECTRA (Clark et al. 2020, arXiv 2003.10555)."""

from embedkit.models.native.families.bert import BERT_DEFAULTS
from embedkit.models.native.families.family import Family

ELECTRA = Family(
    model_type="electra",
    prefixes=("electra.",),
    defaults={**BERT_DEFAULTS, "embedding_size": 128},
    projects_embeddings=True,
)
