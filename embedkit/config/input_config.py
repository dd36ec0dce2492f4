"""Options of the input."""

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
    """The rows that are read, and their columns."""

    inputs: tuple[str, ...]  # files, globs, folders, or - for stdin, as typed
    format: str = "auto"  # one of FORMATS; auto goes by the file's name
    text_columns: tuple[str, ...] = ()  # (): `text`, else the first of the usual names
    template: str | None = None  # such as "{title}. {body}"; None: the text columns joined by a newline
    id_column: str | None = None  # None: `id` if it exists, else the row number
    keep: tuple[str, ...] = ()  # columns that are copied to the output
    limit: int | None = None  # most rows to read
    delimiter: str | None = None  # of csv and tsv; may be the word `tab`; None: a comma and a tab
    #: Of csv and tsv. double: cells are quoted, and a quote in such a cell is doubled; none: quotes are
    #: letters; auto: as double, but a row whose quotes are more likely letters is a fault.
    quoting: str = "auto"
    max_expansion: int = 1000  # largest ratio of a file's decompressed size to its size
    max_decompressed_gb: int = 1000  # of 10^9 bytes

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", tuple(dict.fromkeys(self.keep)))  # without duplicates
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
