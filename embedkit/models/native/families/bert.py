"""BERT (Devlin et al. 2018, arXiv 1810.04805)."""

from embedkit.models.native.families.family import Family

BERT = Family(model_type="bert", prefix="bert.")
