from __future__ import annotations

from pathlib import Path

import pytest

from embedkit.types import Record
from tests.sources.helpers import rows, texts


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"one\n\nthree", ["one", "", "three"]),
        (b"one\r\ntwo\r\r\n", ["one", "two\r"]),
        (b"one\n\n", ["one", ""]),
        (b"", []),
        ("\ufeffa\u2028b\n".encode(), ["a\u2028b"]),
        (b"one\ncaf\xe9\nthree\n", ["one", "<not_utf8>", "three"]),
    ],
)
def test_each_line_is_a_text(tmp_path: Path, data: bytes, expected: list[str]) -> None:
    assert texts(rows(tmp_path, "t.txt", data)) == expected


def test_ids_are_row_numbers_and_the_text_can_be_kept(tmp_path: Path) -> None:
    found = rows(tmp_path, "t.txt", b"a\nb\n", keep=("text",))
    assert found == [Record(0, "0", "a", ("a",)), Record(1, "1", "b", ("b",))]
