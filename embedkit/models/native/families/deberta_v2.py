"""DeBERTa-v2 and v3 (He et al. 2020, arXiv 2006.03654; 2021, arXiv 2111.09543)."""

from typing import Any

from embedkit.models.native.config_reader import ConfigReader, NotNativeError
from embedkit.models.native.families.family import Convolution, Disentangled, Family, Heads, LayerAttention, Layout


def _kinds(reader: ConfigReader) -> set[Any]:
    """Reads which products with distances are added to the scores."""
    stated = reader.get("pos_att_type")
    kinds = stated.lower().split("|") if isinstance(stated, str) else stated
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise NotNativeError("its scores do not depend on relative positions")
    # transformers strips those of a string alone.
    kinds = {kind.strip() for kind in kinds} if isinstance(stated, str) else set(kinds)
    if not kinds or not kinds <= {"c2p", "p2c"}:
        raise NotNativeError(f"its scores add {', '.join(sorted(kinds))[:80]!r}")
    return kinds


def _attention(reader: ConfigReader, heads: Heads) -> tuple[LayerAttention, ...]:
    if not reader.flag("relative_attention"):
        raise NotNativeError("its positions are not relative")
    if reader.size("attention_head_size", heads.width) != heads.width:
        raise NotNativeError("its heads are not as wide as its states")
    norms = reader.get("norm_rel_ebd", "none")
    if norms not in {"none", "layer_norm"}:
        raise NotNativeError(f"its relative positions are normed by {str(norms)[:80]!r}")
    buckets = max(0, reader.size("position_buckets", -1, least=-1))
    farthest = reader.size("max_relative_positions", -1, least=-1)
    farthest = farthest if farthest > 0 else reader.size("max_position_embeddings")
    if buckets and (buckets % 2 or farthest - 1 <= buckets // 2):
        raise NotNativeError("its buckets of distances are not as usual")
    kinds = _kinds(reader)
    positions = Disentangled(
        buckets=buckets,
        farthest=farthest,
        has_keys="c2p" in kinds,
        has_queries="p2c" in kinds,
        shares_projections=reader.flag("share_att_key"),
        normed=norms == "layer_norm",
    )
    return (LayerAttention(disentangled=positions),) * heads.n_layers


def _convolution(reader: ConfigReader) -> Convolution | None:
    size = reader.size("conv_kernel_size", 0, least=0)
    activation, groups = reader.get("conv_act", "tanh"), reader.get("conv_groups", 1)
    if size == 0:
        return None
    if size % 2 == 0 or groups != 1:
        raise NotNativeError("its convolution is not as usual")
    return Convolution(size, activation)


def _scale(reader: ConfigReader, width: int) -> float:
    """Divides by the root of all numbers that are multiplied."""
    return float((width * (1 + len(_kinds(reader)))) ** -0.5)


DEBERTA_V2 = Family(
    model_type="deberta-v2",
    prefixes=("deberta.",),
    layouts=(
        Layout(
            projection="embeddings.embed_proj",
            # Where no positions are added to the embeddings.
            ignored=("embeddings.position_embeddings",),
            pooler=None,
            distances="encoder.rel_embeddings",
            distances_norm="encoder.LayerNorm",
            convolution="encoder.conv.conv",
            convolution_norm="encoder.conv.LayerNorm",
            qkv=("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
            distances_key="attention.self.pos_key_proj",
            distances_query="attention.self.pos_query_proj",
        ),
    ),
    defaults={
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-7,
        "type_vocab_size": 0,
        "position_biased_input": True,
    },
    harmless=frozenset(("legacy", "pooler_dropout", "pooler_hidden_act", "pooler_hidden_size")),
    may_lack_types=True,
    projects_embeddings=True,
    projects_first=True,
    positions_key="position_biased_input",
    biases={"projection": False},
    scale=_scale,
    attention=_attention,
    convolution=_convolution,
)
