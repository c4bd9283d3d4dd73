"""Row 41: rounds without dual variables against rounds with them, the minimum, and the price of privacy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from zograd.examples import noisy_federation as example


@pytest.mark.parametrize(("noise", "share"), [(0.0, 1.0), (0.05, 1.0), (0.1, 0.4)])
def test_rounds_without_dual_variables_are_those_with_them(noise: float, share: float) -> None:
    dual = example.rounds("dual", noise, share, 60, 3)
    assert example.rounds("two globals", noise, share, 60, 3) == pytest.approx(dual, abs=1e-9)
    if noise:
        assert np.abs(example.rounds("one global", noise, share, 60, 3) - dual).max() > 1e-3


def test_all_forms_reach_the_minimum_of_the_weighted_least_squares_without_noise() -> None:
    for rule in ("dual", "two globals", "one global"):
        assert example.rounds(rule, 0.0, 1.0, 600, 0)[-1] < 1e-6


def test_the_error_is_proportional_to_the_noise() -> None:
    small, large = (np.sqrt(np.mean(example.rounds("two globals", s, 1.0, 800, 1)[400:] ** 2)) for s in (0.01, 0.1))
    assert large / small == pytest.approx(10, rel=0.05)


def test_the_hospitals_differ() -> None:
    a, b = example.hospitals()
    alone = np.stack([np.linalg.solve(*pair) for pair in zip(a, b, strict=True)])
    together = np.linalg.solve(a.mean(0), b.mean(0))
    assert np.median(np.linalg.norm(alone - together, axis=1)) > 0.2 * np.linalg.norm(together)


def test_epsilon_is_that_of_a_gaussian_mechanism() -> None:
    """One message of sensitivity 2 C: rho = (2 C)^2 / (2 s^2); T of them add up (Bun and Steinke 2016)."""
    s, steps = 3.0, 100
    rho = steps * (2 * example.CLIP) ** 2 / (2 * s**2)
    assert example.epsilon(s, steps) == pytest.approx(rho + 2 * math.sqrt(rho * math.log(1e5)))
