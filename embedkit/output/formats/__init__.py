"""Output formats: Parquet, NumPy, JSON Lines, Arrow. Writes shards, merges them, reads them back.

Files are opened by the `create` of `commit.py`, which publishes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from embedkit.errors import UsageError
from embedkit.output.formats.arrow_format import ArrowSink
from embedkit.output.formats.jsonl_format import JsonlSink, jsonl_lines
from embedkit.output.formats.layout import Create, Layout, layout_of, shard_name
from embedkit.output.formats.npy_format import NpySink
from embedkit.output.formats.parquet_format import ParquetSink
from embedkit.output.formats.sink import Sink

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
    """Returns the sink of an output format.

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
            "npy holds one vector per row, and --pool none gives one per token",
            hint="choose --output-format parquet, arrow or jsonl, or a --pool",
        )
    return _SINKS[format](layout)
