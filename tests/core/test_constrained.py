"""FISTA on finite differences, lr="auto" with penalties and sets, and queries that never leave a set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import digest, tensors, values_oracle
from scipy.optimize import minimize as scipy_minimize
from sklearn.datasets import load_breast_cancer

from zograd import AskTell, Method, Run, Store, methods, minimize
from zograd.core.tape import Tape, TapeWriter
from zograd.estimators import Central, Feasible
from zograd.laws import Gaussian, Rademacher
from zograd.learning_rate import AutoRate, Backtracking, Measured
from zograd.rules import FISTA, SGD, Proximal
from zograd.sets import L1, Affine, Box, Halfspace, L1Ball, L2Ball, LInfBall, NonNegative, NuclearBall

X, labels = load_breast_cancer(return_X_y=True)
X, SIGN = (X - X.mean(0)) / X.std(0), 2.0 * labels - 1.0
WEIGHT = 0.02


def logistic(w: np.ndarray) -> float:
    return float(np.mean(np.logaddexp(0.0, -SIGN * (X @ w))))


def slope(w: np.ndarray) -> np.ndarray:
    return -(X.T @ (SIGN / (1 + np.exp(SIGN * (X @ w))))) / len(SIGN)


def objective(w: np.ndarray) -> float:
    return logistic(w) + WEIGHT * float(np.abs(w).sum())


@pytest.fixture(scope="module")
def lowest() -> float:
    """min of the l1-regularised objective by SciPy's L-BFGS-B on w = u - v, u, v >= 0; certified by the duality gap."""

    def both(uv: np.ndarray) -> tuple[float, np.ndarray]:
        w = uv[:30] - uv[30:]
        g = slope(w)
        return logistic(w) + WEIGHT * float(uv.sum()), np.concatenate([g, -g]) + WEIGHT

    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-16, "gtol": 1e-9}
    found = scipy_minimize(both, np.zeros(60), jac=True, bounds=[(0, None)] * 60, method="L-BFGS-B", options=options)
    w = found.x[:30] - found.x[30:]
    p = 1 / (1 + np.exp(SIGN * (X @ w)))
    p *= min(1.0, WEIGHT / np.abs(X.T @ (SIGN * p) / len(SIGN)).max())  # a dual feasible point
    dual = -float(np.mean(p * np.log(p) + (1 - p) * np.log1p(-p)))
    assert 0 <= objective(w) - dual < 1e-4 * dual
    return objective(w)


@pytest.mark.parametrize("seed", range(5))
def test_fd_fista_solves_l1_logistic_regression_within_1000_evaluations(seed: int, lowest: float) -> None:
    """d = 30, nothing tuned: 1 % within 1,000 evaluations with exact zeros, from 0 and from random starts."""
    x0 = 0.1 * seed * np.random.default_rng(seed).normal(size=30)
    found = minimize(logistic, x0, methods.fd_fista(L1(WEIGHT)), budget=1000, seed=seed)
    assert found.nfev <= 1000
    assert objective(found.x) <= 1.01 * lowest
    assert np.sum(found.x == 0.0) >= 13


def test_every_trial_of_the_search_obeys_the_descent_lemma() -> None:
    """The steps that stand satisfy f(z) <= f(y) + <g, z - y> + |z - y|^2 / (2 lr) with exact f; others are repeated."""
    lam = np.array([100.0, 3.0, 1.0, 0.1])
    quadratic = lambda x: float(0.5 * x @ (lam * x) - x.sum())  # noqa: E731
    loop = AskTell(np.array([1e-3, 2.0, -1.0, 5.0]), methods.fd_fista(L1(0.1)))
    repeated, rates = [], []
    for _ in range(200):
        y = loop.run.store.leaves[0].slots["center"].numpy().copy()
        record = loop.tell([quadratic(x) for x in loop.ask()])
        while record is None:
            record = loop.tell([quadratic(x) for x in loop.ask()])
        repeated.append(record.aux[0] == 1.0)
        if repeated[-1]:
            np.testing.assert_array_equal(loop.run.store.leaves[0].slots["center"].numpy(), y)
            assert record.rates[0].lr <= rates[-1] / 2
            assert record.evaluations == 2
        rates.append(record.rates[0].lr)
    assert 5 < sum(repeated) < 150
    np.testing.assert_allclose(loop.x, [0.009, 0.3, 0.9, 9.0], rtol=0.05)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_fd_fista_needs_no_scale(scale: float) -> None:
    """Twelve decades of curvature, a set in place of a penalty."""
    c = np.array([2.0, -0.5, 0.3])
    found = minimize(lambda x: scale * float(np.sum((x - c) ** 2)), np.zeros(3), methods.fd_fista(Box(0.0, 1.0)),
                     budget=200)  # fmt: skip
    np.testing.assert_allclose(found.x, [1.0, 0.0, 0.3], atol=1e-4)


