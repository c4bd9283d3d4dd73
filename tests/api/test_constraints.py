"""Constraints of `minimize`: known optima, multipliers that make the gradient vanish, and honest ends."""

from __future__ import annotations

import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, NonlinearConstraint, approx_fprime
from scipy.optimize import minimize as scipy_minimize

import zograd as zo
from benchmarks.constraints import PROBLEMS, Case
from zograd.api.constraints import Evaluated, as_rows
from zograd.api.variables import Variables
from zograd.problems.stiefel import trace as eigenspace

HS6, HS7, HS71, HS100, PLANE = PROBLEMS


def solved(case: Case, **settings):
    """The result, with the checks that hold for every one: evaluations are counted, and c is that of x."""
    calls = []

    def f(x):
        calls.append(1)
        return case.both(x)

    x0 = np.array(case.x0)
    res = zo.minimize(f, x0, bounds=case.bounds, constraints=zo.Constraints(case.at_most, case.equal), **settings)
    assert res.nfev == len(calls)
    np.testing.assert_array_equal(res.constraints, case.both(res.x)[1])
    return res


@pytest.mark.parametrize("method", ["auto", "lbfgs"])
@pytest.mark.parametrize("case", PROBLEMS, ids=lambda c: c.name)
def test_known_optima(case: Case, method: str) -> None:
    """SLSQP on shared differences, and the augmented Lagrangian alone: within 1e-4, violation at most 1e-6."""
    res = solved(case, method=method)
    assert res.success, res.message
    assert abs(res.fun - case.best) <= 1e-4 * max(abs(case.best), 1.0)
    assert res.maxcv <= 1e-6
    assert res.nfev <= (250 if method == "auto" else 2500)


@pytest.mark.parametrize("method", ["auto", "lbfgs"])
@pytest.mark.parametrize("case", [HS7, HS71, HS100, PLANE], ids=lambda c: c.name)
def test_multipliers_make_the_gradient_vanish(case: Case, method: str) -> None:
    """grad f + sum lam grad c = 0 but for bounds that x lies on; lam >= 0 and lam c = 0 for inequalities."""
    res = solved(case, method=method)
    slope = approx_fprime(res.x, case.f, 1e-7)
    rows = np.array(
        [approx_fprime(res.x, lambda x, i=i: case.both(x)[1][i], 1e-7) for i in range(len(res.constraints))]
    )
    rest = slope + res.multipliers @ rows
    inside = np.ones(res.x.size, bool) if case.bounds is None else (res.x > 1 + 1e-6) & (res.x < 5 - 1e-6)
    assert np.max(np.abs(rest[inside])) <= 2e-3 * np.linalg.norm(slope)
    lam, c = res.multipliers[: case.at_most], res.constraints[: case.at_most]
    assert np.all(lam >= 0)
    assert np.all(np.abs(lam * c) <= 1e-3)


def test_the_objects_of_scipy_give_the_same_problem() -> None:
    """HS71 as NonlinearConstraint, as dicts and as values of f; f is called once an evaluation."""
    nonlinear = [NonlinearConstraint(np.prod, 25, np.inf), NonlinearConstraint(lambda x: x @ x, 40, 40)]
    dicts = [{"type": "ineq", "fun": lambda x, a: np.prod(x) - a, "args": (25,)},
             {"type": "eq", "fun": lambda x: x @ x - 40}]  # fmt: skip
    found = []
    for constraints in (nonlinear, dicts):
        calls = []
        res = zo.minimize(lambda x, calls=calls: calls.append(1) or HS71.f(x), HS71.x0, bounds=Bounds(1, 5),
                          constraints=constraints)  # fmt: skip
        assert res.nfev == len(calls)
        found.append(res)
    own = solved(HS71)
    for res in found:
        np.testing.assert_allclose(res.x, own.x, atol=1e-5)
        np.testing.assert_allclose(res.multipliers, own.multipliers, atol=1e-4)


