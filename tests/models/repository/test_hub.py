"""A model from the hub: the cache first, no wait without end, and each refusal by its name with its way out."""

from __future__ import annotations

import json
import shutil
import threading
import time
from types import SimpleNamespace

import pytest

import embedkit.cli.progress
from embedkit.config import ModelConfig
from embedkit.engines.encode_rows import ENGINES
from embedkit.errors import ModelError, Stopped
from embedkit.models.repository import hub_fetch
from embedkit.models.repository.resolve import resolve_model
from tests.conftest import NOTES
from tests.models.fake_hub import COMMIT, fake_hub


@pytest.fixture
def served(bert, tmp_path, monkeypatch):
    """Yields a hub with the tiny BERT as owner/name, a cache of its own, and short time-outs."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    constants = "huggingface_hub.constants."
    with fake_hub() as server:
        monkeypatch.setattr(f"{constants}ENDPOINT", server.address)
        monkeypatch.setattr(
            f"{constants}HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(f"{constants}HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(f"{constants}HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(f"{constants}HF_HUB_OFFLINE", False)
        monkeypatch.setattr(f"{constants}HF_HUB_ETAG_TIMEOUT", 1)
        monkeypatch.setattr(f"{constants}HF_HUB_DOWNLOAD_TIMEOUT", 1)
        monkeypatch.setattr(hub_fetch, "STALL_SECONDS", 2.0)
        monkeypatch.chdir(tmp_path)
        server.models["owner/name"] = bert
        # What the library waits before another try ends with the test, and so do threads that were given up.
        clock = SimpleNamespace(**{**vars(time), "sleep": server.over.wait})
        monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
        yield server
        monkeypatch.setattr(f"{constants}HF_HUB_OFFLINE", True)
        server.over.set()
        for thread in threading.enumerate():
            if thread.name == "hub":
                thread.join(timeout=5)


def found(model, **options):
    return resolve_model(ModelConfig(model=model, **options))


def cached(folder, cache, name, commit=COMMIT):
    """Puts a model into the cache as from_pretrained does, which keeps no listing of the commit's files."""
    repo = cache / f"models--{name.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text(commit)
    shutil.copytree(folder, repo / "snapshots" / commit)
    return repo / "snapshots" / commit


def refusal(model, **options):
    with pytest.raises(ModelError) as caught:
        found(model, **options)
    return caught.value


def test_what_is_fetched_once_is_taken_from_the_cache_without_a_request(served, bert):
    first = found("owner/name")
    assert (first.revision, first.hub, first.notice) == (COMMIT, "owner/name", None)
    assert first.hashes() == found(str(bert)).hashes()
    served.requests.clear()
    again = found("owner/name")
    assert again.hashes() == first.hashes()
    assert "commit 0123456; --revision main asks the hub" in again.notice
    assert found("owner/name", revision=COMMIT).notice is None
    assert served.requests == []


def test_a_branch_that_is_named_is_asked_for_and_its_cached_commit_serves_while_the_hub_is_down(served):
    found("owner/name")
    served.commit = "f" * 40
    assert found("owner/name").revision == COMMIT
    assert found("owner/name", revision="main").revision == "f" * 40
    served.answer = lambda handler: handler.reply(503) or True
    down = found("owner/name", revision="main")
    assert down.revision == "f" * 40
    assert "HTTP 503" in down.notice
    assert "the cached commit fffffff is used" in down.notice


