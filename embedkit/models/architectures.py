"""What embedkit knows of each kind of model: one table, which the code and the README both use.

Imports neither torch nor transformers. A type that is not in the table is run in padded batches
through transformers' own `hidden_states`, and trusted only after the check made at load.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one `model_type` of transformers is run.

    Attributes:
        loader: the transformers class that loads its encoder.
        layers: dotted path from that class to its stack of encoder layers, of which layer k gets
            hidden_states[k]; None = not known, take the `hidden_states` that transformers collects.
        packed: proven by test to give the same states when texts are laid end to end.
        positions: "count" from 0; "after_pad" = RoBERTa's, from pad_token_id + 1, at which a pad id
            in the text keeps the pad's position; "none" = the model has no absolute positions.
        position_limit: the config's key for the most positions; None = any length.
        causal: whether a token sees only what stands before it.
        pooler: prefix of the weights of its pooling head; None = it has none.
    """

    loader: str = "AutoModel"
    layers: str | None = None
    packed: bool = False
    positions: str = "count"
    position_limit: str | None = "max_position_embeddings"
    causal: bool = False
    pooler: str | None = None


_BERT = Architecture(layers="encoder.layer", packed=True, pooler="pooler")
_ROBERTA = Architecture(layers="encoder.layer", packed=True, positions="after_pad", pooler="pooler")
_DEBERTA = Architecture(layers="encoder.layer")

ARCHITECTURES: dict[str, Architecture] = {
    "albert": Architecture(layers="encoder.albert_layer_groups", packed=True, pooler="pooler"),
    "bert": _BERT,
    "camembert": _ROBERTA,
    "deberta": _DEBERTA,
    "deberta-v2": _DEBERTA,
    "distilbert": Architecture(layers="transformer.layer", packed=True),
    "electra": Architecture(layers="encoder.layer", packed=True),
    "gpt2": Architecture(layers="h", packed=True, causal=True, position_limit="n_positions"),
    "modernbert": Architecture(layers="layers", packed=True, positions="none"),
    "mpnet": Architecture(layers="encoder.layer", positions="after_pad", pooler="pooler"),
    "roberta": _ROBERTA,
    "t5": Architecture(loader="T5EncoderModel", layers="encoder.block", positions="none", position_limit=None),
    "xlm-roberta": _ROBERTA,
    "xlnet": Architecture(positions="none", position_limit=None),
}
UNPROVEN = Architecture()
