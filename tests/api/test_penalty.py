"""`minimize(penalty=r)`: f + r is minimized, f alone is evaluated, and the result tells values of f + r."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import zograd as zo
from zograd.problems.lasso import L1Logistic
from zograd.sets import L1, GroupL2, L1Ball, NuclearBall

LASSO = L1Logistic(0.01)
X0 = np.zeros(31)


def test_lasso_by_the_defaults_reaches_the_minimum_with_exact_zeros() -> None:
    """The minimum of `L1Logistic` is known by a solver with gradients."""
    calls = []

    def f(w: np.ndarray) -> float:
        calls.append(1)
        return LASSO.smooth(w)

    r = zo.minimize(f, X0, penalty=L1(0.01))
    assert r.success, r.message
    assert "has not fallen" in r.message
    assert r.strategy == "fd_fista"
    assert r.fun == pytest.approx(LASSO.value(r.x), rel=1e-12)
    assert r.fun - LASSO.minimum < 1e-8
    assert int((r.x == 0).sum()) == 19
    assert r.nfev == len(calls) < 15_000


@pytest.mark.parametrize("seed", range(5))
def test_one_percent_takes_fewer_than_1000_evaluations(seed: int) -> None:
    r = zo.minimize(LASSO.smooth, X0, penalty=L1(0.01), budget=1000, seed=seed)
    assert r.fun < 1.01 * LASSO.minimum
    assert int((r.x == 0).sum()) >= 10


def test_values_that_a_caller_sees_have_the_penalty_in_them() -> None:
    seen: list[float] = []
    goal = 1.01 * LASSO.minimum
    r = zo.minimize(LASSO.smooth, X0, penalty=L1(0.01), target=goal, callback=lambda step: seen.append(step.best_fun))
    assert r.message == "target reached"
    assert r.best_fun <= goal < seen[-2]
    assert r.best_fun == pytest.approx(LASSO.value(r.best_x), rel=1e-12)


def test_maximize_subtracts_it() -> None:
    r = zo.minimize(lambda w: -LASSO.smooth(w), X0, penalty=L1(0.01), maximize=True, budget=3000)
    assert r.fun == pytest.approx(-LASSO.value(r.x), rel=1e-12)
    assert r.fun > -1.001 * LASSO.minimum


def test_rows_of_a_dict_become_zero_as_a_whole() -> None:
    def f(x: dict[str, np.ndarray]) -> float:
        return float(np.sum((x["w"] - np.array([[1.0, 2.0], [0.01, 0.02]])) ** 2) + x["b"] ** 2)

    r = zo.minimize(f, {"w": np.ones((2, 2)), "b": np.array(2.0)}, penalty=GroupL2(0.1))
    assert np.all(r.x["w"][0] > 0.5)
    assert np.all(r.x["w"][1] == 0)
    assert r.x["b"] == 0
    # (1 - 0.05 / |w|) w of the row that stays, by hand
    assert r.x["w"][0] == pytest.approx(np.array([1.0, 2.0]) * (1 - 0.05 / np.sqrt(5)), rel=1e-6)


def test_in_noise_and_with_a_small_budget_it_takes_two_point_steps() -> None:
    rng = np.random.default_rng(0)
    with pytest.warns(UserWarning, match="share them$"):
        noisy = zo.minimize(lambda w: LASSO.smooth(w) + 1e-4 * rng.normal(), X0, penalty=L1(0.01), budget=3000)
    assert noisy.strategy == "zo_prox"
    short = zo.minimize(LASSO.smooth, X0, penalty=L1(0.01), budget=100)
    assert short.strategy == "zo_prox"
    for r in (noisy, short):
        assert LASSO.value(r.x) < LASSO.value(X0)


def test_a_run_goes_on_from_its_file_to_the_same_bits(tmp_path: Path) -> None:
    whole = zo.minimize(LASSO.smooth, X0, penalty=L1(0.01), budget=2000)
    zo.minimize(LASSO.smooth, X0, penalty=L1(0.01), budget=700, checkpoint=tmp_path / "run")
    r = zo.minimize(LASSO.smooth, X0, penalty=L1(0.01), budget=2000, checkpoint=tmp_path / "run", resume=True)
    assert np.array_equal(r.x, whole.x)
    assert r.fun == whole.fun
    with pytest.raises(ValueError, match="penalty"):
        zo.minimize(LASSO.smooth, X0, penalty=L1(0.02), budget=3000, checkpoint=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"penalty": L1}, TypeError, "make one of it"),
        ({"penalty": L1Ball(1.0)}, TypeError, "goes into constraints="),
        ({"penalty": NuclearBall(1.0)}, TypeError, "goes into constraints="),
        ({"penalty": L1(1.0), "bounds": [(0, None)] * 3}, ValueError, "add weight"),
        ({"penalty": L1(1.0), "constraints": L1Ball(1.0)}, ValueError, "constraints="),
        ({"penalty": L1(1.0), "space": zo.spaces.Sphere()}, ValueError, "space="),
        ({"penalty": L1(1.0), "terms": 3}, ValueError, "terms="),
        ({"penalty": L1(1.0), "method": "snes"}, TypeError, "zo_prox"),
        ({"penalty": L1(1.0), "method": zo.methods.zo_sgd()}, TypeError, "inside"),
    ],
)
def test_what_does_not_go_with_it_is_refused(given: dict[str, object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        zo.minimize(lambda x: float(x @ x), np.ones(3), **given)


def test_a_start_at_the_minimum_of_f_is_no_error() -> None:
    """There the length of a step, from products that cancel, came out below zero: a math domain error."""
    c = np.full(5, 0.2)
    found = zo.minimize(lambda x: float(np.sum((x - c) ** 2)), c, penalty=zo.sets.L1(1e-4))
    assert found.strategy == "fd_fista"
    assert found.fun == pytest.approx(1e-4 - 5 * 0.25e-8, abs=1e-9)
