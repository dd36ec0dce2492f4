from __future__ import annotations

import pytest

from embedkit.suggest import closest_names, did_you_mean

DTYPES = ("auto", "fp32", "bf16", "fp16", "int8")
SYNONYMS = {"float16": "fp16", "half": "fp16", "float32": "fp32"}


@pytest.mark.parametrize(
    ("typed", "names", "meant"),
    [
        ("lable", ("label", "text"), ("label",)),
        ("LABEL", ("label", "text"), ("label",)),
        ("last_token", ("lasttoken", "mean"), ("lasttoken",)),
        ("float16", DTYPES, ("fp16",)),
        ("Half", DTYPES, ("fp16",)),
        ("xyzzy", DTYPES, ()),
        ("", DTYPES, ()),
    ],
)
def test_a_mistyped_name_finds_the_known_one(typed, names, meant):
    assert closest_names(typed, names, synonyms=SYNONYMS) == meant


def test_a_synonym_of_an_absent_name_is_not_suggested():
    assert closest_names("float16", ("fp32",), synonyms=SYNONYMS) == ()


def test_the_hint_names_the_closest_name_or_the_alternative():
    assert did_you_mean("maen", ["mean", "max"], "choose one", prefix="--pool ") == "did you mean --pool mean?"
    assert did_you_mean("xyzzy", ["mean", "max"], "choose one") == "choose one"
