"""Links lead somewhere, the site is built without a warning, and it loads nothing from other hosts."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, PAGES, ROOT, name_of, prose_of


def anchors_of(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_links_of_a_page_lead_to_files_and_headings_that_exist(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        file, _, anchor = target.partition("#")
        if "://" not in target:
            there = (page.parent / file).resolve() if file else page
            if not there.exists() or (anchor and anchor not in anchors_of(there)):
                broken.append(target)
    assert broken == []


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Returns the documentation, built in a folder of its own."""
    pytest.importorskip("zensical", reason="in the dev extra")
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "zensical.toml", folder)
    shutil.copytree(DOCS, folder / "docs")
    built = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "build/site"


def test_the_site_has_every_page_and_a_search_index(site):
    assert {page.relative_to(site).with_suffix("") for page in site.rglob("*.html")} - {Path("404")} == {
        page.relative_to(DOCS).with_suffix("") for page in PAGES if page.is_relative_to(DOCS)
    }
    assert "fingerprint" in (site / "search.json").read_text(encoding="utf-8").lower()


def test_no_token_such_as_s_in_angle_brackets_became_markup(site):
    struck = {
        page.name for page in site.rglob("*.html") if re.search(r"</?(s|del|mask|unk|pad)>", page.read_text())
    }
    assert struck == set()


def test_every_page_is_in_the_navigation():
    def pages(entry) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        values = entry.values() if isinstance(entry, dict) else entry
        return [page for value in values for page in pages(value)]

    nav = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    assert sorted(pages(nav)) == sorted(
        page.relative_to(DOCS).as_posix() for page in PAGES if page.is_relative_to(DOCS)
    )


def test_the_site_loads_nothing_from_other_hosts(site):
    loads = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*?(?:src|href)=[\"']?((?:https?:)?//[^\"'\s>]+)")
    assert [
        (page.name, url) for page in site.rglob("*.html") for url in loads.findall(page.read_text("utf-8"))
    ] == []
    css = re.compile(r"(?:url\(|@import\s*)[\"']?((?:https?:)?//[^\"')\s]+)")
    assert [
        (sheet.name, url) for sheet in site.rglob("*.css") for url in css.findall(sheet.read_text("utf-8"))
    ] == []
