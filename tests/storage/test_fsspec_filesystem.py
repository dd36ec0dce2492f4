"""Places that fsspec opens: `make test-cluster` has a web server; here are names and failures of others."""

from __future__ import annotations

from typing import Any

import pytest

from embedkit.storage import fsspec_filesystem
from embedkit.storage.fsspec_filesystem import _answered, _uri, keep_secrets
from embedkit.storage.store_errors import StoreError

CANARY = "Zq-canary"


class AnswerError(Exception):
    """As aiohttp's: it has the status, and its words have the address."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status}, url='https://ann:{CANARY}@host/a.csv'")
        self.status = status


def fails_with(error: Exception, cause: Exception | None = None) -> Any:
    def ask() -> None:
        raise error from cause

    return ask


@pytest.mark.parametrize(
    ("error", "cause", "said"),
    [
        (FileNotFoundError(CANARY), None, None),
        (FileNotFoundError(CANARY), KeyError(CANARY), None),
        (FileNotFoundError(CANARY), AnswerError(404), None),
        (AnswerError(410), None, None),
        # fsspec says of all that a web server does not give that it is not there.
        (FileNotFoundError(CANARY), AnswerError(401), "HTTP 401"),
        (FileNotFoundError(CANARY), ConnectionRefusedError(CANARY), "ConnectionRefusedError"),
        (FileNotFoundError(CANARY), TimeoutError(CANARY), "TimeoutError"),
        (AnswerError(503), None, "HTTP 503"),
        (PermissionError(CANARY), None, "PermissionError"),
        (ValueError(CANARY), None, "ValueError"),
    ],
)
def test_a_failure_is_told_by_its_status_or_kind_and_by_none_of_its_words(
    error: Exception, cause: Exception | None, said: str | None
) -> None:
    with pytest.raises(OSError, match=r"no such file|cannot be read") as caught:
        _answered("https://host/a.csv", fails_with(error, cause))
    assert isinstance(caught.value, FileNotFoundError if said is None else StoreError)
    assert caught.value.strerror == ("no such file" if said is None else f"cannot be read ({said})")
    found = caught.value
    assert CANARY not in f"{found} {found!r} {found.__cause__!r} {found.__context__!r}"


@pytest.mark.parametrize(
    ("asked", "name", "uri"),
    [
        ("memory://notes/*.csv", "/notes/a.csv", "memory://notes/a.csv"),
        ("memory://notes", "/notes/deep/a.csv", "memory://notes/deep/a.csv"),
        ("ftp://host/in/*.csv", "/in/a.csv", "ftp://host/in/a.csv"),
        ("ftp://data/data/*.csv", "/data/a.csv", "ftp://data/data/a.csv"),  # a folder with the name of its host
        ("hdfs:///in/*.csv", "/in/a.csv", "hdfs:///in/a.csv"),
        ("https://host/in/*.csv", f"https://ann:{CANARY}@host/in/a.csv", "https://host/in/a.csv"),
    ],
)
def test_a_name_that_is_found_becomes_an_address_without_its_secret(
    asked: str, name: str, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsspec_filesystem, "_secrets", {})
    keep_secrets([("https://host", f"https://ann:{CANARY}@host")])
    assert _uri(asked, name) == uri
