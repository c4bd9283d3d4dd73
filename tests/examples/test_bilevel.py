"""Row 51: the closed forms of the bilevel example, and its saddle, against differences and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize

from zograd.examples.bilevel_by_penalty import Ridge

X = np.array([-0.4, 0.3, 0.8])


@pytest.fixture
def problem() -> Ridge:
    return Ridge.drawn(5)


def test_the_hypergradient_is_the_slope_of_the_held_out_error(problem: Ridge) -> None:
    assert problem.derivative(X) == pytest.approx(approx_fprime(X, problem.held_out, 1e-6), rel=1e-4)


def test_the_inner_solution_is_what_a_solver_finds(problem: Ridge) -> None:
    for also in (0.0, 0.3):
        found = minimize(lambda y, a=also: problem.g(X, y) + a * problem.f(X, y), np.zeros(12), tol=1e-12)
        assert problem.fitted(X, also) == pytest.approx(found.x, abs=1e-5)


def test_the_derivative_of_the_penalty_is_that_of_the_saddle_value(problem: Ridge) -> None:
    """min_y max_z of the saddle by SciPy, as a function of x, differentiated by differences."""
    s = 0.2

    def value(x: np.ndarray) -> float:
        y = minimize(lambda y: problem.f(x, y) + problem.g(x, y) / s, np.zeros(12), tol=1e-13)
        z = minimize(lambda z: problem.g(x, z), np.zeros(12), tol=1e-13)
        return y.fun - z.fun / s

    assert problem.penalised(X, s) == pytest.approx(approx_fprime(X, value, 1e-4), abs=2e-3)


def test_the_bias_of_the_penalty_falls_in_proportion_to_s(problem: Ridge) -> None:
    truth = problem.derivative(X)
    errors = [np.linalg.norm(problem.penalised(X, s) - truth) for s in (1e-2, 1e-3, 1e-4)]
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.02)