def test_fd_fista_says_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="there are 1001, more than 1000"):
        minimize(lambda x: 0.0, np.zeros(1001), methods.fd_fista(L1(1.0)))
    with pytest.raises(TypeError, match="FISTA reads the Trial of an estimate, but Central does not measure it"):
        Method(Central(1), Rademacher(), FISTA(L1(1.0)), lr=0.1)
    with pytest.raises(ValueError, match="Backtracking judges steps that Extrapolated knows"):
        methods.zo_sgd(lr=Backtracking())


AUTO = {
    "fista": methods.fd_fista(L1(0.05), mu=1e-3),
    "prox": methods.zo_prox(L1(0.05), lr="auto", n=2),
    "box": methods.zo_prox(Box(-0.1, 0.1), lr="auto", n=2, queries="feasible"),
    "frank-wolfe": methods.frank_wolfe(L1Ball(4.0), lr="auto", queries="feasible"),
}


@pytest.mark.parametrize("name", AUTO)
def test_replay_and_resumption_know_the_rates(name: str, tmp_path) -> None:
    """From the file of the tape: bit-equal weights, slots, controller and rates, and the run goes on from there."""
    whole = Run(Store(tensors(torch.float64)), AUTO[name], 5)
    records = [whole.step(values_oracle) for _ in range(25)]
    with TapeWriter(tmp_path / "tape.zo", {}) as tape:
        for record in records[:15]:
            tape.append(record)
    again = Run(Store(tensors(torch.float64)), AUTO[name], 5)
    again.replay(Tape(tmp_path / "tape.zo").records)
    for record in records[15:]:
        assert again.step(values_oracle) == record
    assert digest(again.store.state_dict()) == digest(whole.store.state_dict())
    assert again.state_dict() == whole.state_dict()


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_proximal_descent_finds_its_rate(scale: float) -> None:
    """lasso with an identity design, whose solution is known; f and r scaled together."""
    c, w = np.array([3.0, -2.0, 0.5, 0.2, -0.4]), 1.0
    found = minimize(lambda x: scale * 0.5 * float(np.sum((x - c) ** 2)), np.zeros(5),
                     methods.zo_prox(L1(scale * w), lr="auto", n=4), budget=3000)  # fmt: skip
    np.testing.assert_allclose(found.x, np.sign(c) * np.maximum(np.abs(c) - w, 0), atol=0.1)


def test_the_rate_watches_the_objective_and_not_the_loss_alone() -> None:
    """From a start where f has to rise so that f + r falls: the loss alone would look like divergence."""
    w = 3.0
    loop = AskTell(np.full(6, 4.0), methods.zo_prox(L1(w), lr="auto", n=4), seed=1)
    f = lambda x: 0.5 * float(np.sum((x - 4.0) ** 2))  # noqa: E731
    penalties = []
    for _ in range(200):
        here = w * np.abs(loop.x).sum()
        record = loop.tell([f(x) for x in loop.ask()])
        penalties.append(dict(record.meters)["penalty"] - here)
    assert np.abs(penalties).max() < 1e-12
    assert f(loop.x) > 15.0 > f(np.full(6, 4.0))
    assert f(loop.x) + w * np.abs(loop.x).sum() < 48.0  # 72 at the start, 45 at the minimum
    signals = []
    for penalty in (0.0, -2.0):  # the loss rises by 1 a step; with a penalty that falls by 2, the objective falls
        auto = AutoRate()
        state = auto.initial()
        for t in range(40):
            auto.observe(state, 1.0 * t, {"penalty": 100 + penalty * t, "slope2": 1.0})
            auto.moved(state, 0.5)
        signals.append(state["signal"])
    assert signals[0] < 0.2
    assert signals[1] == 1.0


def test_what_auto_means_is_declared_by_the_rule() -> None:
    assert methods.frank_wolfe(L1Ball(1.0), lr="auto") == methods.frank_wolfe(L1Ball(1.0), lr=1.0)
    assert methods.zo_prox(L1(1.0), lr="auto").lr == AutoRate()
    assert methods.fd_fista(L1(1.0)).lr == Backtracking()
    inside = methods.zo_prox(L1Ball(1.0), lr="auto", queries="feasible")
    assert inside.controller.wrap(inside.estimator) == replace(inside.estimator, inner=Measured(Central(1)))


# ---- queries inside --------------------------------------------------------------------------------------------------

rng = np.random.default_rng(3)
DESIGN = rng.normal(size=(300, 200))
ANSWER = np.sign(DESIGN[:, :4] @ [2.0, -1.5, 1.0, 1.0] + 0.3 * rng.normal(size=300))


