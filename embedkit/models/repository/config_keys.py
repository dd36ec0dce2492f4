"""Checks that no key of config.json that changes the numbers is ignored.

`check_config` and `check_positions` refuse known keys, by the file alone. `unread_keys` finds keys that neither
transformers' configuration class nor the model's code reads; `check_unread` refuses those that may change numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from embedkit.errors import ModelError
from embedkit.models.repository.architectures import ARCHITECTURES

#: Settings that quantisation tools write. They need code that embedkit does not run.
_QUANTIZATION = frozenset(
    ("quantization_config", "compression_config", "quantization", "quant_config", "quantize_config", "bnb_config")
)
#: Keys that change the model itself, whatever their value.
_REFUSED = {
    "adapters": "adapters, which embedkit does not apply",
    "fusion_config": "layers that are fused when the model is loaded",
    "pruned_heads": "pruned attention heads, which transformers 5 does not cut out",
}
#: Names of the positions of a model without a table of them; older versions of transformers wrote "absolute" for
#: every model.
_COMPUTED_POSITIONS = ("rope", "rotary", "absolute")
#: Names of keys that may change the numbers. Only applied to keys that no code reads.
_NUMERIC = re.compile(
    r"adapter|lora|peft|prefix_|prompt_tuning|quant|bits$|sparsity|prun"
    r"|position|rope|rotary|relative|alibi|sinusoid"
    r"|attention|attn|window|mask_type|causal|bidirectional|is_decoder|cross"
    r"|scal(e|ing)|softcap|temperature|multiplier|factor|alpha|clip|residual|skip"
    r"|norm|eps(ilon)?$|bias|_act$|act_fn|activation|gelu|glu|gate"
    r"|layer|block|depth|head|expert|moe|router|group|kernel|conv|embed|hidden|intermediate|ffn|mlp|kv_|vocab"
)
#: Names of keys that never change the numbers of an encoder: training, heads, generation, bookkeeping.
_HARMLESS = re.compile(
    r"_name_or_path|name_or_path|model_type|architectures|auto_map|transformers_version|(torch_)?dtype|.*_version"
    r"|.*drop(out)?(_.*)?|.*_pdrop|layerdrop|initializer_.*|.*_init|init_.*|.*_token_ids?|.*_index|.*token_type_id"
    r"|gradient_checkpointing|output_.*|use_cache|return_dict|torchscript|use_bfloat16|tie_.*|id2label|label2id"
    r"|num_labels|_num_labels|problem_type|finetuning_task|task_specific_params|language|languages?|directionality"
    r"|pooler_.*|classif.*|summary_.*|qa_.*|head_(type|hidden_size)|num_(label|class)s?.*|loss.*|.*_loss(_.*)?"
    r"|(_?attn|_?experts)_implementation(_.*)?|_flash_attn_2_enabled|use_(flash|memory_efficient)_attn"
    r"|use_memory_efficient_attention|unpad_inputs|pack_qkv|deterministic_.*|cache_implementation|pretraining_tp"
    r"|chunk_size_feed_forward|model_max_length|max_length|min_length|n_ctx|xla_device|total_flos|author|seed"
    r"|sentence_transformers|unsloth.*|keys_to_ignore_.*|is_composition|sub_configs|tokenizer_class|vocab_list"
    r"|bos_index|eos_index|pad_index|unk_index|mask_index|force_bos_token_to_be_generated|num_beams|do_sample"
    r"|(no_)?repeat.*|length_penalty|early_stopping|bad_words_ids|temperature|top_[kp]|diversity_penalty"
    # Never had an effect in transformers: memory, speed, the making of tables.
    r"|use_(fused_)?xentropy|fused_.*|pad_vocab_size_multiple|max_trained_positions|dense_seq_output"
    r"|gap_size|net_structure_type|num_memory_blocks|layers_to_keep|bi_data|max_window_layers|mtp_.*|num_nextn_.*"
    r"|decoder_.*|onnx_export|extra_pos_embeddings"
    r"|attention_softmax_in_fp32|bias_dropout_fusion|masked_softmax_fusion|offset_alibi|skip_bias_add|reorder_.*"
    r"|max_vocab|group_by_size|clip_grad_norm|lg_sampling_factor|mlm_steps|.*batch_size|tokenizer_type"
    r"|max_sequence_length|max_position_embeddings|n_positions|prefix|bert_model_name|untie_r"
    # Sizes that the shapes of the weights give.
    r"|(.*_)?(intermediate|hidden|embedding|vocab)_size|num_(local_|shared_)?experts|n_(routed|shared)_experts"
    r"|n(um)?_(hidden_)?layers?"
)
#: Keys that some classes no longer read, and the values with which their code computes the same.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention_mode": ("longformer",),
    "down_scale_factor": (1,),
    "linear_groups": (1,),
    "position_embedding_type": ("absolute", "rope", "rotary"),
    "rotary": (True,),
    "scale_attn_weights": (True,),
    "sinusoidal_pos_embds": (True, False),
}
#: The same by model type: these keys once chose between variants that are now types of their own.
_NEUTRAL_OF: dict[str, dict[str, tuple[Any, ...]]] = {
    "bart": {"normalize_embedding": (True,)},
    "blenderbot": {"normalize_before": (True,), "add_final_layer_norm": (True,), "normalize_embedding": (False,)},
    "blenderbot-small": {"normalize_embedding": (True,), "do_blenderbot_90_layernorm": (True,)},
    "distilbert": {"layer_norm_eps": (1e-12,)},
    "esm": {"hidden_act": ("gelu",)},
    "m2m_100": {"normalize_before": (True,), "add_final_layer_norm": (True,)},
    "marian": {"static_position_embeddings": (True,)},
    "mbart": {"normalize_before": (True,), "add_final_layer_norm": (True,), "normalize_embedding": (True,)},
    "nllb-moe": {"normalize_before": (True,), "add_final_layer_norm": (True,)},
    # The names in the published files; the class has these sizes by default.
    "nomic_bert": {
        "activation_function": ("swiglu",),
        "layer_norm_epsilon": (1e-12,),
        "n_embd": (768,),
        "n_head": (12,),
        "n_inner": (3072,),
        "rotary_emb_base": (1000,),
        "rotary_emb_fraction": (1.0,),
    },
    "pegasus": {
        "normalize_before": (True,),
        "add_final_layer_norm": (True,),
        "static_position_embeddings": (True,),
    },
}
#: Older names of rotary positions, as transformers reads them.
_ROTATIONS = {"su": "longrope", "mrope": "default"}
#: Keys of older versions, by the key that is read now.
_SAME_AS = {
    "hidden_act": "hidden_activation",
    "layer_norm_eps": "norm_eps",
    "sliding_window_size": "sliding_window",
}


def check_config(model: str, config: Mapping[str, Any], *, weights: Iterable[str]) -> None:
    """Checks that a config.json has no setting that changes the weights in a way that embedkit does not apply.

    Raises:
        ModelError: it sets a quantisation, another file of weights, adapters or the like.
    """
    _check_quantization(model, config)
    for key, meaning in _REFUSED.items():
        if _is_set(config.get(key)):
            raise ModelError(
                f"config.json of model '{model}' sets {key}: {meaning}",
                hint="save the model as plain weights, or use the checkpoint that it was made from",
            )
    named = config.get("transformers_weights")
    if named is not None and [named] != list(weights):
        raise ModelError(
            f"config.json of model '{model}' takes its weights from {str(named)[:80]!r} (transformers_weights), "
            f"and embedkit reads {', '.join(weights)[:80]}",
            hint="name that file model.safetensors, and remove transformers_weights from config.json",
        )


def check_positions(model: str, config: Mapping[str, Any]) -> None:
    """Checks the kind of positions, a key that transformers 5 ignores for types with one kind only.

    Raises:
        ModelError: the code of the model's type has other positions.
    """
    kind, model_type = config.get("position_embedding_type"), str(config.get("model_type"))
    known = ARCHITECTURES.get(model_type)
    if kind is None or known is None:
        return
    computed = ("absolute", "rotary") if model_type == "esm" else ("absolute",)
    allowed = _COMPUTED_POSITIONS if known.positions == "none" else computed
    if kind not in allowed:
        raise ModelError(
            f"config.json of model '{model}' sets position_embedding_type to {str(kind)[:80]!r}, which "
            f"transformers 5 does not compute for '{model_type}'; it has {' and '.join(allowed)} positions only",
            hint="use a checkpoint with such positions: the vectors would not be those that it was trained for "
            "(transformers 4 still computes relative_key)",
        )


def unread_keys(raw: Mapping[str, Any], config: Any, known: Iterable[str], code: str) -> dict[str, Any]:
    """Finds the keys of a config.json that neither transformers' class nor the model's code reads.

    Args:
        raw: the content of config.json.
        config: the configuration that transformers made of it; it keeps unknown keys as attributes.
        known: keys that its class knows.
        code: source of the configuration and of the model.
    """
    kept, declared = vars(config), set(known)
    words = set(re.findall(r"\w+", code))
    unread = {
        key: value
        for key, value in raw.items()
        if key in kept
        and key not in declared | words
        and (_is_set(value) or (value is False and True in _neutral(raw, key)))
        and not _HARMLESS.fullmatch(key)
        and value not in _neutral(raw, key)
        and not (key in _SAME_AS and value == raw.get(_SAME_AS[key]))
    }
    return {**unread, **_lost_rotation(raw, config, declared, words)}


def _lost_rotation(raw: Mapping[str, Any], config: Any, declared: set[str], words: set[str]) -> dict[str, Any]:
    """Finds settings of rotary positions that are not in `rope_parameters`, or that no code reads."""
    adopted = getattr(config, "rope_parameters", None) or {}
    groups = [adopted, *(group for group in adopted.values() if isinstance(group, Mapping))]
    lost = {}
    for key in ("rope_scaling", "rope_parameters"):
        stated = raw.get(key)
        kind = stated.get("rope_type", stated.get("type")) if isinstance(stated, Mapping) else None
        kind = _ROTATIONS.get(str(kind), kind)
        followed = "rope_parameters" in words and kind in [group.get("rope_type") for group in groups]
        if kind not in (None, "default") and not followed:
            lost[key] = stated
    bases = [group["rope_theta"] for group in groups if "rope_theta" in group]
    base = raw.get("rope_theta")
    if _is_set(base) and "rope_theta" not in declared and bases and base not in bases:
        lost["rope_theta"] = base
    return lost


def check_unread(model: str, model_type: str, unread: Mapping[str, Any]) -> str | None:
    """Returns a sentence that names the unread keys; None if there are none.

    Raises:
        ModelError: one of them may change numbers.
    """
    numeric = sorted(key for key in unread if _NUMERIC.search(key))
    if numeric:
        raise ModelError(
            f"config.json of model '{model}' sets '{numeric[0][:80]}' to {str(unread[numeric[0]])[:80]!r}, which "
            f"transformers' '{model_type}' does not know and would ignore",
            hint=f"if the model was trained without it, remove {numeric[0][:80]} from config.json; else it "
            "needs the code that it was trained with",
        )
    if not unread:
        return None
    return f"config.json of '{model}' has keys that nothing reads: {', '.join(sorted(unread))[:200]}"


def _check_quantization(model: str, config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        if key in _QUANTIZATION and _is_set(value):
            method = value.get("quant_method") or value.get("method") if isinstance(value, Mapping) else value
            raise ModelError(
                f"config.json of model '{model}' says that its weights are quantised ({key}: "
                f"{str(method or 'no method named')[:80]}); embedkit reads plain weights only",
                hint="use the checkpoint that it was made from, or dequantise it and save it with save_pretrained"
                f"; if the weights are plain, remove {key} from config.json. --dtype int8 quantises plain weights",
            )
        if isinstance(value, Mapping):
            _check_quantization(model, value)


def _neutral(raw: Mapping[str, Any], key: str) -> tuple[Any, ...]:
    """Returns the values of an unread key with which the code computes the same."""
    return (*_NEUTRAL.get(key, ()), *_NEUTRAL_OF.get(str(raw.get("model_type")), {}).get(key, ()))


def _is_set(value: Any) -> bool:
    return value not in (None, False, "", [], {})
