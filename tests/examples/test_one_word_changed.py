"""Rows 31 and 32: the reader of the example against scikit-learn's own bag of words, and its near words by hand."""

from __future__ import annotations

import re

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from zograd.examples.one_word_changed import Near, Reader, every_swap
from zograd.hub import load_task, perturb


def test_the_reader_is_a_bag_of_words() -> None:
    splits = load_task("trec").splits
    train, test = list(splits["train"][:300]), list(splits["test"][:50])
    reader = Reader(train)

    def text(e: object) -> str:
        a, b = perturb.text_of(e)  # type: ignore[arg-type]
        return re.sub(r"[0-9]+", " number0 ", e.prompt[a:b].lower())  # type: ignore[attr-defined]

    bag = CountVectorizer(token_pattern=r"number0|[a-z]+")
    model = LogisticRegression(max_iter=300, C=3.0).fit(bag.fit_transform(map(text, train)), [e.label for e in train])
    theirs = model.predict_log_proba(bag.transform(map(text, test)))
    np.testing.assert_allclose(reader(test), theirs, atol=1e-3)


def test_near_words_are_the_nearest_and_no_inflections() -> None:
    train = list(load_task("trec").splits["train"][:1500])
    reader = Reader(train)
    near = Near(reader, train, count=5)
    word = "city"
    cosines = {w: float(near.unit[near.at[w]] @ near.unit[near.at[word]]) for w in near.names}
    expected = sorted((w for w in near.names if w[:4] != word[:4]), key=lambda w: -cosines[w])[:5]
    assert near(word) == expected
    assert near("notaword") == []
    changed = [e for e in train[:40] if every_swap(reader, e, near)]
    assert 0 < len(changed) < 40
