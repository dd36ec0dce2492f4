from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedkit.config import InputConfig
from embedkit.errors import InputError, UsageError
from embedkit.sources import open_table
from tests.sources.helpers import piped, refused, rows, table, texts, zstd

PACKERS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gz", gzip.compress),
    ("bz2", bz2.compress),
    ("xz", lzma.compress),
    ("zst", zstd.compress),
]
LINES = b"".join(json.dumps({"text": f"{n} é \n " * 5}).encode() + b"\n" for n in range(5_000))


@pytest.mark.parametrize(("suffix", "pack"), PACKERS)
def test_a_compressed_file_gives_the_same_records_in_one_part_or_several(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    plain = texts(rows(tmp_path, "t.jsonl", LINES))
    half = len(LINES) // 2
    for packed in (pack(LINES), pack(LINES[:half]) + pack(b"") + pack(LINES[half:])):
        found = table(tmp_path, f"t.jsonl.{suffix}", packed)
        assert found.files[0].compression == suffix
        assert texts(list(found.records())) == plain
        assert texts(list(piped(packed).records())) == plain


@pytest.mark.parametrize(("suffix", "pack"), PACKERS)
def test_a_compressed_file_that_is_cut_off_or_something_else_is_an_error(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    name = f"t.jsonl.{suffix}"
    refused(tmp_path, name, pack(LINES)[:-5], kind=InputError, match=f"the {suffix} file is cut off")
    refused(tmp_path, name, LINES, kind=InputError, match=f"is damaged, or not {suffix} at all")


def test_parquet_is_read_from_within_a_compressed_file(tmp_path: Path) -> None:
    plain = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "b"]}), plain)
    assert texts(rows(tmp_path, "t.parquet.zst", zstd.compress(plain.getvalue()))) == ["a", "b"]


@pytest.mark.parametrize("blank", [b"", b" \r\n", b"\xef\xbb\xbf", b"\n" * 10_000])
def test_stdin_is_known_for_json_lines_by_its_first_brace(blank: bytes) -> None:
    found = piped(blank + LINES)
    assert (found.files[0].name, found.files[0].format, found.streaming) == ("-", "jsonl", True)
    assert len(list(found.records())) == 5_000


@pytest.mark.parametrize("data", [b"id,text\n1,a\n", b"", b"   ", b"BZhead,text\n1,a\n"])
def test_stdin_of_another_format_needs_its_name(data: bytes) -> None:
    with pytest.raises(UsageError, match="the format of stdin is unknown") as caught:
        piped(data)
    assert "--format: csv, tsv, jsonl, ndjson, parquet, arrow, txt" in caught.value.hint


def test_stdin_is_read_in_the_named_format_and_once() -> None:
    found = piped(b"BZhead,text\n1,a\n", format="csv", keep=("BZhead",))
    assert found.facts.kept_types() == {"BZhead": "string"}
    assert texts(list(found.records())) == ["a"]
    with pytest.raises(UsageError, match="only once"):
        found.records()
    with pytest.raises(UsageError, match="only once"):
        found.scan()


def test_stdin_is_alone_or_refused() -> None:
    with pytest.raises(UsageError, match="together with files"):
        open_table(InputConfig(("-", "a.csv")), stdin=io.BytesIO())


class Counting(io.BytesIO):
    """Counts the bytes that were taken."""

    taken = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.taken += len(data)
        return data

    read1 = read


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), *PACKERS])
def test_a_limit_reads_no_further_than_it_must(suffix: str, pack: Callable[[bytes], bytes]) -> None:
    stdin = Counting(pack(b"".join(b'{"text": "%064x"}\n' % hash((n, n)) for n in range(25_000))))
    found = open_table(InputConfig(("-",), limit=3), stdin=stdin)
    assert len(list(found.records())) == 3
    # Buffers are of 64 KiB; only bz2 has blocks that are larger, of 900 kB before they are packed.
    assert stdin.taken <= (600_000 if suffix == "bz2" else 150_000)


def test_a_stdin_without_a_byte_is_reported_as_empty() -> None:
    with pytest.raises(UsageError, match="it is empty"):
        piped(b"")
