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
    """The reason why models of a type cannot be run exactly, as a clause about "it"; and what to do instead.

    Attributes:
        when: returns True if it applies to a model with this config.json; None if it applies to all of the type.
    """

    reason: str
    way_out: str
    when: Callable[[Mapping[str, Any]], bool] | None = None


@dataclass(frozen=True, slots=True)
class Architecture:
    """The way to run one `model_type` of transformers.

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
        return next((why for why in self.refusals if why.when is None or why.when(config)), None)


def _types(architecture: Architecture, *names: str) -> dict[str, Architecture]:
    return dict.fromkeys(names, architecture)


def _refused(reason: str, way_out: str = "use a model that reads plain text, such as minilm") -> Architecture:
    return Architecture(refusals=(Refusal(reason, way_out),))


def _t5(name: str) -> Architecture:
    return Architecture(loader=name, layers="encoder.block", positions="none", position_limit=None)


# To add a model type: its `model_type` here, in a group or as an entry of its own, and a tiny config in
# tests/models/kinds.py. tests/models/test_architectures.py then compares every layer and pooling with
# transformers, and fails if the entry promises a batching that is not exact.
ARCHITECTURES: dict[str, Architecture] = {
    # Encoders with absolute positions.
    **_types(
        Architecture(layers="encoder.layer", batches="packed"),
        *("bert", "bert-generation", "electra", "ernie", "splinter"),
    ),
    **_types(
        Architecture(layers="encoder.layer"), "deberta", "deberta-v2", "megatron-bert", "rembert", "roformer"
    ),
    # BigBird uses full attention or blocks, by the longest text of the batch.
    **_types(
        Architecture(layers="encoder.layer", batches="equal"),
        *("big_bird", "convbert", "fnet", "mobilebert"),
    ),
    **_types(
        Architecture(layers="encoder.layer", batches="packed", positions="after_pad"),
        *("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"),
    ),
    **_types(
        Architecture(layers="encoder.layer", positions="after_pad"),
        *("esm", "ibert", "longformer", "luke", "mpnet"),
    ),
    **_types(Architecture(layers="attentions"), "flaubert", "xlm"),
    "albert": Architecture(layers="encoder.albert_layer_groups", batches="packed"),
    # Its "molecules" of four characters include padding.
    "canine": Architecture(batches="equal", least_tokens=lambda config: int(config.downsampling_rate)),
    "clip_text_model": Architecture(layers="encoder.layers", causal=True),
    "distilbert": Architecture(layers="transformer.layer", batches="packed"),
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
    "squeezebert": Architecture(),
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
    # Encoders without absolute positions.
    **_types(
        Architecture(layers="layers", batches="packed", positions="none"),
        *("esmc", "eurobert", "gte", "jina_embeddings_v3", "modernbert", "nomic_bert", "ultrabert"),
    ),
    **_types(Architecture(layers="layers", positions="none"), "embedding_gemma2_text", "openai_privacy_filter"),
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
    "xlnet": Architecture(positions="none", position_limit=None),
    # The encoders of encoder-decoders.
    **_types(
        Architecture(encoder=True, layers="layers"),
        *("bart", "blenderbot", "blenderbot-small", "m2m_100", "marian", "mbart", "mvp", "nllb-moe", "pegasus"),
        *("pegasus_x", "plbart"),
    ),
    "bigbird_pegasus": Architecture(encoder=True, layers="layers", batches="equal"),
    "led": Architecture(encoder=True, layers="layers", position_limit="max_encoder_position_embeddings"),
    "longt5": _t5("LongT5EncoderModel"),
    "mt5": _t5("MT5EncoderModel"),
    "prophetnet": Architecture(encoder=True, layers="layers", positions="after_pad"),
    "switch_transformers": _t5("SwitchTransformersEncoderModel"),
    "t5": _t5("T5EncoderModel"),
    "umt5": _t5("UMT5EncoderModel"),
    # Decoders.
    **_types(
        Architecture(layers="layers", batches="packed", positions="none", causal=True),
        *("cohere", "cohere2", "ernie4_5", "exaone4", "gemma", "gemma3_text", "glm", "glm4", "gpt_neox"),
        *("granite", "granitemoe", "helium", "llama", "ministral", "ministral3", "mistral", "mixtral"),
        *("modernbert-decoder", "olmo", "olmo2", "olmo3", "olmoe", "persimmon", "phi", "phi3", "phimoe"),
        *("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "starcoder2"),
    ),
    **_types(
        Architecture(layers="layers", positions="none", causal=True),
        *("deepseek_v2", "deepseek_v3", "gemma2", "gpt_neox_japanese", "gpt_oss", "nemotron", "recurrent_gemma"),
        *("stablelm", "vaultgemma"),
    ),
    **_types(
        Architecture(layers="h", batches="packed", causal=True, position_limit="n_positions"),
        *("gpt2", "gpt_bigcode"),
    ),
    **_types(
        Architecture(layers="h", causal=True, position_limit="n_positions"),
        *("codegen", "ctrl", "gptj", "openai-gpt"),
    ),
    # In state-space models, transformers' hidden_states are not the inputs of the layers.
    **_types(
        Architecture(positions="none", position_limit=None, causal=True),
        *("falcon_mamba", "mamba", "mamba2", "rwkv"),
    ),
    "biogpt": Architecture(layers="layers", batches="packed", causal=True),
    "bloom": Architecture(layers="h", positions="none", position_limit=None, causal=True),
    "falcon": Architecture(layers="h", positions="none", causal=True),
    "gpt_neo": Architecture(layers="h", causal=True),
    "mpt": Architecture(layers="blocks", positions="none", position_limit="max_seq_len", causal=True),
    "opt": Architecture(layers="decoder.layers", batches="packed", causal=True),
    "xglm": Architecture(layers="layers", causal=True),
    # Refused.
    **_types(
        _refused("it reads the position of each word on a page, which a text does not have"),
        *("bros", "layoutlm", "layoutlmv2", "layoutlmv3", "lilt", "udop"),
    ),
    "dpr": _refused(
        "it returns one vector for each text, and no states of its tokens",
        "use the BERT that it is made of: save its bert_model as a folder",
    ),
    "markuplm": _refused("it reads the position of each word in a web page, which a text does not have"),
    "mra": _refused(
        "without a CUDA kernel that is downloaded as code, transformers returns zeros for its attention"
    ),
    "perceiver": _refused("its states are those of its latents, not of the tokens"),
    "reformer": _refused("its attention hashes at random, and its states are two streams"),
    "roc_bert": _refused("it reads the shape and sound of each character as well as the ids"),
    "tapas": _refused("it reads a table as well as the text"),
}
#: A type that is not in the table.
UNPROVEN = Architecture(batches="equal")


def max_positions(config: Any, architecture: Architecture) -> int | None:
    """Returns the most tokens that a model has positions for; None if any number."""
    if architecture.position_limit is None:
        return None
    limit = getattr(config, architecture.position_limit, None)
    if limit is None or limit <= 0:
        return None
    # RoBERTa's positions start after the pad's: of 514, 512 are for tokens.
    return int(limit) - (config.pad_token_id + 1 if architecture.positions == "after_pad" else 0)


def has_position_table(config: Any, architecture: Architecture) -> bool:
    """Checks whether a model has a table of positions, which ends, or computes them for any length."""
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