def test_a_download_that_was_killed_is_completed_and_offline_told_as_incomplete(served):
    folder = found("owner/name").folder
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    error = refusal("owner/name", offline=True)
    assert (
        "is incomplete on this machine (commit 0123456 lacks model.safetensors), and --offline forbids"
        in error.message
    )
    assert (found("owner/name").folder / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize("file", ["training_state.json", "onnx/config.json", "generation_config.json"])
def test_a_file_that_no_run_reads_may_be_missing(served, bert, tmp_path, file):
    served.models["owner/more"] = tmp_path / "more"
    shutil.copytree(bert, tmp_path / "more")
    (tmp_path / "more" / file).parent.mkdir(exist_ok=True)
    (tmp_path / "more" / file).write_text("{}")
    (found("owner/more").folder / file).unlink()
    served.requests.clear()
    assert found("owner/more", offline=True).revision == found("owner/more").revision == COMMIT
    assert served.requests == []


def test_a_cache_without_the_recipe_of_its_authors_is_completed_and_offline_said(served, bert, tmp_path):
    with_recipe = tmp_path / "with_recipe"
    shutil.copytree(bert, with_recipe)
    modules = [{"type": "sentence_transformers.models.Transformer", "path": ""}]
    (with_recipe / "modules.json").write_text(json.dumps(modules))
    served.models["sentence-transformers/tiny"] = with_recipe
    cached(bert, tmp_path / "cache", "sentence-transformers/tiny")
    served.answer = lambda handler: handler.reply(503) or True
    assert "modules.json, the recipe of its authors, is not" in found("sentence-transformers/tiny").notice
    served.answer = lambda _: False
    assert found("sentence-transformers/tiny").modules()


@pytest.mark.parametrize(
    ("name", "under"),
    [
        ("bert-base-uncased", "bert-base-uncased"),
        ("google-bert/bert-base-uncased", "bert-base-uncased"),
        ("bert-base-uncased", "google-bert/bert-base-uncased"),
        ("gpt2", "gpt2"),
        ("gpt2", "openai-community/gpt2"),
        ("openai-community/gpt2", "gpt2"),
        ("t5-small", "t5-small"),
        ("some-model-of-old", "some-model-of-old"),
        ("paraphrase-MiniLM-L3-v2", "sentence-transformers/paraphrase-MiniLM-L3-v2"),
        ("PubMedBERT", "microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract-fulltext"),
    ],
)
@pytest.mark.parametrize("offline", [True, False])
def test_a_model_is_found_in_the_cache_under_any_name_that_it_had(served, bert, tmp_path, name, under, offline):
    folder = cached(bert, tmp_path / "cache", under)
    if under.startswith("sentence-transformers/"):
        # What the library leaves for a file that the hub does not have.
        (folder.parents[1] / ".no_exist" / COMMIT).mkdir(parents=True)
        (folder.parents[1] / ".no_exist" / COMMIT / "modules.json").touch()
    model = found(name, offline=offline)
    assert model.folder == folder
    assert model.hashes() == found(str(bert)).hashes()
    assert served.requests == []


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2"])
@pytest.mark.parametrize("of_the_hub", ["owner", "moved", "old name alone"])
def test_a_name_without_an_owner_is_fetched_and_means_the_same_model(served, bert, name, of_the_hub):
    served.models["gpt2" if of_the_hub == "old name alone" else "openai-community/gpt2"] = bert
    if of_the_hub == "moved":
        served.moved["gpt2"] = "openai-community/gpt2"
    model = found(name)
    assert (model.hub, model.revision) == ("openai-community/gpt2", COMMIT)
    assert model.hashes() == found(str(bert)).hashes()


def test_a_name_without_an_owner_may_be_one_of_sentence_transformers(served, bert):
    served.models["sentence-transformers/paraphrase-MiniLM-L3-v2"] = bert
    assert found("paraphrase-MiniLM-L3-v2").hub == "sentence-transformers/paraphrase-MiniLM-L3-v2"


def test_doctor_tells_what_is_cached_under_an_old_name_and_asks_nobody(served, bert, tmp_path, embedkit_cli):
    cached(bert, tmp_path / "cache", "bert-base-uncased")
    lines = embedkit_cli("doctor").out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("* ")] == ["minilm", "bert-base-uncased"]
    assert served.requests == []


@pytest.mark.parametrize(("name", "meant"), [("minilmm", "minilm"), ("bert-base-uncase", "bert-base-uncased")])
def test_a_mistyped_alias_is_not_asked_for(served, name, meant):
    assert f"did you mean {meant}?" in refusal(name).hint
    assert served.requests == []


