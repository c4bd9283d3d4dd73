"""Values that repeat, but are rough: of solvers with a tolerance, rounded, in float32, or with a ripple."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.optimize import rosen

import zograd as zo
from zograd.api.strategies.ladder import gap, level


def rough(x: Any) -> float:
    """Between -1 and 1, another number for each x."""
    return int.from_bytes(hashlib.blake2b(np.asarray(x).tobytes(), digest_size=4).digest(), "little") / 2**31 - 1


def quadratic(x: Any) -> float:
    return float(np.array([1.0, 3.0, 10.0, 30.0, 100.0]) @ (x - 1) ** 2)


ROSEN = np.array([-1.2, 1.0])


@pytest.mark.parametrize("size", [1e-7, 1e-5, 1e-3])
@pytest.mark.parametrize("bounds", [None, [(-3, 3)]])
def test_a_rough_function_is_minimized(size: float, bounds: Any) -> None:
    """The curvature was that of the roughness, 1e28, by which any point was at rest: f = 0.93 and 4.3, with success."""
    for seed in range(2):
        result = zo.minimize(lambda x: rosen(x) + size * rough(x), ROSEN * (1 + 0.01 * seed), bounds=bounds)
        assert result.success
        assert rosen(result.x) < 4 * size
        result = zo.minimize(lambda x: quadratic(x) + size * rough(x), np.full(5, 0.01 * seed))
        assert quadratic(result.x) < 4 * size


def test_few_evaluations_of_a_rough_function() -> None:
    for size in (1e-5, 1e-3):
        result = zo.minimize(lambda x, s=size: rosen(x) + s * rough(x), ROSEN, budget=200)
        assert rosen(result.x) < 0.3
        result = zo.minimize(lambda x, s=size: rosen(x) + s * rough(x), ROSEN, "lbfgs")
        assert rosen(result.x) < 0.3
        assert apart(result.message)


def apart(message: str) -> bool:
    return message.startswith("no lower point near x, as far as values show that lie ")


@pytest.mark.parametrize("step", [1e-6, 1e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("f", [rosen, quadratic])
def test_a_rounded_function_is_minimized(f: Callable[[Any], float], step: float) -> None:
    """Where no value was f(x) again, f = 4.2 after 38 evaluations, with success."""
    for seed in range(2):
        x0 = ROSEN * (1 + 0.013 * seed) if f is rosen else np.full(5, 0.01 * seed)
        result = zo.minimize(lambda x: round(float(f(x)) / step) * step, x0)
        assert result.success
        assert f(result.x) < 2 * step


def test_a_function_in_float32_is_minimized() -> None:
    for x0 in (ROSEN * 1.026, np.full(10, -0.5 * 1.013)):
        result = zo.minimize(lambda x: float(rosen(x.astype(np.float32))), x0)
        assert rosen(result.x) < 1e-6


def test_a_ripple_is_no_minimum() -> None:
    f = lambda x: rosen(x) + 1e-3 * math.sin(1e7 * (x[0] + 2 * x[1]))  # noqa: E731
    assert rosen(zo.minimize(f, ROSEN).x) < 4e-3
    result = zo.minimize(f, ROSEN, "lbfgs")
    assert "may be that of a ripple" in result.message


@pytest.mark.parametrize("size", [1e-5, 1e-3])
def test_a_rough_function_with_a_constraint(size: float) -> None:
    """f = 3.1 and 4.4, "multipliers and point have converged"."""
    result = zo.minimize(
        lambda x: rosen(x) + size * rough(x), ROSEN, constraints={"type": "ineq", "fun": lambda x: 2 - x @ x}
    )
    assert rosen(result.x) < 4 * size
    assert "values are rough" in result.reason
    result = zo.minimize(
        lambda x: rosen(x) + size * rough(x), ROSEN, "lbfgs", constraints={"type": "ineq", "fun": lambda x: 2 - x @ x}
    )
    assert not result.success
    assert "too rough for differences" in result.message


def test_kinks_are_not_rough() -> None:
    """Second differences fall by 30 at a kink, by 900 where f is smooth, and not at all where it is rough."""
    radii = 1e-4 / 30.0 ** np.arange(8)
    for power in (1, 2, 4):
        seconds = list(radii**power)
        assert level(seconds, 1e-40) == gap(seconds, 1e-40) == 0
    draws = np.random.default_rng(0)
    seconds = [abs(draws.standard_normal() - 2 * draws.standard_normal() + draws.standard_normal()) for _ in radii]
    assert 0.5 < level(seconds, 1e-16) < 2
    assert level([1e-3, 0.0], 1e-16) == 0
    assert gap([1e-3, 0.0], 1e-16) == pytest.approx(1e-3 / math.sqrt(6))
