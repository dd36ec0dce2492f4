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
        loader: the transformers class that loads it.
        encoder: whether the encoder is a part of what that class loads (`get_encoder`).
        layers: dotted path from the encoder to its stack of layers, of which layer k gets hidden_states[k];
            None = there is no such stack, take the `hidden_states` that transformers collects.
        batches: what gives every text the states that it has alone. "packed" = laid end to end, "padded" = a
            rectangle with a mask, "equal" = a rectangle of texts of one length, for models whose code lets
            padding be seen. Each can be followed by the next if the check at load says so.
        positions: "count" from 0; "after_pad" = RoBERTa's, from pad_token_id + 1, at which a pad id
            in the text keeps the pad's position; "none" = the model has no absolute positions.
        position_limit: the config's key for the most positions; None = any length.
        causal: whether a token sees only what stands before it.
    """

    loader: str = "AutoModel"
    encoder: bool = False
    layers: str | None = None
    batches: str = "padded"
    positions: str = "count"
    position_limit: str | None = "max_position_embeddings"
    causal: bool = False


_BERT = Architecture(layers="encoder.layer", batches="packed")
_PADDED_BERT = Architecture(layers="encoder.layer")
_EQUAL_BERT = Architecture(layers="encoder.layer", batches="equal")
_ROBERTA = Architecture(layers="encoder.layer", batches="packed", positions="after_pad")
_PADDED_ROBERTA = Architecture(layers="encoder.layer", positions="after_pad")
_ROTARY = Architecture(layers="layers", batches="packed", positions="none")
_DECODER = Architecture(layers="layers", batches="packed", positions="none", causal=True)
_PADDED_DECODER = Architecture(layers="layers", causal=True)
_BART = Architecture(encoder=True, layers="layers")
_XLM = Architecture(layers="attentions")


def _t5(name: str) -> Architecture:
    return Architecture(loader=name, layers="encoder.block", positions="none", position_limit=None)


ARCHITECTURES: dict[str, Architecture] = {
    # Encoders with absolute positions.
    "albert": Architecture(layers="encoder.albert_layer_groups", batches="packed"),
    "bert": _BERT,
    "camembert": _ROBERTA,
    "convbert": _EQUAL_BERT,
    "data2vec-text": _ROBERTA,
    "distilbert": Architecture(layers="transformer.layer", batches="packed"),
    "electra": _BERT,
    "ernie": _BERT,
    "esm": _PADDED_ROBERTA,
    "flaubert": _XLM,
    "fnet": _EQUAL_BERT,
    "ibert": _PADDED_ROBERTA,
    "luke": _PADDED_ROBERTA,
    "megatron-bert": _PADDED_BERT,
    "mobilebert": _EQUAL_BERT,
    "rembert": _PADDED_BERT,
    "roberta": _ROBERTA,
    "roberta-prelayernorm": _ROBERTA,
    "splinter": _BERT,
    "squeezebert": Architecture(),
    "xlm": _XLM,
    "xlm-roberta": _ROBERTA,
    "xlm-roberta-xl": _ROBERTA,
    "yoso": _EQUAL_BERT,
    # Encoders with relative or rotary positions, or with windows.
    "big_bird": _PADDED_BERT,
    "deberta": _PADDED_BERT,
    "deberta-v2": _PADDED_BERT,
    "gte": _ROTARY,
    "longformer": _PADDED_ROBERTA,
    "modernbert": _ROTARY,
    "mpnet": _PADDED_ROBERTA,
    "nomic_bert": _ROTARY,
    "roformer": _PADDED_BERT,
    "xlnet": Architecture(positions="none", position_limit=None),
    # The encoders of encoder-decoders.
    "bart": _BART,
    "bigbird_pegasus": _BART,
    "led": Architecture(encoder=True, layers="layers", position_limit="max_encoder_position_embeddings"),
    "longt5": _t5("LongT5EncoderModel"),
    "m2m_100": _BART,
    "marian": _BART,
    "mbart": _BART,
    "mt5": _t5("MT5EncoderModel"),
    "pegasus": _BART,
    "plbart": _BART,
    "switch_transformers": _t5("SwitchTransformersEncoderModel"),
    "t5": _t5("T5EncoderModel"),
    "umt5": _t5("UMT5EncoderModel"),
    # Decoders: each token sees what stands before it.
    "biogpt": Architecture(layers="layers", batches="packed", causal=True),
    "bloom": Architecture(layers="h", positions="none", position_limit=None, causal=True),
    "falcon": Architecture(layers="h", positions="none", causal=True),
    "gemma": _DECODER,
    "gemma2": _PADDED_DECODER,
    "gemma3_text": _DECODER,
    "gpt2": Architecture(layers="h", batches="packed", causal=True, position_limit="n_positions"),
    "gpt_neo": Architecture(layers="h", causal=True),
    "gpt_neox": _DECODER,
    "gptj": Architecture(layers="h", causal=True, position_limit="n_positions"),
    "granite": _DECODER,
    "llama": _DECODER,
    "mistral": _DECODER,
    "mixtral": _DECODER,
    "mpt": Architecture(layers="blocks", positions="none", position_limit="max_seq_len", causal=True),
    "olmo": _DECODER,
    "opt": Architecture(layers="decoder.layers", batches="packed", causal=True),
    "phi": _DECODER,
    "phi3": _DECODER,
    "qwen2": _DECODER,
    "qwen3": _DECODER,
}
UNPROVEN = Architecture()