def test_rows_of_two_sided_constraints() -> None:
    variables = Variables(np.array([2.0, 3.0]))
    rows = as_rows([LinearConstraint([[1, 1], [1, -1]], [0, 7], [4, 7]),
                    NonlinearConstraint(lambda x: [x[0], x[1], x[0] * x[1]], [-np.inf, 1, 0], [1, np.inf, 9])],
                   variables)  # fmt: skip
    value, c = rows.around(lambda x: 5.0)(variables.flat)
    assert value == 5.0
    assert c.tolist() == [1.0, -5.0, -8.0, 1.0, -2.0, -3.0, -6.0]
    assert rows.kinds == ("at most", "at most", "equal", "at most", "at most", "at most", "at most")
    assert rows.names[1] == "constraint 0, value 0, lower bound"
    assert rows.linear.tolist() == [True] * 3 + [False] * 4
    assert rows.excess(c).tolist() == [1.0, 0.0, 8.0, 1.0, 0.0, 0.0, 0.0]
    a, b = rows.matrix
    np.testing.assert_array_equal(a @ variables.flat - b, c[:3])


def disk(x):
    """The distance from (2, 1), undefined outside of the unit disk."""
    c = x @ x - 1
    return (math.nan if c > 0 else float((x[0] - 2) ** 2 + (x[1] - 1) ** 2)), [c]


def test_f_undefined_outside_gets_a_barrier() -> None:
    res = zo.minimize(disk, np.zeros(2), constraints=zo.Constraints(at_most=1))
    assert res.success
    assert res.fun == pytest.approx((math.sqrt(5) - 1) ** 2, rel=1e-4)
    assert res.maxcv == 0
    assert res.multipliers[0] == pytest.approx(math.sqrt(5) - 1, rel=0.05)
    assert "got a barrier" in res.reason


def test_keep_feasible_never_calls_f_outside() -> None:
    def f(x):
        assert x @ x <= 1
        return disk(x)[0]

    inside = NonlinearConstraint(lambda x: x @ x, -np.inf, 1, keep_feasible=True)
    res = zo.minimize(f, np.zeros(2), constraints=inside)
    assert res.success
    assert res.fun == pytest.approx((math.sqrt(5) - 1) ** 2, rel=1e-4)
    outside = zo.minimize(lambda x: float(x @ x), np.full(2, 2.0), constraints=inside)
    assert not outside.success
    assert "constraint 0 has keep_feasible, but is 7 at x0" in outside.message


@pytest.mark.parametrize("exact", [True, False])
def test_in_noise_the_mean_is_feasible(exact: bool) -> None:
    """min |x|^2 s.t. sum x >= 2, noise 1e-3: the optimum is 0.4 with the multiplier 0.4."""
    rng = np.random.default_rng(5)

    def f(x):
        value = float(x @ x + 1e-3 * rng.standard_normal())
        return value if exact else (value, [2 - x.sum() + 1e-3 * rng.standard_normal()])

    constraints = LinearConstraint(np.ones(10), 2, np.inf) if exact else zo.Constraints(at_most=1)
    res = zo.minimize(f, np.ones(10), constraints=constraints, budget=4000, seed=1)
    assert res.success, res.message
    assert res.x.sum() >= 2 - (1e-9 if exact else 1e-3)
    assert res.x @ res.x == pytest.approx(0.4, rel=0.02)
    assert 0.1 < res.multipliers[0] < 0.8
    assert res.nfev <= 4000


def test_values_that_differ_elsewhere_are_noticed() -> None:
    rng = np.random.default_rng(0)

    def f(x):
        return float(x @ x) + (0.0 if x[0] > 1.9 else 0.01 * rng.standard_normal()), [1 - x[0]]

    res = zo.minimize(f, np.full(2, 2.0), constraints=zo.Constraints(at_most=1), budget=1500)
    assert res.noise > 0
    assert "CMA" in res.strategy or "cr_fm_nes" in res.strategy
    assert abs(res.x[0] - 1) < 0.05


def test_a_violated_constraint_is_named() -> None:
    contradiction = zo.minimize(lambda x: (float(x @ x), [1 - x[0], x[0] + 1]), np.zeros(2),
                                constraints=zo.Constraints(at_most=2), budget=2000)  # fmt: skip
    assert not contradiction.success
    assert "c[0] is violated by 1" in contradiction.message
    assert contradiction.maxcv == pytest.approx(1.0, rel=0.01)
    short = solved(HS100, budget=30)
    assert not short.success
    assert short.status in (1, 2)


