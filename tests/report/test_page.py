"""`embedkit report` on the command line: what is on the page, what never is, and its errors."""

from __future__ import annotations

import html
import json
import re
import shutil
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

import embedkit
from embedkit.cli import run
from embedkit.pooling.heads import PredictionHead
from embedkit.pooling.pooler_files import pooler_bytes, probe_bytes, read_pooler
from tests.previous_outputs import FOLDER

pytest.importorskip("plotly", reason="in the dev extra")

EVIL = "</script><script>alert(1)</script>&lt;"
ROWS = [
    {"id": EVIL, "text": "secret one two three", "label": "<b onmouseover=alert(2)>"},
    {"id": None, "text": "secret one two three", "label": "b"},
    {"id": "null-text", "text": None, "label": "b"},
    *(
        {"id": f"n{number}", "text": f"secret word{number} of many", "label": "ab"[number % 2]}
        for number in range(30)
    ),
    {"id": "long", "text": "secret " * 90, "label": None},
]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "table.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def encoded(bert, table, one_thread, tmp_path_factory):
    """Returns the output of `table` with its labels and texts, encoded once."""
    folder = tmp_path_factory.mktemp("encoded") / "out"
    kept = ("--keep", "label", "--keep", "text")
    assert run(["encode", str(table), "-m", str(bert), *kept, "-o", str(folder), "-q"]) == 0
    return folder


@pytest.fixture
def report(embedkit_cli, tmp_path, monkeypatch):
    """`embedkit report ARGUMENTS...`, and the page, by default without Plotly's 4.9 MB of script."""

    def ran(*arguments, plotly="// Plotly"):
        if plotly is not None:
            monkeypatch.setattr("embedkit.report.plotly_source", lambda: plotly)
        page = tmp_path / "page.html"
        result = embedkit_cli("report", *arguments, "-o", page, "--on-exists", "overwrite")
        assert result.code == 0, result.err
        return page.read_text(encoding="utf-8")

    return ran


