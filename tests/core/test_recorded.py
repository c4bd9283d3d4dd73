"""The recorded answers: shapes, probabilities, splits, and that near demonstrations make the better prompts."""

from __future__ import annotations

import numpy as np
import pytest

from zograd import hub
from zograd.problems.recorded import PROMPTS, answers, features


@pytest.mark.parametrize("split", ["validation", "test"])
def test_answers_belong_to_the_questions_of_the_task(split: str) -> None:
    found = answers(split)
    assert found.scores.shape == (len(PROMPTS), 300, 6) == (40, 300, 6)
    assert found.labels.tolist() == [e.label for e in hub.load_task("trec").splits[split][:300]]
    assert np.exp(found.scores).sum(2) == pytest.approx(1, abs=5e-3)  # float16
    assert found.tokens.min() >= 5


def test_features_are_those_of_texts_whose_labels_are_known() -> None:
    for part, count in (("train", 1000), ("test", 500)):
        found = features(part)
        assert found.x.shape == (count, 64)
        assert found.labels is not None
        assert found.labels.tolist() == [e.label for e in hub.load_task("trec").splits[part][:count]]
    x = features("train").x
    assert np.abs(x.mean(0)).max() < 1e-3  # float16
    assert np.cov(x.T) == pytest.approx(np.eye(64), abs=5e-3)
    assert features("sms").x.shape == (300, 64)
    with pytest.raises(ValueError, match="recorded are 'train', 'test' and 'sms'"):
        features("validation")


def test_prompts_differ_as_their_demonstrations_do() -> None:
    """Nearest demonstrations answer more than half of the questions, none less than half on average; more cost more."""
    found = answers("test")
    shares = found.right().mean(1)
    by_kind = {
        kind: np.mean([s for s, p in zip(shares, PROMPTS, strict=True) if p[2:] == kind])
        for kind in (("none", 0), ("nearest", 4))
    }
    assert by_kind["none", 0] < 0.5 < by_kind["nearest", 4]
    tokens = found.tokens.mean(1)
    cost = {n: np.mean([t for t, p in zip(tokens, PROMPTS, strict=True) if p.number == n]) for n in (0, 2, 4)}
    assert cost[0] < cost[2] < cost[4]
    part = found.part(np.arange(10))
    assert part.scores.shape == (40, 10, 6)
    assert np.array_equal(part.right(), found.right()[:, :10])


def test_another_split_is_refused() -> None:
    with pytest.raises(ValueError, match="recorded are 'validation' and 'test'"):
        answers("train")