def test_a_minimum_that_is_no_minimum_of_the_lagrangian_is_no_success() -> None:
    """min sum x s.t. min x >= 0 has its kink at the solution: what is found is not worse than x0, and not praised."""
    res = zo.minimize(lambda x: (float(x.sum()), [-float(x.min())]), np.zeros(3), constraints=zo.Constraints(at_most=1),
                      budget=1000)  # fmt: skip
    assert res.fun <= 0
    assert not res.success
    stopped = solved(HS100, callback=lambda intermediate_result: intermediate_result.nit >= 2)
    assert stopped.message.startswith("stopped by the callback")


def test_maximize_names_and_executors() -> None:
    def f(x):
        return float(x["a"].sum() + x["b"]), [x["a"] @ x["a"] + x["b"] ** 2 - 3]

    x0 = {"a": np.full(2, 0.1), "b": 0.1}
    res = zo.minimize(f, x0, constraints=zo.Constraints(at_most=1), maximize=True)
    assert res.success
    assert res.fun == pytest.approx(3.0, rel=1e-5)
    np.testing.assert_allclose(res.x["a"], 1.0, atol=1e-3)
    with ThreadPoolExecutor(2) as pool:
        again = zo.minimize(f, x0, constraints=zo.Constraints(at_most=1), maximize=True, executor=pool)
    assert again.fun == res.fun
    value = pickle.loads(pickle.dumps(Evaluated(2.0, [1.0, -1.0])))
    assert value == 2.0
    assert value.c.tolist() == [1.0, -1.0]


def test_a_method_of_the_menu_with_constraints() -> None:
    res = solved(PLANE, method="zo_sgd", budget=2000)
    assert res.strategy == "augmented Lagrangian, then zo_sgd"
    assert res.fun == pytest.approx(PLANE.best, rel=0.05)
    assert res.maxcv <= 0.01


