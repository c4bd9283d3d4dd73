"""What a newcomer typed, and what went wrong then."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize

import zograd as zo
from zograd.api.checkpoint import CheckpointError


@pytest.mark.parametrize(
    ("f", "x0"),
    [
        (lambda x: (x[0] - x[1] - 1) ** 2, np.zeros(2)),
        (lambda x: (x[0] + x[1] - 1) ** 2, np.zeros(2)),
        (lambda x: (x[0] - 2 * x[1] + x[2] - 1) ** 2, np.zeros(3)),
        (lambda x: (x[4] - x[5] - 1) ** 2, np.zeros(10)),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_a_function_that_is_flat_along_a_diagonal_is_not_constant(f: Any, x0: Any, seed: int) -> None:
    """ "f did not change within 7.29e+04 of x0": it was asked along (1, 1) alone."""
    result = zo.minimize(f, x0, seed=seed)
    assert result.success
    assert result.fun < 1e-12


@pytest.mark.parametrize("dim", [2, 3])
def test_a_simplex_is_searched_from_its_middle(dim: int) -> None:
    wanted = np.array([0.7, 0.2, 0.1][:dim]) / sum([0.7, 0.2, 0.1][:dim])
    result = zo.minimize(lambda p: float(np.sum((p - wanted) ** 2)), np.full(dim, 1 / dim), space=zo.spaces.Simplex())
    assert result.success
    np.testing.assert_allclose(result.x, wanted, atol=1e-6)


@pytest.mark.parametrize("dim", [2, 5, 10])
def test_float32_ends_at_the_minimum(dim: int) -> None:
    """The differences were as wide as rounding asks for where f is large: 1.5e-4, "a local minimum"."""
    result = zo.minimize(scipy.optimize.rosen, np.zeros(dim, np.float32))
    assert result.success
    assert result.x.dtype == np.float32
    assert result.fun < 1e-7


def test_a_masked_value_is_a_failed_evaluation() -> None:
    """It was 0, the lowest value that was seen."""
    f = lambda x: np.ma.masked if x[0] > 0.5 else float(np.sum((x - 1) ** 2)) + 1  # noqa: E731
    result = zo.minimize(f, np.zeros(3))
    assert result.fun == pytest.approx(1.25, abs=1e-6)
    assert result.nfail
    held = zo.minimize(
        lambda x: float(np.sum((x - 1) ** 2)), np.zeros(2),
        constraints=scipy.optimize.NonlinearConstraint(lambda x: np.ma.masked if x[0] > 0.5 else x[0], -1, 2),
    )  # fmt: skip
    assert held.x[0] <= 0.5


@pytest.mark.parametrize("method", ["auto", "zo_sgd", "cma", "lbfgs"])
def test_seconds_end_a_request_too(method: str) -> None:
    """f of 0.1 s in ten variables ran for 2.9 s where 0.2 were given."""
    calls = []

    def f(x: Any) -> float:
        calls.append(1)
        time.sleep(0.02)
        return float(np.sum((x - 1) ** 2))

    result = zo.minimize(f, np.zeros(40), method, seconds=0.05)
    assert len(calls) == result.nfev <= 6
    assert result.message.startswith("time used")
    assert result.status == 1
    with pytest.raises(ValueError, match="seconds=-1 must be a time"):
        zo.minimize(f, np.zeros(2), seconds=-1)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (scipy.optimize.NonlinearConstraint(lambda x: x @ x, -math.inf, 1),
         scipy.optimize.NonlinearConstraint(lambda x: x @ x, -math.inf, 2)),
        (scipy.optimize.LinearConstraint(np.ones((1, 3)), -1, 1),
         scipy.optimize.LinearConstraint(np.ones((1, 3)), -1, 2)),
        (scipy.optimize.LinearConstraint(np.ones((1, 3)), -1, 1),
         scipy.optimize.LinearConstraint([[1, 1, 2]], -1, 1)),
        (scipy.optimize.LinearConstraint(np.ones((1, 3)), -1, 1), None),
    ],
)  # fmt: skip
def test_other_constraints_are_another_run(first: Any, second: Any, tmp_path: Path) -> None:
    """The answer of the first run came back, with success."""
    path = tmp_path / "k.zo"
    one = zo.minimize(scipy.optimize.rosen, np.zeros(3), constraints=first, checkpoint=path)
    with pytest.raises(CheckpointError, match=r"its (constraints differ|strategy is)"):
        zo.minimize(scipy.optimize.rosen, np.zeros(3), constraints=second, checkpoint=path, resume=True)
    again = zo.minimize(scipy.optimize.rosen, np.zeros(3), constraints=first, checkpoint=path, resume=True)
    assert (again.fun, again.nfev) == (one.fun, one.nfev)


def test_a_resumed_run_does_not_repeat_the_last_callback(tmp_path: Path) -> None:
    seen: list[int] = []
    path = tmp_path / "k.zo"
    settings: dict[str, Any] = {"callback": lambda r: seen.append(r.nit), "checkpoint": path}
    zo.minimize(scipy.optimize.rosen, np.zeros(4), "cma", budget=100, **settings)
    zo.minimize(scipy.optimize.rosen, np.zeros(4), "cma", budget=200, resume=True, **settings)
    assert seen == sorted(set(seen))


@pytest.mark.parametrize("f", [lambda x: math.nan, lambda x: math.nan if x.any() else 1.0])
def test_cma_gives_up_after_twenty_populations(f: Any) -> None:
    """Each restart doubled the population, so that twenty of them were 14,331 evaluations."""
    result = zo.minimize(f, np.zeros(3), "cma")
    assert not result.success
    assert result.nfev < 200
    assert "had no finite value" in result.message


def test_half_a_space_that_fails_is_no_failure() -> None:
    """The minimum was found, and the message was that f is not finite around x0."""
    result = zo.minimize(lambda x: math.nan if x[0] > 0.5 else float(np.sum((x - 1) ** 2)), np.zeros(3))
    assert result.success
    assert result.fun == pytest.approx(0.25, abs=1e-6)


def test_steps_of_scipy_that_run_out_are_no_success() -> None:
    found = scipy.optimize.minimize(
        scipy.optimize.rosen, np.zeros(5), method=zo.scipy_method("auto"), options={"maxiter": 2}
    )
    assert (found.success, found.status, found.nit) == (False, 1, 2)
    assert found.message == "maxiter=2 reached; pass a larger one"
    with pytest.raises(ValueError, match="maxiter=0 must be a number of steps"):
        scipy.optimize.minimize(
            scipy.optimize.rosen, np.zeros(5), method=zo.scipy_method("auto"), options={"maxiter": 0}
        )


@pytest.mark.parametrize("sigma", [0.0, -1.0, "a", math.nan, True])
def test_sigma_is_a_length(sigma: Any) -> None:
    with pytest.raises(ValueError, match=r"sigma=.* must be a number > 0"):
        zo.minimize(scipy.optimize.rosen, np.zeros(3), "cma", options={"sigma": sigma})


def test_limits_of_another_length_are_named() -> None:
    wrong = scipy.optimize.NonlinearConstraint(lambda x: x, [0, 0], [1, 1])
    with pytest.raises(ValueError, match="constraint 0 has 3 values, but its lb has 2; pass one number, or 3"):
        zo.minimize(scipy.optimize.rosen, np.zeros(3), constraints=wrong)


def wobbly(x: Any) -> float:
    """Values that differ: NumPy's generator is seeded by x, and its numbers are far from those of a neighbour."""
    return float(np.sum((x - 1) ** 2)) + 0.1 * math.sin(1e9 * float(np.sum(x)))


