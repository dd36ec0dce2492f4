"""Everything a run is told, as frozen dataclasses: one a subject, together a `RunConfig`.

Values are checked where they are made; nothing here opens a file or imports a model.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    inputs: tuple[str, ...]
    format: str = "auto"
    text_columns: tuple[str, ...] = ()
    template: str | None = None
    id_column: str | None = None
    keep: tuple[str, ...] = ()
    limit: int | None = None
