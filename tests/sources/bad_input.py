"""Odd tables as other programs export them, with the expected rows or errors; used by several tests.

Every text of every case holds MARK, a placeholder of a patient's text, which must not be printed.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.sources.helpers import zstd

MARK = "xyzzyplugh"
M = MARK

#: Ends of the blocks in which files are read: Python's buffers of 8 and 128 KiB, ours of 64.
BLOCKS = (8 * 2**10, 16 * 2**10, 64 * 2**10, 128 * 2**10)


@dataclass(frozen=True)
class Case:
    """A table, and what reading it gives.

    Attributes:
        files: names and bytes.
        texts: of its rows; of a faulty row its code in angle brackets. None = all of it is refused.
        error: words of the error that refuses it.
        ids: of its rows, where that is what matters.
        options: of InputConfig.
    """

    files: dict[str, bytes]
    texts: list[str | None] | None = None
    error: str = ""
    ids: list[str | None] | None = None
    options: dict[str, Any] = field(default_factory=dict)


def reads(
    name: str, data: bytes | str, *texts: str | None, ids: list[str | None] | None = None, **options: Any
) -> Case:
    """Returns a file whose rows are these texts."""
    return Case({name: _bytes(data)}, list(texts), ids=ids, options=options)


def refuses(name: str, data: bytes | str, error: str, **options: Any) -> Case:
    """Returns a file that is refused with these words."""
    return Case({name: _bytes(data)}, error=error, options=options)


def line(data: bytes | str, text: str | None) -> Case:
    """Returns a line of JSON between two good ones: its text, or its fault's code."""
    good = json.dumps({"text": f"{M} good"}).encode() + b"\n"
    return reads("t.jsonl", good + _bytes(data) + b"\n" + good, f"{M} good", text, f"{M} good")


def parquet(content: pa.Table, **options: Any) -> bytes:
    """Returns a Parquet file."""
    file = io.BytesIO()
    pq.write_table(content, file, **options)
    return file.getvalue()


def _bytes(data: bytes | str) -> bytes:
    return data.encode() if isinstance(data, str) else data


def _at_block_ends(pack: Callable[[bytes], bytes], suffix: str) -> Case:
    """Quoted cells whose line end falls on, before and after the end of each block."""
    files, texts = {}, []
    for block in BLOCKS:
        for offset in range(-3, 4):
            for end in ("\n", "\r\n"):
                head = f'id,text{end}1,"{M} '
                cell = "x" * (block + offset - len(head))
                data = f'{head}{cell}{end}{M}"{end}2,"{M}{end}"{end}'
                assert data.index(end, len(head)) == block + offset
                files[f"{len(files):03d}.csv{suffix}"] = pack(data.encode())
                texts += [f"{M} {cell}{end}{M}", f"{M}{end}"]
    return Case(files, texts)


def _zero_row_groups() -> bytes:
    file = io.BytesIO()
    pq.ParquetWriter(file, pa.schema([("text", pa.string())])).close()
    return file.getvalue()