@pytest.mark.parametrize(
    ("status", "headers", "says", "way_out"),
    [
        (401, {}, "is not on 127.0.0.1", "HF_TOKEN, or run `hf auth login`"),
        (404, {"X_Error_Code": "RepoNotFound"}, "or is private (HTTP 404)", "check the spelling"),
        (404, {}, "or is private (HTTP 404)", "check the spelling"),
        (403, {"X_Error_Code": "GatedRepo"}, "is gated (HTTP 403)", "accept its licence at "),
        (401, {"X_Error_Code": "GatedRepo"}, "is gated (HTTP 401)", "/owner/name, then set HF_TOKEN"),
        (403, {}, "forbids it (HTTP 403)", "licence"),
        (403, {"X_Error_Message": "Access to this resource is disabled."}, "was disabled", "another one"),
        (401, {"X_Error_Message": "Invalid credentials in Authorization header"}, "your token", "HF_TOKEN"),
        (404, {"X_Error_Code": "RevisionNotFound"}, "has no revision", "/owner/name/commits"),
        (429, {"Retry_After": "37"}, "too many requests (HTTP 429)", "wait 37 s"),
        (429, {}, "too many requests (HTTP 429)", "HF_TOKEN"),
        (500, {}, "is down (HTTP 500)", "try again later"),
        (503, {}, "is down (HTTP 503)", "try again later"),
        (418, {}, "HTTP 418", "see "),
    ],
)
def test_each_answer_of_the_hub_is_told_as_what_it_is(served, status, headers, says, way_out):
    served.answer = lambda handler: handler.reply(status, **headers) or True
    error = refusal("owner/name")
    assert error.exit_code == 4
    assert error.message.startswith("model 'owner/name' ")
    assert says in error.message
    assert way_out in error.hint
    assert len(served.requests) == 1


@pytest.mark.parametrize(
    ("status", "headers", "says"),
    [
        (403, {"X_Error_Code": "GatedRepo"}, "is gated (HTTP 403)"),
        (401, {"X_Error_Code": "GatedRepo"}, "is gated (HTTP 401)"),
        (403, {}, "forbids it (HTTP 403)"),
        (429, {"Retry_After": "40"}, "too many requests (HTTP 429)"),
        (503, {}, "is down (HTTP 503)"),
    ],
)
def test_the_same_is_told_where_only_the_files_are_refused(served, status, headers, says):
    # Anybody may read what a gated model consists of.
    served.answer = lambda handler: "/resolve/" in handler.path and (handler.reply(status, **headers) or True)
    assert says in refusal("owner/name").message


def test_a_hub_that_falls_silent_later_is_given_up_too(served):
    served.answer = lambda handler: len(served.requests) > 1 and (handler.hang() or True)
    assert "stopped sending for 2 s" in refusal("owner/name").message


def test_a_hub_that_sends_a_byte_now_and_then_is_given_up(served):
    served.answer = lambda handler: handler.trickle(b" " * 100, 0.3) or True
    assert "does not answer within" in refusal("owner/name").message


def test_a_hub_that_never_answers_is_given_up_and_never_holds_up_what_is_cached(served, bert, tmp_path):
    served.answer = lambda handler: handler.hang() or True
    began = time.monotonic()
    error = refusal("owner/name")
    assert "does not answer within" in error.message
    assert "try again later" in error.hint
    assert time.monotonic() - began < 10
    cached(bert, tmp_path / "cache", "owner/name")
    served.requests.clear()
    assert found("owner/name").revision == COMMIT
    assert served.requests == []


def test_a_download_that_stops_is_given_up(served):
    def answer(handler):
        if not handler.path.endswith("/model.safetensors") or handler.command == "HEAD":
            return False
        handler.hang()
        return True

    served.answer = answer
    error = refusal("owner/name")
    assert "stopped sending" in error.message or "does not answer" in error.message
    assert "is incomplete on this machine" in refusal("owner/name", offline=True).message


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("http://127.0.0.1:1", "refuses the connection"),
        ("http://no.such.host.invalid", "no address is found for no.such.host.invalid"),
        ("no-scheme.example", "is invalid"),
    ],
)
def test_a_network_that_fails_is_told_as_what_it_is(served, monkeypatch, endpoint, says):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    error = refusal("owner/name")
    assert "cannot be downloaded: " in error.message
    assert says in error.message
    assert "HF_ENDPOINT" in error.hint


def test_a_page_that_a_network_puts_in_between_is_told(served):
    served.answer = lambda handler: handler.reply(200, b"<html>log in</html>") or True
    assert "does not answer as a hub does" in refusal("owner/name").message


