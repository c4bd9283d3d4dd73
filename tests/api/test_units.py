"""Variables and bounds of any unit: under constraints, within narrow bounds, and within bounds that are none."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, NonlinearConstraint, rosen

import zograd as zo

UNITS = [(1e3, 1.0), (100.0, 1e-2), (300.0, 1e-3), (1e4, 1e-4), (1e6, 1e-3), (1e9, 1e-2), (1e-6, 1e-6)]


# ---- constraints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0.5, 1.0])
@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize("units", UNITS)
def test_constraints_on_variables_of_different_units(units: Any, bounded: bool, start: float) -> None:
    """Half of these were 0.2 to 6.5 too high, or violated by up to 1, and all were successes."""
    a, b = units
    x0, bounds = start * np.array(units), [(0, 5 * a), (0, 5 * b)] if bounded else None
    f = lambda x: float((x[0] / a - 2) ** 2 + (x[1] / b - 2) ** 2)  # noqa: E731
    quartic = lambda x: float((x[0] / a - 2) ** 4 + (x[1] / b - 2) ** 2)  # noqa: E731
    linear = LinearConstraint([[1 / a, 1 / b]], -np.inf, 2)
    row = NonlinearConstraint(lambda x: 1e6 * (x[0] / a + x[1] / b - 2), -np.inf, 0)
    curved = {"type": "ineq", "fun": lambda x: 3 - x[0] * x[1] / (a * b) - (x[0] / a) ** 2}
    loose = LinearConstraint([[1 / a, 1 / b]], -np.inf, 7)
    cases: Any = [(f, linear, 2.0), (f, row, 2.0), (quartic, curved, 0.7933054), (f, loose, 0.0)]
    for g, constraint, least in cases:
        result = zo.minimize(g, x0, bounds=bounds, constraints=constraint)
        assert result.success
        assert abs(result.fun - least) < 1e-4
        assert result.nfev < (1000 if start < 1 else 8000)  # it begins at the minimum
    multipliers = zo.minimize(f, x0, bounds=bounds, constraints=linear).multipliers
    np.testing.assert_allclose(multipliers, 2, rtol=1e-4)


@pytest.mark.parametrize("units", [(300.0, 1e-3), (1e4, 1e-4)])
def test_an_x0_that_tells_nothing_of_the_units(units: Any) -> None:
    a, b = units
    f = lambda x: float((x[0] / a - 2) ** 2 + (x[1] / b - 2) ** 2)  # noqa: E731
    for x0 in (np.ones(2), np.array([a / 2, b * 1e-4])):
        result = zo.minimize(f, x0, constraints=LinearConstraint([[1 / a, 1 / b]], -np.inf, 2))
        assert result.success
        assert abs(result.fun - 2) < 1e-4
    nearly_zero = zo.minimize(
        lambda x: float(np.sum((x - 2) ** 2)), np.array([1.0, 1e-7]), constraints=LinearConstraint([[1, 1]], -np.inf, 2)
    )
    assert nearly_zero.success
    assert abs(nearly_zero.fun - 2) < 1e-6


@pytest.mark.parametrize("bounded", [True, False])
def test_other_ways_to_search_under_constraints(bounded: bool) -> None:
    a, b = 1e6, 1e-3
    f = lambda x: float((x[0] / a - 2) ** 2 + (x[1] / b - 2) ** 2)  # noqa: E731
    given: Any = {"bounds": [(0, 5 * a), (0, 5 * b)] if bounded else None}
    x0, less = np.array([a / 2, b / 2]), LinearConstraint([[1 / a, 1 / b]], -np.inf, 2)
    assert abs(zo.minimize(f, x0, "lbfgs", constraints=less, **given).fun - 2) < 1e-4
    inside = LinearConstraint([[1 / a, 1 / b]], -np.inf, 2, keep_feasible=True)
    assert abs(zo.minimize(f, x0, constraints=inside, **given).fun - 2) < 1e-4
    loop = zo.AskTell(x0, "auto", constraints=less, **given)
    while not loop.done:
        loop.tell([f(x) for x in loop.ask()])
        if loop.evaluations in (20, 21, 22):
            loop = pickle.loads(pickle.dumps(loop))
    assert abs(f(loop.recommend()) - 2) < 1e-4
    assert loop.maxcv == pytest.approx(0, abs=1e-6)


def test_noise_and_constraints_within_bounds_of_different_units() -> None:
    pytest.importorskip("cma", reason="the extra blackbox is not installed")
    a, b = 300.0, 1e-3
    draws = np.random.default_rng(0)
    f = lambda x: float((x[0] / a - 2) ** 2 + (x[1] / b - 2) ** 2)  # noqa: E731
    result = zo.minimize(
        lambda x: f(x) + 1e-3 * draws.standard_normal(), [a / 2, b / 2], bounds=[(0, 5 * a), (0, 5 * b)],
        constraints=LinearConstraint([[1 / a, 1 / b]], -np.inf, 2),
    )  # fmt: skip
    assert abs(f(result.x) - 2) < 0.1


# ---- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-6, 1e-9, 1e-11, 1e-12, 1e-30, 1e-100])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_narrow_bounds(size: float, dtype: Any) -> None:
    """At 1e-12, f = 0.14 with success: the ladder's radius was the bounds' width, and pycma ended at 1e-11."""
    if size < 1e-30 and dtype == np.float32:
        return
    f = lambda x: float(rosen(x.astype(np.float64) / size))  # noqa: E731
    x0 = (np.array([-1.2, 1]) * size).astype(dtype)
    for method in ("auto", "lbfgs"):
        result = zo.minimize(f, x0, method, bounds=[(-5 * size, 5 * size)] * 2)
        assert result.success
        assert result.fun < (1e-12 if dtype == np.float64 else 1e-7)
        assert result.nfev < 800


@pytest.mark.parametrize("method", ["auto", "cma"])
def test_noise_within_narrow_bounds(method: str) -> None:
    pytest.importorskip("cma", reason="the extra blackbox is not installed")
    found = []
    for size in (1e-6, 1e-12, 1e-100):
        draws = np.random.default_rng(0)
        f = lambda x, s=size, d=draws: float(np.sum((x / s - 3) ** 2)) + 0.1 * d.standard_normal()  # noqa: E731
        result = zo.minimize(f, np.full(2, size), method, bounds=[(0, 10 * size)], budget=1000)
        assert result.success
        found.append(float(np.sum((result.x / size - 3) ** 2)))
    assert max(found) < 0.1


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_bounds_at_the_largest_number_are_none(dtype: Any) -> None:
    most = np.finfo(dtype).max
    f = lambda x: float(np.sum((x - 1) ** 2))  # noqa: E731
    free = zo.minimize(f, np.zeros(3, dtype), bounds=[(None, None)] * 3)
    wide: Any = [
        [(-most, most)] * 3,
        Bounds(-most, most),
        [(-np.finfo(float).max, None), (-1e300, 1e300), (-most / 4, most)],
    ]
    with warnings.catch_warnings(), np.errstate(over="raise", invalid="raise", divide="raise"):
        warnings.simplefilter("error")
        for bounds in wide:
            result = zo.minimize(f, np.zeros(3, dtype), bounds=bounds)
            np.testing.assert_array_equal(result.x, free.x)
        for method in ("cma", "zo_sgd"):
            assert zo.minimize(f, np.zeros(3, dtype), method, bounds=wide[0], budget=400).fun < 1
        least = -np.finfo(float).max
        for less in (LinearConstraint([[1, 1, 1]], least, 1), NonlinearConstraint(lambda x: x.sum(), least, 1)):
            result = zo.minimize(f, np.zeros(3, dtype), constraints=less)
            assert result.constraints.size == 1
    with pytest.raises(ValueError, match="outside of its bounds"):
        zo.minimize(f, np.zeros(3), bounds=[(1.0, np.finfo(float).max)] * 3)
