"""Which rows are read."""

from __future__ import annotations

from dataclasses import dataclass

from embedkit.config.checks import at_least, one_of

FORMATS = ("auto", "csv", "tsv", "jsonl", "ndjson", "parquet", "arrow", "txt")


@dataclass(frozen=True, slots=True)
class InputConfig:
    """Which rows are read, and what of them.

    Attributes:
        inputs: files, globs, folders, or `-` for stdin, as the user typed them.
        format: one of FORMATS; `auto` goes by the file's name.
        text_columns: columns that make the text; () = `text`, else the first of the usual names.
        template: such as `"{title}. {body}"`; None = the text columns joined by a newline.
        id_column: None = `id` if there, else the row number.
        keep: columns that go through to the output.
        limit: read no more than this many rows; None = all.
        max_expansion: how many times its size a compressed file may grow to.
        max_decompressed_gb: how many GB (10^9 bytes) it may grow to.
    """

    inputs: tuple[str, ...]
    format: str = "auto"
    text_columns: tuple[str, ...] = ()
    template: str | None = None
    id_column: str | None = None
    keep: tuple[str, ...] = ()
    limit: int | None = None
    max_expansion: int = 1000
    max_decompressed_gb: int = 1000

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", tuple(dict.fromkeys(self.keep)))  # a column named twice is kept once
        one_of("--format", self.format, FORMATS)
        at_least("--limit", self.limit, 0)
        at_least("--max-expansion", self.max_expansion, 1)
        at_least("--max-decompressed-gb", self.max_decompressed_gb, 1)
