"""A compressed file is read to its last byte, or refused: never fewer rows than there are, and no error."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkit.config import InputConfig
from embedkit.errors import InputError
from embedkit.sources import open_table
from tests.sources.helpers import piped, refused, rows, texts, zstd

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda data: gzip.compress(data, mtime=0),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1}),
}
SUFFIXES = pytest.mark.parametrize("suffix", PACKERS)
#: What may stand after a stream: the zeros that the format allows, and zstd's frames that hold nothing.
SKIPPABLE = b"\x5a\x2a\x4d\x18\x05\0\0\0hello"
PADDINGS = {"gz": [b"\0", b"\0" * 511], "bz2": [b""], "xz": [b"\0" * 4, b"\0" * 32], "zst": [SKIPPABLE]}
LINES = [b'{"text": "one \xc3\xa9"}\n', b'{"text": "two"}\n', b'{"text": "three"}\n']


def read(suffix: str, data: bytes) -> list[str | None] | str:
    """Returns the texts of a compressed file, or the word `refused`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"t.jsonl.{suffix}"
        path.write_bytes(data)
        try:
            return texts(list(open_table(InputConfig((str(path),))).records()))
        except InputError:
            return "refused"


@SUFFIXES
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_content_cut_into_any_streams_with_any_padding_is_read_whole(suffix: str, data: st.DataObject) -> None:
    lines = data.draw(st.lists(st.text("ab\u00e9 ", max_size=9), max_size=12))
    content = "".join(f'{{"text": "{line}"}}\n' for line in lines).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=4)))
    parts = [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    padding = data.draw(st.sampled_from([b"", *PADDINGS[suffix]]))
    packed = padding.join(PACKERS[suffix](part) for part in parts) + padding
    assert read(suffix, packed) == lines


@SUFFIXES
def test_no_damage_to_a_byte_of_any_stream_loses_a_row_unseen(suffix: str) -> None:
    """Each byte changed or left out: the same rows, or an error. Each cut, too, but for those between streams."""
    streams = [PACKERS[suffix](line) for line in LINES]
    packed = b"".join(streams)
    ends = {sum(map(len, streams[:count])): count for count in range(1, len(streams) + 1)}
    whole = read(suffix, packed)
    assert whole == ["one é", "two", "three"]
    for place, byte in enumerate(packed):
        for changed in (byte ^ 0x01, byte ^ 0x80, 0):
            damaged = packed[:place] + bytes([changed]) + packed[place + 1 :]
            assert read(suffix, damaged) in (whole, "refused"), (place, changed)
        assert read(suffix, packed[:place] + packed[place + 1 :]) in (whole, "refused"), place
        cut = read(suffix, packed[:place])
        assert cut == (whole[: ends[place]] if place in ends else "refused"), place


@SUFFIXES
@pytest.mark.parametrize("junk", [b"x", b"junk" * 9, b'{"text": "more"}\n', b"\0\0x", b"\xff" * 16, b"BZh9"])
def test_bytes_after_a_stream_that_are_no_stream_are_refused(tmp_path: Path, suffix: str, junk: bytes) -> None:
    refused(
        tmp_path,
        f"t.jsonl.{suffix}",
        PACKERS[suffix](LINES[0]) + junk,
        kind=InputError,
        match=f"the {suffix} file is (damaged after 1 complete stream|cut off)",
    )


@pytest.mark.parametrize(("suffix", "zeros"), [("bz2", 4), ("zst", 4), ("xz", 1), ("xz", 6)])
def test_zeros_that_a_format_does_not_allow_are_refused(tmp_path: Path, suffix: str, zeros: int) -> None:
    packed = PACKERS[suffix](LINES[0])
    for data in (packed + b"\0" * zeros, packed + b"\0" * zeros + packed):
        refused(tmp_path, f"t.jsonl.{suffix}", data, kind=InputError, match="is damaged|is cut off")


@SUFFIXES
def test_an_empty_file_is_cut_off_and_nothing_compressed_is_no_row(tmp_path: Path, suffix: str) -> None:
    refused(
        tmp_path, f"t.jsonl.{suffix}", b"", kind=InputError, match=f"the {suffix} file is cut off: it is empty"
    )
    assert rows(tmp_path, f"t.jsonl.{suffix}", PACKERS[suffix](b"")) == []


def test_stdin_that_begins_with_a_skippable_frame_is_zstd() -> None:
    assert texts(list(piped(SKIPPABLE + PACKERS["zst"](LINES[1])).records())) == ["two"]


@pytest.mark.parametrize("log", [28, 31])
def test_a_long_window_is_read(tmp_path: Path, log: int) -> None:
    """`zstd --long=31`. The window's memory is taken as it fills, so the test takes none."""
    options = {zstd.CompressionParameter.window_log: log, zstd.CompressionParameter.compression_level: 1}
    packer = zstd.ZstdCompressor(options=options)
    data = packer.compress(LINES[1]) + packer.flush()
    assert data[5] >> 3 == log - 10, "the frame's header declares the window"
    assert texts(rows(tmp_path, "t.jsonl.zst", data)) == ["two"]


def test_a_window_that_zstd_cannot_have_is_an_error_with_a_hint(tmp_path: Path) -> None:
    header = b"\x28\xb5\x2f\xfd\x00" + bytes([22 << 3]) + b"\x01\x00\x00"  # 4 GiB; an empty last block
    error = refused(tmp_path, "t.jsonl.zst", header, kind=InputError, match="a window of more than 2 GiB")
    assert "--long=27" in error.hint


def _arrow(*texts_of_streams: str) -> bytes:
    file = io.BytesIO()
    for text in texts_of_streams:
        table = pa.table({"text": [text]})
        with pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    return file.getvalue()


@SUFFIXES
def test_an_arrow_stream_is_read_on_to_the_end_of_its_file(tmp_path: Path, suffix: str) -> None:
    pack, name = PACKERS[suffix], f"t.arrow.{suffix}"
    good = pack(_arrow("a"))
    assert texts(rows(tmp_path, name, good)) == ["a"]
    # The last bytes are checksums, which are not checked by a reader that stops at the end of the arrow stream.
    damaged = good[:-5] + bytes([good[-5] ^ 1]) + good[-4:]
    for data in (damaged, pack(_arrow("a", "b")), good + pack(_arrow("b"))):
        refused(tmp_path, name, data, kind=InputError, match="damaged|cannot be read as arrow")
    refused(tmp_path, "t.arrow", _arrow("a", "b"), kind=InputError, match="cannot be read as arrow")


def test_a_disk_that_fails_is_not_called_damage_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import builtins
    import errno

    class Failing(io.FileIO):
        def readinto(self, buffer: Any, /) -> int:
            if self.tell():
                raise OSError(errno.EIO, "Input/output error")
            return super().readinto(memoryview(buffer)[:20]) or 0

    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(LINES)))
    real = open

    def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if str(file) == str(path) and mode == "rb" and counted.append(1) is None and len(counted) > 1:
            return io.BufferedReader(Failing(file), 20)
        return real(file, mode, *arguments, **options)

    counted: list[int] = []
    monkeypatch.setattr(builtins, "open", opened)
    with pytest.raises(InputError, match=r"t\.jsonl\.gz: Input/output error"):
        open_table(InputConfig((str(path),)))


