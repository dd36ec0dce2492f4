"""Tables of texts, whatever their format, as one stream of records: bytes → Iterator[Record | Fault].

A `Record` for every row that can be read, a `Fault` for every row that cannot; an `InputError` where
the rest of a file can no longer be split into rows. Knows nothing of tokenizers, models or shards.

    locate.py      what the user typed → files, with format and compression
    opening.py     a file or stdin → decompressed bytes
    columns.py     which columns are text, id and kept; cells → text
    delimited.py   csv, tsv        jsonl.py      jsonl, ndjson
    columnar.py    parquet, arrow  plain.py      txt
    lines.py       bounded lines, for the two formats that are made of lines
    kept.py        the type of a kept column
    table.py       all files together
    spans.py       parts of texts, from a file or a column
"""

from embedkit.sources.columns import Columns, Wanted, every
from embedkit.sources.locate import SourceFile
from embedkit.sources.spans import SpanBook, SpanColumn
from embedkit.sources.table import Scan, Table, open_table

__all__ = ["Columns", "Scan", "SourceFile", "SpanBook", "SpanColumn", "Table", "Wanted", "every", "open_table"]
