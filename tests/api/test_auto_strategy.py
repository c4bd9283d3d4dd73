"""`method="auto"` and its strategies: they solve what they should, and say what they did."""

from __future__ import annotations

import math
import pickle
import re
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from zograd import methods, minimize
from zograd.api.search import Search
from zograd.api.strategies import CMA, LBFGS, Auto, OfMenu, Problem, Strategy
from zograd.api.strategies.inverted import inverted
from zograd.api.variables import Variables

Function = Callable[[np.ndarray], float]


def rosenbrock(x: np.ndarray) -> float:
    return float(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))


def sphere(x: np.ndarray) -> float:
    return float(np.sum((x - 1) ** 2))


# ---- what newcomers try ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 10, 50])
@pytest.mark.parametrize("at", ["usual", "zero"])
def test_rosenbrock_is_solved_with_nothing_but_f_and_x0(d: int, at: str) -> None:
    """Within 1.2 times the 15,000 evaluations that SciPy's L-BFGS-B would make."""
    calls: list[float] = []

    def f(x: np.ndarray) -> float:
        calls.append(rosenbrock(x))
        return calls[-1]

    result = minimize(f, np.resize([-1.2, 1.0], d) if at == "usual" else np.zeros(d))
    assert result.success
    assert result.fun <= 1e-6
    assert result.fun == rosenbrock(result.x)
    assert len(calls) == result.nfev <= 18_000
    assert "L-BFGS-B (SciPy)" in result.strategy
    assert "values repeat" in result.reason


LOG: Function = lambda x: float(np.sum(np.log(1 + x * x)))  # noqa: E731
BARRIER: Function = lambda x: sphere(x) - 1e-2 * float(np.sum(np.log(2 - x))) if np.all(x < 2) else math.nan  # noqa: E731


@pytest.mark.parametrize(
    ("f", "x0", "least", "close"),
    [
        (lambda x: 1e3 * sphere(x), np.zeros(10), 0.0, 1e-9),
        (lambda x: 1e-6 * sphere(x), np.zeros(10), 0.0, 1e-18),
        (lambda x: sphere(x / 1e6), np.zeros(10), 0.0, 1e-9),
        (lambda x: sphere(x / 1e-3), np.zeros(10), 0.0, 1e-9),
        (lambda x: float(np.abs(x - 1).sum()), np.zeros(5), 0.0, 1e-6),
        (LOG, np.full(5, 1.01), 0.0, 1e-9),
        (LOG, np.full(5, 1.5), 0.0, 1e-9),
        (LOG, np.full(5, 3.0), 0.0, 1e-9),
        (lambda x: float(np.sum((x * x - 1) ** 2)), np.full(5, 0.57736), 0.0, 1e-9),
        (lambda x: float(np.sum((np.round(x) - 3) ** 2)), np.zeros(5), 0.0, 0.0),
        (lambda x: sphere(x) if np.all(x <= 1) else math.nan, np.zeros(3), 0.0, 1e-9),
        (lambda x: float(np.sum((x - 2) ** 2)) if x @ x < 1 else math.nan, np.zeros(3), 3 * (2 - 3**-0.5) ** 2, 1e-3),
        (BARRIER, np.zeros(5), -1.243789e-4, 1e-8),
        (lambda x: sphere(x.astype(np.float64) - 1.5e6), np.array([1e6, 1e6], np.float32), 0.0, 10.0),
        (lambda x: sphere((x - 5e14) / 1e15), np.array([1e15, 1e15]), 0.0, 1e-9),
    ],
    ids=[
        "1e3", "1e-6", "x/1e6", "x/1e-3", "l1", "log-1.01", "log-1.5", "log-3", "double-well", "rounded", "edge",
        "disk", "barrier", "float32", "1e15",
    ],
)  # fmt: skip
def test_what_the_plain_default_failed_at_ends_right(f: Function, x0: np.ndarray, least: float, close: float) -> None:
    result = minimize(f, x0)
    assert result.success, result.message
    assert abs(result.fun - least) <= close
    assert result.fun == f(result.x)


@pytest.mark.parametrize(
    ("f", "says"),
    [
        (lambda x: 1.0, "f did not change within .* of x0; scale x so that f feels such a change"),
        (lambda x: float(np.sum(x)), "the budget ended while f was falling: about .* %"),
        (lambda x: -float(np.sum(np.exp(np.minimum(x, 600)))), "f fell to -.*, as if it had no lower bound"),
        (lambda x: math.nan, "f is not finite at x0; start where it is finite"),
    ],
    ids=["constant", "linear", "unbounded", "nan"],
)
def test_what_has_no_minimum_is_no_success_and_says_why(f: Function, says: str) -> None:
    result = minimize(f, np.ones(3), budget=1500)
    assert not result.success
    assert result.status != 0
    assert re.search(says, result.message), result.message


