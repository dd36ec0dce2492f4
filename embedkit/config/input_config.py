"""Which rows are read."""

from __future__ import annotations

from dataclasses import dataclass

from embedkit.config.checks import at_least, one_of
from embedkit.errors import UsageError

FORMATS = ("auto", "csv", "tsv", "jsonl", "ndjson", "parquet", "arrow", "txt")

QUOTINGS = ("auto", "double", "none")
#: Names of a delimiter that is hard to type.
_DELIMITERS = {"tab": "\t", "\\t": "\t"}


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
        delimiter: what is between the cells of csv and tsv; None = a comma and a tab. `tab` is one, too.
        quoting: whether the quotes of csv and tsv hold cells together. double: they do, and a quote in such a cell
            is doubled; none: they are letters; auto: as double, but a row is a fault if its quotes more likely are
            letters.
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
    delimiter: str | None = None
    quoting: str = "auto"
    max_expansion: int = 1000
    max_decompressed_gb: int = 1000

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", tuple(dict.fromkeys(self.keep)))  # a column named twice is kept once
        one_of("--format", self.format, FORMATS)
        one_of("--quoting", self.quoting, QUOTINGS)
        if self.delimiter is not None:
            object.__setattr__(self, "delimiter", _DELIMITERS.get(self.delimiter, self.delimiter))
            if len(self.delimiter) != 1 or self.delimiter in '"\r\n\0':
                raise UsageError(
                    f"--delimiter cannot be {self.delimiter!a}",
                    hint="give one character that is neither a quote nor a line end, such as ';'; or say tab",
                )
            if self.format not in {"auto", "csv", "tsv"}:
                raise UsageError(
                    f"--delimiter is for csv and tsv, and --format is {self.format}",
                    hint="leave out one of the two",
                )
        at_least("--limit", self.limit, 0)
        at_least("--max-expansion", self.max_expansion, 1)
        at_least("--max-decompressed-gb", self.max_decompressed_gb, 1)
