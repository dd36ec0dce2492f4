"""`EmbedTransformer` is a well-behaved step of scikit-learn's pipelines."""

from __future__ import annotations

import csv
import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline

from embedkit import Encoder
from embedkit.errors import InputError, UsageError
from embedkit.integrations import EmbedTransformer
from tests.conftest import NOTES


@pytest.fixture(scope="module")
def labelled():
    with NOTES.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["text"].strip()]
    return [row["text"] for row in rows], np.array([row["label"] == "cardiology" for row in rows])


@pytest.fixture
def transformer(bert):
    return EmbedTransformer(str(bert), pool="mean")


def test_it_gives_the_vectors_of_an_encoder(transformer, bert, labelled):
    texts, _ = labelled
    expected = Encoder(str(bert), pool="mean").encode(texts)
    assert np.array_equal(transformer.fit_transform(texts), expected)
    assert np.array_equal(transformer.transform(pd.Series(texts)), expected)
    assert np.array_equal(transformer.transform(np.array(texts)[:, None]), expected)
    assert list(transformer.get_feature_names_out())[:2] == ["embedding0", "embedding1"]


def test_it_is_scored_cloned_searched_and_pickled(transformer, bert, labelled, monkeypatch):
    texts, labels = labelled
    model = make_pipeline(clone(transformer), LogisticRegression())
    vectors = Encoder(str(bert), pool="mean").encode(texts)
    scores = cross_val_score(model, texts, labels, cv=3)
    assert np.array_equal(scores, cross_val_score(LogisticRegression(), vectors, labels, cv=3))
    search = GridSearchCV(model, {"embedtransformer__layers": ["1", "-1"]}, cv=3).fit(texts, labels)
    assert search.best_params_["embedtransformer__layers"] in {"1", "-1"}
    content = pickle.dumps(model.fit(texts, labels))
    assert len(content) < 20_000
    monkeypatch.setattr(Encoder, "_load", lambda _: pytest.fail("the model is loaded again"))
    copy = pickle.loads(content)  # noqa: S301 - our own bytes
    assert np.array_equal(copy.predict(texts), model.predict(texts))


def test_a_column_of_a_table_stands_beside_others(transformer, labelled):
    texts, labels = labelled
    table = pd.DataFrame({"note": texts, "age": np.arange(len(texts))})
    both = ColumnTransformer([("note", transformer, "note"), ("age", "passthrough", ["age"])])
    assert both.fit_transform(table, labels).shape == (len(texts), 33)
    assert list(both.get_feature_names_out())[-1] == "age__age"


def test_empty_texts_are_an_error_zeros_or_nan(bert):
    texts = ["chest pain", "", None]
    with pytest.raises(InputError, match="2 of 3 texts are empty, the first at position 1"):
        EmbedTransformer(str(bert)).transform(texts)
    assert not EmbedTransformer(str(bert), on_empty="zero").transform(texts)[1:].any()
    assert np.isnan(EmbedTransformer(str(bert), on_empty="nan").transform(texts)).any(axis=1).tolist() == [
        False,
        True,
        True,
    ]
    with pytest.raises(UsageError, match="on_empty"):
        EmbedTransformer(str(bert), on_empty="skip").fit(texts)