def test_noise_is_seen_and_named() -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        result = minimize(lambda x, rng=rng: sphere(x) + 0.1 * rng.normal(), np.zeros(10), budget=2000, seed=seed)
        assert result.success
        assert sphere(result.x) < 0.3
        assert 0.01 < result.noise < 0.5
        assert result.reason.startswith("values differ at x0")
        assert "pycma" in result.strategy


def test_few_evaluations_of_noise_stay_near_x0_with_a_diagonal_covariance() -> None:
    """Below 50 evaluations a variable: the first population is a quarter as wide, and what is learned is less."""
    spreads, names = [], []
    for budget in (49 * 20, 50 * 20):
        rng, seen = np.random.default_rng(0), []

        def f(x: np.ndarray, rng: np.random.Generator = rng, seen: list[np.ndarray] = seen) -> float:
            seen.append(x.copy())
            return sphere(x) + 0.1 * rng.standard_normal()

        names.append(minimize(f, np.zeros(20), bounds=[(-5, 5)] * 20, budget=budget, seed=0).strategy)
        spreads.append(float(np.std(seen[4:16])))  # behind the four values at x0
    assert names[0].startswith("separable CMA-ES")
    assert names[1].startswith("CMA-ES")
    assert spreads[0] == pytest.approx(spreads[1] / 4, rel=0.3)


def test_noise_that_begins_elsewhere_is_seen_during_the_run() -> None:
    """Four equal values at x0 can lie."""
    rng = np.random.default_rng(0)
    result = minimize(lambda x: sphere(x) + 0.05 * rng.normal() * float(np.any(x)), np.zeros(10), budget=3000)
    assert "values that were equal at x0 differ elsewhere" in result.reason
    assert result.strategy.startswith("L-BFGS-B (SciPy)")
    assert result.strategy.endswith("CMA-ES (pycma)")
    assert sphere(result.x) < 0.3


def test_few_evaluations_a_variable_take_the_two_point_method() -> None:
    result = minimize(sphere, np.zeros(300), budget=900)
    assert result.strategy == "zo_sgd"
    assert "3 a variable, too few for finite differences" in result.reason
    assert result.fun < 0.7 * 300
    assert (result.lr or 0) > 0
    assert (result.mu or 0) > 0


def test_a_budget_that_is_given_is_used_to_look_on_and_none_stops_at_the_first_minimum() -> None:
    def two(x: np.ndarray) -> float:  # the wide minimum at 0 has the value 1, the one around 3 has 0
        return float(min(1 + x @ x, 4 * (x - 3) @ (x - 3)))

    first = minimize(two, np.zeros(2) + 0.5)
    assert first.fun == pytest.approx(1)
    assert first.nfev < 200
    assert first.success
    more = minimize(two, np.zeros(2) + 0.5, budget=4000)
    assert more.fun < 0.1
    assert more.strategy.endswith("CMA-ES (pycma)")


# ---- the forms of x and of bounds ------------------------------------------------------------------------------------