# What a file is, whatever its name says ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.txt", "t.parquet", "t.arrow"])
@SUFFIXES
def test_a_compressed_file_without_the_suffix_is_an_error(tmp_path: Path, suffix: str, name: str) -> None:
    error = refused(
        tmp_path, name, PACKERS[suffix](LINES[0]), kind=InputError, match="this is (gzip|bzip2|xz|zstd), "
    )
    assert error.hint == f"name it so that it ends in {Path(name).suffix}.{suffix}"
    twice = PACKERS[suffix](PACKERS["gz"](LINES[0]))
    refused(tmp_path, f"{name}.{suffix}", twice, kind=InputError, match="this is gzip within")


@pytest.mark.parametrize(("suffix", "other"), [("gz", "zst"), ("xz", "gz"), ("zst", "bz2")])
def test_a_compressed_file_with_the_suffix_of_another_compression_is_an_error(
    tmp_path: Path, suffix: str, other: str
) -> None:
    refused(tmp_path, f"t.csv.{suffix}", PACKERS[other](b"id,text\n"), kind=InputError, match=f"named .{suffix}")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04\x14\0\x06\0", "a ZIP file, as .xlsx is one, not csv"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file, such as .xls, not csv"),
        (b"SQLite format 3\0", "a SQLite database, not csv"),
        (b"PAR1\x15\x04\x15", "parquet, not csv"),
        (b"ARROW1\0\0\xff\xff", "arrow, not csv"),
        (b"%PDF-1.7\n", "a PDF, not csv"),
    ],
)
def test_a_file_of_another_kind_is_recognised_by_its_first_bytes(
    tmp_path: Path, data: bytes, message: str
) -> None:
    refused(tmp_path, "t.csv", data, kind=InputError, match=message)
    with pytest.raises(InputError, match=message):
        piped(data, format="csv")


def test_a_column_whose_name_begins_like_a_magic_is_a_column(tmp_path: Path) -> None:
    assert texts(rows(tmp_path, "t.csv", b"PAR1,text\n1,a\n")) == ["a"]
