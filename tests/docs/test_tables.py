"""Tables that the code knows are those of the code."""

from __future__ import annotations

import pytest

from tests.docs.pages import DOCS, PAGES, ROOT, name_of

GENERATED = [page for page in PAGES if "[[[cog" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", GENERATED, ids=name_of)
def test_the_generated_tables_of_a_page_are_up_to_date(page, monkeypatch, capsys):
    cogapp = pytest.importorskip("cogapp", reason="in the dev extra")
    monkeypatch.chdir(ROOT)
    ended = cogapp.Cog().main(["cog", "--check", "-I", str(DOCS), str(page)])
    assert ended == 0, f"run `make docs-tables`: {capsys.readouterr()}"


def test_the_picture_of_the_architecture_has_every_package():
    picture = (DOCS / "images/architecture.svg").read_text(encoding="utf-8")
    packages = {init.parent.name for init in (ROOT / "embedkit").glob("*/__init__.py")}
    assert [name for name in sorted(packages) if f">{name}<" not in picture] == []
