"""The values of options that have a fixed list of them, for completion in a shell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from embedkit.config import DTYPES, ENGINES, FORMATS, OUTPUT_FORMATS, PRECISIONS, TASKS
from embedkit.config.fit_config import KINDS
from embedkit.config.input_config import QUOTINGS
from embedkit.config.poolings import LAYER_AGGREGATIONS, POOLING_NAMES, WHOLE_NAMES
from embedkit.config.vector_config import CHUNK_POOLINGS, GROUP_POOLINGS, LEVELS, SUBTOKEN_POOLINGS
from embedkit.models.repository.aliases import all_aliases

#: Values by parameter.
VALUES: Mapping[str, Iterable[str]] = {
    "format": FORMATS,
    "quoting": QUOTINGS,
    "lowercase": ("auto", "yes", "no"),
    "device": ("auto", "cpu", "cuda", "mps"),
    "dtype": DTYPES,
    "on_long": ("truncate", "chunk", "error"),
    "chunk_pool": CHUNK_POOLINGS,
    "layer_agg": LAYER_AGGREGATIONS,
    "pool": (*WHOLE_NAMES, *POOLING_NAMES),
    "pooler": KINDS,
    "task": TASKS,
    "precision": PRECISIONS,
    "level": LEVELS,
    "subtoken_pooling": SUBTOKEN_POOLINGS,
    "group_pool": GROUP_POOLINGS,
    "output_format": OUTPUT_FORMATS,
    "on_bad_row": ("fail", "null", "skip"),
    "engine": ENGINES,
    "progress": ("auto", "bar", "json", "none"),
    "shell": ("bash", "zsh", "fish"),
}


def completions_of(parameter: str) -> Callable[[str], list[str]] | None:
    """Returns the function that completes a parameter's value; None if its values are not known."""
    if parameter not in {*VALUES, "model"}:
        return None

    def completions(incomplete: str) -> list[str]:
        # Of a comma list, its last value.
        before, comma, word = incomplete.rpartition(",")
        values = VALUES.get(parameter) or (alias.name for alias in all_aliases().values())
        return [f"{before}{comma}{value}" for value in values if value.startswith(word)]

    return completions
