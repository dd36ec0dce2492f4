"""The table of model types: how transformers loads each, and how its texts are batched without changing a vector.

A type that is not in the table runs in batches of texts of equal length, through transformers' own
`hidden_states`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason why models of a type, or some of them, cannot be run exactly.

    Attributes:
        reason: a clause about "it".
        way_out: what to do instead.
        when: given config.json, True if it applies to this model; None if it applies to all of the type.
    """

    reason: str
    way_out: str
    when: Callable[[Mapping[str, Any]], bool] | None = None


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to run one `model_type` of transformers.

    Attributes:
        loader: the transformers class that loads it.
        encoder: True if the encoder is a part of what that class loads (`get_encoder`).
        layers: dotted path from the encoder to its stack of layers, where the input of layer k is
            hidden_states[k]; None to use the `hidden_states` that transformers collects.
        batches: the fastest batching in which every text keeps the states that it has alone: "packed" (texts
            concatenated without padding), "padded" (a rectangle with a mask), or "equal" (texts of equal
            length), for models whose code does not mask padding everywhere. The check at load may fall back
            to the next.
        positions: "count" from 0; "after_pad" as in RoBERTa, from pad_token_id + 1, where a pad id in the text
            keeps the pad's position; "none" if the model has no absolute positions.
        position_limit: the config's key for the most positions; None if any length.
        causal: True if a token attends only to earlier ones.
        least_tokens: given the model's config, the fewest tokens that its code can take; a shorter text is
            padded to as many, and masked.
        refusals: models of this type that are not run.
    """

    loader: str = "AutoModel"
    encoder: bool = False
    layers: str | None = None
    batches: str = "padded"
    positions: str = "count"
    position_limit: str | None = "max_position_embeddings"
    causal: bool = False
    least_tokens: Callable[[Any], int] = lambda _config: 1
    refusals: tuple[Refusal, ...] = ()

    def refusal(self, config: Mapping[str, Any]) -> Refusal | None:
        """Returns the reason why a model with this config.json is not run; None if it is."""
        return next((one for one in self.refusals if one.when is None or one.when(config)), None)


_BERT = Architecture(layers="encoder.layer", batches="packed")
_PADDED_BERT = Architecture(layers="encoder.layer")
_EQUAL_BERT = Architecture(layers="encoder.layer", batches="equal")
_ROBERTA = Architecture(layers="encoder.layer", batches="packed", positions="after_pad")
_PADDED_ROBERTA = Architecture(layers="encoder.layer", positions="after_pad")
_ROTARY = Architecture(layers="layers", batches="packed", positions="none")
_PADDED_ROTARY = Architecture(layers="layers", positions="none")
_DECODER = Architecture(layers="layers", batches="packed", positions="none", causal=True)
_PADDED_DECODER = Architecture(layers="layers", positions="none", causal=True)
_GPT = Architecture(layers="h", batches="packed", causal=True, position_limit="n_positions")
_PADDED_GPT = Architecture(layers="h", causal=True, position_limit="n_positions")
# In state-space models, transformers' hidden_states are not the inputs of the layers.
_STATE_SPACE = Architecture(positions="none", position_limit=None, causal=True)
_BART = Architecture(encoder=True, layers="layers")
_XLM = Architecture(layers="attentions")


def _t5(name: str) -> Architecture:
    return Architecture(loader=name, layers="encoder.block", positions="none", position_limit=None)


def _refused(reason: str, way_out: str) -> Architecture:
    return Architecture(refusals=(Refusal(reason, way_out),))


_PLAIN = "use a model that reads plain text, such as minilm"
_PAGE = _refused("it reads the position of each word on a page, which a text does not have", _PLAIN)
_KERNEL = "without a CUDA kernel that is downloaded as code, transformers returns zeros for its attention"

# To add a model type: an entry here, by its `model_type`, and a tiny config in tests/models/kinds.py. The tests of
# tests/models/test_architectures.py then compare every layer and pooling with transformers, and name the first
# batching that is exact if the entry promises too much.
ARCHITECTURES: dict[str, Architecture] = {
    # Encoders with absolute positions.
    "albert": Architecture(layers="encoder.albert_layer_groups", batches="packed"),
    "bert": _BERT,
    "bert-generation": _BERT,
    "camembert": _ROBERTA,
    # Its "molecules" of four characters include padding.
    "canine": Architecture(batches="equal", least_tokens=lambda config: int(config.downsampling_rate)),
    "clip_text_model": Architecture(layers="encoder.layers", causal=True),
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
    "nystromformer": Architecture(
        layers="encoder.layer",
        batches="equal",
        refusals=(
            Refusal(
                "its landmarks divide texts of one length only",
                "use a checkpoint whose num_landmarks and segment_means_seq_len are equal",
                lambda config: config.get("num_landmarks", 64) != config.get("segment_means_seq_len", 64),
            ),
        ),
    ),
    "rembert": _PADDED_BERT,
    "roberta": _ROBERTA,
    "roberta-prelayernorm": _ROBERTA,
    "splinter": _BERT,
    "squeezebert": Architecture(),
    "xlm": _XLM,
    "xlm-roberta": _ROBERTA,
    "xlm-roberta-xl": _ROBERTA,
    "xmod": Architecture(
        layers="encoder.layer",
        batches="packed",
        positions="after_pad",
        refusals=(
            Refusal(
                "it has an adapter for each language, and no language is set",
                'set "default_language" in its config.json to one of the "languages" there',
                lambda config: config.get("default_language") is None,
            ),
        ),
    ),
    "yoso": Architecture(
        layers="encoder.layer",
        batches="equal",
        refusals=(
            Refusal(
                "its attention hashes at random, so the vector of a text differs each time",
                'set "use_expectation": true in its config.json',
                lambda config: config.get("use_expectation", True) is False,
            ),
        ),
    ),
    # Encoders with relative or rotary positions, or with windows. BigBird uses full attention or blocks, by the
    # longest text of the batch.
    "big_bird": _EQUAL_BERT,
    "deberta": _PADDED_BERT,
    "deberta-v2": _PADDED_BERT,
    "embedding_gemma2_text": _PADDED_ROTARY,
    "esmc": _ROTARY,
    "eurobert": _ROTARY,
    # It shortens the whole row, padding included.
    "funnel": Architecture(
        batches="equal",
        positions="none",
        position_limit=None,
        # After the last block, a shorter text is too short for its relative positions.
        least_tokens=lambda config: (
            2 ** (len(config.block_sizes) - 1) + 1 if config.attention_type == "relative_shift" else 1
        ),
        refusals=(
            Refusal(
                "without separate_cls and truncate_seq, its code fails for texts of some lengths",
                "use a checkpoint that has both, as the published ones do",
                lambda config: (
                    config.get("attention_type", "relative_shift") == "relative_shift"
                    and not (config.get("separate_cls", True) and config.get("truncate_seq", True))
                ),
            ),
        ),
    ),
    "gte": _ROTARY,
    "jina_embeddings_v3": _ROTARY,
    "longformer": _PADDED_ROBERTA,
    "modernbert": _ROTARY,
    "mpnet": _PADDED_ROBERTA,
    "nomic_bert": _ROTARY,
    "openai_privacy_filter": _PADDED_ROTARY,
    "roformer": _PADDED_BERT,
    "ultrabert": _ROTARY,
    "xlnet": Architecture(positions="none", position_limit=None),
    # The encoders of encoder-decoders.
    "bart": _BART,
    "bigbird_pegasus": Architecture(encoder=True, layers="layers", batches="equal"),
    "blenderbot": _BART,
    "blenderbot-small": _BART,
    "led": Architecture(encoder=True, layers="layers", position_limit="max_encoder_position_embeddings"),
    "longt5": _t5("LongT5EncoderModel"),
    "m2m_100": _BART,
    "marian": _BART,
    "mbart": _BART,
    "mt5": _t5("MT5EncoderModel"),
    "mvp": _BART,
    "nllb-moe": _BART,
    "pegasus": _BART,
    "pegasus_x": _BART,
    "plbart": _BART,
    "prophetnet": Architecture(encoder=True, layers="layers", positions="after_pad"),
    "switch_transformers": _t5("SwitchTransformersEncoderModel"),
    "t5": _t5("T5EncoderModel"),
    "umt5": _t5("UMT5EncoderModel"),
    # Decoders.
    "biogpt": Architecture(layers="layers", batches="packed", causal=True),
    "bloom": Architecture(layers="h", positions="none", position_limit=None, causal=True),
    "codegen": _PADDED_GPT,
    "cohere": _DECODER,
    "cohere2": _DECODER,
    "ctrl": Architecture(layers="h", causal=True, position_limit="n_positions"),
    "deepseek_v2": _PADDED_DECODER,
    "deepseek_v3": _PADDED_DECODER,
    "ernie4_5": _DECODER,
    "exaone4": _DECODER,
    "falcon": Architecture(layers="h", positions="none", causal=True),
    "falcon_mamba": _STATE_SPACE,
    "gemma": _DECODER,
    "gemma2": _PADDED_DECODER,
    "gemma3_text": _DECODER,
    "glm": _DECODER,
    "glm4": _DECODER,
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gpt_neo": Architecture(layers="h", causal=True),
    "gpt_neox": _DECODER,
    "gpt_neox_japanese": _PADDED_DECODER,
    "gpt_oss": _PADDED_DECODER,
    "gptj": _PADDED_GPT,
    "granite": _DECODER,
    "granitemoe": _DECODER,
    "helium": _DECODER,
    "llama": _DECODER,
    "mamba": _STATE_SPACE,
    "mamba2": _STATE_SPACE,
    "ministral": _DECODER,
    "ministral3": _DECODER,
    "mistral": _DECODER,
    "mixtral": _DECODER,
    "modernbert-decoder": _DECODER,
    "mpt": Architecture(layers="blocks", positions="none", position_limit="max_seq_len", causal=True),
    "nemotron": _PADDED_DECODER,
    "olmo": _DECODER,
    "olmo2": _DECODER,
    "olmo3": _DECODER,
    "olmoe": _DECODER,
    "openai-gpt": _PADDED_GPT,
    "opt": Architecture(layers="decoder.layers", batches="packed", causal=True),
    "persimmon": _DECODER,
    "phi": _DECODER,
    "phi3": _DECODER,
    "phimoe": _DECODER,
    "qwen2": _DECODER,
    "qwen2_moe": _DECODER,
    "qwen3": _DECODER,
    "qwen3_moe": _DECODER,
    "recurrent_gemma": _PADDED_DECODER,
    "rwkv": _STATE_SPACE,
    "smollm3": _DECODER,
    "stablelm": _PADDED_DECODER,
    "starcoder2": _DECODER,
    "vaultgemma": _PADDED_DECODER,
    "xglm": Architecture(layers="layers", causal=True),
    # Refused.
    "bros": _PAGE,
    "dpr": _refused(
        "it returns one vector for each text, and no states of its tokens",
        "use the BERT that it is made of: save its bert_model as a folder",
    ),
    "layoutlm": _PAGE,
    "layoutlmv2": _PAGE,
    "layoutlmv3": _PAGE,
    "lilt": _PAGE,
    "markuplm": _refused("it reads the position of each word in a web page, which a text does not have", _PLAIN),
    "mra": _refused(_KERNEL, _PLAIN),
    "perceiver": _refused("its states are those of its latents, not of the tokens", _PLAIN),
    "reformer": _refused("its attention hashes at random, and its states are two streams", _PLAIN),
    "roc_bert": _refused("it reads the shape and sound of each character as well as the ids", _PLAIN),
    "tapas": _refused("it reads a table as well as the text", _PLAIN),
    "udop": _PAGE,
}
UNPROVEN = Architecture(batches="equal")


def max_positions(config: Any, architecture: Architecture) -> int | None:
    """Returns the most tokens that a model has positions for; None if any number.

    Args:
        config: the encoder's configuration, with its keys as attributes.
        architecture: its table entry.
    """
    if architecture.position_limit is None:
        return None
    limit = getattr(config, architecture.position_limit, None)
    if limit is None or limit <= 0:
        return None
    # RoBERTa's positions start after the pad's: of 514, 512 are for tokens.
    return int(limit) - (config.pad_token_id + 1 if architecture.positions == "after_pad" else 0)


def has_position_table(config: Any, architecture: Architecture) -> bool:
    """Checks whether a model has a table of positions, which ends, or computes them for any length.

    Args:
        config: the encoder's configuration, with its keys as attributes.
        architecture: its table entry.
    """
    if architecture.position_limit != "max_position_embeddings":
        return True
    # ESM has both kinds.
    return architecture.positions != "none" and getattr(config, "position_embedding_type", None) != "rotary"


def rotates_by_history(config: Any) -> bool:
    """Checks whether rotary positions depend on the longest text that the model has seen ("dynamic")."""
    return any("dynamic" in kind for kind in rope_types(config))


def rope_types(config: Any) -> tuple[str, ...]:
    """Returns the kinds of rotary positions of a model: one, or one for each type of layer."""
    settings = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    groups = [settings, *(group for group in settings.values() if isinstance(group, Mapping))]
    return tuple(str(group.get("rope_type") or group.get("type")) for group in groups)
