"""Options of stores are checked when they are given, and secrets are refused without being shown."""

from __future__ import annotations

import pytest

from embedkit.errors import UsageError
from embedkit.storage.store_options import (
    StoreOptions,
    check_encrypted,
    configure_stores,
    configured_stores,
)

CANARY = "AKIA-canary-4711"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("endpont=https://x", "endpont is unknown"),
        ("region", "region has no value"),
        ("path_style=maybe", "path_style cannot be 'maybe'"),
        ("endpoint=localhost:9000", "endpoint is not an address"),
        (f"endpoint=https://user:{CANARY}@host", "endpoint is not an address"),
        (f"endpoint=https://:{CANARY}@host", "endpoint is not an address"),
        (f"endpoint=https://host/?sig={CANARY}", "endpoint is not an address"),
        (f"secret:{CANARY}", "secret is refused"),
        ("timeout=soon", "timeout cannot be 'soon'"),
        ("checksum=md5", "checksum cannot be 'md5'"),
        *(
            (f"{name}={CANARY}", "is refused: keys and secrets")
            for name in ("aws_secret_access_key", "AWS-ACCESS-KEY-ID", "account_key", "sas_token", "token")
        ),
    ],
)
def test_an_unusable_option_is_an_error_that_shows_no_secret(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        StoreOptions.parse([text])
    assert CANARY not in str(caught.value)
    assert caught.value.hint
    key, mark, value = text.partition("=")
    if mark:
        with pytest.raises(UsageError, match=message) as caught:
            StoreOptions.of({key: value})
        assert CANARY not in str(caught.value)
        assert "--" not in caught.value.message


def test_a_dictionary_gives_the_options_of_the_command_line() -> None:
    given = {"endpoint": "https://host", "path_style": False, "allow-http": "yes"}
    assert StoreOptions.of(given) == StoreOptions.parse(
        ["endpoint=https://host", "path_style=False", "allow_http=yes"]
    )
    for wrong in ({"region": 1}, {"region": None}, "region=a"):
        with pytest.raises(UsageError, match="store_options"):
            StoreOptions.of(wrong)  # type: ignore[arg-type]


def test_the_last_value_of_an_option_counts() -> None:
    options = StoreOptions.parse(["region=a", "Path-Style=no", "region=b"])
    assert options.values == (("path_style", "no"), ("region", "b"))
    assert (options.flag("path_style"), options.flag("unsigned")) == (False, None)


def test_what_is_said_of_a_bucket_counts_before_what_is_said_of_its_store_and_of_all() -> None:
    configure_stores(["s3://lab:region=c", "S3:region=b", "region=a", "az:account=x", "s3://lab/:timeout=5s"])
    try:
        assert configured_stores("s3", "lab").values == (("region", "c"), ("timeout", "5s"))
        assert configured_stores("s3", "other").values == (("region", "b"),)
        assert configured_stores("az", "lab").values == (("account", "x"), ("region", "a"))
    finally:
        configure_stores([])
    for wrong, message in (
        ("az:region=a", "region is for s3://, not for az://"),
        ("s3:region", "region has no value"),
        ("s3://lab:account_key=AKIA-canary", "account_key is refused"),
        ("http://lab:region=a", "is unknown"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            configure_stores([wrong])
        assert "AKIA" not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "options", "is_http"),
    [
        ("https://host", [], False),
        ("http://127.0.0.1:9000", [], True),
        ("http://host", ["allow_http=true"], True),
        ("http://host", [], None),
        ("http://localhost", ["allow_http=no"], None),
    ],
)
def test_texts_cross_a_network_in_clear_only_if_asked(
    endpoint: str, options: list[str], is_http: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP", "AZURE_STORAGE_ALLOW_HTTP", "AZURE_ALLOW_HTTP"):
        monkeypatch.delenv(name, raising=False)
    if is_http is not None:
        assert check_encrypted(endpoint, StoreOptions.parse(options)) is is_http
        return
    with pytest.raises(UsageError, match="not encrypted"):
        check_encrypted(endpoint, StoreOptions.parse(options))