class Reader(HTMLParser):
    """What a browser makes of a page: its elements, and its text outside of scripts."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.words, self.data, self.inside = [], [], {}, []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in {"meta", "link", "input"}:
            self.inside.append((tag, dict(attributes).get("id")))

    def handle_endtag(self, tag):
        assert self.inside.pop()[0] == tag

    def handle_data(self, words):
        tag, name = self.inside[-1] if self.inside else ("", None)
        if tag == "script" and name:
            self.data[name.removesuffix("-data")] = json.loads(words)
        elif tag not in {"script", "style"}:
            self.words.append(words)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def points(reader, name="output-1-map"):
    return [html.unescape(text.split("<br>")[0]) for trace in reader.data[name]["data"] for text in trace["text"]]


def test_the_page_shows_ids_and_labels_and_no_text(report, encoded):
    page = report(encoded)
    reader = Reader(page)
    out = embedkit.read(encoded)
    assert sorted(points(reader)) == sorted("row 1 (no id)" if one is None else one for one in out.ids)
    assert out.fingerprint in reader.text
    assert "34 33 32" in re.sub(r"rows|vectors|dimensions", "", reader.text).replace("  ", " ")
    assert "truncated 1" in reader.text
    assert "empty 1" in reader.text
    assert "1 vectors occur more than once, in 2 rows" in reader.text
    assert f"{EVIL}, row 1 (no id)" in reader.text  # the two rows of one text
    assert reader.data["output-1-map"]["layout"]["legend"]["title"]["text"] == "label"
    assert "secret" not in page
    assert "secret" in report(encoded, "--show", "text")


def test_cells_are_text_and_never_markup(report, encoded):
    asked = ("--neighbours", EVIL, "--show", "label", "--color", "label", "--title", EVIL)
    reader = Reader(report(encoded, *asked))
    assert [dict(a).get("type") for tag, a in reader.elements if tag == "script"].count(None) == 2
    assert not [tag for tag, _ in reader.elements if tag in {"b", "img", "iframe", "object", "base"}]
    assert not [name for _, attributes in reader.elements for name in attributes if name.startswith("on")]
    links = [
        value for _, attributes in reader.elements for name, value in attributes.items() if name in {"src", "href"}
    ]
    assert all(link.startswith("#") or link == "data:," for link in links)
    assert EVIL in reader.text
    assert "<b onmouseover=alert(2)>" in reader.text


@pytest.mark.parametrize("asked", [(), ("--neighbours", "n3")])
def test_the_neighbours_are_those_of_all_cosines(asked, encode, report, table, tmp_path):
    assert encode(table, "-o", tmp_path / "out.npy").code == 0
    text = Reader(report(tmp_path / "out.npy", *asked, "--sample", 5)).text
    out = embedkit.read(tmp_path / "out.npy")
    units = out.vectors / np.linalg.norm(out.vectors, axis=1, keepdims=True)
    names = ["row 1 (no id)" if one is None else one for one in out.ids]
    listed = re.findall(r"(\S+|row 1 \(no id\)) cosine id ((?:0|1)\.\d{4}) (row 1 \(no id\)|\S+)", text)
    assert len(listed) == (1 if asked else 5)
    for query, cosine, near in listed:
        if "row" in {query, near} or query == "id)":
            continue
        cosines = units @ units[names.index(query)]
        cosines[names.index(query)] = -2
        assert float(cosine) == pytest.approx(cosines.max(), abs=1e-4)
        assert cosines[names.index(near)] == pytest.approx(cosines.max(), abs=1e-4)


@pytest.mark.parametrize(
    "asked",
    [
        ("out.parquet",),
        ("out.arrow",),
        ("out.jsonl",),
        ("out.npy",),
        ("out", "--precision", "float16"),
        ("out", "--precision", "int8"),
        ("out", "--precision", "binary"),
        ("out", "--pool", "none"),
        ("out", "--layers", "1,2", "--layer-agg", "separate"),
        ("out", "--limit", "1"),
        ("out", "--shard-rows", "3"),
    ],
    ids=" ".join,
)
def test_every_kind_of_output_makes_a_page(asked, encode, report, table, tmp_path):
    name, *options = asked
    assert encode(table, "--keep", "label", "-o", tmp_path / name, *options).code == 0
    page = report(tmp_path / name)
    reader = Reader(page)
    if "--limit" in options:
        assert "A map needs at least two vectors" in reader.text
    else:
        assert len(points(reader)) == 33
        assert "Nearly equal, among 32 different vectors:" in reader.text or "--precision" in options
    assert ("a vector for each token" in reader.text) == ("none" in options)
    assert ("one of L01_" in reader.text) == ("separate" in options)
    assert report(tmp_path / name) == page


def test_rows_without_any_vector_make_a_page(encode, report, tmp_path):
    (tmp_path / "empty.jsonl").write_text('{"id": "a", "text": ""}\n', encoding="utf-8")
    assert encode(tmp_path / "empty.jsonl", "-o", tmp_path / "out").code == 0
    assert "There are no vectors." in Reader(report(tmp_path / "out")).text


def test_several_outputs_share_a_page_and_one_copy_of_plotly(encode, report, encoded, table, tmp_path):
    assert encode(table, "-o", tmp_path / "two", "--pool", "cls").code == 0
    page = report(encoded, tmp_path / "two", plotly=None)
    reader = Reader(page)
    assert {"output-1-map", "output-2-map"} <= set(reader.data)
    assert len(page) < 5.2e6


def test_a_comparison_shows_the_rows_that_differ_by_id_and_no_text(encode, report, encoded, table, tmp_path):
    assert encode(table, "-o", tmp_path / "other", "--max-length", 12, "--limit", 30).code == 0
    page = report(encoded, "--compare", tmp_path / "other")
    reader = Reader(page)
    ours, theirs = embedkit.read(encoded), embedkit.read(tmp_path / "other")
    difference = np.abs(ours.vectors[: len(theirs.vectors)] - theirs.vectors).max(axis=1)
    count = int((difference > 0).sum())
    assert f"They differ: {count} of 30 rows in both, 4 rows in only one of them." in reader.text
    assert "rows only in out 4" in reader.text
    assert "Rows only in out n27, n28, n29, long" in reader.text
    assert "text.max_length 64 12" in reader.text
    worst = difference.argmax()
    assert f"{ours.ids[worst] or 'row 1 (no id)'} {difference[worst]:.3g}" in reader.text
    assert count > 0
    assert sum(reader.data["comparison-cosines-1"]["data"][0]["y"]) == len(theirs.vectors)
    assert "secret" not in page
    same = Reader(report(encoded, "--compare", encoded)).text
    assert "The outputs are the same." in same
    assert "The recipes are the same." in same


def test_a_comparison_shows_the_scores_of_a_head(encode, report, bert, table, tmp_path):
    recipe, weight = embedkit.Encoder(str(bert), pool="mean").recipe, np.eye(2, 32, dtype=np.float32)
    for name, scale in (("ours", 1), ("theirs", 2)):
        head = PredictionHead(scale * weight, np.zeros(2, np.float32), ("flu", "none"), "classification")
        pooler = tmp_path / f"{name}.safetensors"
        pooler.write_bytes(
            probe_bytes(head, recipe, layers=(3,), layer_agg="concat", poolings=("mean",), facts={})
        )
        assert encode(table, "-o", tmp_path / name, "--pool", pooler, "--with-head").code == 0
    shown = Reader(report(tmp_path / "ours", "--compare", tmp_path / "theirs")).text
    assert "rows with another status 0 rows with other scores 33" in shown
    assert f"Rows with other scores {EVIL}, row 1 (no id), n0, n1" in shown
    assert encode(table, "-o", tmp_path / "plain").code == 0
    assert (
        "3 columns of scores are only in theirs."
        in Reader(report(tmp_path / "theirs", "--compare", tmp_path / "plain")).text
    )


@pytest.mark.parametrize(
    "name", ["attention.safetensors", "idf.safetensors", "pca.safetensors", "weights.safetensors"]
)
def test_the_file_of_a_pooler_makes_a_page(name, report, tmp_path):
    weights = {
        "kind": "weighted-layers",
        "dims": 4,
        "input": {"layers": [1, 2, 6]},
        "scores": {"test": {"r2": 0.5}},
    }
    logits = np.log(np.array([1, 2, 5], np.float32))
    (tmp_path / "weights.safetensors").write_bytes(pooler_bytes(weights, {"weights": logits}))
    path = tmp_path / name if name.startswith("weights") else FOLDER / name
    reader = Reader(report(path))
    assert f"a pooler of kind {read_pooler(str(path)).kind}" in reader.text
    if name.startswith("weights"):
        [bars] = reader.data["pooler-1-layers"]["data"]
        assert bars["x"] == ["layer 1", "layer 2", "layer 6"]
        assert bars["y"] == pytest.approx([1 / 8, 2 / 8, 5 / 8])
        assert "test: r2 0.500" in reader.text
    else:
        assert "pooler-1-layers" not in reader.data
        assert ("test: accuracy (%) 75.0" in reader.text) == name.startswith("attention")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("out", "--compare", "nothing"), 5, "nothing does not exist"),
        (("out", "out", "--compare", "out"), 2, "--compare needs one output to compare with, and there are 2"),
        (("out", "--compare", "there.html"), 5, "there.html: an output is a folder or a file"),
        (("broken.safetensors",), 4, "broken.safetensors: no safetensors file"),
        (("out", "--variant", "L09"), 2, "--variant L09: the output has no such column of vectors"),
        (("out", "--color", "age"), 2, "--color age: out has no kept column of this name"),
        (("out", "--show", "age"), 2, "--show age: out has no kept column of this name"),
        (("out", "--neighbours", "n99"), 2, "--neighbours n99: no row of out with this id has a vector"),
        (("out", "--neighbours", "null-text"), 2, "--neighbours null-text: no row of out"),
        (("out", "--sample", "0"), 2, "--sample cannot be 0"),
        (("out", "--seed", "-1"), 2, "--seed cannot be -1"),
        (("out", "--on-exists", "resume"), 2, "--on-exists cannot be 'resume'"),
        (("nothing",), 5, "nothing does not exist"),
        (("out", "-o", "out"), 5, "out is a folder"),
        (("out", "-o", "there.html"), 5, "there.html exists"),
        (("out", "-o", "link.html"), 5, "link.html is a symbolic link"),
        (("out", "-o", "no/where.html"), 5, "there is no folder no"),
        (("unfinished",), 5, "unfinished is not finished: it has no manifest.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_invalid_options_and_outputs_are_refused_and_no_page_appears(
    options, code, message, embedkit_cli, encoded, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(encoded, "out")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished/plan.json").write_text("{}")
    (tmp_path / "there.html").write_text("mine")
    (tmp_path / "broken.safetensors").write_text("{}")
    (tmp_path / "link.html").symlink_to("elsewhere.html")
    before = sorted(tmp_path.iterdir())
    result = embedkit_cli("report", *options)
    assert (result.code, len(result.told)) == (code, 2)
    assert message in result.told[0]
    assert result.told[1].startswith("hint: ")
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "there.html").read_text() == "mine"


def test_without_plotly_the_error_says_how_to_install_it(embedkit_cli, encoded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    result = embedkit_cli("report", encoded)
    assert result.code == 2
    assert "pip install 'plotly>=6'" in result.err


def test_by_default_the_page_is_here_under_the_name_of_the_output(embedkit_cli, encoded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(encoded, "table.embeddings")
    assert embedkit_cli("report", "table.embeddings").out.startswith("table.report.html: ")
    assert (tmp_path / "table.report.html").exists()
