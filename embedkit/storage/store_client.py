"""Opens a bucket by obstore, with credentials from each cloud's usual chain.

Of S3: environment variables; where boto3 is installed also profiles, SSO and all else that it knows; else web
identities, containers and instance roles. Of Google: application default credentials. Of Azure: environment
variables, a connection string; where azure-identity is installed, what it knows.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from embedkit.errors import UsageError
from embedkit.storage.store_errors import CREDENTIALS, Failure, StoreError
from embedkit.storage.store_options import StoreOptions, allows_http, check_encrypted, check_scheme

_INSTALL = "install it with: pip install 'embedkit-cli[objects]'"
#: Of a whole request; without any byte; for a connection.
_TIMEOUT, _STALLED, _CONNECT = "10min", "2min", "10s"
#: How long credentials are used before boto3 is asked again, which renews them.
_RENEWED = timedelta(minutes=5)
_PATIENCE = timedelta(minutes=3)


@dataclass(slots=True)
class Opened:
    """Clients of a bucket."""

    client: Any = None  # tries a request once
    patient: Any = None  # tries for three minutes
    host: str = ""  # of an endpoint that is not the cloud's own
    problems: list[Failure] = field(default_factory=list)

    def problem(self) -> Failure | None:
        """Returns, once, why credentials could not be renewed."""
        return self.problems.pop() if self.problems else None


@dataclass(slots=True)
class _Wanted:
    """What a client is made with."""

    config: dict[str, Any]
    endpoint: str | None = None
    provider: Callable[[], Any] | None = None


def open_client(scheme: str, name: str, options: StoreOptions) -> Opened:
    """Opens a bucket or container. Nothing is asked of it yet.

    Raises:
        UsageError: obstore is not installed, or an option cannot be used.
        StoreError: there are no credentials.
    """
    path = f"{scheme}://{name}"
    try:
        from obstore import store as stores
    except ImportError:
        raise UsageError(f"{path}: object stores need the package obstore", hint=_INSTALL) from None
    if not name:
        raise UsageError(f"{scheme}:// names no bucket", hint=f"use {scheme}://BUCKET/KEY")
    for key, _ in options.values:
        check_scheme(key, scheme)
    opened = Opened()
    wanted = {"s3": _of_s3, "gs": _of_google, "az": _of_azure}[scheme](path, options, opened.problems)
    if wanted.endpoint is not None:
        opened.host = urlsplit(wanted.endpoint).netloc.rpartition("@")[2]
    if options.flag("unsigned"):
        wanted.config["skip_signature"] = True
    maker = {"s3": stores.S3Store, "gs": stores.GCSStore, "az": stores.AzureStore}[scheme]
    made = _made(maker, name, wanted, _client_options(wanted.endpoint, options))
    if made is None:  # raised here: the library's error, whose words may hold a key, is not kept
        raise StoreError("the store cannot be opened with these settings", CREDENTIALS[scheme], path)
    opened.client, opened.patient = made
    return opened


def _made(maker: Any, name: str, wanted: _Wanted, client: dict[str, Any]) -> tuple[Any, Any] | None:
    def make(retries: int) -> Any:
        return maker(
            name,
            config=wanted.config,
            client_options=client,
            retry_config={"max_retries": retries, "retry_timeout": _PATIENCE},
            credential_provider=wanted.provider,
        )

    try:
        return make(0), make(1000)
    except Exception:  # noqa: BLE001 - of the library
        return None


def _client_options(endpoint: str | None, options: StoreOptions) -> dict[str, Any]:
    client: dict[str, Any] = {
        "timeout": (options.text("timeout") or _TIMEOUT).replace(" ", ""),
        "read_timeout": _STALLED,
        "connect_timeout": _CONNECT,
        "allow_http": allows_http(options),
    }
    if endpoint is not None:
        client["allow_http"] = check_encrypted(endpoint, options)
    certificate = options.text("certificate")
    if certificate is not None:
        client["root_certificate"] = _certificate(certificate)
    return client


def _of_s3(path: str, options: StoreOptions, problems: list[Failure]) -> _Wanted:
    config: dict[str, Any] = {}
    checksum = options.text("checksum") or os.environ.get("AWS_CHECKSUM_ALGORITHM", "sha256")
    if checksum.lower() != "none":
        config["checksum_algorithm"] = checksum.upper()
    session = None if options.flag("unsigned") else _boto_session(path)
    endpoint = options.text("endpoint") or _first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    region = options.text("region") or _first("AWS_REGION", "AWS_DEFAULT_REGION")
    if session is not None:
        scoped = session.get_scoped_config()  # of the profile
        endpoint = endpoint or scoped.get("endpoint_url")
        region = region or scoped.get("region")
    config["region"] = region or "us-east-1"
    if options.flag("path_style") is False:
        config["virtual_hosted_style_request"] = True
        if endpoint is not None:
            before, mark, host = endpoint.partition("://")
            endpoint = f"{before}{mark}{path.removeprefix('s3://')}.{host}"
    if endpoint is not None:
        config["aws_endpoint_url_s3"] = config["endpoint"] = endpoint
    for option, name in (("server_side_encryption", "server_side_encryption"), ("kms_key_id", "sse_kms_key_id")):
        value = options.text(option)
        if value is not None:
            config[name] = value
    if options.flag("request_payer"):
        config["request_payer"] = True
    provider = None if session is None else _boto_provider(session, path, problems)
    return _Wanted(config, endpoint, provider)


def _boto_session(path: str) -> Any:
    """Returns a session of botocore; None if the environment has keys, or boto3 is not installed."""
    if _first("AWS_ACCESS_KEY_ID") and _first("AWS_SECRET_ACCESS_KEY"):
        return None
    if importlib.util.find_spec("botocore") is None:
        files = (
            os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
            os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"),
        )
        if any(Path(file).expanduser().exists() for file in files):
            raise UsageError("profiles and SSO of AWS are read by boto3, which is not installed", hint=_INSTALL)
        return None
    import botocore.session

    session = botocore.session.get_session()
    try:
        session.get_scoped_config()
    except Exception as error:  # noqa: BLE001 - a profile that does not exist, a broken file
        why = type(error).__name__
    else:
        return session
    raise StoreError(f"the profile of AWS cannot be read ({why})", "check AWS_PROFILE and ~/.aws/config", path)


def _boto_provider(session: Any, path: str, problems: list[Failure]) -> Callable[[], Any]:
    """Returns a function that gives the present credentials of a session."""
    found = None
    try:
        found = session.get_credentials()
        why = "no credentials were found"
    except Exception as error:  # noqa: BLE001 - an expired login, a role that may not be taken
        why = f"the credentials cannot be read ({type(error).__name__})"
    if found is None:
        raise StoreError(why, CREDENTIALS["s3"], path)

    def provide() -> dict[str, Any]:
        try:
            keys = found.get_frozen_credentials()
        except Exception as error:
            sentence = f"the credentials cannot be renewed ({type(error).__name__})"
            problems.append(Failure(StoreError(sentence, CREDENTIALS["s3"], path)))
            raise
        return {
            "access_key_id": keys.access_key,
            "secret_access_key": keys.secret_key,
            "token": keys.token,
            "expires_at": datetime.now(UTC) + _RENEWED,
        }

    return provide


def _of_google(path: str, options: StoreOptions, problems: list[Failure]) -> _Wanted:  # noqa: ARG001
    endpoint = options.text("endpoint") or _first("GOOGLE_BASE_URL")
    return _Wanted({} if endpoint is None else {"base_url": endpoint}, endpoint)


#: Variables with which obstore itself finds the credentials of Azure.
_OF_AZURE = (
    *(
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_ACCESS_KEY",
        "AZURE_STORAGE_MASTER_KEY",
        "AZURE_STORAGE_SAS_KEY",
    ),
    *("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_TOKEN", "AZURE_CLIENT_SECRET", "AZURE_STORAGE_CLIENT_SECRET"),
    *("AZURE_FEDERATED_TOKEN_FILE", "AZURE_USE_AZURE_CLI", "AZURE_STORAGE_USE_EMULATOR", "AZURE_SKIP_SIGNATURE"),
)


def _of_azure(path: str, options: StoreOptions, problems: list[Failure]) -> _Wanted:
    parts = (part.partition("=") for part in os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "").split(";"))
    connection = {key.strip(): value.strip() for key, _, value in parts}
    config: dict[str, Any] = {}
    account = options.text("account") or connection.get("AccountName")
    if account:
        config["account_name"] = account
    elif not _first("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_USE_EMULATOR"):
        if not (named := _first("AZURE_STORAGE_ACCOUNT")):
            hint = "name it with AZURE_STORAGE_ACCOUNT_NAME or --store-option account=NAME"
            raise StoreError("the storage account of the container is unknown", hint, path)
        config["account_name"] = named
    for key, name in (("AccountKey", "account_key"), ("SharedAccessSignature", "sas_key")):
        if connection.get(key):
            config[name] = connection[key]
    endpoint = options.text("endpoint") or connection.get("BlobEndpoint") or _first("AZURE_STORAGE_ENDPOINT")
    if endpoint is not None:
        config["endpoint"] = endpoint
    has_own = bool(_first(*_OF_AZURE)) or len(config.keys() & {"account_key", "sas_key"}) > 0
    if options.flag("unsigned") or has_own or importlib.util.find_spec("azure") is None:
        return _Wanted(config, endpoint)
    return _Wanted(config, endpoint, _azure_provider(path, problems))


def _azure_provider(path: str, problems: list[Failure]) -> Callable[[], Any] | None:
    """Returns a function that gives a token of azure-identity; None if that is not installed."""
    try:
        from azure.identity import DefaultAzureCredential  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None
    credential = DefaultAzureCredential()

    def provide() -> dict[str, Any]:
        try:
            found = credential.get_token("https://storage.azure.com/.default")
        except Exception as error:
            sentence = f"no token for Azure was given ({type(error).__name__})"
            problems.append(Failure(StoreError(sentence, CREDENTIALS["az"], path)))
            raise
        return {"token": found.token, "expires_at": datetime.fromtimestamp(found.expires_on, UTC)}

    return provide


def _certificate(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(
            f"--store-option certificate={path}: {error.strerror}", hint="name a file with PEM certificates"
        ) from None


def _first(*names: str) -> str | None:
    """Returns the first of these environment variables that has a value."""
    return next((os.environ[name] for name in names if os.environ.get(name)), None)