@pytest.mark.parametrize(
    ("dim", "first", "then"), [(4, 17, 400), (4, 20, 600), (4, 40, None), (20, 500, 3000), (100, 300, 2000)]
)
def test_auto_goes_on_with_a_larger_budget(dim: int, first: int, then: int | None, tmp_path: Path) -> None:
    """ "request 1 is for other points": the larger budget changed the choice, and what was paid for was lost."""
    path, f = tmp_path / "k.zo", wobbly if dim == 20 else scipy.optimize.rosen
    few = zo.minimize(f, np.zeros(dim), budget=first, checkpoint=path)
    many = zo.minimize(f, np.zeros(dim), budget=then, checkpoint=path, resume=True)
    assert many.nfev > few.nfev
    assert many.fun < few.fun
    again = zo.minimize(f, np.zeros(dim), budget=then, checkpoint=path, resume=True)
    assert (again.fun, again.nfev) == (many.fun, many.nfev)


def test_a_larger_budget_of_a_run_with_constraints_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path, settings = tmp_path / "k.zo", {"constraints": zo.Constraints(1), "x0": np.zeros(4)}
    f = lambda x: (scipy.optimize.rosen(x), [x.sum() - 2])  # noqa: E731
    done = zo.minimize(f, **settings, budget=300, checkpoint=path)
    with pytest.raises(CheckpointError, match="pass budget=300, and begin another run at its x for more"):
        zo.minimize(f, **settings, budget=600, checkpoint=path, resume=True)
    assert zo.minimize(f, **settings, budget=300, checkpoint=path, resume=True).fun == done.fun


@pytest.mark.parametrize("dim", [3, 10, 50])
@pytest.mark.parametrize("budget", [8, 15, 30])
def test_a_small_budget_makes_a_step(dim: int, budget: int) -> None:
    """Four values at x0, and then no step: 15 evaluations ended with x0."""
    result = zo.minimize(lambda x: float(np.sum((x - 1) ** 2)), np.zeros(dim), budget=budget)
    assert result.nfev <= budget
    assert result.fun < dim
    assert result.nit > 0