@pytest.mark.parametrize(
    "make",
    [
        lambda ball: methods.frank_wolfe(ball, queries="feasible"),
        lambda ball: methods.zo_prox(ball, lr="auto", n=4, queries="feasible"),
    ],
    ids=["frank_wolfe", "zo_prox"],
)
def test_every_query_of_constrained_logistic_regression_is_feasible(make) -> None:
    """l1 ball of radius 5 in 200 dimensions: all values of f are taken in the ball, to 1e-9 of its radius."""
    sizes = []

    def f(x: np.ndarray) -> float:
        sizes.append(float(np.abs(x).sum()))
        return float(np.mean(np.logaddexp(0, -ANSWER * (DESIGN @ x))))

    found = minimize(f, np.zeros(200), make(L1Ball(5.0)), budget=1200)
    assert len(sizes) == found.nfev
    assert max(sizes) <= 5.0 * (1 + 1e-9)
    assert max(sizes) > 4.0
    assert found.fun < 0.6 * np.log(2)


INSIDE = {
    "l1": (L1Ball(0.5), lambda x: np.abs(x).sum() - 0.5),
    "l2": (L2Ball(0.5), lambda x: np.linalg.norm(x) - 0.5),
    "linf": (LInfBall(0.1), lambda x: np.abs(x).max() - 0.1),
    "nuclear": (NuclearBall(0.5), lambda x: np.linalg.norm(x.reshape(2, 3), "nuc") - 0.5),
    "box": (Box(np.arange(6.0) - 3, np.arange(6.0) - 2.5), lambda x: max(np.max(np.arange(6) - 3 - x.ravel()),
                                                                         np.max(x.ravel() - np.arange(6) + 2.5))),
    "one-sided": (Box(-np.inf, np.array([0, 1, -1, np.inf, 0, 0])),
                  lambda x: np.max(x.ravel()[[0, 1, 2, 4, 5]] - [0, 1, -1, 0, 0])),
    "orthant": (NonNegative(), lambda x: -x.min()),
    "half-space": (Halfspace([1.0, -1, 2, 0, 0, 1], -1.0), lambda x: float(x.ravel() @ [1, -1, 2, 0, 0, 1]) + 1.0),
}  # fmt: skip


@pytest.mark.parametrize("law", [Rademacher(), Gaussian()], ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("mu", [1e-3, 0.3])
@pytest.mark.parametrize(("C", "over"), INSIDE.values(), ids=INSIDE)
def test_queries_stay_inside_for_any_radius(C, over, mu: float, law) -> None:
    """The ball inside of the set is one, and no query leaves: a start on the boundary, steps that push outwards."""
    start = C.project_(torch.full((2, 3), 5.0, dtype=torch.float64)).numpy()
    loop = AskTell(start, Method(Feasible(Central(2), C), law, Proximal(C), mu=mu, lr=0.3), seed=2)
    worst = []
    for _ in range(30):
        points = loop.ask()
        worst += [over(x) for x in points]
        side = 1.0 if isinstance(C, NonNegative) else -1.0
        loop.tell([side * 2 * float(x.sum()) + 0.1 * float(np.sum(x**2)) for x in points])
    assert max(worst) <= 1e-9
    assert over(loop.x) == pytest.approx(0.0, abs=1e-9), "the boundary was reached, so that something was tested"


def test_the_bias_of_feasible_queries_is_that_of_the_point_they_are_around() -> None:
    """On a quadratic two-point slopes are exact: the estimate is that of the plain method at x' = (1 - s) x."""
    lam, x = np.linspace(1, 3, 5), np.full(5, 0.2)
    f = lambda v: float(0.5 * v @ (lam * v))  # noqa: E731
    inside = AskTell(x, Method(Feasible(Central(3), L1Ball(1.0)), Gaussian(), SGD(), lr=1.0), seed=4)
    record = inside.tell([f(v) for v in inside.ask()])
    s = dict(record.meters)["inward"]
    assert 0 < s <= 2.0**-7 * (1 + 1e-8)
    plain = AskTell((1 - s) * x, Method(Central(3), Gaussian(), SGD(), lr=1.0), seed=4)
    plain.tell([f(v) for v in plain.ask()])
    np.testing.assert_allclose(inside.x - x, plain.x - (1 - s) * x, rtol=1e-6)


def test_a_set_without_interior_or_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="Affine has no interior"):
        Feasible(Central(1), Affine([[1.0, 1.0]], 1.0))
    with pytest.raises(ValueError, match=r"in \(0, 1\); got 1"):
        Feasible(Central(1), L1Ball(1.0), shrink=1.0)
    with pytest.raises(ValueError, match="'relaxed' or 'feasible', got 'inside'"):
        methods.frank_wolfe(L1Ball(1.0), queries="inside")
