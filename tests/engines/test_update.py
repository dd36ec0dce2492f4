"""`--update OLD` gives what a fresh run gives, with OLD's vectors where the texts are OLD's.

The oracles: a fresh run of the new table for receipts and new vectors, OLD itself for the bits of reused ones, and
Python's own hmac for the hashes.
"""

from __future__ import annotations

import csv
import hmac
import json
import shutil
import stat
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import embedkit
from embedkit.engines.reuse import TextReuse
from embedkit.errors import OutputError
from embedkit.manifest import versions
from embedkit.output.earlier import EarlierOutput
from embedkit.output.inspect import inspect_output
from embedkit.verify import verify_output
from tests.conftest import NOTES

TOLERANCE = 1e-5  # between two batches that a text may be in

pytestmark = pytest.mark.usefixtures("models_loaded_once")


def write(path: Path, rows: list[tuple[str, str]], kept: str = "") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", *(["kept"] if kept else [])])
        writer.writerows([*row, *([f"{kept}{at}"] if kept else [])] for at, row in enumerate(rows))
    return path


def rows_of(path: Path) -> list[tuple[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [(row["id"], row["text"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A table of 30 notes, and that of the next month: reordered, some gone, a few new, others' ids swapped."""
    folder, notes = tmp_path_factory.mktemp("months"), rows_of(NOTES)[:30]
    ids = [row[0] for row in notes]
    later = [(ids[-at], text) for at, (_, text) in enumerate(notes[::-1][4:])]
    later[5:5] = [("n1", "a text of this month"), ("n2", ""), ("n3", notes[2][1] + " and more")]
    later += [("n4", notes[7][1]), ("n5", "short")]  # a text that stands twice, under another id
    return write(folder / "old.csv", [*notes, ("e", "  ")], "k"), write(folder / "new.csv", later, "m")


def vectors_by_text(table: Path, output: Path) -> dict[str, list[bytes]]:
    """Returns the first vector of each text, as the output has it; of several variants all."""
    read = embedkit.read(output)
    text_of = dict(rows_of(table))
    found: dict[str, list[bytes]] = {}
    tokens = read._stored.layout.token_vectors
    columns = [read.token_variant(name) if tokens else read.variant(name) for name in read.variants]
    for at, identity in enumerate(read.ids):
        found.setdefault(text_of[identity], [column[at].tobytes() for column in columns])
    return found


CASES = {
    "folder of parquet": ("old", "new", ()),
    "parquet": ("old.parquet", "new.parquet", ()),
    "npy to parquet": ("old.npy", "new.parquet", ("--precision", "float16")),
    "folder of npy": ("old", "new", ("--output-format", "npy", "--layers", "-1,-2", "--layer-agg", "separate")),
    "arrow": ("old.arrow", "new.arrow", ("--precision", "binary")),
    "folder of jsonl": ("old", "new", ("--output-format", "jsonl", "--normalize")),
    "int8": ("old", "new.npy", ("--precision", "int8", "--keep", "kept")),
    "windows": ("old", "new", ("--on-long", "chunk", "--stride", "4", "--pool", "cls,max")),
    "token vectors": ("old.parquet", "new", ("--pool", "none", "--keep", "kept")),
}


@pytest.mark.parametrize("case", CASES)
def test_an_update_is_a_fresh_run_with_the_vectors_that_were_there(tables, encode, tmp_path, case):
    old_table, new_table = tables
    old, new, options = CASES[case]
    old, new, fresh = tmp_path / old, tmp_path / new, tmp_path / f"fresh-{new}"
    ran = encode(old_table, *options, "-o", old, "--keep-hashes", "--shard-rows", 7)
    assert ran.code == 0, ran.err
    ran = encode(new_table, *options, "-o", new, "--update", old, "--shard-rows", 9)
    assert ran.code == 0, ran.err
    assert "taken from earlier outputs: 27 vectors (90.0 %)" in ran.err  # 26 and the one that stands twice, of 30
    assert encode(new_table, *options, "-o", fresh, "--keep-hashes", "--hash-key", f"{old}.key").code == 0
    assert not verify_output(new).problems
    updated, expected = embedkit.read(new), embedkit.read(fresh)
    assert updated.ids == expected.ids
    assert updated.table.equals(expected.table)  # receipts, kept columns, hashes, unknown tokens
    assert updated.table.schema.names == expected.table.schema.names
    had, has = vectors_by_text(old_table, old), vectors_by_text(new_table, new)
    reused = [text for text in has if text in had]
    assert len(reused) == 26
    assert all(had[text] == has[text] for text in reused)
    if case not in {"int8", "arrow", "token vectors"}:  # other ranges; bits; lists
        for name in updated.variants:
            np.testing.assert_allclose(updated.variant(name), expected.variant(name), atol=TOLERANCE, rtol=2e-3)
    inspection = inspect_output(new)
    assert (inspection.totals.reused, inspection.totals.n_tokens) == (27, inspect_output(fresh).totals.n_tokens)


def test_receipts_and_counts_of_the_manifest_are_those_of_a_fresh_run(tables, encode, tmp_path):
    old_table, new_table = tables
    for arguments in (
        (old_table, "--keep-hashes", "-o", tmp_path / "old"),
        (new_table, "--update", tmp_path / "old", "-o", tmp_path / "new"),
        (new_table, "--keep-hashes", "--hash-key", tmp_path / "old.key", "-o", tmp_path / "fresh"),
    ):
        assert encode(*arguments).code == 0
    found, expected = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("new", "fresh"))
    differing = {name for name in {*found, *expected} if found.get(name) != expected.get(name)}
    assert differing == {"reused", "plan_sha256", "records_sha256", "sha256"}
    plans = [json.loads((tmp_path / name / "plan.json").read_text()) for name in ("new", "fresh")]
    assert {name for name in plans[0] if plans[0][name] != plans[1].get(name)} == {"update", "sha256"}


@pytest.mark.parametrize("form", ["parquet", "npy"])
@pytest.mark.parametrize("on_bad_row", ["null", "skip"])
def test_unreadable_rows_are_judged_again(tables, encode, tmp_path, form, on_bad_row):
    old_table, new_table = tables
    faulty = tmp_path / "faulty.csv"
    lines = [*new_table.read_bytes().splitlines(keepends=True), b"a,b,c,d,e,f\n", b"z,the last one,m\n"]
    faulty.write_bytes(lines[0] + lines[-2] + b"".join(lines[1:]))
    options = ("--on-bad-row", on_bad_row, "--output-format", form, "--shard-rows", 4)
    old, new, fresh = (tmp_path / "deep" / "er" / name for name in ("old", "new", "fresh"))
    assert encode(old_table, "--keep-hashes", *options, "-o", old).code == 0
    assert encode(faulty, "--update", old, *options, "-o", new).code == 0
    assert encode(faulty, "--keep-hashes", "--hash-key", f"{old}.key", *options, "-o", fresh).code == 0
    assert embedkit.read(new).table.equals(embedkit.read(fresh).table)
    assert not verify_output(new).problems
    rejects = [sorted(path.read_bytes() for path in (of / "rejects").iterdir()) for of in (new, fresh)]
    assert rejects[0] == rejects[1]
    totals = [inspect_output(of).totals for of in (new, fresh)]
    assert (totals[0].reused, totals[0].rejects) == (27, totals[1].rejects)


@pytest.fixture(scope="module")
def small(tmp_path_factory, bert):
    """Returns twelve short texts, their output with hashes, and the vector that each text alone has."""
    folder = tmp_path_factory.mktemp("small")
    texts = [f"{'abcdefgh'[at % 8]} text of {at * 37} words"[: 8 + at] for at in range(12)]
    return folder, texts


@pytest.fixture(scope="module")
def vector_of(bert):
    known: dict[str, np.ndarray] = {}
    encoder = embedkit.Encoder(str(bert), pool="mean")

    def vector(text: str) -> np.ndarray:
        if text not in known:
            known[text] = encoder.encode([text])[0]
        return known[text]

    return vector


EDITS = st.lists(
    st.one_of(
        st.integers(0, 11),  # a text of the old table, possibly again
        st.sampled_from(["", " ", "new", "NEW", "new ", "résumé", "\u200d", "a\nb", "a text of 0"]),
    ),
    max_size=14,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS, shard_rows=st.integers(1, 5))
def test_any_edit_of_a_table_gives_old_bits_for_old_texts_and_right_vectors_for_new(
    small, vector_of, encode, edits, shard_rows
):
    folder, texts = small
    old = folder / "old"
    if not old.exists():
        write(folder / "old.csv", [(str(at), text) for at, text in enumerate(texts)])
        assert encode(folder / "old.csv", "--keep-hashes", "-o", old, "--shard-rows", 5).code == 0
    had = vectors_by_text(folder / "old.csv", old)
    later = [(str(at), texts[of] if isinstance(of, int) else of) for at, of in enumerate(edits)]
    write(folder / "new.csv", later)
    shutil.rmtree(folder / "new", ignore_errors=True)
    ran = encode(folder / "new.csv", "--update", old, "-o", folder / "new", "--shard-rows", shard_rows)
    assert ran.code == 0, ran.err
    read = embedkit.read(folder / "new")
    assert read.table["id"].to_pylist() == [identity for identity, _ in later]
    of = dict(later)
    for identity, vector in zip(read.ids, read.vectors, strict=True):
        if of[identity] in had:
            assert [vector.tobytes()] == had[of[identity]]
        else:
            np.testing.assert_allclose(vector, vector_of(of[identity]), atol=TOLERANCE)
    expected = sum(of[identity] in had for identity in read.ids)
    assert inspect_output(folder / "new").totals.reused == expected


def test_of_several_outputs_the_first_that_has_a_text_counts_and_folders_grow(tables, encode, tmp_path):
    old_table, new_table = tables
    files = tmp_path / "files"
    files.mkdir()
    shutil.copy(old_table, files / "2026-01.csv")
    one, two, both = (tmp_path / name for name in ("one", "two.parquet", "both"))
    assert encode(files, "--keep-hashes", "-o", one, "--limit", 10).code == 0
    assert encode(old_table, "--keep-hashes", "--hash-key", f"{one}.key", "-o", two).code == 0
    assert not Path(f"{two}.key").exists()  # the user keeps that key
    later = [(f"later {identity}", text) for identity, text in rows_of(new_table)]
    write(files / "2026-02.csv", later, "m")
    ran = encode(files, "--update", one, "--update", two, "-o", both, "--keep", "kept")
    assert ran.code == 0, ran.err
    everything = write(tmp_path / "all.csv", [*rows_of(old_table), *later])
    had, second, has = map(vectors_by_text, (old_table, old_table, everything), (one, two, both))
    assert len(had) == 10
    assert all(has[text] == had.get(text, vectors) for text, vectors in second.items())
    assert inspect_output(both).totals.reused == 30 + 27
    assert len(json.loads((both / "plan.json").read_text())["update"]) == 2


def test_a_killed_update_is_resumed_to_the_same_bytes(tables, encode, tmp_path):
    old_table, new_table = tables
    assert encode(old_table, "--keep-hashes", "-o", tmp_path / "old").code == 0
    arguments = (new_table, "--update", tmp_path / "old", "-o", tmp_path / "new", "--shard-rows", 6)
    assert encode(*arguments).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "new").rglob("*") if path.is_file()}
    for name in ("manifest.json", "commits/00001.json", "commits/00003.json", "embeddings/part-00003.parquet"):
        (tmp_path / "new" / name).unlink()
    assert encode(*arguments, "--on-exists", "resume").code == 0
    assert {path: path.read_bytes() for path in (tmp_path / "new").rglob("*") if path.is_file()} == before
    for rank in (0, 1):
        ranks = ("--shard-id", rank, "--num-shards", 2, "--on-exists", "resume")
        assert encode(*arguments[:4], tmp_path / "ranks", *arguments[5:], *ranks).code == 0
    read = {path.name: path.read_bytes() for path in (tmp_path / "ranks").rglob("part-*")}
    assert read == {path.name: data for path, data in before.items() if path.name.startswith("part-")}
    (tmp_path / "new" / "manifest.json").unlink()
    without = encode(*arguments[:1], *arguments[3:], "--on-exists", "resume")
    assert (without.code, "cannot resume" in without.err) == (5, True), without.err


@pytest.mark.parametrize("name", ["same", "same.parquet"])
def test_an_output_is_replaced_by_its_own_update_only_when_asked(tables, encode, tmp_path, name):
    old_table, new_table = tables
    out = tmp_path / name
    assert encode(old_table, "--keep-hashes", "-o", out).code == 0
    had, key = vectors_by_text(old_table, out), Path(f"{out}.key").read_bytes()
    refused = encode(new_table, "--update", out, "-o", out)
    assert refused.code == 2
    assert "--on-exists overwrite" in refused.err
    assert encode(new_table, "--update", out, "-o", out, "--on-exists", "overwrite").code == 0
    has = vectors_by_text(new_table, out)
    assert sum(had.get(text) == vectors for text, vectors in has.items()) == 26
    again = encode(new_table, "--update", out, "-o", out, "--on-exists", "resume")
    assert (again.code, "complete" in again.err or "nothing was left" in again.err) == (0, True), again.err
    assert Path(f"{out}.key").read_bytes() == key


def test_hashes_are_hmac_sha256_with_a_key_that_is_in_no_output(tables, encode, tmp_path):
    old_table, new_table = tables
    ran = encode(old_table, "--keep-hashes", "-o", tmp_path / "old", "-v", "--private")
    key_file = tmp_path / "old.key"
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    key = key_file.read_bytes().strip()
    assert len(key) == 64
    texts = dict(rows_of(old_table))
    for row in embedkit.read(tmp_path / "old").table.to_pylist():
        digest = hmac.new(key, texts[row["id"]].encode(), "sha256").hexdigest()[:32]
        assert row["text_hash"] == (digest if row["status"] != "empty" else None)
    updated = encode(new_table, "--update", tmp_path / "old", "-o", tmp_path / "new", "-v")
    assert (tmp_path / "new.key").read_bytes() == key_file.read_bytes()
    assert stat.S_IMODE((tmp_path / "new.key").stat().st_mode) == 0o600
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".key"]
    assert not any(key in data for data in (*written, ran.err.encode(), updated.err.encode()))
    assert "text_hash" not in embedkit.read(plain(encode, old_table, tmp_path)).table.column_names


def plain(encode, table, tmp_path):
    """Returns an output without hashes."""
    assert encode(table, "-o", tmp_path / "plain").code == 0
    return tmp_path / "plain"


def test_rows_on_stdout_take_vectors_and_keep_no_hashes(tables, encode, tmp_path):
    old_table, new_table = tables
    assert encode(old_table, "--keep-hashes", "-o", tmp_path / "old").code == 0
    ran = encode(new_table, "--update", tmp_path / "old", "-o", "-")
    assert (ran.code, "taken from earlier outputs: 27" in ran.err) == (0, True), ran.err
    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert len(rows) == 31
    assert "text_hash" not in rows[0]
    vectors = {row["id"]: row["embedding"] for row in rows}
    had = vectors_by_text(old_table, tmp_path / "old")
    text = dict(rows_of(new_table))
    same = [[np.float32(vectors[of]).tobytes()] == had[text[of]] for of in vectors if text[of] in had and text[of]]
    assert all(same)
    assert len(same) == 27


def spoil(old: Path, how: str) -> None:
    match how:
        case "unfinished":
            (old / "manifest.json").unlink()
        case "damaged":
            part = old / "embeddings" / "part-00001.parquet"
            data = bytearray(part.read_bytes())
            data[len(data) // 2] ^= 1
            part.write_bytes(data)
        case "lost key":
            Path(f"{old}.key").unlink()
        case "other key":
            Path(f"{old}.key").write_text("f" * 64)
        case "short key":
            Path(f"{old}.key").write_text("patient\n")
        case "key taken":
            (old.parent / "new.key").write_text("e" * 64)
        case "missing":
            shutil.rmtree(old)


FAULTS = {
    "unfinished": ((), 5, "is not finished"),
    "damaged": ((), 5, "part-00001.parquet is damaged"),
    "missing": ((), 5, "does not exist"),
    "lost key": ((), 5, "old.key, the key of the hashes in"),
    "other key": ((), 5, "is not the key of the hashes in"),
    "short key": ((), 2, "is no key: it has 7 bytes"),
    "key taken": ((), 5, "new.key exists and is another key"),
    "other pooling": (("--pool", "cls"), 5, "pool[0] was 'mean' and is 'cls' now"),
    "other length": (("--max-length", "20"), 5, "text.max_length was 64 and is 20 now"),
    "wrong key file": (("--hash-key", "KEY"), 5, "is not the key of the hashes in"),
    "no key file": (("--hash-key", "nowhere"), 2, "--hash-key nowhere does not exist"),
    "words": (("--level", "word"), 2, "--update is for one row a text, and --level word may give"),
    "groups": (("--group-by", "kept"), 2, "--update is for vectors of texts"),
}


@pytest.fixture(scope="module")
def good_old(tables, tmp_path_factory):
    return tmp_path_factory.mktemp("good") / "old"


@pytest.mark.parametrize("fault", FAULTS)
def test_an_unusable_output_or_key_is_one_error_and_nothing_is_written(tables, good_old, encode, tmp_path, fault):
    if not good_old.exists():
        assert encode(tables[0], "--keep-hashes", "-o", good_old, "--shard-rows", 10).code == 0
    old = tmp_path / "old"
    shutil.copytree(good_old, old)
    shutil.copy(f"{good_old}.key", f"{old}.key")
    options, code, message = FAULTS[fault]
    (tmp_path / "KEY").write_text("0" * 64)
    options = [str(tmp_path / option) if option == "KEY" else option for option in options]
    spoil(old, fault)
    ran = encode(tables[1], "--update", old, "-o", tmp_path / "new", *options)
    assert ran.code == code, ran.err
    errors = [line for line in ran.told if line.startswith("error: ")]
    hints = [line for line in ran.told if line.startswith("hint: ")]
    assert (len(errors), len(hints), message in ran.err) == (1, 1, True), ran.err
    assert not (tmp_path / "new").exists()
    secrets = [path.read_text().strip() for path in tmp_path.glob("*.key")]
    assert not any(secret in ran.err for secret in secrets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--hash-key", "k"), "--hash-key is for hashes of texts"),
        (("--other-versions",), "--other-versions is for vectors of an earlier output"),
        (("--keep-hashes", "-o", "out.jsonl"), "JSON Lines alone do not hold the recipe"),
        (("--keep-hashes", "-o", "-"), "JSON Lines alone do not hold the recipe"),
        (("--keep-hashes", "--level", "chunk"), "--keep-hashes is for one row a text"),
        (("--update", "a", "--update", "a"), "--update names a twice"),
        (("--keep-hashes", "--keep", "text_hash"), "with hashes of texts, embedkit writes a column"),
    ],
)
def test_options_that_make_no_sense_are_refused(encode, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    table = tmp_path / "t.csv"
    table.write_text("id,text,text_hash\n1,a,b\n")
    ran = encode(table, *options)
    assert (ran.code, message in ran.err) == (2, True), ran.err


def test_an_output_without_hashes_cannot_be_updated(tables, encode, tmp_path):
    old = plain(encode, tables[0], tmp_path)
    ran = encode(tables[1], "--update", old, "-o", tmp_path / "new")
    assert (ran.code, "has no hashes of its texts" in ran.err, "--keep-hashes" in ran.err) == (5, True, True)


def test_int8_of_other_ranges_is_refused(tables, encode, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for table, out in zip(tables, (one, two), strict=True):
        key = () if out == one else ("--hash-key", f"{one}.key")
        assert encode(table, "--precision", "int8", "--keep-hashes", *key, "-o", out).code == 0
    ran = encode(
        tables[1], "--precision", "int8", "--update", one, "--update", two, "-o", tmp_path / "new", "--hash-key",
        f"{one}.key",
    )  # fmt: skip
    assert (ran.code, "its int8 has other ranges" in ran.err) == (5, True), ran.err


@pytest.fixture
def upgraded(monkeypatch):
    """Other versions of libraries from now on, by name."""

    def upgrade(**other: str) -> None:
        monkeypatch.setattr(versions, "version", lambda name: other.get(name) or metadata.version(name))

    return upgrade


@pytest.mark.parametrize("old", ["old", "old.parquet"])
def test_vectors_of_other_versions_are_taken_only_when_asked(
    tables, encode, embedkit_cli, bert, upgraded, tmp_path, old
):
    old_table, new_table = tables
    old, new, newer = (tmp_path / name for name in (old, "new.npy", "newer"))
    upgraded(torch="1.0.0+cpu", transformers="4.0.0")
    assert encode(old_table, "--keep-hashes", "-o", old).code == 0
    upgraded(torch="1.0.0+cu124", transformers="4.0.0")  # a build for another device
    assert encode(new_table, "--update", old, "-o", newer).code == 0
    shutil.rmtree(newer)
    upgraded()
    torch_now = metadata.version("torch").partition("+")[0]
    for ran in (
        encode(new_table, "--update", old, "-o", new),
        embedkit_cli("plan", new_table, "-m", bert, "--update", old),
    ):
        assert ran.code == 5
        assert f"other versions computed it: torch was 1.0.0 and is {torch_now} now, transformers was" in ran.err
        assert "--other-versions" in ran.told[-1]
        assert not new.exists()
    ran = encode(new_table, "--update", old, "--other-versions", "-o", new)
    assert (ran.code, "are of other versions: torch was 1.0.0" in ran.err) == (0, True), ran.err
    had, has = vectors_by_text(old_table, old), vectors_by_text(new_table, new)
    assert sum(had.get(text) == vectors for text, vectors in has.items()) == 26
    # Vectors that were taken are still of the old versions.
    assert encode(new_table, "--update", new, "-o", newer).code == 5
    assert encode(new_table, "--update", new, "--other-versions", "-o", newer).code == 0
    plan = json.loads((newer / "plan.json").read_text())
    assert [of["torch"] for of in plan["versions"]] == [torch_now, "1.0.0"]


@pytest.mark.parametrize(("was", "now"), [("fp32", "bf16"), ("bf16", "fp32")])
def test_vectors_of_attention_in_other_numbers_are_taken_only_when_asked(tables, encode, tmp_path, was, now):
    backends = {"fp32": "fused", "bf16": "fused-bf16-attention"}
    assert encode(tables[0], "--keep-hashes", "-o", tmp_path / "old").code == 0
    old = EarlierOutput(str(tmp_path / "old"))
    old.stored = replace(old.stored, versions=(versions.vector_versions(backends[was]),))
    recipe = old.stored.recipe
    assert TextReuse(None, [old], None, False).check_recipe(recipe, (), backend=backends[was]) == []
    with pytest.raises(OutputError, match=f"attention was {was} and is {now} now"):
        TextReuse(None, [old], None, False).check_recipe(recipe, (), backend=backends[now])
    (notice,) = TextReuse(None, [old], None, True).check_recipe(recipe, (), backend=backends[now])
    assert f"attention was {was} and is {now} now" in notice


@pytest.mark.parametrize(("hashes", "code"), [(("--keep-hashes",), 5), ((), 0)])
def test_a_run_with_hashes_is_resumed_by_the_same_versions_only(tables, encode, upgraded, tmp_path, hashes, code):
    arguments = (tables[0], *hashes, "-o", tmp_path / "out", "--shard-rows", 10)
    assert encode(*arguments).code == 0
    (tmp_path / "out" / "manifest.json").unlink()
    upgraded(tokenizers="0.1")
    ran = encode(*arguments, "--on-exists", "resume")
    assert (ran.code, "versions[0].tokenizers was" in ran.err) == (code, code == 5), ran.err


@pytest.mark.parametrize(("task", "form"), [("classification", "parquet"), ("multilabel", "jsonl")])
def test_a_head_keeps_its_scores(tables, encode, embedkit_cli, bert, tmp_path, task, form):
    texts = [text for _, text in rows_of(tables[0])[:21]]
    labels = ["x", "y", "x"] * 7 if task == "classification" else ["x;y", "y", "x"] * 7
    with (tmp_path / "labelled.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *zip(texts, labels, strict=True)])
    fitted = tmp_path / "p.safetensors"
    ran = embedkit_cli(
        *("fit", tmp_path / "labelled.csv", "--pooler", "attention", "--label", "label", "-m", bert, "-o", fitted),
        *("--epochs", "2", "--task", task, *(["--label-delimiter", ";"] if task == "multilabel" else [])),
    )
    assert ran.code == 0, ran.err
    options = ("--pool", fitted, "--with-head", "--output-format", form, "--shard-rows", 5)
    for out, arguments in (
        ("old", (tables[0], "--keep-hashes")),
        ("new", (tables[1], "--update", tmp_path / "old")),
        ("fresh", (tables[1], "--keep-hashes", "--hash-key", tmp_path / "old.key")),
    ):
        ran = encode(*arguments, *options, "-o", tmp_path / out)
        assert ran.code == 0, ran.err
    new, fresh = (embedkit.read(tmp_path / name).table for name in ("new", "fresh"))
    scored = [name for name in new.column_names if name.startswith("score_") or name == "predicted"]
    assert len(scored) == 3
    for name in new.column_names:
        if pa.types.is_floating(new[name].type):
            has = new[name].is_valid()
            found, expected = (of[name].filter(has).to_numpy() for of in (new, fresh))
            np.testing.assert_allclose(found, expected, atol=1e-4)
        else:
            assert new[name].equals(fresh[name])


def test_a_plan_counts_what_would_be_taken(tables, encode, embedkit_cli, bert, tmp_path):
    old_table, new_table = tables
    assert encode(old_table, "--keep-hashes", "-o", tmp_path / "old").code == 0
    plans = [
        json.loads(embedkit_cli("plan", new_table, "-m", bert, *options, "--json").out)
        for options in (("--keep-hashes",), ("--update", tmp_path / "old"))
    ]
    assert [plan["reused"] for plan in plans] == [0, 27]
    assert encode(new_table, "--update", tmp_path / "old", "-o", tmp_path / "new").code == 0
    computed = json.loads((tmp_path / "new" / "manifest.json").read_text())["n_used"]
    before = sum(embedkit.read(tmp_path / "old").table["n_used"].to_pylist())
    assert 0 < plans[1]["computed"] < plans[0]["computed"] < computed + before
    for plan in plans:
        assert plan["bytes"] == pytest.approx(
            (tmp_path / "new/embeddings/part-00000.parquet").stat().st_size, rel=0.3
        )
    refused = embedkit_cli("plan", new_table, "-m", bert, "--update", tmp_path / "old", "--pool", "cls")
    assert (refused.code, "pool[0] was 'mean'" in refused.err) == (5, True)
    assert not (tmp_path / "planned.embeddings.key").exists()
