"""No secret of an address is in anything that a user, a log or an output sees, and the server gets all of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from embedkit.config import InputConfig, OutputConfig
from embedkit.config.remote_inputs import check_no_secret, split_secret
from embedkit.config.reuse_config import ReuseConfig
from embedkit.errors import EmbedkitError, UsageError
from embedkit.output.output_path import output_path
from embedkit.storage import fsspec_filesystem
from embedkit.storage.fsspec_filesystem import keep_secrets

#: Of signed addresses: Amazon's, Google's, Azure's SAS, and what others call theirs.
SIGNED = [
    *("X-Amz-Signature", "X-Amz-Security-Token", "X-Amz-Credential", "AWSAccessKeyId", "X-Goog-Signature"),
    *("sig", "token", "access_token", "api_key", "password"),
]
#: With a letter in front, so that the secret is no number of a port, and no part of the rest.
SECRETS = st.text("abXY019+=-._~!$&'()*,;%:@", min_size=7, max_size=20).map(lambda text: f"Zq{text}")
#: Other processes of this machine may slow a test down.
CALM = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NAMES = st.text("abc/-_ üñ.", max_size=12).map(lambda name: f"{name.strip('/')}x.csv")


@dataclass(frozen=True)
class Address:
    """An address as typed, its secrets, and the name without them."""

    typed: str
    secrets: tuple[str, ...]
    shown: str


@st.composite
def addresses(draw: Any) -> Address:
    scheme = draw(st.sampled_from(["https", "http", "HTTPS", "sftp", "ftp", "smb", "webhdfs"]))
    host = draw(st.sampled_from(["host", "127.0.0.1", "[::1]", "a.b-c.example"])) + draw(
        st.sampled_from(["", ":22", ":8443"])
    )
    user, name = draw(st.sampled_from(["", "ann", "a.b"])), draw(NAMES)
    password = draw(st.none() | SECRETS)
    is_web = scheme.lower().startswith("http")
    query = draw(st.none() | SECRETS) if is_web else None
    who = user if password is None else f"{user}:{password}"
    signed = "" if query is None else f"?v=1&{draw(st.sampled_from(SIGNED))}={query}"
    path = f"/{name}"
    at = "@" if who else ""
    kept = "" if is_web else user  # on the web, it may be a token
    shown = f"{scheme.lower()}://{kept}{'@' if kept else ''}{host}{path}"
    secrets = tuple(secret for secret in (password, query) if secret is not None)
    if is_web and who:
        secrets = (*secrets, f"{who}@")
    return Address(f"{scheme}://{who}{at}{host}{path}{signed}", secrets, shown)


@CALM
@given(addresses())
def test_an_address_is_shown_without_its_secrets_and_asked_for_with_them(address: Address) -> None:
    config = InputConfig((address.typed,))
    assert [name.lower() for name in config.inputs] == [address.shown.lower()]
    public = {name: value for name, value in asdict(config).items() if name not in {"secrets", "uri_secrets"}}
    for secret in address.secrets:
        assert secret not in f"{config!r} {config.shown_inputs} {public}"
    keep_secrets(config.uri_secrets)
    try:
        asked = fsspec_filesystem._with_secret(config.inputs[0])
    finally:
        fsspec_filesystem._secrets.clear()
    assert asked.partition("://")[2] == address.typed.partition("://")[2]
    # Made again by a worker process, or with another option changed, it is the same.
    assert InputConfig(config.inputs, uri_secrets=config.uri_secrets) == config
    if address.secrets:
        for option, refuse in (
            ("-o", lambda: OutputConfig(address.typed, "parquet")),
            ("--update", lambda: ReuseConfig((address.typed,))),
            ("--spans", lambda: check_no_secret("--spans", address.typed)),
        ):
            with pytest.raises(UsageError, match=option) as caught:
                refuse()
            assert not any(secret in f"{caught.value!r} {caught.value}" for secret in address.secrets)


@CALM
@given(
    before=st.sampled_from(["s3://", "gs://", "az://", "hf://", "S3://"]),
    secret=SECRETS,
    form=st.sampled_from(
        [
            "{0}@bucket/a.csv",
            "AKIA0123:{0}@bucket/a.csv",
            "AKIA0123:x/{0}@bucket/a.csv",  # keys of Amazon may have a slash
            *(f"bucket/a.csv?{name}={{0}}" for name in SIGNED),
            *(f"bucket/*.csv?v=1&{name}={{0}}" for name in SIGNED),
        ]
    ),
)
def test_a_store_takes_no_secret_in_an_address(before: str, secret: str, form: str) -> None:
    for make in (
        lambda name: InputConfig((name,)),
        lambda name: OutputConfig(name, "parquet"),
        lambda name: ReuseConfig((name,)),
        output_path,
    ):
        with pytest.raises(UsageError) as caught:
            make(before + form.format(secret))
        assert secret not in f"{caught.value!r} {caught.value}"
        assert caught.value.hint


@CALM
@given(
    form=st.sampled_from(
        [
            "sftp://ann:{0}/{0}@host/a.csv",
            "sftp://ann:12/{0}@host/a.csv",  # looks like a port
            "https://ann:{0}?{0}@host/a.csv",
            "https://ann:{0}#{0}@host/a.csv",
            "https://host?sig={0}",
            "https://host#{0}",
            "webhdfs://host/a.csv?token={0}",
            "simplecache::https://ann:{0}@host/a.csv",
            "zip://a.csv::https://host/a.zip?sig={0}",
            "zip::s3://AKIA:{0}@bucket/a.zip",
        ]
    ),
    secret=SECRETS,
)
def test_an_address_whose_secret_ends_nobody_knows_where_is_refused_or_not_shown(form: str, secret: str) -> None:
    assume("@" not in secret and ":" not in secret)
    try:
        config = InputConfig((form.format(secret),))
    except UsageError as error:
        assert secret not in f"{error!r} {error}"  # noqa: PT017
    else:
        assert secret not in f"{config!r} {config.inputs}"


@CALM
@given(st.text("abc:/@?#=*[]. ", max_size=30).filter(lambda name: "://" not in name))
def test_a_local_name_is_left_as_it_is(name: str) -> None:
    assert split_secret(name) == (name, None)
    assert str(output_path(f"./{name}")) is not None


@pytest.mark.parametrize(
    "name",
    [
        *("s3://bucket/a.csv", "s3://bucket/year=2024/key=1/*.parquet", "gs://bucket/what?.csv", "az://c/a@b.csv"),
        *("hf://datasets/owner/name@main/a.csv", "https://host/@scope/a.csv", "sftp://ann@host:22/notes-?.csv"),
        *("https://[::1]:8080/a.csv", "hdfs:///notes/a.csv", "memory://notes/a.csv"),
    ],
)
def test_an_address_without_a_secret_is_left_as_it_is(name: str) -> None:
    assert split_secret(name) == (name, None)


def test_two_addresses_that_only_their_queries_tell_apart_are_refused() -> None:
    """They would have one name, and one of them would be read twice."""
    first, second = (f"https://host/notes.csv?page={number}" for number in (1, 2))
    with pytest.raises(UsageError, match="differ in what follows"):
        InputConfig((first, second))
    assert InputConfig((first, first)).inputs == ("https://host/notes.csv",) * 2


class VaultFileSystem(MemoryFileSystem):
    """Files in memory, for those who have the password. Its errors show the address that it was asked for."""

    protocol = "vault"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        place = path.partition("://")[2]
        if "://" in path and not place.startswith("ann:Zq-canary@"):
            raise PermissionError(path)
        return super()._strip_protocol(place.partition("/")[2] if "://" in path else path)


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch) -> Any:
    fsspec.register_implementation("vault", VaultFileSystem, clobber=True)
    monkeypatch.setattr(VaultFileSystem, "store", {})
    monkeypatch.setattr(fsspec_filesystem, "_secrets", {})
    return fsspec.filesystem("vault")


def test_a_run_with_a_password_in_its_address_writes_and_says_it_nowhere(
    vault: Any,
    encode: Any,
    embedkit_cli: Any,
    models_loaded_once: None,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with vault.open("/notes.csv", "wb") as file:
        file.write(b"id,text\n1,has fever\n2,no fever\n")
    typed = "vault://ann:Zq-canary@host/notes.csv"
    said = []
    for options in (("-o", "out", "--shard-rows", 1, "--verbose"), ("-o", "out.parquet"), ("--progress", "json")):
        ran = encode(typed, *options)
        assert ran.code == 0, ran.err
        said.append(ran)
    said.append(encode(typed, "-o", "out", "--shard-rows", 1, "--on-exists", "resume"))
    said.append(embedkit_cli("verify", "out", "--resample", 2, "--input", typed, "--json"))
    assert [ran.code for ran in said] == [0] * 5
    vault.rm("/notes.csv")
    for wrong in (typed, typed.replace("canary", "canary2"), typed.replace("vault", "no-such")):
        said.append(encode(wrong, "-o", "other"))
        assert said[-1].code in {2, 3}
        assert len(said[-1].told) == 2
    said.append(embedkit_cli("inspect", typed.replace("notes.csv", "out")))
    assert not [ran for ran in said if "Zq-canary" in ran.out + ran.err]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if b"Zq-canary" in path.read_bytes()]
    plan = json.loads((tmp_path / "out" / "plan.json").read_bytes())
    assert plan["input"]["files"][0]["name"] == "vault://ann@host/notes.csv"


@pytest.mark.parametrize(
    "sentence",
    [
        "https://ann:{}@host/a.csv is missing",
        "https://host/a.csv?v=1&sig={}: no such file",
        "https://host/a.csv?X-Amz-Signature={}&v=1",
        "'https://host/a.csv?X-Amz-Security-Token={}'",
        "the hint is https://host/?password={}",
    ],
)
def test_an_error_shows_no_secret_of_an_address_that_was_typed_where_none_is_expected(sentence: str) -> None:
    error = EmbedkitError(sentence.format("Zq-canary"), hint=sentence.format("Zq-canary"))
    assert "Zq-canary" not in f"{error!r} {error} {error.hint}"
    assert "host" in error.message
