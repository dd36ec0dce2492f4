"""Tables that the code knows are those of the code."""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict

import pytest

from tests.docs.pages import DOCS, PAGES, ROOT, name_of

GENERATED = [page for page in PAGES if "[[[cog" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", GENERATED, ids=name_of)
def test_the_generated_tables_of_a_page_are_up_to_date(page, monkeypatch, capsys):
    cogapp = pytest.importorskip("cogapp", reason="in the dev extra")
    monkeypatch.chdir(ROOT)
    ended = cogapp.Cog().main(["cog", "--check", "-I", str(DOCS), str(page)])
    assert ended == 0, f"run `make docs-tables`: {capsys.readouterr()}"


def test_the_architecture_diagram_has_the_layers_of_the_import_rules():
    picture = (DOCS / "images/architecture.svg").read_text(encoding="utf-8")
    floors = defaultdict(set)
    for height, name in re.findall(r'class="name" x="[\d.]+" y="([\d.]+)"[^>]*>(\w+)<', picture):
        floors[float(height)].add(name)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    assert [floors[height] for height in sorted(floors)] == [
        set(layer.split(" | ")) for layer in layers if layer != "__main__"
    ]