def test_a_certificate_that_is_not_trusted_is_told(served, monkeypatch):
    import ssl

    monkeypatch.setattr(
        "huggingface_hub.HfApi.model_info",
        lambda *_, **__: (_ for _ in ()).throw(ssl.SSLCertVerificationError(1, "CERTIFICATE_VERIFY_FAILED")),
    )
    error = refusal("owner/name")
    assert "certificate" in error.message
    assert "SSL_CERT_FILE" in error.hint


def test_a_disk_without_room_is_told_before_anything_is_fetched(served, monkeypatch):
    monkeypatch.setattr(hub_fetch.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    error = refusal("owner/name")
    assert "has room for 0 MB" in error.message
    assert "HF_HOME" in error.hint
    assert not any("/resolve/" in request for request in served.requests)


def test_a_cache_that_is_a_file_is_told(served, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    error = refusal("owner/name")
    assert "cannot be written" in error.message
    assert "HF_HOME" in error.hint


def test_a_revision_that_is_not_cached_names_those_that_are(served):
    found("owner/name")
    error = refusal("owner/name", revision="v2", offline=True)
    assert "but not revision 'v2'" in error.message
    assert COMMIT in error.hint
    assert found("owner/name", revision=COMMIT[:8], offline=True).revision == COMMIT
    assert "not revision '../../x'" in refusal("owner/name", revision="../../x", offline=True).message


def test_an_id_that_the_hub_lacks_names_one_that_is_spelled_alike(served):
    found("owner/name")
    assert refusal("owner/nmae").hint.startswith("did you mean owner/name?")


def test_fetching_is_said_before_the_first_wait_and_its_bytes_beside_it(served, embedkit_cli, tmp_path):
    arguments = ("encode", NOTES, "--limit", "3", "-m", "owner/name", "--revision", "main")
    first = embedkit_cli(*arguments, "-o", tmp_path / "a.parquet")
    assert first.code == 0
    assert first.out == ""
    lines = [line for line in first.err.splitlines() if "fetching" in line]
    assert lines[0] == f"note: fetching owner/name from {served.address.removeprefix('http://')}"
    assert "fetching owner/name: " in lines[1]
    assert lines[1].endswith(("kB", "MB"))
    served.models["owner/other"] = served.models["owner/name"]
    told = embedkit_cli(*arguments[:5], "owner/other", "--progress", "json", "-o", tmp_path / "b.parquet")
    events = [json.loads(line) for line in told.err.splitlines()]
    fetching = [event["event"] for event in events if "fetch" in event["event"]]
    assert fetching[:2] == ["fetching", "fetch_size"]
    served.models["owner/third"] = served.models["owner/name"]
    silent = embedkit_cli(*arguments[:5], "owner/third", "-q", "-o", tmp_path / "c.parquet")
    assert (silent.code, silent.err) == (0, "")


def test_a_bar_shows_the_bytes_on_a_terminal(served, capsys):
    with embedkit.cli.progress.shown_downloads("bar"):
        found("owner/name")
    assert "fetching owner/name: 100%" in capsys.readouterr().err


def test_one_command_takes_one_commit_of_a_branch(served):
    with embedkit.cli.progress.shown_downloads(quiet=True):
        assert found("owner/name", revision="main").revision == COMMIT
        served.commit = "f" * 40
        assert found("owner/name", revision="main").revision == COMMIT


def test_workers_are_given_the_commit_that_a_branch_was_found_to_be(served, embedkit_cli, tmp_path, monkeypatch):
    given = []

    def pool(setup):
        given.append(setup.spec.folder.revision)
        raise ModelError("enough", hint="none")

    monkeypatch.setitem(ENGINES, "worker_pool", pool)
    arguments = ("--shard-rows", "2", "--limit", "8", "--workers", "2", "-m", "owner/name", "--revision", "main")
    assert embedkit_cli("encode", NOTES, *arguments, "-o", tmp_path / "out").code == 4
    assert given == [COMMIT]


def test_a_stop_ends_the_wait(served):
    served.answer = lambda handler: handler.hang() or True
    stop = threading.Event()
    stop.set()
    with embedkit.cli.progress.shown_downloads("none", stop=stop), pytest.raises(Stopped):
        found("owner/name")
