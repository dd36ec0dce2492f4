"""The model families that embedkit computes itself, each described by data; imports no torch.

To add one: a file here with a `Family`, a line in the table below, and a row in tests/models/native.
"""

from embedkit.models.native.families.bert import BERT
from embedkit.models.native.families.deberta_v2 import DEBERTA_V2
from embedkit.models.native.families.distilbert import DISTILBERT
from embedkit.models.native.families.electra import ELECTRA
from embedkit.models.native.families.family import Family
from embedkit.models.native.families.gemma3 import GEMMA3_TEXT
from embedkit.models.native.families.gte import GTE
from embedkit.models.native.families.llama import EUROBERT, LLAMA, MISTRAL, QWEN2, QWEN3
from embedkit.models.native.families.longformer import LONGFORMER
from embedkit.models.native.families.megatron_bert import MEGATRON_BERT
from embedkit.models.native.families.modernbert import MODERNBERT
from embedkit.models.native.families.mpnet import MPNET
from embedkit.models.native.families.nomic_bert import NOMIC_BERT
from embedkit.models.native.families.roberta import CAMEMBERT, ROBERTA, XLM_ROBERTA
from embedkit.models.native.families.t5 import MT5, T5, UMT5

#: By `model_type` of config.json.
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        *(BERT, CAMEMBERT, DEBERTA_V2, DISTILBERT, ELECTRA, EUROBERT, GEMMA3_TEXT, GTE, LLAMA, LONGFORMER),
        *(MEGATRON_BERT, MISTRAL, MODERNBERT, MPNET, MT5, NOMIC_BERT, QWEN2, QWEN3, ROBERTA, T5, UMT5),
        XLM_ROBERTA,
    )
}
