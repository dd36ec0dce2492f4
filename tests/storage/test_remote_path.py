"""Paths of URIs behave as `pathlib.PurePosixPath` does, and are never mistaken for local ones."""

from __future__ import annotations

import os
import pickle
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkit.storage.filesystem import filesystem_for
from embedkit.storage.remote_path import RemotePath, as_path, is_uri
from embedkit.storage.store_options import StoreOptions

NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: name not in {".", ".."}
)
KEYS = st.lists(NAMES, min_size=1, max_size=4)


@given(KEYS, NAMES)
def test_names_are_those_that_pathlib_finds_in_the_same_place(parts: list[str], name: str) -> None:
    ours, theirs = RemotePath("s3://bucket"), PurePosixPath("/bucket")
    for part in parts:
        ours, theirs = ours / part, theirs / part
    assert str(ours) == f"s3:/{theirs}" == "/".join(("s3://bucket", *parts))
    for field in ("name", "stem", "suffix", "suffixes"):
        assert getattr(ours, field) == getattr(theirs, field)
    assert f"s3:/{theirs.parent}" == str(ours.parent)
    assert [f"s3:/{parent}" for parent in theirs.parents][:-1] == [str(parent) for parent in ours.parents]
    assert f"s3:/{theirs.with_name(name)}" == str(ours.with_name(name))


@given(KEYS)
def test_a_path_survives_text_pickle_and_sets(parts: list[str]) -> None:
    path = RemotePath("gs://bucket") / "/".join(parts)
    assert as_path(str(path)) == path == pickle.loads(pickle.dumps(path))  # noqa: S301
    assert len({path, as_path(f"{path}/"), RemotePath("GS" + str(path)[2:])}) == 1
    assert (path.scheme, path.host, path.key) == ("gs", "bucket", "/".join(parts))


def test_keys_keep_what_a_local_path_would_simplify() -> None:
    assert str(RemotePath("s3://b/a//b/../c") / "d") == "s3://b/a//b/../c/d"


def test_the_bucket_is_the_root() -> None:
    bucket = RemotePath("s3://bucket/")
    assert (str(bucket), bucket.name, bucket.parent, bucket.parents) == ("s3://bucket", "", bucket, ())
    with pytest.raises(ValueError, match="cannot be the name"):
        bucket.with_name("other")
    with pytest.raises(ValueError, match="absolute"):
        bucket / "/key"


def test_a_uri_is_never_opened_as_a_local_file() -> None:
    with pytest.raises(TypeError):
        os.fspath(RemotePath("s3://bucket/key"))  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        Path(RemotePath("s3://bucket/key"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "is_remote"),
    [
        ("s3://b/k", True),
        ("az://c", True),
        ("notes.csv", False),
        ("a/b://c", False),
        ("C:/x", False),
        ("-", False),
    ],
)
def test_only_uris_are_remote(text: str, is_remote: bool) -> None:
    assert is_uri(text) is is_remote
    assert isinstance(as_path(text), RemotePath) is is_remote


def test_a_hub_path_has_the_file_system_of_the_hub() -> None:
    text = "hf://datasets/owner/name/part.parquet"
    assert filesystem_for(as_path(text)) is filesystem_for(text) is not filesystem_for("part.parquet")


def test_the_options_of_a_store_stay_with_a_path_and_what_is_made_from_it() -> None:
    options = StoreOptions.of({"region": "eu"})
    path = RemotePath("s3://bucket/a/b.csv", options)
    made = (path / "c", path.parent, path.root, path.with_name("d"), path.with_suffix(".x"), *path.parents)
    assert {one.options for one in made} == {options}
    assert pickle.loads(pickle.dumps(path)).options == options  # noqa: S301
    assert path != RemotePath("s3://bucket/a/b.csv")
    assert "eu" not in f"{path} {path!r}"
