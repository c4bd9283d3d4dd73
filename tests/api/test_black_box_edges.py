"""The edges of the black-box door: tiny budgets, odd x0, bounds that leave nothing, failures, and their messages."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch

import zograd as zo
from zograd.api.ending import Status


def sphere(x: Any) -> float:
    return float(np.sum((np.asarray(x) - 1) ** 2))


# ---- budgets, time, targets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["auto", "cma", "lbfgs"])
@pytest.mark.parametrize("budget", [2, 3, 4, 5])
def test_a_budget_below_a_step_says_so_and_blames_nothing_else(method: str, budget: int) -> None:
    result = zo.minimize(sphere, np.zeros(2), method, budget=budget)
    assert result.message == f"the budget of {budget} evaluations ended before the first step; pass a larger budget"
    assert (result.status, result.nfev <= budget, result.nit) == (Status.EARLY, True, 0)


def test_ask_and_tell_without_a_value_do_not_call_f_infinite() -> None:
    loop = zo.AskTell(np.zeros(2), "auto", budget=1)
    assert loop.done
    assert loop.message == "budget used"
    with pytest.raises(ValueError, match="must be a number of evaluations"):
        zo.AskTell(np.zeros(2), "cma", budget="ten")  # type: ignore[arg-type]


def test_the_remedy_for_too_little_time_is_more_time() -> None:
    result = zo.minimize(sphere, np.zeros(5), seconds=0.0)
    assert result.message == "time used; it ended before the first step; pass more seconds"
    constrained = zo.minimize(
        lambda x: (sphere(x), [x.sum() - 1]), np.zeros(5), constraints=zo.Constraints(at_most=1), seconds=0.0
    )
    assert constrained.message.endswith("; pass more seconds")


def test_minus_infinity_at_the_start_reaches_no_target() -> None:
    for target in (None, -5.0):
        result = zo.minimize(lambda x: -math.inf, np.zeros(3), target=target)
        assert not result.success
        assert "f is not finite at x0" in result.message


def test_one_lucky_value_at_the_start_reaches_no_target() -> None:
    values = iter([0.0, 5.0, 5.0, 5.0])
    result = zo.minimize(lambda x: next(values, 5.0), np.zeros(3), target=0.1, budget=50)
    assert not result.success
    assert result.nfev > 4


@pytest.mark.parametrize(("given", "error", "says"), [
    ({"target": math.nan}, ValueError, "target is NaN"), ({"target": "low"}, TypeError, "target='low' is no number"),
    ({"seconds": math.nan}, ValueError, "seconds is NaN"), ({"seconds": "1"}, None, ""),
    ({"seconds": [1]}, TypeError, "is no number"), ({"resume": True}, ValueError, "pass checkpoint=PATH"),
])  # fmt: skip
def test_settings_that_can_mean_nothing(given: dict[str, Any], error: Any, says: str) -> None:
    if error is None:
        assert zo.minimize(sphere, np.zeros(2), **given).success
        return
    with pytest.raises(error, match=says):
        zo.minimize(sphere, np.zeros(2), **given)


# ---- maximize --------------------------------------------------------------------------------------------------------


def test_sentences_about_a_maximum_have_the_values_of_f_itself() -> None:
    rising = zo.minimize(lambda x: float(np.sum(x)), np.zeros(5), maximize=True)
    assert "ended while f was rising: about" in rising.message
    assert " % of the rise, from 0 to " in rising.message
    worse = zo.minimize(
        lambda x: 7.0 - sphere(x), np.full(4, 1.01), zo.methods.zo_sgd(lr=10.0), budget=200, maximize=True
    )
    assert worse.message.startswith("f fell, from 6.9996 at x0 to -")
    high = zo.minimize(
        lambda x: float(x.sum()), np.zeros(3), maximize=True, budget=3000,
        constraints=scipy.optimize.LinearConstraint([[1, -1, 0]], -1, 1),
    )  # fmt: skip
    assert not high.success
    assert "-" not in high.message.split("rose to", 1)[-1].split(",")[0]


# ---- x0 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["auto", "zo_sgd", "cma"])
def test_names_of_a_dict_come_back_as_they_are(method: str) -> None:
    x0 = {1: 0.0, "1": np.zeros(2), ("a", 2): np.zeros((2, 1))}

    def f(x: Any) -> float:
        return float((x[1] - 1) ** 2 + np.sum((x["1"] - 2) ** 2) + np.sum((x["a", 2] - 3) ** 2))

    result = zo.minimize(f, x0, method, budget=800)
    assert list(result.x) == list(x0)
    for name, value in ((1, 1), ("1", 2), (("a", 2), 3)):
        np.testing.assert_allclose(result.x[name], value, atol=1e-2)


def test_numbers_as_names_are_saved(tmp_path: Any) -> None:
    loop = zo.AskTell({0: 1.0, 1: np.zeros(2)}, "rank")
    loop.save(tmp_path / "a.json")
    assert list(zo.AskTell.load(tmp_path / "a.json").ask()[0]) == [0, 1]
    with pytest.raises(TypeError, match="names that are strings or numbers"):
        zo.AskTell({("a", 1): 1.0}, "rank").save(tmp_path / "b.json")


def test_tensors_of_integers_become_float64() -> None:
    result = zo.minimize(lambda x: ((x - 0.5) ** 2).sum(), torch.zeros(3, dtype=torch.int64))
    assert result.x.dtype == torch.float64
    assert torch.allclose(result.x, torch.full((3,), 0.5, dtype=torch.float64))
    exact = zo.estimators.Coordinates(2, central=True)
    g = zo.gradient(lambda x: (x**2).sum(), torch.tensor([1, 2]), estimator=exact)
    assert torch.allclose(g.value, torch.tensor([2.0, 4.0], dtype=torch.float64))


@pytest.mark.parametrize(("x0", "says"), [
    (None, "x0 is None; pass a starting point"), ({"a": {"b": 1.0}}, r"x0\['a'\] is a dict in a dict"),
    ([np.zeros(2), np.zeros(3)], "parts of different shapes; pass a dict"), (np.array(["a", 1.0], object), "Optuna"),
])  # fmt: skip
def test_an_x0_of_another_kind_is_answered(x0: Any, says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        zo.minimize(sphere, x0)


def test_objects_that_are_numbers_are_taken() -> None:
    assert zo.minimize(sphere, np.array([0.0, 2], dtype=object)).success


# ---- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["auto", "cma", "lbfgs", "zo_sgd"])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_bounds_that_fix_all_variables(method: str, noise: float) -> None:
    """As `scipy.optimize.minimize`: the only point is the result."""
    draws = np.random.default_rng(0)
    result = zo.minimize(lambda x: sphere(x) + noise * draws.normal(), np.zeros(3), method, bounds=[(0, 0)])
    assert result.success
    assert result.message == "all variables are fixed by their bounds: x0 is the only point"
    np.testing.assert_array_equal(result.x, np.zeros(3))
    fails = zo.minimize(lambda x: math.nan, np.zeros(3), method, bounds=[(0, 0)])
    assert not fails.success
    loop = zo.AskTell(np.zeros(3), "cma", bounds=[(0, 0)])
    assert loop.done


def test_fixed_variables_with_a_constraint_that_does_not_hold() -> None:
    c = scipy.optimize.LinearConstraint([[1, 1]], 1, np.inf)
    result = zo.minimize(sphere, np.zeros(2), bounds=[(0, 0)], constraints=c)
    assert not result.success
    assert "constraint 0 is violated by 1" in result.message


def test_bounds_by_name() -> None:
    def f(x: Any) -> float:
        return sphere(x["a"]) + sphere(x["b"])

    bounds = {"b": (None, 0.25), "a": scipy.optimize.Bounds([-1, -1], [0.5, 2])}
    result = zo.minimize(f, {"a": np.zeros(2), "b": 0.0}, bounds=bounds)
    np.testing.assert_allclose(result.x["a"], [0.5, 1])
    assert result.x["b"] == 0.25
    with pytest.raises(ValueError, match=r"bounds names \[\"'a'\"\]"):
        zo.minimize(f, {"a": np.zeros(2), "b": 0.0}, bounds={"a": (0, 1)})
    with pytest.raises(TypeError, match="bounds is a dict, but x0 is none"):
        zo.minimize(sphere, np.zeros(2), bounds={"a": (0, 1)})
    with pytest.raises(TypeError, match="bounds must be pairs"):
        zo.minimize(sphere, np.zeros(2), bounds=1.0)


@pytest.mark.parametrize("high", [0.5, 2.0])
def test_a_start_on_a_bound_is_no_staircase(high: float) -> None:
    """f(x0) came again where the ladder was cut at the bound, which looked like a rounded function: 750 evaluations."""
    for dtype in (np.float64, np.float32):
        result = zo.minimize(sphere, np.zeros(3, dtype), bounds=[(0, high)])
        assert result.success
        assert result.nfev < 200
        assert result.strategy.startswith("L-BFGS-B")
        assert "CMA" not in result.strategy


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-90, 1e-30, 1e30, 1e90, 1e200])
def test_the_unit_of_f_does_not_matter(scale: float) -> None:
    """A likelihood of 1e-200 ended at x0 with success: squares of its slopes are no numbers."""
    result = zo.minimize(lambda x: scale * (1 + sphere(x)), np.zeros(5))
    assert result.success
    np.testing.assert_allclose(result.x, 1, atol=1e-3)


UNITS = np.array([1e-6, 1e-3, 1.0, 1e3, 1e6])
"""Of variables, as in an engineer's model."""