_LINES = "".join(json.dumps({"text": f"{M} {n}"}) + "\n" for n in range(5_000)).encode()
_PARQUET = parquet(pa.table({"text": [f"{M} {n}" for n in range(200)]}))
_WIDE = ",".join(f"c{n}" for n in range(9_999))
_BIG = f"{M}, line\n" * (20_000_000 // (len(M) + 7))
_LONG_LINES = f"{M}{' ' * 1_000_000}\n".encode() * 80
_BOMB = zstd.compress(_LONG_LINES, 3)
_BAD_QUOTE = "row 0, at byte 8, has text after a closing quote"

#: By the words of issue 4. Every case is either the right rows or one clear error.
CASES: dict[str, list[Case]] = {
    "empty file": [
        refuses("t.csv", b"", "empty file, no header"),
        reads("t.jsonl", b""),
        reads("t.txt", b""),
        refuses("t.parquet", b"", "cannot be read as parquet"),
        refuses("t.csv.gz", gzip.compress(b""), "empty file, no header"),
    ],
    "header only": [reads("t.csv", "id,text\n"), reads("t.csv", "id,text"), reads("t.tsv", "id\ttext\r\n")],
    "no final newline": [
        reads("t.csv", f"id,text\n1,{M}", M),
        reads("t.csv", f'id,text\n1,"{M}"', M),
        reads("t.jsonl", f'{{"text": "{M}"}}', M),
        reads("t.txt", f"{M}\n{M}", M, M),
    ],
    "BOM": [
        reads("t.csv", f"\ufeffid,text\n007,{M}\n", M, ids=["007"]),
        reads("t.csv", f'\ufeff"id",text\n007,{M}\n', M, ids=["007"]),
        reads("t.jsonl", f'\ufeff{{"id": "007", "text": "{M}"}}\n', M, ids=["007"]),
        reads("t.txt", f"\ufeff{M}\n", M),
    ],
    "UTF-16 LE": [
        reads("t.csv", f"\ufeffid,text\n1,{M} é🙂\n".encode("utf-16-le"), f"{M} é🙂"),
        refuses("t.csv", f"id,text\n1,{M}\n".encode("utf-16-le"), "NUL bytes in the header"),
        refuses("t.jsonl", f'\ufeff{{"text": "{M}"}}\n'.encode("utf-16-le"), "UTF-16 instead of UTF-8"),
    ],
    "UTF-16 BE": [
        reads("t.csv", f"\ufeffid,text\n1,{M} é🙂\n".encode("utf-16-be"), f"{M} é🙂"),
        refuses("t.csv", f"id,text\n1,{M}\n".encode("utf-16-be"), "NUL bytes in the header"),
        refuses("t.txt", f"\ufeff{M}\n".encode("utf-16-be"), "UTF-16 instead of UTF-8"),
    ],
    "Latin-1": [
        reads("t.csv", f"id,text\n1,{M} café\n2,{M}\n".encode("latin-1"), "<not_utf8>", M),
        refuses("t.csv", f"id,text,café\n1,{M},x\n".encode("latin-1"), "not UTF-8 at byte 11"),
        line(f'{{"text": "{M} café"}}'.encode("latin-1"), "<not_utf8>"),
        reads("t.txt", f"{M}\n{M} café\n{M}".encode("latin-1"), M, "<not_utf8>", M),
    ],
    "truncated UTF-8": [
        reads("t.csv", f"id,text\n1,{M} caf".encode() + b"\xc3", "<not_utf8>"),
        reads("t.csv", f"id,text\n1,{M}".encode() + b"\xf0\x9f\x99\n2,b\n", "<not_utf8>", "b"),
        reads("t.csv", f'id,text\n1,"{M}\n'.encode() + b'\xc3"\n2,b\n', "<not_utf8>", "b"),
        line(f'{{"text": "{M}'.encode() + b'\xc3"}', "<not_utf8>"),
    ],
    "NUL": [
        reads("t.csv", f"id,text\n1,{M}\0x\n2,{M}\n", f"{M}\0x", M),
        line(f'{{"text": "{M}\\u0000"}}', f"{M}\0"),
        line(f'{{"text": "{M}\0"}}', "<invalid_json>"),
        reads("t.txt", f"{M}\0x\n", f"{M}\0x"),
    ],
    "LF and CRLF in quotes at every offset around a block boundary": [
        _at_block_ends(bytes, ""),
        _at_block_ends(lambda data: gzip.compress(data, 1), ".gz"),
    ],
    "lone CR": [
        reads("t.csv", f"text,b\r{M},x\r{M} 2,y\r", M, f"{M} 2"),
        reads("t.csv", f'text,b\n"{M}\r2",x\n', f"{M}\r2"),
        reads("t.csv", f"text,b\n{M}\r{M},x\n", "<short_row>", M),
        reads("t.txt", f"{M}\r{M}\n", f"{M}\r{M}"),
    ],
    "mixed line ends": [
        reads("t.csv", f"text,b\n{M} 1,x\r\n{M} 2,x\r{M} 3,x\n", f"{M} 1", f"{M} 2", f"{M} 3"),
        reads("t.jsonl", f'{{"text": "{M} 1"}}\r\n{{"text": "{M} 2"}}\n', f"{M} 1", f"{M} 2"),
    ],
    "unterminated quote": [
        refuses("t.csv", f'id,text\n1,"{M}\n2,{M}\n3,{M}\n', "row 0, at byte 8, has a quote that is never closed"),
        refuses("t.tsv", f'id\ttext\n1\t"{M}\n2\t{M}\n', "row 0, at byte 8, has a quote that is never closed"),
        refuses("t.csv", f'id,"text\n1,{M}\n', "the header, at byte 0, has a quote that is never closed"),
    ],
    "balanced stray quotes": [
        reads("t.csv", f'id,text\n1,he said "{M}" to me\n', f'he said "{M}" to me'),
        refuses("t.csv", f'id,text\n1,"{M}" he said "so"\n', _BAD_QUOTE),
    ],
    "quotes that are letters, or were to hold a cell together": [
        reads(
            "t.tsv",
            f'id\ttext\n1\t"{M}\n2\t{M}\n3\t{M}"\n4\t{M}\n',
            "<lines_and_tabs_in_quotes>",
            M,
        ),
        reads("t.tsv", f'text\n"{M}\n{M}"\n{M}\n', "<lines_in_quotes>", M),
        reads(
            "t.tsv",
            f'id\ttext\n1\t"{M}\n2\t{M}\n3\t{M}"\n',
            *(f'"{M}', M, f'{M}"'),
            ids=["1", "2", "3"],
            quoting="none",
        ),
        reads("t.tsv", f'text\tb\n"{M}\n\t"\tx\n', f"{M}\n\t", quoting="double"),
        reads("t.csv", f'id,kind,text,b\n1,lamp"{M}, blue",x\n2,a,{M},y\n', "<quote_across_cells>", M),
        reads("t.csv", f'id,kind,text,b\n1,lamp"{M}, blue",x\n', ' blue"', quoting="double"),
        reads("t.csv", f'id,text,b\n1,5\'10" {M},6"\n', f"5'10\" {M}"),
    ],
    "unescaped inner quotes": [refuses("t.csv", f'id,text\n1,"he said "{M}" to me"\n', _BAD_QUOTE)],
    "backslash escapes": [
        refuses("t.csv", f'id,text\n1,"he said \\"{M}\\" to me"\n', _BAD_QUOTE),
        reads("t.csv", f"id,text\n1,{M}\\n{M}\\\n2,{M}\n", f"{M}\\n{M}\\", M),
    ],
    'mid-field quote (`6" tall`)': [
        reads("t.csv", f'id,text\n1,6" tall {M}\n2,5\' 6" {M}\n', f'6" tall {M}', f"5' 6\" {M}"),
        reads("t.tsv", f'id\ttext\n1\t6" tall {M}\n', f'6" tall {M}'),
    ],
    "short row": [reads("t.csv", f"id,text,b\n1,{M},x\n2,{M}\n3\n4,{M},y\n", M, "<short_row>", "<short_row>", M)],
    "long row": [reads("t.csv", f"id,text\n1,{M}, and more\n2,{M}\n3,{M},\n", "<long_row>", M, "<long_row>")],
    "blank lines": [
        reads("t.csv", f"\n\nid,text\n\n1,{M}\n\r\n\n2,{M}\n\n", M, M, ids=["1", "2"]),
        reads("t.jsonl", f'\n{{"text": "{M}"}}\n\r\n  \n{{"text": "{M}"}}\n\n', M, M),
    ],
    "blank lines with one column": [
        reads("t.csv", f"text\n{M}\n\n{M}\n\n", M, "", M, ""),
        reads("t.txt", f"{M}\n\n{M}\n", M, "", M),
    ],
    "duplicate header": [
        refuses("t.csv", f"id,text,text\n1,{M},{M}\n", "2 columns are named text"),
        reads("t.csv", f"x,text,x\n1,{M},2\n", M),
    ],
    "missing column": [
        refuses("t.csv", f"id,a,b\n1,{M},{M}\n", "no column is named text.*columns: id, a, b"),
        refuses("t.csv", f"id,text\n1,{M}\n", "there is no column report", text_columns=("report",)),
        reads("t.jsonl", f'{{"text": "{M}"}}\n{{"txet": "{M}"}}\n', M, "<missing_column>"),
        refuses("t.parquet", _PARQUET, "there is no column report", text_columns=("report",)),
    ],
    "wrong delimiter": [
        refuses("t.csv", f"id;text\n1;{M}\n", "the only column, id;text, looks like several"),
        refuses("t.csv", f"id\ttext\n1\t{M}\n", "the only column, .*, looks like several"),
        refuses("t.csv", f"id|text\n1|{M}\n", "the only column, id|text, looks like several"),
        refuses("t.tsv", f"id,text\n1,{M}\n", "the only column, id,text, looks like several"),
        refuses("t.csv", f"id;text;label\n1;{M}, and more;x\n", "looks like several"),
        reads("t.csv", f"a; b\n{M}\n", M, text_columns=("a; b",)),
    ],
    "20 MB field": [
        reads("t.csv", f'id,text\n1,"{_BIG}"\n2,{M}\n', _BIG, M),
        reads("t.jsonl", json.dumps({"text": _BIG}) + "\n", _BIG),
    ],
    "10,000 columns": [
        reads("t.csv", f"{_WIDE},text\n{',' * 9_999}{M}\n", M),
        refuses("t.csv", f"{_WIDE},label\n{',' * 9_999}{M}\n", "c48, c49 and 9950 more$"),
    ],
    "`00123` ids": [
        reads("t.csv", f"id,text\n00123,{M}\n1e5,{M}\n 7 ,{M}\n", M, M, M, ids=["00123", "1e5", " 7 "]),
        reads(
            "t.jsonl",
            f'{{"id": "00123", "text": "{M}"}}\n{{"id": 123, "text": "{M}"}}',
            M,
            M,
            ids=["00123", "123"],
        ),
    ],
    "`NA`, `null`, `nan` as text": [
        reads("t.csv", "text,b\nNA,x\nnull,x\nnan,x\nNone,x\n#N/A,x\n", "NA", "null", "nan", "None", "#N/A"),
        reads("t.jsonl", '{"text": "NA"}\n{"text": "null"}\n{"text": null}', "NA", "null", None),
        reads("t.parquet", parquet(pa.table({"text": ["NA", "nan", None]})), "NA", "nan", None),
    ],
    "`=cmd()` cells": [
        reads(
            "t.csv",
            f"id,text\n=1+1,=cmd({M})\n@a,+{M}\n-1,-{M}\n",
            f"=cmd({M})",
            f"+{M}",
            f"-{M}",
            ids=["=1+1", "@a", "-1"],
        ),
    ],
    "duplicate ids": [reads("t.csv", f"id,text\n7,{M} 1\n7,{M} 2\n", f"{M} 1", f"{M} 2", ids=["7", "7"])],
    "lone surrogate": [
        line(f'{{"text": "{M}\\ud83d"}}', "<lone_surrogate>"),
        line(f'{{"text": "{M}\\ud83d\\ude42"}}', f"{M}🙂"),
    ],
    "`NaN`": [
        line(f'{{"text": "{M}", "n": NaN}}', "<nan_in_json>"),
        line(f'{{"text": "{M}", "n": -Infinity}}', "<nan_in_json>"),
        line('{"text": NaN}', "<nan_in_json>"),
    ],
    "duplicate keys": [line(f'{{"text": "{M} 1", "text": "{M} 2"}}', "<duplicate_key>")],
    "two objects a line": [line(f'{{"text": "{M} 1"}} {{"text": "{M} 2"}}', "<trailing_data>")],
    "trailing junk": [
        line(f'{{"text": "{M}"}} {M}', "<trailing_data>"),
        line(f'{{"text": "{M}"}},', "<trailing_data>"),
    ],
    "one array": [
        refuses("t.jsonl", f'[{{"text": "{M}"}}]', "one JSON array"),
        refuses("t.jsonl", f'[\n  {{"text": "{M}"}}\n]\n', "one JSON array"),
    ],
    "100,000-deep nesting": [
        line(f'{{"text": "{M}", "n": {"[" * 100_000}{"]" * 100_000}}}', "<nested_too_deep>"),
        line(f'{{"text": "{M}", "n": {"[" * 100_000}', "<nested_too_deep>"),
        line(f'{{"text": {chr(123)}"{M}": {"[" * 100_000}', "<nested_too_deep>"),
    ],
    "U+2028 and U+0085 inside strings": [
        line(f'{{"text": "{M}\u2028\x85{M}"}}', f"{M}\u2028\x85{M}"),
        reads("t.csv", f"id,text\n1,{M}\u2028\x85\x0b\x0c\x1c{M}\n", f"{M}\u2028\x85\x0b\x0c\x1c{M}"),
        reads("t.txt", f"{M}\u2028\x85{M}\n", f"{M}\u2028\x85{M}"),
    ],
    "raw control characters": [
        line(f'{{"text": "{M}\x01"}}', "<invalid_json>"),
        line(f'{{"text": "{M}\t"}}', "<invalid_json>"),
        reads("t.csv", f"id,text\n1,{M}\x01\x1b[31m\x7f\n", f"{M}\x01\x1b[31m\x7f"),
    ],
    "text as number, list, null": [
        line('{"text": 3}', "<text_not_string>"),
        line(f'{{"text": ["{M}"]}}', "<text_not_string>"),
        line(f'{{"text": {{"{M}": 1}}}}', "<text_not_string>"),
        line('{"text": true}', "<text_not_string>"),
        line('{"text": null}', None),
        refuses("t.parquet", parquet(pa.table({"text": [3]})), "column text has type int64"),
        refuses("t.parquet", parquet(pa.table({"text": [[M]]})), "column text has type list"),
    ],
    "truncated last line": [
        reads("t.jsonl", f'{{"text": "{M}"}}\n{{"text": "{M}', M, "<invalid_json>"),
        reads("t.csv", f"id,text,b\n1,{M},x\n2,{M}", M, "<short_row>"),
    ],
    "truncated footer": [
        refuses("t.parquet", _PARQUET[:-4], "cannot be read as parquet"),
        refuses("t.parquet", _PARQUET[:-300], "cannot be read as parquet"),
        refuses("t.parquet", _PARQUET[: len(_PARQUET) // 2], "cannot be read as parquet"),
        refuses("t.parquet", _PARQUET[:-8] + b"\xff\xff\xff\x7fPAR1", "cannot be read as parquet"),
    ],
    "dictionary, large_string and binary text": [
        reads("t.parquet", parquet(pa.table({"text": pa.array([M, None, ""]).cast(kind)})), M, None, "")
        for kind in (
            pa.dictionary(pa.int32(), pa.string()),
            pa.large_string(),
            pa.binary(),
            pa.large_binary(),
            pa.string_view(),
        )
    ]
    + [
        reads(
            "t.parquet", parquet(pa.table({"text": pa.array([M.encode(), M.encode() + b"\xff"])})), M, "<not_utf8>"
        ),
    ],
    "zero row groups": [
        reads("t.parquet", _zero_row_groups()),
        Case({"1.parquet": _zero_row_groups(), "2.parquet": parquet(pa.table({"text": [M]}))}, [M]),
    ],
    "schema drift between files": [
        Case(
            {"1.parquet": parquet(pa.table({"text": [M]})), "2.parquet": parquet(pa.table({"text": [1]}))},
            error="column text has type int64",
        ),
        Case(
            {
                "1.parquet": parquet(pa.table({"id": [1], "text": [M]})),
                "2.parquet": parquet(pa.table({"id": ["1"], "text": [M]})),
            },
            error="column id is string, and int64 in an earlier file",
        ),
        Case(
            {"1.csv": f"id,text\n1,{M}\n".encode(), "2.csv": f"text\n{M}\n".encode()},
            error="there is no column id",
        ),
        Case(
            {"1.csv": f"id,text\n1,{M} 1\n".encode(), "2.csv": f"text,x,id\n{M} 2,0,2\n".encode()},
            [f"{M} 1", f"{M} 2"],
            ids=["1", "2"],
        ),
    ],
    "gzip truncated and concatenated": [
        refuses("t.jsonl.gz", gzip.compress(_LINES)[:-9], "the gz file is cut off"),
        refuses("t.jsonl.gz", gzip.compress(_LINES)[:-900], "the gz file is cut off"),
        refuses("t.jsonl.gz", gzip.compress(_LINES)[:-6] + b"\0" * 6, "the gz file is damaged"),
        reads(
            "t.jsonl.gz",
            gzip.compress(b'{"text": "%b 1"}\n' % M.encode()) + gzip.compress(b'{"text": "%b 2"}\n' % M.encode()),
            f"{M} 1",
            f"{M} 2",
        ),
        refuses("t.jsonl.gz", gzip.compress(_LINES) + b"junk" * 9, "the gz file is damaged"),
    ],
    "a zstd bomb": [
        refuses("t.txt.zst", _BOMB, "decompresses to more than"),
    ],
    "zstd truncated and concatenated": [
        refuses("t.jsonl.zst", zstd.compress(_LINES)[:-9], "the zst file is cut off"),
        reads("t.jsonl.zst", zstd.compress(b'{"text": "%b 1"}\n' % M.encode()) * 2, f"{M} 1", f"{M} 1"),
    ],
}
