"""BERT (Devlin et al. 2018, arXiv 1810.04805)."""

from embedkit.models.native.families.family import Family

#: What transformers takes for keys that a config.json lacks, in BERT and its kin.
BERT_DEFAULTS = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2}

BERT = Family(model_type="bert", prefixes=("bert.",), defaults=BERT_DEFAULTS)
