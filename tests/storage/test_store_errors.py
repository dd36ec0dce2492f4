"""What a store or its library says becomes one error with a way out, and none of its words are passed on."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from obstore import exceptions

from embedkit.storage.store_errors import ObjectChangedError, StoreError, failure_of

CANARY = "canary"
PATHS = {"s3": "s3://bucket/in/a.csv", "gs": "gs://bucket/in/a.csv", "az": "az://container/in/a.csv"}
#: As obstore 0.12 prints answers of a server.
ANSWER = (
    "Generic {scheme} error: Error performing GET https://ann:{secret}@host/b/k?X-Amz-Signature={secret}&sig={secret}"
    " in 5ms - Server returned non-2xx status code: {status}: <?xml?><Error><Code>{code}</Code>"
    "<Message>the key {secret} of Authorization: Bearer {secret}</Message>{more}</Error>"
)
WITHOUT_ANSWER = "Generic S3 error: Error performing GET https://host/b/k?sig={secret} in 5s - HTTP error: {why}"

#: Status, code, exception and more of the answer; then parts of the sentence and of the hint; whether it passes.
ANSWERS = [
    (403, "AccessDenied", "PermissionDeniedError", "", "refuses access (HTTP 403, AccessDenied)", "may do", False),
    (403, "InvalidAccessKeyId", "GenericError", "", "does not accept the credentials", "renew them: set A", False),
    (403, "SignatureDoesNotMatch", "GenericError", "", "does not accept the credentials", "renew them", False),
    (400, "ExpiredToken", "GenericError", "", "does not accept the credentials (HTTP 400", "renew them", False),
    (403, "AuthenticationFailed", "PermissionDeniedError", "", "does not accept the credentials", "renew", False),
    (401, "", "UnauthenticatedError", "", "does not accept the credentials (HTTP 401)", "renew them", False),
    (403, "RequestTimeTooSkewed", "PermissionDeniedError", "", "clock of this machine", "set the clock", False),
    (404, "NoSuchBucket", "GenericError", "", "there is no bucket bucket", "embedkit makes no buckets", False),
    (
        404,
        "ContainerNotFound",
        "NotFoundError",
        "",
        "there is no container container",
        "makes no containers",
        False,
    ),
    (
        301,
        "PermanentRedirect",
        "GenericError",
        "<Region>eu-west-1</Region>",
        "region, eu-west-1",
        "=eu-west-1",
        False,
    ),
    (400, "AuthorizationHeaderMalformed", "GenericError", "expecting 'eu-x-1'", "eu-x-1", "region=eu-x-1", False),
    (503, "SlowDown", "GenericError", "", "overloaded or down (HTTP 503, SlowDown)", "try again later", True),
    (500, "InternalError", "GenericError", "", "overloaded or down (HTTP 500", "try again later", True),
    (429, "", "GenericError", "", "overloaded or down (HTTP 429)", "try again later", True),
    (408, "RequestTimeout", "GenericError", "", "overloaded or down (HTTP 408", "try again later", True),
    (
        501,
        "NotImplemented",
        "NotSupportedError",
        "",
        "does not understand the request (HTTP 501",
        "endpoint",
        False,
    ),
    (400, "", "GenericError", "", "does not understand the request (HTTP 400)", "endpoint", False),
]
CODES = st.sampled_from(["AccessDenied", "NoSuchBucket", "SlowDown", "Odd_Code1", "", "x" * 61, "<b>", "a b"])
KINDS = st.sampled_from(sorted(name for name in vars(exceptions) if name.endswith("Error")))


def raised(kind: str, said: str) -> Exception:
    """Returns an exception as obstore raises it: where it has no class of its own, one of the same name."""
    made = getattr(exceptions, kind, None) or getattr(__builtins__, kind, None) or type(kind, (Exception,), {})
    return made(said)


@pytest.mark.parametrize(("status", "code", "kind", "more", "sentence", "hint", "passes"), ANSWERS)
def test_an_answer_of_a_server_is_explained(
    status: int, code: str, kind: str, more: str, sentence: str, hint: str, passes: bool
) -> None:
    scheme = "az" if "ontainer" in sentence or code == "AuthenticationFailed" else "s3"
    said = ANSWER.format(scheme=scheme, status=status, code=code, more=more, secret=CANARY)
    failure = failure_of(raised(kind, said), PATHS[scheme], "store.lab:9000")
    assert isinstance(failure.error, StoreError)
    assert sentence in failure.error.strerror
    assert hint in failure.error.hint
    assert (failure.error.status, failure.is_passing, failure.answered) == (status, passes, True)


@pytest.mark.parametrize(
    ("why", "sentence", "passes"),
    [
        (
            "error trying to connect: tcp connect error: Connection refused (os error 111)",
            "refuses the conn",
            True,
        ),
        ("client error (Connect): dns error: failed to lookup address information", "no address is found", True),
        ("request or response body error: operation timed out", "does not answer in time", True),
        ("connection closed before message completed", "cannot be reached", True),
        ("invalid peer certificate: UnknownIssuer", "does not trust the certificate of store.lab:9000", False),
        ("builder error: relative URL without a base", "the address of the store is invalid", False),
    ],
)
def test_a_server_that_gives_no_answer_is_told_from_one_that_refuses(
    why: str, sentence: str, passes: bool
) -> None:
    said = WITHOUT_ANSWER.format(why=why, secret=CANARY)
    failure = failure_of(exceptions.GenericError(said), PATHS["s3"], "store.lab:9000")
    assert sentence in str(failure.error)
    assert (failure.is_passing, failure.answered) == (passes, False)
    assert getattr(failure.error, "hint", "")


def test_what_is_no_failure_of_the_store_is_an_error_of_python() -> None:
    kinds = {
        "AlreadyExistsError": FileExistsError,
        "FileNotFoundError": FileNotFoundError,
        "PreconditionError": ObjectChangedError,
        "NotModifiedError": ObjectChangedError,
    }
    for kind, expected in kinds.items():
        failure = failure_of(raised(kind, "canary"), PATHS["gs"], "")
        assert type(failure.error) is expected
        assert failure.error.filename == PATHS["gs"]
        assert not failure.is_passing
    metadata = "GET http://169.254.169.254/latest/api/token: Connection refused"
    failure = failure_of(exceptions.GenericError(metadata), PATHS["s3"], "")
    assert failure.error.strerror == "no credentials were found"
    assert not failure.is_passing


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    scheme=st.sampled_from(sorted(PATHS)),
    kind=KINDS,
    status=st.sampled_from([200, 301, 400, 401, 403, 404, 409, 412, 416, 429, 500, 503]),
    code=CODES,
    more=st.sampled_from(
        ["", "<Region>{secret}</Region>", "<Region>EU {secret}</Region>", "expecting '{secret}'"]
    ),
    host=st.sampled_from(["", "store.lab:9000"]),
    has_answer=st.booleans(),
    secret=st.text("ABCXYZ0123456789+/=%", min_size=10, max_size=58).map(lambda text: f"AK{text}"),
)
def test_no_word_of_a_server_is_in_an_error(
    scheme: str, kind: str, status: int, code: str, more: str, host: str, has_answer: bool, secret: str
) -> None:
    form: Any = ANSWER if has_answer else WITHOUT_ANSWER
    facts = {"scheme": scheme, "status": status, "code": code, "more": more.format(secret=secret), "why": secret}
    failure = failure_of(raised(kind, form.format(secret=secret, **facts)), PATHS[scheme], host)
    error = failure.error
    for one in (error, pickle.loads(pickle.dumps(error))):  # noqa: S301 - of this test
        assert secret not in f"{one} {one!r} {getattr(one, 'hint', '')} {one.args} {vars(one)}"
        assert str(one).count("\n") == 0
    assert error.__cause__ is error.__context__ is None
    assert isinstance(error, FileNotFoundError | FileExistsError) or error.hint  # type: ignore[attr-defined]
