"""The section of a pooler's or probe's file: learned weights of layers, scores, classes, recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from embedkit.pooling.pooler_facts import pooler_facts
from embedkit.pooling.pooler_files import PROBE, read_pooler
from embedkit.report.charts import COLOURS, Figure
from embedkit.report.evaluation import number, title
from embedkit.report.sections import flat
from embedkit.storage.protocol import FilePath

#: Facts that are not in the table of the recipe.
_PLACED = ("path", "kind", "tensors", "layer_weights", "classes", "scores", "model")


def is_pooler(path: FilePath) -> bool:
    """Returns True for the name of a pooler's file."""
    return path.suffix == ".safetensors"


def pooler_section(path: FilePath, place: int) -> dict[str, Any]:
    """Returns the values for the template pooler.html.j2; `place` makes the section's ids unique on the page.

    Raises:
        ModelError: the file is damaged, or is another kind of file.
    """
    facts = pooler_facts(read_pooler(str(path)))
    weights, model = facts["layer_weights"], facts["model"] or {}
    kind = facts["kind"]
    return {
        "id": f"pooler-{place}",
        "name": path.name,
        "kind": "a probe, which is a head on pooled vectors" if kind == PROBE else f"a pooler of kind {kind}",
        "has_head": bool(facts["task"]) and kind != PROBE,
        "layers": weights and _layers_figure(weights),
        "weights": [(f"layer {layer}", f"{weight:.4f}") for layer, weight in (weights or {}).items()],
        "scores": list(_scores(facts["scores"] or {})),
        "classes": facts["classes"] or [],
        "recipe": list(flat({name: of for name, of in facts.items() if name not in _PLACED and of is not None})),
        "tensors": [(name, " x ".join(map(str, shape))) for name, shape in facts["tensors"].items()],
        "model_type": model.get("type"),
        "model_files": model.get("files", {}),
    }


def _layers_figure(weights: Mapping[str, float]) -> Figure:
    """Returns a bar for each layer."""
    bars = {
        "type": "bar",
        "x": [f"layer {layer}" for layer in weights],
        "y": list(weights.values()),
        "hovertemplate": "%{x}: %{y:.4f}<extra></extra>",
        "marker": {"color": COLOURS[0]},
    }
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1 / len(weights), "y1": 1 / len(weights)}
    layout = {
        "xaxis": {"type": "category"},
        "yaxis": {"title": {"text": "learned weight"}, "rangemode": "tozero"},
        "shapes": [{**line, "line": {"dash": "dash", "width": 1}}],
        "showlegend": False,
    }
    return {"data": [bars], "layout": layout}


def _scores(scores: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the names and values of scores; those of one part of the rows are named after it."""
    for name, of in scores.items():
        if isinstance(of, Mapping):
            yield from ((f"{name}: {what}", score) for what, score in _scores(of))
        else:
            yield title(name), number(of, name) if isinstance(of, int | float) or of is None else str(of)
