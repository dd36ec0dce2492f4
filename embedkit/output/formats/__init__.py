"""Finished shards → bytes in files: Parquet, NumPy, JSON Lines, Arrow.

Knows nothing of models, nor of how a file becomes final: `commit.py` hands in `create`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from embedkit.errors import UsageError
from embedkit.output.formats.arrow_format import ArrowSink
from embedkit.output.formats.base import Sink
from embedkit.output.formats.jsonl_format import JsonlSink, jsonl_lines
from embedkit.output.formats.npy_format import NpySink
from embedkit.output.formats.parquet_format import ParquetSink
from embedkit.output.formats.schema import Create, Layout, layout_of, shard_name

__all__ = ["FORMATS", "Create", "Layout", "Sink", "jsonl_lines", "layout_of", "make_sink", "shard_name"]

_SINKS: Mapping[str, Callable[[Layout], Sink]] = {
    "parquet": ParquetSink,
    "npy": NpySink,
    "jsonl": JsonlSink,
    "arrow": ArrowSink,
}

#: The values of `--output-format`.
FORMATS = tuple(_SINKS)


def make_sink(format: str, layout: Layout) -> Sink:  # noqa: A002  the option's name
    """The sink of an output format.

    Raises:
        UsageError: there is no such format, or it cannot hold what the layout asks for.
    """
    if format not in _SINKS:
        raise UsageError(
            f"output format {format!r} is none of {', '.join(FORMATS)}",
            hint="choose one of them with --output-format",
        )
    if format == "npy" and layout.token_vectors:
        raise UsageError(
            "npy holds one vector a row, and token vectors (--pool none) are as many as the text has tokens",
            hint="choose --output-format parquet, arrow or jsonl, or a --pool",
        )
    return _SINKS[format](layout)
