"""`Result.success`: true only where f came down; otherwise the message says in a sentence why, and what to do."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from tests.turns import in_turn
from zograd import methods, minimize
from zograd.core.run import Method
from zograd.estimators import Central
from zograd.laws import Rademacher
from zograd.learning_rate import AutoRate, TrustRate
from zograd.methods.defaults import BLACK_BOX_LR, FULL, LORA, SCALES, black_box, language_model
from zograd.rules import SGD
from zograd.sets import L1, L1Ball
from zograd.spaces import PositiveOrthant

pytestmark = pytest.mark.filterwarnings("ignore:f.x0. gave:UserWarning")  # noise that no batch and no seed explains

NAMES = [name for name in methods.names() if not methods.describe(name)["required"]]


def rosenbrock(x: np.ndarray) -> float:
    return float(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))


def noisy() -> Callable[[np.ndarray], float]:
    rng = np.random.default_rng(0)
    return lambda x: float(np.sum((x - 1) ** 2) + 0.1 * rng.normal())


STARTS = {
    "rosenbrock-2": (lambda: rosenbrock, np.array([-1.2, 1.0])),
    "rosenbrock-10": (lambda: rosenbrock, np.tile([-1.2, 1.0], 5)),
    "steep": (lambda: lambda x: 1e6 * float(np.sum((x - 1) ** 2)), np.full(10, 2.0)),
    "flat": (lambda: lambda x: 1e-6 * float(np.sum((x - 1) ** 2)), np.full(10, 2.0)),
    "l1": (lambda: lambda x: float(np.abs(x - 1).sum()), np.full(5, 2.0)),
    "noisy-sphere": (noisy, np.full(10, 2.0)),
}
TRUE_VALUE = {"noisy-sphere": lambda x: float(np.sum((x - 1) ** 2))}
REASONS = (
    "x did not move: ",
    "f rose, from ",
    "f hardly came down, from ",
    "f did not come down by more than its noise, from ",
    "the budget ended while f was falling: ",
)


@pytest.mark.parametrize(("name", "problem"), in_turn(NAMES, list(STARTS), (str, str), each=1))
def test_every_name_descends_or_says_why_not(name: str, problem: str) -> None:
    make, x0 = STARTS[problem]
    if isinstance(methods.make(name).space, PositiveOrthant):
        x0 = np.abs(x0)
    result = minimize(make(), x0, name, budget=600, seed=1)
    f = TRUE_VALUE.get(problem, make())
    if result.success:
        assert f(result.x) < f(x0) - 0.001 * abs(f(x0)) * (result.nit >= 10)
        assert result.message == "budget used"
    else:
        assert result.message.startswith(REASONS)
        assert result.message.count("; ") >= 1, "a reason and a remedy"
        if result.message.startswith("the budget ended while f was falling"):
            assert f(result.x) < f(x0)
        else:
            assert not f(result.x) < 0.9 * f(x0), "what clearly came down is a success"


@pytest.mark.parametrize("problem", ["steep", "flat", "rosenbrock-2", "rosenbrock-10"])
def test_the_default_descends_on_smooth_functions_of_any_scale(problem: str) -> None:
    make, x0 = STARTS[problem]
    for seed in range(3):
        result = minimize(make(), x0, budget=2000, seed=seed)
        assert result.success
        assert result.fun < 0.2 * make()(x0)


def test_a_runaway_is_no_success_and_a_rate_that_works_is_named() -> None:
    """The lr of the message, tried, descends."""
    x0 = np.array([-1.2, 1.0])
    result = minimize(rosenbrock, x0, methods.zo_sgd(lr=1e-2), budget=2000)
    assert result.fun > 1e50
    assert not result.success
    assert result.message.startswith("f rose, from 24.2 at x0 to ")
    assert result.message.endswith("steps were too long; try methods.zo_sgd(lr=0.001)")
    again = minimize(rosenbrock, x0, methods.zo_sgd(lr=1e-3), budget=2000)
    assert again.success
    assert again.fun < 5


def test_a_runaway_of_a_measured_rate_is_no_success() -> None:
    """Along signs the curvatures 2 and -2 cancel, and what is left asks for a rate of 671,126."""
    f, x0 = (lambda x: float(x[0] ** 2 - x[1] ** 2 + 0.1 * x[1] ** 4)), np.array([1.0, 1e-3])
    result = minimize(f, x0, methods.zo_sgd(lr="auto", n=4), budget=600, seed=1)
    assert result.fun > 1e3
    assert not result.success
    assert result.message.endswith(
        "steps were too long; try methods.zo_sgd(lr=0.01), or lr=zograd.learning_rate.TrustRate(), which takes such "
        "steps back"
    )
    assert minimize(f, x0, methods.zo_sgd(lr=TrustRate(), n=4), budget=600).success


def test_a_kink_has_no_measured_rate() -> None:
    """The rounding of its second differences was taken for curvature, and |x - 1| ran away."""
    f, x0 = (lambda x: float(np.abs(x - 1).sum())), np.zeros(5)
    result = minimize(f, x0, methods.mezo(lr="auto"), budget=600)
    assert (result.success, result.fun) == (False, 5.0)
    assert "lr='auto' needs positive curvature and found none" in result.message
    assert minimize(f, x0, methods.mezo(lr=0.01), budget=600).success
    assert minimize(f, x0, methods.mezo(lr=TrustRate()), budget=600).success


def test_nothing_that_moved_is_no_success() -> None:
    x0 = np.zeros(5)
    straight = minimize(lambda x: float(np.sum(x)), x0, methods.zo_sgd(lr="auto"), budget=100)
    assert not straight.success
    assert "lr='auto' needs positive curvature" in straight.message
    assert straight.message.endswith("lr=zograd.learning_rate.TrustRate(), which needs none")
    assert minimize(lambda x: float(np.sum(x)), x0, methods.zo_sgd(lr=TrustRate()), budget=100).fun < -1
    np.testing.assert_array_equal(straight.x, x0)
    penalised = minimize(lambda x: float(np.sum(x)), x0, methods.zo_prox(L1(0.1), lr="auto"), budget=100)
    assert penalised.message.endswith("pass a number for lr")  # TrustRate judges the loss alone
    lost = minimize(lambda x: float(np.sum((x - 2e9) ** 2)), np.full(3, 1e9, np.float32),
                    methods.zo_sgd(lr=1e-12, mu=1e3), budget=100)  # fmt: skip
    assert not lost.success
    assert "smaller than the spacing of its numbers; pass a larger lr, or x0 in float64" in lost.message
    still = minimize(lambda x: float(np.sum(x**2)), x0, methods.zo_sgd(lr=0.1), budget=100)
    assert (still.success, still.fun) == (False, 0.0)
    assert "no step found a way down from x0; pass a smaller lr or mu, or start elsewhere" in still.message


@pytest.mark.parametrize(
    ("f", "x0"),
    [
        (lambda x: 1.0, np.ones(3)),
        (lambda x: float(np.sum((np.round(x) - 3) ** 2)), np.zeros(5)),
        (lambda x: float(np.sum((x.astype(np.float64) - 1.5e6) ** 2)), np.array([1e6, 1e6], np.float32)),
        (lambda x: float(np.sum(((x - 1.5e15) / 1e15) ** 2)), np.array([1e15, 1e15])),
    ],
    ids=["constant", "rounded", "float32", "float64"],
)
@pytest.mark.parametrize("name", ["zo_adam", "rank", "zo_adamm"])
def test_flat_steps_are_no_success(name: str, f, x0: np.ndarray) -> None:
    result = minimize(f, x0, name, budget=200)
    assert not result.success
    assert result.message.startswith("f did not change within mu=0.000977 of x in any of")
    assert "pass a larger mu" in result.message


def test_refused_steps_alone_are_no_success() -> None:
    """Also where the budget ends before `max_failures`, and though f is finite at x0 and at the result."""
    x0 = np.ones(3)
    result = minimize(lambda x: 1.0 if np.array_equal(x, x0) else math.nan, x0, "zo_sgd", budget=20, max_failures=100)
    assert (result.success, result.fun) == (False, 1.0)
    assert result.message.startswith(f"all {result.nit} steps had a non-finite value; start where f is finite")


def test_a_rise_after_a_stop_by_the_callback_is_told_too() -> None:
    result = minimize(rosenbrock, np.array([-1.2, 1.0]), methods.zo_sgd(lr=1e-2), callback=lambda r: r.loss > 1e6)
    assert not result.success
    assert result.message.startswith("stopped by the callback; f rose, from 24.2 at x0")


def test_steps_that_are_too_short_are_told() -> None:
    f, x0 = (lambda x: 1e-6 * float(np.sum((x - 1) ** 2))), np.zeros(10)
    result = minimize(f, x0, methods.zo_sgd(lr=1e-2), budget=2000)
    assert result.fun < f(x0)
    assert not result.success
    assert "hardly came down" in result.message
    assert result.message.endswith("steps are too short; pass a larger lr than 0.01")


def test_a_start_next_to_the_minimum_that_is_found_is_a_success() -> None:
    """The move is shorter than a probe, and the slope has gone."""
    result = minimize(lambda x: 1.0 + float(np.sum(x**2)), np.full(5, 1e-5), methods.zo_sgd(lr=0.05), budget=400)
    assert result.success
    assert np.abs(result.x).max() < 1e-7


def test_noise_alone_is_no_descent() -> None:
    """f is noise around a constant: of the final values about half are below that at x0, none is a success."""
    below = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        result = minimize(lambda x, rng=rng: float(rng.normal()), np.zeros(4), methods.zo_sgd(lr=1e-9), budget=300)
        below += result.fun < 0
        assert not result.success
        assert "by more than its noise" in result.message
    assert 3 < below < 17


def test_descent_through_noise_is_seen() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        f = lambda x, rng=rng: float(np.sum((x - 1) ** 2) + rng.normal())  # noqa: E731
        result = minimize(f, np.zeros(4), methods.zo_sgd(lr=0.02, mu=0.5), budget=2000, seed=seed)
        assert np.sum((result.x - 1) ** 2) < 1
        assert result.success


def test_f_at_x0_is_paid_from_the_budget() -> None:
    """Two values of f(x0) and one at the result; with a finite sum one of each, of all terms."""
    x0, seen = np.linspace(0, 1, 4), []
    result = minimize(lambda x: seen.append(x.copy()) or float(x @ x), x0, methods.zo_sgd(lr=0.1), budget=101)
    assert result.nfev == len(seen) == 101
    np.testing.assert_array_equal(seen[0], x0)
    np.testing.assert_array_equal(seen[1], x0)
    np.testing.assert_array_equal(seen[-1], result.x)
    counted = []
    f = lambda x, rows: counted.append(len(rows)) or float(np.mean(x[rows % 4] ** 2))  # noqa: E731
    result = minimize(f, x0, methods.zo_sgd(lr=0.1), terms=8, budget=8 * 20)
    assert result.nfev == sum(counted) == 160


def test_names_take_a_measured_rate_where_it_can_be_measured() -> None:
    for name in NAMES:
        method = black_box(name, 5)
        try:
            measured = not methods.make(name, lr="auto").rule.preconditions  # Adam's rate is measured on request
        except ValueError:
            measured = False
        if not measured:
            assert not isinstance(method.lr, AutoRate)
            if "lr" in methods.describe(name)["defaults"]:
                assert method.lr.peak == BLACK_BOX_LR
        else:
            assert isinstance(method.lr, AutoRate)
    assert black_box("zo_orthogonal", 3).estimator.n == 3
    assert black_box("zo_orthogonal", 30).estimator.n == 8


def test_language_models_take_the_numbers_of_the_menu_scaled() -> None:
    menu = methods.describe("mezo")["defaults"]
    assert language_model("mezo", FULL) == {"lr": menu["lr"], "mu": menu["mu"]}
    assert language_model("mezo", LORA) == {"lr": 100 * menu["lr"], "mu": 2.0**-7}
    assert language_model("mezo", SCALES) == {"lr": 1000 * menu["lr"], "mu": 2.0**-7}
    assert language_model("cbo", FULL).keys() == {"mu"}


def test_a_set_and_a_custom_method_say_it_too() -> None:
    result = minimize(lambda x: -float(np.sum(x)), np.zeros(3), methods.frank_wolfe(L1Ball(1.0)), budget=200)
    assert result.success
    custom = Method(Central(), Rademacher(), SGD(), lr=1.0)
    result = minimize(lambda x: 1e3 * float(x @ x), np.ones(3), custom, budget=50)
    assert result.message.endswith("steps were too long; pass a smaller lr, such as lr=0.01")