def test_sets_and_spaces_choose_the_method() -> None:
    center = np.linspace(-1, 2, 8)

    def f(x):
        return float(np.sum((x - center) ** 2))

    def inside(x):
        assert np.abs(x).sum() <= 1 + 1e-6
        return f(x)

    ball = zo.minimize(inside, np.zeros(8), constraints=zo.sets.L1Ball(1.0), budget=500)
    assert ball.strategy == "fd_fista"
    assert np.abs(ball.x).sum() <= 1 + 1e-6
    assert ball.success
    several = zo.minimize(
        lambda x: inside(np.concatenate([x["a"], x["b"]])), {"a": np.zeros(3), "b": np.zeros(5)},
        constraints=zo.sets.L1Ball(1.0), budget=500,
    )  # fmt: skip
    assert several.strategy == "frank_wolfe"
    assert several.fun > ball.fun
    expected = scipy_minimize(f, np.zeros(8), bounds=[(0, None)] * 8).fun
    boxes = (zo.sets.NonNegative(), zo.sets.Box(0.0, np.inf), zo.sets.Box(np.zeros(8), np.full(8, 9.0)))
    for box in boxes:  # bounds, which L-BFGS-B takes
        bounded = zo.minimize(f, np.ones(8), constraints=box, budget=300)
        assert "L-BFGS-B" in bounded.strategy
        assert bounded.fun == pytest.approx(expected, abs=1e-6)
    assert np.abs(zo.minimize(f, np.zeros(8), constraints=zo.sets.LInfBall(0.5)).x).max() == 0.5
    sphere = zo.minimize(lambda x: float(x[0]), np.full(4, 0.5), space=zo.spaces.Sphere(), budget=500)
    assert "L-BFGS-B" in sphere.strategy
    assert sphere.strategy.endswith("in coordinates of Sphere")
    assert sphere.x @ sphere.x == pytest.approx(1.0)
    assert sphere.fun == pytest.approx(-1.0, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_coordinates_of_frames_reach_the_leading_eigenspace(seed: int) -> None:
    """By tangent vectors 1 % of the gap was left after 3,000 evaluations, since a frame far away is at infinity."""
    problem = eigenspace(20, 3, seed)
    res = zo.minimize(problem.value, problem.x0, space=zo.spaces.Stiefel(), budget=1_000)
    assert res.fun - problem.minimum <= 0.01 * (problem.value(problem.x0) - problem.minimum)
    np.testing.assert_allclose(res.x.T @ res.x, np.eye(3), atol=1e-12)


@pytest.mark.parametrize(("settings", "error", "sentence"), [
    ({"constraints": 3}, TypeError, "pass scipy.optimize.LinearConstraint"),
    ({"constraints": zo.sets.L1(0.1)}, TypeError, "a penalty goes into"),
    ({"constraints": {"type": "le", "fun": abs}}, ValueError, "type='le'"),
    ({"constraints": LinearConstraint(np.ones(3))}, ValueError, "A has shape"),
    ({"constraints": zo.Constraints(at_most=1)}, TypeError, "f has to return"),
    ({"constraints": zo.sets.L1Ball(1.0), "method": "cma"}, TypeError, "leave method out"),
    ({"space": zo.spaces.Sphere(), "method": "lbfgs"}, TypeError, "moves in flat space"),
    ({"integrality": [0, 1]}, ValueError, r"write cma.fmin2\(f, x0, 0.5, {'integer_variables': \[1\]}\); with Optuna"),
    ({"constraints": {"type": "eq", "fun": np.sum}, "terms": 3}, ValueError, "do not go together"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(settings, error, sentence) -> None:
    with pytest.raises(error, match=sentence):
        zo.minimize(lambda x, *_: float(x @ x), np.ones(2), **settings)


# ---- one question at a time ------------------------------------------------------------------------------------------


def near_disk(x: Any) -> tuple[float, list[float]]:
    """The squared distance from (2, 0), within the unit disk; the slope of c vanishes at 0."""
    return float((x[0] - 2) ** 2 + x[1] ** 2), [float(x[0] ** 2 + x[1] ** 2 - 1)]


@pytest.mark.parametrize("method", ["auto", "lbfgs", "cma", "zo_sgd"])
def test_a_constraint_whose_slope_vanishes_at_the_start(method: str) -> None:
    res = zo.minimize(near_disk, np.zeros(2), method, constraints=zo.Constraints(at_most=1), budget=3000)
    assert res.success, res.message
    assert res.x == pytest.approx([1, 0], abs=0.05 if method == "zo_sgd" else 1e-4)
    assert res.multipliers == pytest.approx([1], abs=0.2 if method == "zo_sgd" else 1e-3)


def test_ask_and_tell_make_the_run_of_minimize() -> None:
    loop = zo.AskTell(np.zeros(2), "auto", constraints=zo.Constraints(at_most=1), budget=600)
    while not loop.done:
        loop.tell([near_disk(x) for x in loop.ask()])
    # minimize keeps one evaluation back for f at the result
    res = zo.minimize(near_disk, np.zeros(2), constraints=zo.Constraints(at_most=1), budget=601)
    assert loop.recommend().tobytes() == res.x.tobytes()
    assert loop.multipliers.tobytes() == res.multipliers.tobytes()
    assert loop.maxcv == res.maxcv <= 1e-6


def test_the_loop_calls_constraints_itself_and_goes_on_from_a_file(tmp_path) -> None:
    def rows() -> list[Any]:
        return [NonlinearConstraint(lambda x: x @ x, -np.inf, 1.0), LinearConstraint([[1.0, 1.0]], -1.0, 1.2)]

    loops = [zo.AskTell(np.zeros(2), "auto", constraints=rows(), budget=300, maximize=True) for _ in range(2)]
    for number, loop in enumerate(loops):
        while not loop.done:
            trials = loop.trials()
            for trial in reversed(trials[1:]):
                loop.report(trial, -near_disk(trial.x)[0])
            if number and trials:
                loop.save(tmp_path / "loop.json")
                loop = zo.AskTell.load(tmp_path / "loop.json", constraints=rows())
            if trials:
                loop.report(trials[0].id, -near_disk(trials[0].x)[0])
        loops[number] = loop
    assert loops[0].recommend() == pytest.approx([1, 0], abs=1e-4)
    assert loops[0].recommend().tobytes() == loops[1].recommend().tobytes()
    with pytest.raises(ValueError, match=r"saved with constraints .*but those passed are None; pass the same again"):
        zo.AskTell.load(tmp_path / "loop.json")


def test_what_ask_and_tell_refuse() -> None:
    with pytest.raises(TypeError, match=r"is a set, which AskTell takes as its method: methods.frank_wolfe\(set\)"):
        zo.AskTell(np.zeros(2), constraints=zo.sets.L1Ball(1.0))
    loop = zo.AskTell(np.zeros(2), "auto", constraints=zo.Constraints(at_most=1))
    points = loop.ask()
    with pytest.raises(TypeError, match=r"with AskTell tell\(\[\(value, \[c_1, ...\]\), ...\]\)"):
        loop.tell([1.0] * len(points))
    assert len(loop.ask()) == len(points)
    loop.tell([math.nan] * len(points))
    assert loop.done
    assert loop.message == "f or a constraint is not finite at x0; start where they are"


# ---- budgets of a few evaluations ------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 8, 13, 20])
@pytest.mark.parametrize("method", ["auto", "cma", "lbfgs", "zo_sgd"])
@pytest.mark.parametrize("start", [0.0, 2.0])
def test_a_few_evaluations_give_the_best_feasible_point_and_say_that_they_are_few(
    budget: int, method: str, start: float
) -> None:
    seen: list[tuple[float, list[float]]] = []

    def f(x: Any) -> tuple[float, list[float]]:
        seen.append((float(np.sum((x - [2.0, 0.3, 0.3]) ** 2)), [float(x @ x - 1)]))
        return seen[-1]

    try:
        res = zo.minimize(f, np.full(3, start), method, constraints=zo.Constraints(at_most=1), budget=budget)
    except ValueError as why:
        assert "less than one step and the final value: use at least" in str(why)  # noqa: PT017
        assert not seen
        return
    assert len(seen) == res.nfev <= budget
    feasible = [value for value, c in seen if c[0] <= 0]
    assert res.maxcv <= 1e-6 or not feasible
    assert res.fun <= min(feasible, default=math.inf) + 1e-9
    assert not res.success
    assert "pass a larger budget" in res.message


@pytest.mark.parametrize("equal", [False, True])
def test_a_noisy_constraint_holds_at_the_result_or_the_budget_is_used(equal: bool) -> None:
    """3 of 8 seeds held it: slopes were read from the last points, which lie closer together than the noise allows."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        one = NonlinearConstraint(lambda x, rng=rng: x @ x + 0.01 * rng.standard_normal(), 2 if equal else -math.inf, 2)
        f = lambda x, rng=rng: float(np.sum((x - 2) ** 2) + 0.01 * rng.standard_normal())  # noqa: E731
        found = zo.minimize(f, np.full(2, 0.1), constraints=one, seed=seed)
        assert found.success, found.message
        assert found.x @ found.x == pytest.approx(2, abs=0.015)
        assert np.sum((found.x - 2) ** 2) == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("form", ["array", "tensor", "dict"])
def test_a_constraint_may_write_into_its_x(form: str) -> None:
    """f, and the next constraint, got what it left: a success at 100, where f(x) is 20,000."""

    def part(x):
        return x["a"] if isinstance(x, dict) else x

    def c(x):
        inner = part(x)
        inner -= 100
        total = (inner + 100).sum()
        if isinstance(x, dict):
            x.clear()
        return total

    def f(x):
        return float((part(x) ** 2).sum())

    x0 = {"array": np.ones(2), "tensor": torch.ones(2, dtype=torch.float64), "dict": {"a": np.ones(2)}}[form]
    both = [NonlinearConstraint(c, 1, np.inf), {"type": "ineq", "fun": lambda x: c(x) - 1}]
    res = zo.minimize(f, x0, constraints=both)
    assert res.success
    assert f(res.x) == res.fun
    np.testing.assert_allclose(np.asarray(part(res.x)), 0.5, atol=1e-6)
    loop = zo.AskTell(x0, "auto", constraints=both, budget=300)
    while not loop.done:
        loop.tell([f(x) for x in loop.ask()])
    np.testing.assert_allclose(np.asarray(part(loop.recommend())), 0.5, atol=1e-6)
