"""mu="auto": the ladder, what noise asks for, and points that fail."""

from __future__ import annotations

import math

import numpy as np
import pytest

from zograd import AskTell, Method, methods, minimize
from zograd.estimators import Central
from zograd.laws import Rademacher
from zograd.learning_rate import AutoRadius, TrustRate
from zograd.methods.defaults import black_box
from zograd.problems.small import mlp_digits
from zograd.rules import SGD


def square(x: np.ndarray) -> float:
    return float(np.sum((x - 1) ** 2))


def noisy(sd: float, seed: int = 0):
    rng = np.random.default_rng(seed)
    return lambda x: square(x) + sd * float(rng.normal())


def walk(f, x0: np.ndarray, steps: int, **settings) -> AskTell:
    loop = AskTell(x0, methods.zo_sgd(lr=TrustRate(), mu="auto", **{"n": 4, **settings}), seed=1)
    for _ in range(steps):
        record = None
        while record is None:
            record = loop.tell([f(x) for x in loop.ask()])
    return loop


def test_a_radius_that_fits_costs_no_step() -> None:
    loop = walk(square, np.zeros(6), 3)
    assert [r.mu for r in loop.records] == [2.0**-10] * 3
    assert loop.records[0].rates[0].lr > 0


def test_the_record_has_the_radius_of_the_points() -> None:
    loop = AskTell(np.zeros(6), methods.zo_sgd(lr=TrustRate(), mu="auto", n=4), seed=1)
    f, seen = noisy(0.3), set()
    for _ in range(60):
        x, points = loop.x, loop.ask()
        record = loop.tell([f(p) for p in points])
        assert np.abs(points[0] - x).max() == pytest.approx(record.mu, rel=1e-9)
        seen.add(record.mu)
    assert len(seen) > 2


def test_the_ladder_finds_the_scale_of_a_function() -> None:
    rounded = walk(lambda x: float(np.sum((np.round(x) - 3) ** 2)), np.zeros(5), 12)
    assert 0.5 <= rounded.run.mu <= 2
    assert all(r.rates[0].lr == 0 and not r.vector for r in rounded.records if r.mu < 0.5)
    narrow = walk(lambda x: float(np.sum(np.cos((x - 1e-6) / 1e-5))), np.zeros(5), 12)
    assert narrow.run.mu < 1e-5


@pytest.mark.filterwarnings("ignore:f.x0. gave:UserWarning")
def test_the_ladder_in_noise_ends_where_a_network_is_no_parabola_any_more() -> None:
    """At mu = 1 the network is saturated: its probes have a loss of 12, and the network of 2."""
    problem = mlp_digits()
    assert problem.part is not None
    for seed in range(3):
        rng = np.random.default_rng([seed, 7])
        result = minimize(
            lambda x, rng=rng: problem.part(x, rng.integers(0, problem.terms, 128)), problem.x0, budget=400, seed=seed
        )
        assert max(r.mu for r in result.tape) == 0.25
        assert result.tape[-1].mu == 0.125  # the ladder has passed it by


def test_the_ladder_in_noise_goes_on_where_all_directions_bend_alike() -> None:
    rng = np.random.default_rng(0)
    loop = walk(lambda x: float(np.mean(x * x)) * 10 + 0.1 * float(rng.normal()), np.ones(5000), 12, n=8)
    assert max(r.mu for r in loop.records) >= 1


def test_noise_sets_the_radius_that_its_formula_states() -> None:
    """sqrt(2.83 s / tr H) within a factor of 2.5, for noise of two sizes: the median over the second half of a run."""
    for sd in (1e-2, 0.1):
        loop = walk(noisy(sd), np.zeros(10), 240, n=8)
        found = float(np.median([r.mu for r in loop.records[120:]]))
        assert 1 / 2.5 < found / math.sqrt(2.83 * sd / 20) < 2.5


@pytest.mark.filterwarnings("ignore:f.x0. gave")
def test_a_noisy_sphere_is_solved_by_default() -> None:
    result = minimize(noisy(1e-2, 5), np.zeros(10), "zo_sgd", budget=4000, seed=0)
    assert square(result.x) < 0.02


def test_equal_values_cost_no_second_value() -> None:
    """Two repeats to be sure, then one in 32 steps."""
    loop = walk(square, np.zeros(6), 100)
    assert [r.step for r in loop.records if "repeat2" in dict(r.meters)] == [0, 1, 32, 64, 96]


def test_it_goes_with_a_number_for_lr_too() -> None:
    loop = AskTell(np.zeros(5), methods.zo_sgd(lr=0.05, mu="auto"), seed=0)
    for _ in range(40):
        loop.tell([1e3 if np.abs(x).max() < 1e-2 else square(x) for x in loop.ask()])
    assert loop.run.mu > 2.0**-10


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_a_start_that_is_no_radius_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="the radius starts from a number > 0"):
        AutoRadius(start=value)


def inside(x: np.ndarray) -> float:
    return float(np.sum(x) - np.sum(np.log(x))) if np.all(x > 0) else math.nan


def disk(x: np.ndarray) -> float:
    return square(x) if x @ x < 1 else math.inf


def test_a_log_barrier_is_solved() -> None:
    result = minimize(inside, np.full(5, 0.01), "zo_sgd", budget=4000, seed=0)
    assert result.fun == pytest.approx(5, abs=1e-3)


def test_a_disk_is_followed_along_its_edge() -> None:
    """From 5 to near the least value on the disk, 5 (1 - 1/sqrt 5)^2 = 1.53; half of the points there fail."""
    loop = AskTell(np.zeros(5), black_box("zo_sgd", 5), seed=1)
    best = math.inf
    while loop.evaluations < 2000:
        loop.tell([disk(x) for x in loop.ask()])
        best = min(best, disk(loop.x))
    assert best < 1.8


@pytest.mark.parametrize(("share", "left"), [(0.0, 1e-3), (0.01, 1e-3), (0.1, 0.01), (0.3, 1.0)])
def test_failures_that_come_and_go_are_no_edge(share: float, left: float) -> None:
    """One failure in a hundred values, taken for an edge, left half of the drop: probes became as long as steps."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        result = minimize(
            lambda x, rng=rng: math.nan if rng.random() < share else square(x),
            np.zeros(100), "zo_sgd", budget=4000, seed=seed,
        )  # fmt: skip
        assert square(result.x) < left
        assert all(r.mu < 0.1 for r in result.tape)


def test_a_step_out_of_where_f_is_finite_is_taken_back_where_failures_come_and_go() -> None:
    rng = np.random.default_rng(0)
    f = lambda x: math.nan if rng.random() < 0.05 or np.any(x > 1) else float(np.sum((x - 0.9) ** 2))  # noqa: E731
    result = minimize(f, np.zeros(20), "zo_sgd", budget=4000, seed=0)
    assert result.nfev > 3900
    assert np.sum((result.best_x - 0.9) ** 2) < 0.02 * 20 * 0.81


def test_pairs_that_failed_are_left_out() -> None:
    """The estimate is the mean over the pairs that are whole: one of three, exactly."""
    loop = AskTell(np.zeros(4), Method(Central(3), Rademacher(), SGD(), mu=0.5, lr=1.0), seed=2)
    points = loop.ask()
    values = [square(x) for x in points]
    values[0], values[5] = math.nan, math.inf
    record = loop.tell(values)
    v = points[2] / 0.5
    assert record is not None
    assert not record.refused
    np.testing.assert_allclose(loop.x, -(values[2] - values[3]) / (2 * 0.5) * v)
    values = [math.nan, 1.0] * 3
    loop.ask()
    assert loop.tell(values).refused
