"""Tables of texts in any format as one stream of rows.

A row that can be read is a `Record`, any other one a `Fault`; where the rest of a file can no longer be split into
rows, an `InputError` is raised.

    locate.py     inputs as typed → files      opening.py    a file or stdin → decompressed bytes
    headers.py    names of columns             columns.py    the text, id and kept columns
    delimited.py  csv, tsv                     jsonl.py      jsonl, ndjson
    columnar.py   parquet, arrow               plain_text.py txt
    databases.py  queries of databases         record_batches.py  rows of columnar formats
    readers.py    the formats behind one protocol  table_opening.py  files, columns, headers
    table.py      all files together           table_facts.py  what opening it finds
    kept_types.py types of kept columns
    scan.py       what a pass over it finds    measuring.py  lengths of texts in columnar formats
    content_hash.py  hashes, from that pass    file_hashes.py  hashes, from that pass or without one
    changes.py    files that have changed      spans.py      parts of texts
    in_memory.py  texts of a Python caller

Names are imported on first use: `in_memory` needs no pyarrow, whose import takes 0.06 s.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedkit.sources.columns import Columns, Wanted, every
    from embedkit.sources.locate import SourceFile
    from embedkit.sources.scan import Part, PartScan, Place, Scan
    from embedkit.sources.spans import SpanBook, SpanColumn
    from embedkit.sources.table import Table
    from embedkit.sources.table_facts import TableFacts
    from embedkit.sources.table_opening import open_table

__all__ = [
    "Columns",
    "Part",
    "PartScan",
    "Place",
    "Scan",
    "SourceFile",
    "SpanBook",
    "SpanColumn",
    "Table",
    "TableFacts",
    "Wanted",
    "every",
    "open_table",
]

_MODULES = {
    "Columns": "embedkit.sources.columns",
    "Part": "embedkit.sources.scan",
    "PartScan": "embedkit.sources.scan",
    "Place": "embedkit.sources.scan",
    "Scan": "embedkit.sources.scan",
    "SourceFile": "embedkit.sources.locate",
    "SpanBook": "embedkit.sources.spans",
    "SpanColumn": "embedkit.sources.spans",
    "Table": "embedkit.sources.table",
    "TableFacts": "embedkit.sources.table_facts",
    "Wanted": "embedkit.sources.columns",
    "every": "embedkit.sources.columns",
    "open_table": "embedkit.sources.table_opening",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'embedkit.sources' has no attribute '{name}'")