@pytest.mark.parametrize(("start", "bounds"), [
    (0.0, None), (-1.0, None), (3.0, None), (-1.0, 2.0), (0.0, 2.0),
])  # fmt: skip
def test_variables_of_different_units(start: float, bounds: float | None) -> None:
    """The stiff variable filled the mean curvature, by which the soft ones seemed to be at rest where they began."""
    pairs = None if bounds is None else list(zip(-bounds * UNITS, bounds * UNITS, strict=True))
    for f in (lambda x: sphere(x / UNITS), lambda x: float(scipy.optimize.rosen(x / UNITS))):
        result = zo.minimize(f, start * UNITS, bounds=pairs)
        assert result.success
        assert result.fun < 1e-10
        assert result.nfev < 2000


def test_variables_of_one_unit_pay_nothing_for_it() -> None:
    for shift in (0.0, 1.0):
        result = zo.minimize(lambda x, a=shift: a + float(scipy.optimize.rosen(x)), np.zeros(5))
        assert result.nfev < 700
    unused = zo.minimize(lambda x: 3 + (x[0] - 1) ** 2, np.zeros(5))
    assert unused.success
    np.testing.assert_array_equal(unused.x[1:], 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_a_restart_in_noise_does_not_take_the_result_away(seed: int) -> None:
    """The mean of a restart, which begins far away, was recommended: f = 1.0 where the run before had found 1e-16."""
    draws = np.random.default_rng(seed)
    f = lambda x: sphere(x) * (1 + 0.1 * draws.standard_normal())  # noqa: E731
    for budget in (1500, 1750, 2000, 2250):
        assert zo.minimize(f, np.zeros(3), budget=budget, seed=seed).fun < 1e-6


def test_a_plateau_of_failures_is_none() -> None:
    calls = []

    def f(x: Any) -> float:
        calls.append(1)
        return sphere(x) if len(calls) <= 10 else math.nan

    result = zo.minimize(f, np.zeros(3))
    assert not result.success
    assert "had no finite value" in result.message


def test_an_estimate_that_failures_leave_empty_is_no_zero() -> None:
    f = lambda x: math.nan if x[0] > 1 else float(x.sum())  # noqa: E731
    with pytest.raises(ValueError, match="f is not finite at 4 of the 8 points"):
        zo.gradient(f, np.ones(3), estimator=zo.estimators.Central(4))


@pytest.mark.parametrize(("back", "says"), [
    (None, "None"), (1j, "complex numbers"), ("a", "'a'"), ([1, [2]], "different shapes"),
])  # fmt: skip
def test_a_black_box_that_returns_no_numbers(back: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        zo.black_box(lambda m: back)(torch.ones(2))


# ---- constraints -----------------------------------------------------------------------------------------------------


def test_constraints_of_tensors() -> None:
    x0 = torch.zeros(3, dtype=torch.float64)
    result = zo.minimize(
        lambda x: ((x - 1) ** 2).sum(), x0, constraints=[{"type": "ineq", "fun": lambda x: 1 - x.sum()}]
    )
    assert torch.allclose(result.x, torch.full_like(x0, 1 / 3))
    nonlinear = scipy.optimize.NonlinearConstraint(lambda x: x[:2], -np.inf, 0.25)
    result = zo.minimize(lambda x: ((x - 1) ** 2).sum(), x0, constraints=nonlinear)
    assert torch.allclose(result.x, torch.tensor([0.25, 0.25, 1.0], dtype=torch.float64))


def test_a_constraint_that_returns_nothing_is_named() -> None:
    with pytest.raises(TypeError, match="a constraint has to return a real number"):
        zo.minimize(sphere, np.zeros(2), constraints=[{"type": "ineq", "fun": lambda x: None}])


def test_a_feasible_set_without_a_lower_bound_is_no_success() -> None:
    c = {"type": "ineq", "fun": lambda x: 1 - x.sum()}
    result = zo.minimize(lambda x: float(x.sum()), np.zeros(3), constraints=c, budget=3000)
    assert not result.success
    assert "as if it had no lower bound" in result.message


def test_an_interrupt_with_constraints_returns_the_best_feasible_point() -> None:
    calls = []

    def f(x: Any) -> float:
        calls.append(1)
        if len(calls) == 300:
            raise KeyboardInterrupt
        return sphere(x)

    c = scipy.optimize.LinearConstraint([[1, 1, 1]], -np.inf, 1)
    result = zo.minimize(f, np.zeros(3), "zo_sgd", constraints=c, budget=600)
    assert result.message == "interrupted"
    assert result.fun == result.best_fun == sphere(result.x)
    assert result.maxcv <= 1e-6


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "says"), [
    ("L-BFGS-B", "method='lbfgs'"), ("Nelder-Mead", "method='auto'"), ("CMA", "write 'cma'"),
    ("zosgd", "nearest to it: zo_sgd"),
])  # fmt: skip
def test_a_name_that_is_nearly_one_of_ours(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        zo.minimize(sphere, np.zeros(2), name)


# ---- callbacks, spaces and sets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["auto", "zo_sgd", "cma", "rank"])
def test_a_callback_may_write_into_its_x(method: str) -> None:
    """After the last step, it was the iterate itself."""
    plain = zo.minimize(sphere, np.zeros(3), method, budget=200)
    written = zo.minimize(sphere, np.zeros(3), method, budget=200, callback=lambda r: r.x.fill(9.0))
    np.testing.assert_array_equal(plain.x, written.x)
    with pytest.raises(TypeError, match="callback=3 is no function"):
        zo.minimize(sphere, np.zeros(3), method, callback=3)  # type: ignore[arg-type]


def test_what_does_not_go_together_is_named() -> None:
    with pytest.raises(ValueError, match="bounds= and the space Sphere do not go together"):
        zo.minimize(sphere, np.array([1.0, 0]), space=zo.spaces.Sphere(), bounds=[(-1, 1)])
    with pytest.raises(TypeError, match="constraints=L1Ball is a class"):
        zo.minimize(sphere, np.zeros(2), constraints=zo.sets.L1Ball)


def test_a_rise_by_rounding_is_none() -> None:
    """From a minimum, 1 + 1e-16 was "f rose, from 1 at x0 to 1 at the result: steps were too long"."""
    x0 = {"a": np.ones(3) / 3, "b": np.ones(2) / 2}
    result = zo.minimize(lambda x: sphere(x["a"]), x0, space=zo.spaces.Simplex(), budget=300)
    assert not result.success
    assert result.message.startswith(("f is as it was, 1.33333 at x0", "x did not move"))


# ---- files and settings ----------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_is_named(tmp_path: Any) -> None:
    """It was "No such file or directory: .../c.lock", a file that nobody had asked for."""
    with pytest.raises(FileNotFoundError, match=r"the folder does not exist; make it first: .*none'$"):
        zo.minimize(sphere, np.zeros(2), checkpoint=tmp_path / "none" / "c")


def test_a_setting_that_is_a_text_is_named() -> None:
    with pytest.raises(TypeError, match="rank: n='x' is a text; pass a number, such as 16"):
        zo.minimize(sphere, np.zeros(2), "rank", options={"n": "x"})
    assert zo.minimize(sphere, np.zeros(2), "zo_sgd", options={"lr": "auto", "mu": "auto"}, budget=200).nfev


@pytest.mark.parametrize("unit", [1e3, 1e7, 1e9])
def test_constraints_on_variables_of_a_large_unit(unit: float) -> None:
    """At 1e9, the differences of f at x0 were nothing but rounding, and x0 "converged" with success."""
    less = scipy.optimize.LinearConstraint([[1, 1, 1]], -np.inf, unit)
    result = zo.minimize(lambda x: sphere(x / unit), np.zeros(3), constraints=less)
    assert result.success
    np.testing.assert_allclose(result.x / unit, 1 / 3, atol=1e-2)
    assert result.fun < 1.336
    loose = scipy.optimize.LinearConstraint([[1, 1, 1]], -np.inf, 10 * unit)
    result = zo.minimize(lambda x: sphere(x / unit), np.zeros(3), constraints=loose)
    np.testing.assert_allclose(result.x / unit, 1, atol=1e-6)


def test_constraints_and_batches_together() -> None:
    """Values at x0 have one batch and seemed to repeat: SLSQP subtracted values of different batches, with success."""
    f = lambda x, batch, seed: (sphere(x) + batch, [x.sum() - 1])  # noqa: E731
    result = zo.minimize(
        f, np.zeros(3), data=[0.1, 0.2], common_random=True, constraints=zo.Constraints(at_most=1), budget=1500
    )
    assert "SLSQP" not in result.strategy
    np.testing.assert_allclose(result.x, 1 / 3, atol=0.1)
    assert result.maxcv <= 1e-6
    with pytest.raises(ValueError, match="'lbfgs' compares values of different steps"):
        zo.minimize(lambda x, batch: sphere(x), np.zeros(3), "lbfgs", data=[0.1, 0.2])


def test_a_budget_that_ends_at_the_minimum_is_enough() -> None:
    """Four steps of 2,001 evaluations had brought f from 2,000 to 1e-15, and were "too few"."""
    result = zo.minimize(sphere, np.zeros(2000))
    assert result.fun < 1e-9
    assert (result.success, result.nfev <= 15_000) == (True, True)


def test_a_measured_rate_is_not_blamed_for_a_small_budget() -> None:
    result = zo.minimize(sphere, np.zeros(20_000), budget=300)
    assert not result.success
    assert result.message.endswith("; pass a larger budget")


@pytest.mark.parametrize("given", [{"terms": -1}, {"terms": 1.5}, {"timeout": "soon"}, {"timeout": 0}])
def test_other_settings_that_can_mean_nothing(given: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=next(iter(given))):
        zo.minimize(lambda x, rows: sphere(x), np.zeros(2), **given)
