"""The events of `--progress json` are those of their page, field by field."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import fields

import pytest

from embedkit.cli import progress
from embedkit.cli.progress import shown_downloads
from embedkit.engines.summary import Summary
from embedkit.models.repository import hub_fetch
from tests.conftest import NOTES
from tests.docs.pages import DOCS

GPU_ONLY = {"device_waiting_percent", "memory_allocated", "memory_reserved"}


@pytest.fixture
def documented():
    """Event → fields, and the fields of `encode`'s last event, from the tables of the page."""
    page = (DOCS / "reference/progress-events.md").read_text(encoding="utf-8")
    events, done = re.findall(r"\| --- .*?(?=\n\n)", page, re.DOTALL)
    found, event = defaultdict(set), ""
    for first, second in re.findall(r"^\| (.*?) ?\| (.*?) \|", events, re.MULTILINE)[1:]:
        event = first.strip("`") or event
        found[event] |= set(re.findall(r"`(\w+)`", second))
    return found, set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (.*?) \|", done, re.MULTILINE))))


def events_in(text):
    found = defaultdict(set)
    for line in text.splitlines():
        event = json.loads(line)
        found[event.pop("event")] |= event.keys()
    return found


def test_each_event_has_the_fields_of_the_page(
    documented, encode, embedkit_cli, bert, tmp_path, monkeypatch, capfd
):
    events, done = documented
    monkeypatch.setattr(progress, "_JSON_SECONDS", 0.0)
    run = encode(NOTES, "-o", tmp_path / "out", "--progress", "json", "--shard-rows", "30")
    assert run.code == 0
    found = events_in(run.err)
    assert found.pop("done") == done == {field.name for field in fields(Summary)}
    pooler = ("--pooler", "mean", "--label", "label", "--epochs", "1", "-o", tmp_path / "pooler.safetensors")
    fitted = embedkit_cli("fit", NOTES, "-m", bert, *pooler, "--progress", "json")
    found |= events_in(fitted.err)
    assert found.pop("done") == {"path", "sha256", "recipe"}
    options = ("--label", "label", "--pool", "mean", "-o", tmp_path / "sweep", "--progress", "json")
    swept = embedkit_cli("sweep", NOTES, "-m", bert, *options)
    found |= events_in(swept.err)
    capfd.readouterr()
    with shown_downloads("json"):
        watching = hub_fetch._session.get().observer
        watching.fetching("model", "host")
        watching.sized(2, 100)
        watching.received(50)
        watching.ended()
    found |= events_in(capfd.readouterr().err)
    found.pop("done", None)
    events["progress"] -= GPU_ONLY
    assert dict(found) == dict(events)
