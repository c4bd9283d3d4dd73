"""Row 66: the search with and without attacks, where the maximum is known, and the slope against differences."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from zograd.examples import attack_and_poll as example


class Corner(example.Goal):
    """-|x - c|^2 with c outside of the box: the maximum is clip(c)."""

    centre = np.linspace(-2, 2, example.D)

    def value(self, x: np.ndarray) -> float:
        assert np.all(np.abs(x) <= 1), "no point outside of the box is evaluated"
        return -float(np.sum((x - self.centre) ** 2))

    def slope(self, x: np.ndarray) -> np.ndarray:
        return 2 * (self.centre - x)


@pytest.mark.parametrize("attack", [None, example.white(Corner(0)), example.measured], ids=["poll", "white", "pairs"])
def test_the_search_ends_at_the_maximum_of_a_box(attack) -> None:
    goal = Corner(0)
    goal.start = np.full(example.D, 0.3)
    best, radii, x = example.search(goal, attack, 12_000, 1)
    assert x == pytest.approx(np.clip(goal.centre, -1, 1), abs=2e-3)
    assert best[-1] == pytest.approx(goal.value(np.clip(goal.centre, -1, 1)), abs=1e-2)
    assert np.all(np.diff(best) >= 0)
    assert len(best) <= 12_000
    assert radii[-1] < 1e-2
    assert example.stationarity(goal, x) < 1e-2


def test_the_slope_is_that_of_the_goal() -> None:
    goal = example.Goal(3)
    for x in np.random.default_rng(0).uniform(-1, 1, (3, example.D)):
        assert goal.slope(x) == pytest.approx(approx_fprime(x, goal.value, 1e-7), abs=1e-4)


def test_attacks_from_evaluations_are_counted() -> None:
    """The first step costs f(x), 4 pairs, the attack, and then polls."""
    goal, asked = example.Goal(1), []
    value = goal.value
    goal.value = lambda x: asked.append(1) or value(x)  # type: ignore[func-returns-value, method-assign]
    best, _, _ = example.search(goal, example.measured, 50, 0)
    assert len(best) == len(asked) <= 50 + 8
