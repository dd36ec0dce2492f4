"""Decides by their names which tensors of a checkpoint may be left unused: heads, not parts of the encoder."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from embedkit.errors import ModelError

#: First part of a name outside the encoder: training heads, classifiers, decoders, encoders of other modalities.
_OUTSIDE = re.compile(
    r"cls|lm_head|mlm_?head|.*lm_predictions?|.*_?predictions?|generator(_.*)?|discriminator(_.*)?"
    r"|(pre_|entity_|token_|sequence_|span_|pair_)?classif(y|ier|ication)(_.*)?|.*_classifier|score|scores|.*_head|head"
    r"|heads|qa_outputs|.*_outputs?|out_proj|output_layer|logits?(_.*)?|.*_logits?|.*logits_bias|lm_loss|pred_layer"
    r"|vocab_(transform|projector|layer_norm)|.*_transform|summary|sequence_summary|pooler|.*pooler|nsp(_.*)?|sop(_.*)?"
    r"|seq_relationship|linear|proj|projection|.*_proj(ection)?|regress(ion|or).*|dense|fc\d*|mlp|crf|loss.*|criterion.*"
    r"|temperature|logit_scale|logit_bias|dropout|cosine.*|start_.*|end_.*|answer_class|contact_head|mask_predictions"
    r"|decoder|vision_(model|tower)|visual|audio_(model|tower)|multi_modal_projector|mtp(_.*)?|out|multi_choice.*"
    r"|qa_.*|relation_.*|entity_predictions|lm_.*|mc_.*|multiple_choice.*|token_type_.*|colbert_linear|sparse_linear|embed_out|splinter_qass"
)
#: Computed tables and causal masks that older versions saved, anywhere in the model.
_COMPUTED = re.compile(
    r"(.*\.)?(position_ids|embeddings\.token_type_ids|inv_freq|original_inv_freq|masked_bias|causal_mask"
    r"|attn\.bias|attention\.bias|embed_positions\.weights|(encoder|decoder)\.version)"
)
#: Adapters and quantisations, which a plain forward pass does not apply; never the weights of a head.
_ADDED = re.compile(
    r"lora_|adapter|\bia3|prefix_|prompt_(encoder|embedd)|scales?$|scale_inv$|qweight|qzeros|g_idx|absmax|quant_|"
    r"quant_state|zero_point|_packed$|\.SCB$|magnitude_vector"
)


def is_known_head(name: str, prefix: str, parts: Collection[str]) -> bool:
    """Checks whether a tensor is known not to be part of the encoder.

    Args:
        name: the tensor's name in the file.
        prefix: the encoder's name in files with heads, such as bert; "" if it has none.
        parts: first parts of the names of the encoder's own tensors, such as embeddings and encoder.
    """
    if _COMPUTED.fullmatch(name):
        return True
    inside = bool(prefix) and name.startswith(f"{prefix}.")
    first = (name.removeprefix(f"{prefix}.") if inside else name).split(".")[0]
    if first in {"pooler", "decoder"} and first not in parts:
        return not is_added(name)
    return not inside and first not in parts and bool(_OUTSIDE.fullmatch(first))


def is_added(name: str) -> bool:
    """Checks whether a tensor belongs to an adapter or a quantisation, by its name."""
    return bool(_ADDED.search(name))


def check_unused(model: str, unused: Iterable[str], *, n_layers: int | None) -> None:
    """Checks that no tensor would be left unused.

    Raises:
        ModelError: there are any.
    """
    names = sorted(unused)
    if not names:
        return
    added = [name for name in names if is_added(name)]
    layers = [int(found[1]) for name in names if (found := re.search(r"\.(\d+)\.", name))]
    way_out = (
        "check that the weights belong to config.json; if they are a head, save the encoder alone with "
        "transformers: AutoModel.from_pretrained(FOLDER).save_pretrained(NEW)"
    )
    if added:
        way_out = (
            "they belong to an adapter or a quantisation: merge it (peft's merge_and_unload) or dequantise it, "
            "and save the model with save_pretrained"
        )
    elif n_layers is not None and layers and min(layers) >= n_layers:
        way_out = f"config.json says {n_layers} layers and the weights have more: correct num_hidden_layers"
    raise ModelError(
        f"the checkpoint of '{model}' has {len(names)} weights that its model would leave unused, such as "
        f"{(added or names)[0][:120]}",
        hint=way_out,
    )