def test_dicts_and_tensors_come_back_as_what_they_were() -> None:
    x0 = {"a": np.zeros((2, 2)), "b": np.ones(3, np.float32)}
    seen = set()

    def f(x: dict[str, np.ndarray]) -> float:
        seen.add((x["a"].shape, x["b"].dtype))
        return float(np.sum((x["a"] - 3) ** 2) + np.sum(x["b"] ** 2))

    result = minimize(f, x0)
    np.testing.assert_allclose(result.x["a"], 3, atol=1e-5)
    assert seen == {((2, 2), np.dtype(np.float32))}
    tensor = minimize(lambda x: ((x - 3) ** 2).sum(), torch.zeros(2, 2))
    assert isinstance(tensor.x, torch.Tensor)
    torch.testing.assert_close(tensor.x, torch.full((2, 2), 3.0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("method", ["auto", "cma", "lbfgs"])
def test_f_is_never_called_outside_of_its_bounds(method: str) -> None:
    low, high = np.array([0.0, -np.inf, 0.5, -1.0]), np.array([1.0, 2.0, 0.5, np.inf])

    def f(x: np.ndarray) -> float:
        assert np.all(x >= low)
        assert np.all(x <= high)
        return float(np.sum((x - 3) ** 2))

    pairs = [(0, 1), (None, 2), (0.5, 0.5), (-1, None)]
    result = minimize(f, np.array([0.0, 0.0, 0.5, 0.0]), method, bounds=pairs, budget=1500)
    np.testing.assert_allclose(result.x, [1, 2, 0.5, 3], atol=1e-3)


def test_noise_within_bounds_is_solved_without_pycma(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zograd.api.strategies.auto.available", lambda: False)
    rng = np.random.default_rng(0)

    def f(x: np.ndarray) -> float:
        assert np.all((x >= 0) & (x <= 1))
        return float(np.sum((x - [0.3, 0.7, 3.0]) ** 2)) + 0.01 * rng.normal()

    with pytest.warns(UserWarning, match="another value"):
        result = minimize(f, np.full(3, 0.5), bounds=(0, 1), budget=2000, seed=0)
    assert "zo_sgd" in str(result.strategy)
    np.testing.assert_allclose(result.x, [0.3, 0.7, 1.0], atol=0.05)


def test_bounds_that_cannot_be_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"x0\[1\] = 5 is outside of its bounds \[0, 1\]; start inside"):
        minimize(sphere, np.array([0.5, 5.0]), bounds=(0, 1))
    with pytest.raises(ValueError, match="bounds of variable 0: low = 2 > high = 1"):
        minimize(sphere, np.zeros(2), bounds=[(2, 1), (0, 1)])
    with pytest.raises(ValueError, match=r"bounds has 3 pairs, but x0 has 2 variables"):
        minimize(sphere, np.zeros(2), bounds=[(0, 1)] * 3)


# ---- the strategies --------------------------------------------------------------------------------------------------


def test_finite_differences_follow_scipy_with_exact_gradients() -> None:
    """On a quadratic the iterates end at the same point, within the error of differences."""
    from scipy.optimize import minimize as scipy_minimize

    rng = np.random.default_rng(0)
    a = rng.normal(size=(8, 8))
    h = a @ a.T + np.eye(8)
    b = rng.normal(size=8)
    exact = scipy_minimize(lambda x: 0.5 * x @ h @ x - b @ x, np.zeros(8), jac=lambda x: h @ x - b, method="L-BFGS-B",
                           options={"ftol": 0, "gtol": 1e-12})  # fmt: skip
    for kind in ("forward", "central", "both"):
        result = minimize(lambda x: float(0.5 * x @ h @ x - b @ x), np.zeros(8), LBFGS(kind))
        np.testing.assert_allclose(result.x, exact.x, atol=1e-6)


def test_a_gradient_is_one_request_of_d_points() -> None:
    """So that workers evaluate them at once."""
    search = Search(LBFGS("forward"), Problem(Variables(np.zeros(20))), 10_000)
    sizes = []
    while (request := search.ask()) is not None:
        sizes.append(len(request))
        search.tell([sphere(x) for x in request])
    assert 20 in sizes
    assert set(sizes) <= {1, 2, 20}


@pytest.mark.parametrize(
    "strategy", [Auto(), LBFGS(), CMA(sigma=0.5), OfMenu(methods.zo_sgd(lr=0.1))], ids=lambda s: s.name
)
def test_the_same_values_ask_for_the_same_points(strategy: Strategy) -> None:
    """The values told are the whole state of a search: told again, they lead to the same place, without f."""
    problem = Problem(Variables(np.resize([-1.2, 1.0], 6)), seed=3)
    first, told, asked = Search(strategy, problem, 600), [], []
    while (request := first.ask()) is not None and len(told) < 60:
        asked.append(np.stack(list(request)))
        told.append([rosenbrock(x) for x in asked[-1]])
        first.tell(told[-1])
    again = Search(strategy, problem, 600)
    for points, values in zip(asked, told, strict=True):
        np.testing.assert_array_equal(np.stack(list(again.ask() or ())), points)
        again.tell(values)
    np.testing.assert_array_equal(again.x, first.x)
    assert again.tape == first.tape


def test_cma_leaves_the_global_random_state_alone() -> None:
    np.random.seed(5)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    minimize(sphere, np.zeros(4), "cma", budget=300)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_cma_ranks_failures_last() -> None:
    rng = np.random.default_rng(0)
    result = minimize(lambda x: math.nan if rng.random() < 0.2 else sphere(x), np.zeros(5), "cma", budget=3000)
    assert result.nfail > 300
    assert sphere(result.best_x) < 1e-3


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(ImportError, match=r"CMA-ES needs the package cma: pip install 'zograd\[blackbox\]'"):
        minimize(sphere, np.zeros(3), "cma")


def test_a_solver_that_calls_f_becomes_a_generator() -> None:
    def solve(ask: Callable[[int], int]) -> int:
        return sum(ask(i) for i in range(3))

    routine = inverted(solve)
    assert [next(routine), routine.send(0), routine.send(10)] == [0, 1, 2]
    with pytest.raises(StopIteration) as stop:
        routine.send(20)
    assert stop.value.value == 30


def test_a_closed_generator_ends_its_thread_and_errors_pass_through() -> None:
    before = threading.active_count()
    routine = inverted(lambda ask: ask("question"))
    assert next(routine) == "question"
    assert threading.active_count() == before + 1
    routine.close()
    assert threading.active_count() == before

    def fails(ask: Callable[[str], str]) -> None:
        raise ZeroDivisionError("in the solver")

    with pytest.raises(ZeroDivisionError, match="in the solver"):
        next(inverted(fails))


def test_a_method_that_was_not_called_is_refused_in_a_sentence() -> None:
    with pytest.raises(TypeError, match=r"method=zo_sgd is a function; call it, such as methods.zo_sgd\(\)"):
        minimize(sphere, np.zeros(2), methods.zo_sgd)


def test_the_result_is_scipys_and_prints_short() -> None:
    from scipy.optimize import OptimizeResult

    result = minimize(sphere, np.zeros(1000), budget=20_000)
    assert isinstance(result, OptimizeResult)
    assert result["x"] is result.x
    assert len(str(result)) < 1500
    again = pickle.loads(pickle.dumps(result))
    assert again.fun == result.fun


def test_maximize_is_the_mirror_image() -> None:
    up = minimize(lambda x: -rosenbrock(x), np.zeros(4), maximize=True)
    down = minimize(rosenbrock, np.zeros(4))
    np.testing.assert_array_equal(up.x, down.x)
    assert up.fun == -down.fun
    assert up.best_fun == -down.best_fun


def test_the_target_and_the_time_end_a_run() -> None:
    result = minimize(rosenbrock, np.zeros(5), target=0.5)
    assert result.message == "target reached"
    assert result.success
    assert result.best_fun <= 0.5
    assert result.nfev < 300
    result = minimize(rosenbrock, np.zeros(5), methods.zo_sgd(lr=1e-4), seconds=0.0, budget=10**6)
    assert result.message.startswith("time used")
    assert (result.nit, result.nfev) == (0, 2)


# ---- values on a grid ------------------------------------------------------------------------------------------------


def rounded(x, width: float = 0.01, at: float = 1.0) -> float:
    """The sphere about `at`, rounded to multiples of a width."""
    return round(float(np.sum((x - at) ** 2)) / width) * width


@pytest.mark.parametrize(("method", "budget"), [("auto", None), ("auto", 600), ("lbfgs", 2000), ("zo_sgd", 2000)])
@pytest.mark.parametrize(("width", "at"), [(0.01, 1.0), (1.0, 5.0)])
def test_a_rounded_sphere_is_minimized(method: str, budget: int | None, width: float, at: float) -> None:
    """d = 10; differences that are exactly 0 say that the radius is too small."""
    result = minimize(lambda x: rounded(x, width, at), np.zeros(10), method, budget=budget)
    assert result.fun <= 2 * width
    if method == "lbfgs":
        assert "as far as values show that lie" in result.message


def test_differences_of_a_rounded_function_in_many_dimensions() -> None:
    """d = 100, five evaluations a variable: 64 % of f(x0) were left where the first jump counted as a slope."""
    result = minimize(rounded, np.zeros(100), budget=500)
    assert result.fun < 0.1 * rounded(np.zeros(100))


def test_the_radius_stands_still_on_the_floor_of_a_staircase() -> None:
    """At the minimum all values near are equal; the radius grows until it leaves the step, and no further."""
    result = minimize(lambda x: float(np.sum(np.round(x) ** 2)), np.full(5, 3.0), "zo_sgd", budget=4000)
    assert result.fun <= 1
    assert 0.1 < result.mu <= 4


def test_the_end_of_a_restart_does_not_count_as_a_fall() -> None:
    """CMA-ES begins high after a restart, but its best value stands."""
    result = minimize(lambda x: float(round(float(np.sum((x - 1) ** 2)))), np.zeros(10), "cma", budget=2000)
    assert result.fun == 0
    assert result.success, result.message
