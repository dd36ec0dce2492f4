"""ELECTRA (Clark et al. 2020, arXiv 2003.10555)."""

from embedkit.models.native.families.family import Family

ELECTRA = Family(model_type="electra", prefix="electra.", projects_embeddings=True)
