"""Tables in files of any format, with all that may be wrong in them, for hypothesis."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from embedkit.config import InputConfig

TEXTS = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=12),
    st.sampled_from(['6" tall', "two\nlines", "a\r\nb", "", "é" * 40, 'say "x", twice', "long " * 30]),
)
KEPT = st.one_of(st.none(), st.integers(-9, 2**60), st.floats(), st.booleans(), st.text("xé", max_size=3))
ROWS = st.lists(st.tuples(TEXTS, KEPT), max_size=14)
#: Lines of JSON Lines that are no row, or a faulty one.
ODD_LINES = st.sampled_from([b"", b"  ", b"3", b'{"text": 5, "id": "a"}', b'{"id": "\xff"}', b"{", b'{"id": "a"}'])
#: Lines of CSV that are no row, or a faulty one.
ODD_CELLS = st.sampled_from([b"", b"short", b"a,b,c,d,e", b"x,\xff,1", b'x,6" tall,1', b'5,lamp"x, "blue",q'])


@st.composite
def json_lines(draw: Callable[..., Any]) -> bytes:
    end = draw(st.sampled_from([b"\n", b"\r\n"]))
    lines = [b'{"id": "first", "text": "of the file", "k": null}']
    for row, (text, kept) in enumerate(draw(ROWS)):
        finite = None if isinstance(kept, float) and not math.isfinite(kept) else kept
        lines.append(json.dumps({"id": f"r{row}", "text": text, "k": finite}, ensure_ascii=False).encode())
        lines += draw(st.lists(ODD_LINES, max_size=1))
    mark = draw(st.sampled_from([b"", codecs.BOM_UTF8]))
    if draw(st.integers(0, 7)) == 0:  # no row at all
        return mark + draw(st.sampled_from([b"", end]))
    return mark + end.join(lines) + draw(st.sampled_from([b"", end]))


@st.composite
def csv_file(draw: Callable[..., Any]) -> bytes:
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    codec = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator=end)
    writer.writerow(("id", "text", "k"))
    for row, (text, kept) in enumerate(draw(ROWS)):
        writer.writerow((f"r{row}", text, kept))
    data = file.getvalue().encode(codec)
    if codec == "utf-16" or end == "\r":
        return data
    odd = b"".join(line + end.encode() for line in draw(st.lists(ODD_CELLS, max_size=3)))
    return data + odd + draw(st.sampled_from([b"", b"z,last,1"]))


@st.composite
def arrow_table(draw: Callable[..., Any]) -> pa.Table:
    rows = draw(ROWS)
    texts: list[Any] = [text.encode() for text, _ in rows]
    for place in draw(st.lists(st.integers(0, max(0, len(rows) - 1)), max_size=2)):
        if rows:
            texts[place] = draw(st.sampled_from([None, b"\xff\xfe"]))
    offsets = pa.array(texts, pa.binary())
    strings = pa.Array.from_buffers(pa.string(), len(offsets), offsets.buffers())
    kept = pa.array([kept if isinstance(kept, float) else None for _, kept in rows], pa.float64())
    return pa.table({"id": pa.array([f"r{row}" for row in range(len(rows))]), "k": kept, "text": strings})


def parquet(table: pa.Table, group: int) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=group)
    return file.getvalue()


def arrow(table: pa.Table, batch: int) -> bytes:
    file = io.BytesIO()
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)
    return file.getvalue()


#: Suffix and content of a file.
FILES = st.one_of(
    json_lines().map(lambda data: (".jsonl", data)),
    json_lines().map(lambda data: (".jsonl.gz", gzip.compress(data, 1))),
    csv_file().map(lambda data: (".csv", data)),
    st.tuples(arrow_table(), st.integers(1, 6)).map(lambda made: (".parquet", parquet(*made))),
    st.tuples(arrow_table(), st.integers(1, 6)).map(lambda made: (".arrow", arrow(*made))),
)
TABLES = st.lists(FILES, min_size=1, max_size=4)


def written(folder: Path, files: list[tuple[str, bytes]], **options: Any) -> InputConfig:
    """Returns the input of these files, written to a folder."""
    for number, (suffix, data) in enumerate(files):
        (folder / f"{number}{suffix}").write_bytes(data)
    typed = {suffix for suffix, _ in files} <= {".parquet", ".arrow"}
    keep = ("k",) if typed or not {".parquet", ".arrow"} & {suffix for suffix, _ in files} else ("k", "text")
    return InputConfig((str(folder),), text_columns=("text",), keep=keep, **options)
