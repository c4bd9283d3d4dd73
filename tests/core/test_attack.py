"""The attacks on a network of digits: the margin beside scikit-learn's, and the bar of queries."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zograd import methods, minimize
from zograd.problems.attack import digits_attacks, trained, white_box


def test_the_margin_is_that_of_scikit_learns_classifier() -> None:
    """log p_label - max log p_k = z_label - max z_k, for any softmax."""
    network, attacks = trained(), digits_attacks()
    rng = np.random.default_rng(0)
    for attack in attacks:
        point = rng.uniform(attack.low, attack.high)
        log_p = network.predict_log_proba(point[None])[0]
        assert attack.margin(point) == pytest.approx(log_p[attack.label] - np.delete(log_p, attack.label).max())
        assert attack.margin(attack.x0) > 0
        assert np.abs(point - attack.x0).max() <= 0.2
        assert attack.box.explain(torch.from_numpy(point)) is None


def test_every_attackable_digit_falls_within_the_bar() -> None:
    """Gradients change all 20 classes, so 100 % can be wanted; 230 queries in the median is the bar."""
    attacks = digits_attacks()
    assert max(white_box(attack) for attack in attacks) < 0
    spent = []
    for attack in attacks:
        result = minimize(attack.margin, attack.x0, methods.vertex_search(attack.box), budget=1000, target=-1e-9)
        assert result.best_fun < 0
        assert np.abs(result.best_x - attack.x0).max() <= 0.2 + 1e-12
        spent.append(result.nfev)
    assert np.median(spent) <= 100
