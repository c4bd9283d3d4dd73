"""Searches that are far from the minimum, that have none, and x of any size: the end of CMA-ES is honest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import zograd as zo
from zograd.api.ending import End, Ending, Status, concluded

pytest.importorskip("cma", reason="the extra blackbox is not installed")

METHODS = ["auto", "cma"]


def noisy(f: Callable[[Any], Any], noise: float) -> Callable[[Any], float]:
    draws = np.random.default_rng(0)
    return lambda x: float(f(x)) + noise * float(draws.standard_normal())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("far", [1e3, 1e6])
def test_a_minimum_far_away_is_found_in_noise(method: str, far: float) -> None:
    """CMA-ES ended where its steps had grown a thousand times: f = 7e5 and 3e12 after 194 evaluations, with success."""
    f = lambda x: np.sum((x - far) ** 2)  # noqa: E731
    result = zo.minimize(noisy(f, 0.1), np.zeros(3), method, budget=3000)
    assert result.success
    assert f(result.x) < 0.1
    short = zo.minimize(noisy(f, 0.1), np.zeros(3), method, budget=250)
    assert not short.success
    assert "ended while f was falling" in short.message


def test_a_minimum_far_away_is_found_without_noise() -> None:
    result = zo.minimize(lambda x: float(np.sum((x - 1e6) ** 2)), np.zeros(3), "cma", budget=3000)
    assert result.success
    assert result.fun < 1e-10


@pytest.mark.parametrize("noise", [0.1, 0.0])
@pytest.mark.parametrize("f", [
    lambda x: x.sum(), lambda x: -(x @ x), lambda x: np.sum(x**3), lambda x: -np.exp(min(x[0], 700.0)),
])  # fmt: skip
def test_a_function_without_a_minimum_is_no_success(f: Callable[[Any], Any], noise: float) -> None:
    """Linear, and a success: f = -581748, "budget used"."""
    for method, budget in (("auto", 6000), ("cma", 6000), ("cma", 300)):
        result = zo.minimize(noisy(f, noise), np.ones(3), method, budget=budget)
        assert not result.success, (method, budget, result.message)
        if method == "cma" and budget == 6000:
            assert result.nfev < 3000
            assert "CMA-ES stopped: half of a population is beyond" in result.message


def test_a_search_that_has_not_settled_is_no_success() -> None:
    assert concluded(End(Ending.UNSETTLED), None)[1] == Status.FAILED


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1e-200, 1e-12, 1e155, 1e200, 1e300])
@pytest.mark.parametrize("bounded", [False, True])
def test_x_of_any_size(method: str, size: float, bounded: bool) -> None:
    """From 1e154 on, pycma raised an AssertionError; below 1e-11, it ended at once."""
    if size < 1 and not bounded:
        return  # then 1 is the size
    for d in (1, 3):
        result = zo.minimize(
            lambda x: float(np.sum(abs(x / size - 0.5))), np.full(d, size), method,
            bounds=[(-2 * size, 2 * size)] if bounded else None, budget=900,
        )  # fmt: skip
        assert result.success, result.message
        assert result.fun < 1e-3


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_one_variable_within_bounds(noise: float) -> None:
    """pycma 4.5 raised "not yet initialized" where its steps reached a third of the bounds' width."""
    f = lambda x: abs(x[0] - 1.5)  # noqa: E731
    for seed in range(3):
        for method in METHODS:
            result = zo.minimize(noisy(f, noise), np.array([10.0]), method, bounds=[(-20, 20)], budget=600, seed=seed)
            assert result.success
            assert f(result.x) < 0.1
    fixed = zo.minimize(lambda x: abs(float(x[0])), np.array([1.0, 2.0]), "cma", bounds=[(-9, 9), (2, 2)], budget=600)
    assert fixed.fun < 1e-6


def test_what_pycma_cannot_square_ends_the_run_with_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import cma

    real, calls = cma.CMAEvolutionStrategy.tell, []

    def tell(self: Any, *args: Any) -> None:
        calls.append(1)
        if len(calls) > 20:
            raise AssertionError
        real(self, *args)

    monkeypatch.setattr(cma.CMAEvolutionStrategy, "tell", tell)
    result = zo.minimize(lambda x: float(x @ x), np.ones(3), "cma", budget=5000)
    assert not result.success
    assert result.message == "x or f became too large for CMA-ES; pass bounds, or scale x"
    assert result.fun < 1
