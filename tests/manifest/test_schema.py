"""Plan, record and manifest: written, read, and refused if a newer version wrote them."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkit.errors import OutputError
from embedkit.manifest.identity import check_same_plan, input_digests
from embedkit.manifest.schema import Manifest, ModelSource, Plan, Sharding, ShardRecord, Totals
from embedkit.manifest.versioned_file import VERSION, MalformedFileError
from embedkit.storage.checksummed_json import dump_checksummed
from embedkit.storage.protocol import PublishedFile
from embedkit.types import TextCounts, Variant
from tests.manifest.plans import make_plan, make_record

OF_GROUPS = make_plan(groups={"by": ["patient"]}, format="npy", int8_ranges={"": {"min": [0.0], "max": [1.0]}})
STREAM = make_plan(
    sharding=Sharding(5, 1000, None, None, None),
    source=ModelSource(name="x", pool="a.safetensors"),
    scores=("yes",),
)
UNITS = make_record(
    3,
    by_text=TextCounts(2, {"ok": 2}, 7, 7),
    has_units=True,
    n_content=5,
    n_unknown=1,
    files=(PublishedFile("embeddings/part-00003.parquet", 7, "5" * 64),),
    plan_sha256="6" * 64,
)
RECORDS = [make_record(index) for index in range(2)]
FILES = [
    make_plan(),
    make_plan(batch_tokens=4096, input=replace(make_plan().input, delimiter=";", quoting="none", spans=())),
    OF_GROUPS,
    STREAM,
    RECORDS[0],
    UNITS,
    Manifest.of(make_plan(), RECORDS, Totals.of(RECORDS)),
    Manifest.of(replace(OF_GROUPS, format="npy"), [make_record(0, vectors=0)], Totals.of([UNITS])),
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: type(file).__name__)
def test_what_was_written_is_read(file):
    assert type(file).parse(file.serialize(), Path("x.json")) == file


@pytest.mark.parametrize("file", [FILES[0], RECORDS[0], FILES[6]], ids=lambda file: type(file).__name__)
def test_a_newer_version_is_refused_by_name_with_the_way_out(file):
    newer = dump_checksummed({**file.to_json(), "version": VERSION + 1, "recipe": "in a new way"})
    with pytest.raises(OutputError, match=rf"out/x\.json has format version {VERSION + 1}") as caught:
        type(file).parse(newer, Path("out/x.json"))
    assert "upgrade embedkit" in caught.value.hint


@pytest.mark.parametrize("file", [FILES[0], RECORDS[0], FILES[6]], ids=lambda file: type(file).__name__)
@settings(deadline=None)
@given(data=st.data())
def test_content_that_embedkit_does_not_write_is_malformed_not_a_crash(file, data):
    content = json.loads(json.dumps(file.to_json()))
    key = data.draw(st.sampled_from(sorted(content)))
    content[key] = data.draw(st.sampled_from([None, "x", [], [1], {}, {"a": 1}, -1]))
    with contextlib.suppress(MalformedFileError, OutputError):
        type(file).parse(dump_checksummed(content), Path("x.json"))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"recipe": {"layers": [5], "pool": ["mean"]}}, r"recipe\.layers\[0\] was 6 when .* is 5 now"),
        ({"recipe": {"layers": [5, 6], "pool": ["mean"]}}, r"recipe\.layers was"),
        ({"variants": (Variant("", 5),)}, r"variants\[0\]\.dims was 4"),
        ({"groups": {"by": ["a"]}, "on_bad_row": "null"}, "on_bad_row was 'fail'"),
    ],
)
def test_a_changed_plan_is_refused_by_the_name_of_what_changed(changes, field):
    with pytest.raises(OutputError, match=f"cannot resume: {field}"):
        check_same_plan(make_plan(), make_plan(**changes))


def with_file(**changes):
    read = make_plan().input
    return make_plan(input=replace(read, files=(replace(read.files[0], **changes),)))


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        ({"name": "elsewhere/notes.csv", "mtime_ns": 9}, True),
        ({"content_sha256": None}, True),
        ({"content_sha256": "5" * 64}, False),
        ({"size": 2}, False),
    ],
)
def test_an_input_is_the_same_if_its_content_is(changes, is_same):
    for pair in ((make_plan(), with_file(**changes)), (with_file(**changes), make_plan())):
        if is_same:
            check_same_plan(*pair)
        else:
            with pytest.raises(OutputError, match=r"cannot resume: input\.files\[0\]\."):
                check_same_plan(*pair)
    by_content = [input_digests(plan)[0] for plan in (make_plan(), with_file(**changes))]
    assert (by_content[0] == by_content[1]) == (is_same and "name" in changes)


def test_sums_count_texts_once_and_are_unknown_if_one_record_does_not_know():
    totals = Totals.of([UNITS, replace(UNITS, n_unknown=2, n_content=10)])
    assert (totals.rows, totals.statuses, totals.n_tokens) == (10, {"ok": 4}, 14)
    assert (totals.n_content, totals.n_unknown, totals.unknown_share) == (15, 3, 0.2)
    assert Totals.of([UNITS, make_record(0)]).unknown_share is None
    assert (Totals.of([]).n_unknown, Totals.of([], 9).input_rows) == (None, 9)


def test_a_stored_record_of_units_has_the_counts_of_its_texts_beside_those_of_its_rows():
    content = UNITS.to_json()
    assert (content["rows"], content["texts"]["rows"]) == (5, 2)
    assert "texts" not in RECORDS[0].to_json()
    assert ShardRecord.from_json({**content, "texts": None}).by_text == UNITS.by_row


def test_older_outputs_name_the_model_as_far_as_they_can():
    assert ModelSource(name="/home/jane/bert").describe() == "bert"
    named = ModelSource(name="minilm", hub="owner/MiniLM", revision="0a")
    assert named.describe() == "minilm (owner/MiniLM at 0a)"
    assert ModelSource().describe() is None


def test_plans_of_streams_have_no_ranges_and_others_cover_every_row_once():
    assert (STREAM.sharding.ranges, STREAM.sharding.shards) == (None, None)
    assert Plan.from_json(make_plan(rows=12).to_json()).sharding.ranges == {0: (0, 5), 1: (5, 10), 2: (10, 12)}
