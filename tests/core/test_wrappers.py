"""Estimators around an estimator: which points they add, what they refuse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from small_problems import smooth, start

from zograd import AskTell, methods
from zograd.core.query import Query
from zograd.core.run import Method, Run
from zograd.estimators import (
    SAM,
    AdaptiveSAM,
    Central,
    Conservative,
    Coordinates,
    InfoSAM,
    OneSided,
    Recentred,
    Spread,
)
from zograd.laws import Gaussian, Rademacher
from zograd.rules import SGD, Momentum, SpreadSGD
from zograd.stores import Store


def trained(method: Method, f, steps: int, seed: int = 0) -> np.ndarray:
    loop, path = AskTell(start(), method, seed=seed), [start()]
    for _ in range(steps):
        while loop.tell([f(x) for x in loop.ask()]) is None:
            pass
        path.append(loop.x)
    return np.stack(path)


# ---- conservative ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", [1e-3, 0.1, 10.0])
def test_conservative_steps_never_go_up(lr: float) -> None:
    """Not even with a learning rate at which plain steps diverge."""
    losses = [smooth(x) for x in trained(methods.zo_conservative(lr=lr), smooth, 60)]
    assert np.all(np.diff(losses) <= 0)
    if lr == 10.0:
        with np.errstate(all="ignore"):
            assert smooth(trained(methods.mezo(lr=lr), smooth, 10)[-1]) > 1e3


def test_conservative_takes_the_best_of_three() -> None:
    """Each outcome is told by hand: a step against g, none, and one along g; five evaluations each."""
    for best, factor in ((0, -1.0), (1, 0.0), (2, 1.0)):
        x = torch.zeros(6, dtype=torch.float64)
        run = Run(Store({"x": x}), methods.zo_conservative(lr=0.5, mu=0.25), 3)
        plus, _ = run.ask()
        v = store_values(run.store, plus) / 0.25
        assert run.tell([3.0, 1.0]) is None  # slope 4
        tried = [store_values(run.store, q) for q in run.ask()]
        np.testing.assert_array_equal(tried[0], -0.5 * 4 * v)
        np.testing.assert_array_equal(tried[1], 0 * v)
        np.testing.assert_array_equal(tried[2], 0.5 * 4 * v)
        record = run.tell([0.0 if k == best else 1.0 for k in range(3)])
        assert record is not None
        assert record.evaluations == 5
        np.testing.assert_array_equal(x.numpy(), factor * 0.5 * 4 * v)
        np.testing.assert_array_equal(x.numpy(), tried[best])
        assert run.flat_in_a_row == 0, "standing still was a choice, not a flat loss"


def store_values(store: Store, query: Query) -> np.ndarray:
    out = torch.empty(store.dim, dtype=torch.float64)
    return store.point_(out, store.leaves[0], query.at).numpy().copy()


def test_conservative_refuses_moves_that_it_did_not_try() -> None:
    for method in (
        {"rule": Momentum()},
        {"rule": SGD(), "weight_decay": 0.1},
    ):
        with pytest.raises(TypeError, match="use rule=SGD"):
            Method(Conservative(), Gaussian(), **method)
    for wrapper in (Conservative(Recentred()), SAM(Recentred())):
        with pytest.raises(TypeError, match="direction of Recentred before its slots are assigned"):
            Method(wrapper, Gaussian(), SGD())


# ---- SAM -------------------------------------------------------------------------------------------------------------


def test_the_second_estimate_stands_rho_uphill() -> None:
    """Its probes are x + rho g/|g| +- mu v with fresh directions v; the step is along the second estimate."""
    rho, mu, lr = 0.3, 0.01, 0.1
    x = torch.from_numpy(start(d=7))
    run = Run(Store({"x": x}), methods.zo_sam(lr=lr, mu=mu, n=1, rho=rho), 2)
    first = [store_values(run.store, q) for q in run.ask()]
    v = (first[0] - first[1]) / (2 * mu)
    assert run.tell([smooth(y) for y in first]) is None
    second = [store_values(run.store, q) for q in run.ask()]
    centre, w = (second[0] + second[1]) / 2, (second[0] - second[1]) / (2 * mu)
    D = (smooth(first[0]) - smooth(first[1])) / (2 * mu)
    np.testing.assert_allclose(centre, start(d=7) + rho * np.sign(D) * v / np.linalg.norm(v), atol=1e-12)
    assert np.linalg.norm(centre - start(d=7)) == pytest.approx(rho)
    assert abs(v @ w) < 7 - 1e-9, "other directions than those of the ascent"
    run.tell([smooth(y) for y in second])
    slope = (smooth(second[0]) - smooth(second[1])) / (2 * mu)
    np.testing.assert_allclose(x.numpy(), start(d=7) - lr * slope * w, rtol=1e-9)


def test_on_a_linear_loss_sam_is_the_estimator_inside() -> None:
    """The gradient is the same everywhere: the second estimate is that of x, with the directions n .. 2 n - 1."""
    G = np.arange(20.0)

    def linear(x: np.ndarray) -> float:
        return float(G @ x)

    moved = trained(methods.zo_sam(lr=0.1, mu=0.5, n=2, rho=5.0), linear, 1)[1] - start()
    V = np.stack([store_values(Store({"x": torch.zeros(20, dtype=torch.float64)}), q) for q in directions(4)])[2:]
    np.testing.assert_allclose(moved, -0.1 * np.mean([(G @ v) * v for v in V], axis=0), rtol=1e-9)


def directions(n: int) -> list[Query]:
    run = Run(Store({"x": torch.zeros(20, dtype=torch.float64)}), methods.zo_sgd(mu=1.0, n=n), 0)
    return list(run.ask())[::2]


def test_sam_does_not_settle_in_a_narrow_minimum() -> None:
    """Two equally deep valleys along x_0, one narrow and one wide, started on the slope of the narrow one: plain
    descent stays at its bottom, SAM with rho beyond its width does not."""

    def valleys(x: np.ndarray) -> float:
        narrow, wide = 1 - math.exp(-((x[0] + 1) ** 2) / 0.02), 1 - math.exp(-((x[0] - 1) ** 2) / 0.5)
        return min(narrow, 1.0) * min(wide, 1.0) + 0.05 * float(np.sum(x[1:] ** 2))

    def end(method: Method) -> float:
        loop = AskTell(np.array([-0.86, 0.0]), method, seed=1)
        for _ in range(400):
            while loop.tell([valleys(x) for x in loop.ask()]) is None:
                pass
        return float(loop.x[0])

    assert end(methods.zo_sgd(lr=2e-3, mu=1e-2, n=4)) == pytest.approx(-1, abs=0.05)
    assert end(methods.zo_sam(lr=2e-2, mu=1e-2, n=4, rho=0.4)) > -0.8


def test_wrappers_hand_on_what_the_estimator_inside_measures() -> None:
    """SAM of a spread-normalised estimator satisfies the rule that reads the spread."""
    assert SAM(OneSided(4)).aux is Spread
    assert SAM(Central()).aux is None
    method = Method(SAM(OneSided(4)), Rademacher(), SpreadSGD(), mu=1e-3, lr=0.05)
    assert method.evaluations == 10
    path = trained(method, smooth, 60)
    assert smooth(path[-1]) < smooth(path[0]) - 0.5
    with pytest.raises(TypeError, match="reads the Spread"):
        Method(SAM(Central()), Rademacher(), SpreadSGD())


def test_a_flat_loss_has_no_ascent() -> None:
    """|g| = 0: nothing is divided by it."""
    np.testing.assert_array_equal(trained(methods.zo_sam(), lambda x: 1.0, 3)[-1], start())
    with pytest.raises(ValueError, match=r"rho .* > 0, got 0"):
        SAM(rho=0.0)


# ---- SAM with a preconditioner ---------------------------------------------------------------------------------------


class One:
    """f(x) = |x|^2 / 2 on 8 weights, whose gradient has noise in the last four, drawn anew each step."""

    def __init__(self, estimator: Any, rounds: int, scale: float = 3.0) -> None:
        x = torch.ones(8, dtype=torch.float64)
        noise = np.random.default_rng(0)
        self.asked: list[np.ndarray] = []
        run = Run(Store({"x": x}), Method(estimator, Rademacher(), SGD(), mu=1e-3, lr=1e-3), 0)
        for _ in range(rounds):
            tilt = np.r_[np.zeros(4), scale * noise.normal(size=4)]
            points: list[np.ndarray] = []

            def oracle(store, queries, key, tilt=tilt, points=points):
                found = []
                for query in queries:
                    y = store.point_(torch.empty(8, dtype=torch.float64), store.leaves[0], query.at).numpy()
                    points.append(y.copy())
                    found.append(float(y @ y / 2 + tilt @ y))
                return found

            before = x.numpy().copy()
            run.step(oracle)
            there = np.mean(points[len(points) // 2 :], axis=0)  # the centre of the second round
            self.asked.append(there - before)


def test_infosam_ascends_in_the_coordinates_whose_gradient_is_known() -> None:
    """With all coordinates differenced, at least 95 % of the squared ascent lies in the quiet half after 20 steps."""
    quiet = One(InfoSAM(Coordinates(8, central=True), rho=0.1), 30).asked[-1]
    assert np.linalg.norm(quiet) == pytest.approx(0.1, rel=1e-6)
    assert np.sum(quiet[:4] ** 2) > 0.95 * np.sum(quiet**2)
    plain = One(SAM(Coordinates(8, central=True), rho=0.1), 30).asked
    assert np.mean([np.sum(a[:4] ** 2) / np.sum(a**2) for a in plain]) < 0.5


def test_infosam_from_one_random_direction_is_sam() -> None:
    """(g - m)^2 of an estimate c v with signs v is c^2 in each coordinate but for m: the ascent is along g itself."""
    ascents = One(InfoSAM(Central(1), rho=0.1, beta=0.99, eps=1e-8), 300).asked
    plain = One(SAM(Central(1), rho=0.1), 300).asked
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(ascents, plain, strict=True)]
    assert cosines[0] == pytest.approx(1.0)
    assert np.mean(np.abs(cosines[100:])) > 0.95


def test_a_preconditioner_of_ones_is_sam() -> None:
    """AdaptiveSAM where all |x| + floor are 1: the points that SAM asks for, to rounding."""

    def points(estimator: Any) -> list[np.ndarray]:
        x = torch.full((6,), 0.99, dtype=torch.float64)
        found: list[np.ndarray] = []

        def oracle(store, queries, key):
            for query in queries:
                found.append(
                    store.point_(torch.empty(6, dtype=torch.float64), store.leaves[0], query.at).numpy().copy()
                )
            return [float(np.sum(np.sin(3 * p + np.arange(6)))) for p in found[-len(queries) :]]

        Run(Store({"x": x}), Method(estimator, Rademacher(), SGD(), mu=1e-3, lr=0.0), 0).step(oracle)
        return found

    ours, theirs = points(AdaptiveSAM(Central(3), 0.2, floor=0.01)), points(SAM(Central(3), 0.2))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdaptiveSAM(floor=0.0), "floor is added"),
        (lambda: InfoSAM(beta=1.0), "beta must lie in"),
        (lambda: InfoSAM(eps=0.0), "eps is added"),
        (lambda: InfoSAM(rho=0.0), "rho is the length"),
    ],
)
def test_a_preconditioner_that_means_nothing_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
