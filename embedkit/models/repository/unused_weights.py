"""Which tensors of a checkpoint an encoder may leave unused: heads, known by their names and places.

Knows names only, and imports nothing. A tensor that is none of these is part of the model, and a model that is run
without it gives other numbers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from embedkit.errors import ModelError

#: First part of the name of what stands beside an encoder: what it was trained with, classifiers, decoders, towers
#: for other things than text.
_BESIDE = re.compile(
    r"cls|lm_head|mlm_?head|.*lm_predictions?|.*_?predictions?|generator(_.*)?|discriminator(_.*)?"
    r"|(pre_|entity_|token_|sequence_|span_|pair_)?classif(y|ier|ication)(_.*)?|.*_classifier|score|scores|.*_head|head"
    r"|heads|qa_outputs|.*_outputs?|out_proj|output_layer|logits?(_.*)?|.*_logits?|.*logits_bias|lm_loss|pred_layer"
    r"|vocab_(transform|projector|layer_norm)|.*_transform|summary|sequence_summary|pooler|.*pooler|nsp(_.*)?|sop(_.*)?"
    r"|seq_relationship|linear|proj|projection|.*_proj(ection)?|regress(ion|or).*|dense|fc\d*|mlp|crf|loss.*|criterion.*"
    r"|temperature|logit_scale|logit_bias|dropout|cosine.*|start_.*|end_.*|answer_class|contact_head|mask_predictions"
    r"|decoder|vision_(model|tower)|visual|audio_(model|tower)|multi_modal_projector|mtp(_.*)?|out|multi_choice.*"
    r"|qa_.*|relation_.*|entity_predictions|lm_.*|mc_.*|multiple_choice.*|token_type_.*|colbert_linear|sparse_linear|embed_out|splinter_qass"
)
#: Tables that are computed and that older versions saved, and causal masks; wherever they are in the model.
_COMPUTED = re.compile(
    r"(.*\.)?(position_ids|embeddings\.token_type_ids|inv_freq|original_inv_freq|masked_bias|causal_mask"
    r"|attn\.bias|attention\.bias|embed_positions\.weights|(encoder|decoder)\.version)"
)
#: Ways of adding to weights or storing them that no plain forward pass applies: never a head's own weights.
_ADDED = re.compile(
    r"lora_|adapter|\bia3|prefix_|prompt_(encoder|embedd)|scales?$|scale_inv$|qweight|qzeros|g_idx|absmax|quant_|"
    r"quant_state|zero_point|_packed$|\.SCB$|magnitude_vector"
)


def is_known_head(name: str, prefix: str, parts: Collection[str]) -> bool:
    """Check that a tensor is known to be no part of the encoder.

    Args:
        name: of the tensor in the file.
        prefix: under which files with heads keep the encoder, such as bert; "" where there is none.
        parts: first parts of the names of the encoder's own tensors, such as embeddings and encoder.
    """
    if _COMPUTED.fullmatch(name):
        return True
    inside = bool(prefix) and name.startswith(f"{prefix}.")
    first = (name.removeprefix(f"{prefix}.") if inside else name).split(".")[0]
    if first in {"pooler", "decoder"} and first not in parts:
        # No part of an encoder, wherever they are.
        return not is_added(name)
    return not inside and first not in parts and bool(_BESIDE.fullmatch(first))


def is_added(name: str) -> bool:
    """Check that a tensor's name is that of an adapter's or a quantisation's."""
    return bool(_ADDED.search(name))


def check_unused(model: str, unused: Iterable[str], *, n_layers: int | None) -> None:
    """Refuse a model for the tensors that it would leave unused.

    Args:
        model: its name.
        unused: names of tensors that are no heads.
        n_layers: of the encoder by its config.json; None if unknown.

    Raises:
        ModelError: there are any.
    """
    names = sorted(unused)
    if not names:
        return
    added = [name for name in names if is_added(name)]
    layers = [int(found[1]) for name in names if (found := re.search(r"\.(\d+)\.", name))]
    if added:
        way_out = (
            "they belong to an adapter or a quantisation: merge it (peft's merge_and_unload) or dequantise it, "
            "and save the model with save_pretrained"
        )
    elif n_layers is not None and layers and min(layers) >= n_layers:
        way_out = f"config.json says {n_layers} layers and the weights have more: correct num_hidden_layers"
    else:
        way_out = (
            "check that the weights belong to config.json; if they are a head, save the encoder alone with "
            "transformers: AutoModel.from_pretrained(FOLDER).save_pretrained(NEW)"
        )
    raise ModelError(
        f"the checkpoint of '{model}' has {len(names)} weights that its model would leave unused, such as "
        f"{(added or names)[0][:120]}",
        hint=way_out,
    )
