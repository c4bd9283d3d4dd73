"""Two-point steps by forward differences where f repeats, by central ones in noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zograd import AskTell, Run, methods, minimize
from zograd.api.variables import ArrayStore
from zograd.core.query import Ask
from zograd.core.vector import Vector
from zograd.estimators import Central, Estimator, Forward, ForwardOrCentral
from zograd.laws import Gaussian
from zograd.learning_rate import AutoRadius, TrustRate
from zograd.methods.defaults import black_box
from zograd.problems.small import mlp_digits, quadratic
from zograd.sets import L1Ball
from zograd.spaces import Euclidean

SPECTRUM = quadratic("quadratic-1000", 1 / np.arange(1.0, 1001.0))
F0 = SPECTRUM.value(SPECTRUM.x0)


def square(x: np.ndarray) -> float:
    return float(np.sum((x - 1) ** 2))


def first_estimate(estimator: Estimator[None], repeats: int) -> tuple[int, list[tuple[object, float]]]:
    """(number of points, terms of the estimate) of one step on the sum of all x_i^2, from (1, ..., 1), along axes."""
    nothing = np.zeros((0, 0))
    routine = estimator(Ask(0, 6, 1e-3, lambda j: Vector(((j, 1.0),)), lambda v: nothing, repeats=repeats))  # type: ignore[arg-type]
    queries = list(next(routine))
    values = []
    for query in queries:
        x = np.ones(6)
        for axis, c in query.at.terms:
            x[axis] += c  # type: ignore[index]
        values.append(float(x @ x))
    with pytest.raises(StopIteration) as stop:
        routine.send(values)
    return len(queries), list(stop.value.value.vector.terms)


@pytest.mark.parametrize(("repeats", "n", "other", "points"), [
    (1, 4, Forward(4), 5), (2, 4, Central(4), 8), (1, 1, Central(1), 2), (2, 1, Central(1), 2),
])  # fmt: skip
def test_it_is_one_of_the_two(repeats: int, n: int, other: Estimator[None], points: int) -> None:
    assert first_estimate(ForwardOrCentral(n), repeats) == first_estimate(other, repeats)
    assert first_estimate(ForwardOrCentral(n), repeats)[0] == points
    assert ForwardOrCentral(n).fewest_evaluations <= points <= ForwardOrCentral(n).evaluations


def test_a_name_gets_it_and_a_made_method_does_not() -> None:
    assert black_box("zo_sgd", 100).estimator == ForwardOrCentral(8)
    assert methods.zo_sgd().estimator == Central(1)
    assert methods.zo_sgd(n=3, central=False).estimator == Forward(3)
    assert black_box("mezo", 100).estimator == Central(8)


def asked(noise: float, steps: int) -> list[int]:
    """Points of each step of ask and tell."""
    rng, found = np.random.default_rng(0), []
    loop = AskTell(np.zeros(60), "zo_sgd")
    for _ in range(steps):
        points = loop.ask()
        found.append(len(points))
        loop.tell([square(x) + noise * rng.normal() for x in points])
    return found


def test_points_of_a_step() -> None:
    """Two steps to both sides, in which f(x) is evaluated twice; then one value a direction while f repeats. Each step
    measures at first (f(x) and one opposite point), later every fourth."""
    exact, noisy = asked(0.0, 24), asked(0.1, 24)
    assert exact[:8] == [18, 18, 10, 10, 10, 10, 10, 10]
    assert exact[9:12] == [9, 9, 9]
    assert exact[12] == 10
    assert noisy[:3] == [18, 18, 18]
    assert min(noisy) == 16


@pytest.mark.parametrize("seed", [0, 1])
def test_below_four_evaluations_a_variable_a_quadratic_falls_nearly_twice_as_fast(seed: int) -> None:
    """f / f0 after 4,000 evaluations: 0.10 to 0.11; by central differences 0.17 to 0.19."""
    found = {
        name: minimize(SPECTRUM.value, SPECTRUM.x0, method, budget=4000, seed=seed).fun / F0
        for name, method in {"auto": "auto", "central": black_box("zo_sgd", 1000, central=True)}.items()
    }
    assert found["auto"] < 0.13 < 0.16 < found["central"]


@pytest.mark.parametrize("seed", [0, 1])
def test_digits_with_one_batch_a_step(seed: int) -> None:
    """The loss on all digits is 0.3 within 4,800 evaluations: d = 2,442, by the defaults."""
    problem = mlp_digits()
    assert problem.part is not None
    rng = np.random.default_rng([seed, 1])
    rows = (rng.integers(0, problem.terms, problem.batch) for _ in range(10_000))
    r = minimize(problem.part, problem.x0, data=rows, budget=4800, seed=seed)
    assert problem.value(r.x) < 0.3


def test_the_radius_shrinks_where_curvature_spoils_one_sided_slopes() -> None:
    """At the first radius, 2^-10, the curvature of this f would hold |x - 1| at 2e-3 a variable."""
    r = minimize(square, np.zeros(300), "zo_sgd", budget=15_000)
    assert r.fun < 1e-12
    assert r.mu is not None
    assert r.mu < 2.0**-14


def test_it_does_not_shrink_into_rounding() -> None:
    """f in float32 repeats, and differences below 1e-7 are rounding: they look like curvature of either sign."""

    def f(x: np.ndarray) -> float:
        return float(np.float32(1.0) + np.sum((x.astype(np.float32) - 1) ** 2, dtype=np.float32))

    r = minimize(f, np.zeros(100), "zo_sgd", budget=15_000)
    assert r.mu is not None
    assert r.mu >= 2.0**-14
    assert r.fun - 1 < 1e-3


def test_a_run_is_replayed_from_its_tape() -> None:
    method = black_box("zo_sgd", 40)
    r = minimize(square, np.zeros(40), method, budget=600, seed=3)
    assert isinstance(method.lr, TrustRate)
    assert isinstance(method.mu, AutoRadius)
    store = ArrayStore(np.zeros(40), Euclidean())
    Run(store, method, 3).replay(r.tape)
    assert np.array_equal(store.array, r.x)


def test_where_points_fail_the_others_count() -> None:
    def f(x: np.ndarray) -> float:
        return float("nan") if x[0] > 0.5 else float(np.sum((x - 0.4) ** 2))

    r = minimize(f, np.zeros(60), "zo_sgd", budget=4000)
    assert r.fun < 1e-3


@pytest.mark.parametrize("given", ["Auto", Gaussian()])
def test_other_sides_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="central is True, False or 'auto', got"):
        methods.zo_sgd(central=given)


@pytest.mark.parametrize("central", [True, False, "auto"])
def test_every_side_stays_in_a_set_that_is_to_be_kept(central: Any) -> None:
    largest = 0.0

    def f(x: np.ndarray) -> float:
        nonlocal largest
        largest = max(largest, float(np.abs(x).sum()))
        return square(x)

    method = methods.zo_prox(L1Ball(0.5), lr="auto", mu="auto", n=4, queries="feasible", central=central)
    r = minimize(f, np.zeros(20), method, budget=800, seed=0)
    assert largest <= 0.5 + 1e-12
    assert r.best_fun < square(np.zeros(20)) - 0.9  # the least is 20 - 2 * 0.5 + 0.5^2 / 20
