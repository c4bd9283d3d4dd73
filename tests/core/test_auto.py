"""lr="auto": what is measured, the rate that follows, and that replay and resumption know it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from problems import digest, smooth, tensors, values_oracle

from zograd import AskTell, Method, Run, Store, ZOOptimizer, methods, minimize
from zograd.core.schedules import linear
from zograd.estimators import Central, Forward, OneSided
from zograd.laws import Gaussian, Rademacher
from zograd.learning_rate import AutoRate, Measured, TrustRate, lr_bounds
from zograd.methods.defaults import BLACK_BOX_LR, black_box
from zograd.oracles import sequential
from zograd.rules import SGD, Adam, AMSGrad, ReplayMomentum


def quadratic(lam: np.ndarray):
    return lambda x: float(0.5 * x @ (lam * x))


def meters_of(method: Method, lam: np.ndarray, steps: int) -> list[dict[str, float]]:
    loop = AskTell(np.ones(lam.size), method)
    f = quadratic(lam)
    for _ in range(steps):
        loop.tell([f(x) for x in loop.ask()])
    return [dict(r.meters) for r in loop.records]


@pytest.mark.parametrize("estimator", [Central(1), Central(3), Forward(2), OneSided(4)], ids=repr)
def test_curvature_comes_from_the_points_of_the_step(estimator) -> None:
    """v^T H v is exact on a quadratic: tr H for signs when H is diagonal. Measured in the first steps and every 4th."""
    lam = np.array([3.0, 2.0, 1.0, 0.5])
    method = Method(Measured(estimator, every=4, warm=3), Rademacher(), SGD(), mu=0.1, lr=0.0)
    found = meters_of(method, lam, 10)
    assert [("trace" in m) for m in found] == [True, True, True, False, True, False, False, False, True, False]
    for m in found:
        if "trace" in m:
            assert m["trace"] == pytest.approx(lam.sum(), rel=1e-9)
            assert m["curvature2"] == pytest.approx(lam.sum() ** 2, rel=1e-9)


def test_measuring_changes_no_bit_of_the_estimate() -> None:
    """The same directions, the same losses for them, the same vector; only more evaluations."""
    for estimator, more in ((Central(2), 1), (Forward(2), 1)):
        runs = [Run(Store(tensors(torch.float64)), Method(e, Gaussian(), SGD(), lr=1e-2), 3) for e in (
            estimator, Measured(estimator, every=1))]  # fmt: skip
        for _ in range(5):
            plain, measured = (run.step(values_oracle) for run in runs)
            assert plain.vector == measured.vector
            assert measured.evaluations == plain.evaluations + more
        assert digest(runs[0].store.state_dict()) == digest(runs[1].store.state_dict())


def test_slope_is_measured_without_cost() -> None:
    """E D^2 = |grad f|^2 with directions of unit covariance, within 4 standard errors."""
    d = 40
    g = np.linspace(-1, 1, d)
    loop = AskTell(np.zeros(d), Method(Measured(Central(1), every=10**9, warm=0), Rademacher(), SGD(), lr=0.0))
    for _ in range(2000):
        loop.tell([float(g @ x) for x in loop.ask()])
    slopes = np.array([dict(r.meters)["slope2"] for r in loop.records])
    assert loop.evaluations == 4001  # f(x) in step 0
    assert abs(slopes.mean() - g @ g) <= 4 * slopes.std() / math.sqrt(len(slopes))


@pytest.mark.parametrize("q", [1, 4])
def test_the_rate_is_the_stated_share_of_the_edge(q: int) -> None:
    """On a quadratic with axes the spread is 0, so lr = safety (2q / (tr + (q + 1) tr / measurements)) at first."""
    lam = 1 / np.arange(1.0, 21.0)
    loop = AskTell(np.ones(20), methods.zo_sgd(lr="auto", n=q))
    f = quadratic(lam)
    for k in range(1, 9):
        record = loop.tell([f(x) for x in loop.ask()])
        expected = 0.7 * lr_bounds(lam.sum(), lam.sum() / k, q=q)[0]
        assert record.rates[0].lr == pytest.approx(expected, rel=1e-6)
    assert record.rates[0].lr < lr_bounds(lam.sum(), lam.max(), q=q)[1]


def test_momentum_shrinks_the_rate_as_the_law_says() -> None:
    rates = []
    for rule in (SGD(), ReplayMomentum(0.9)):
        loop = AskTell(np.ones(5), Method(Central(1), Rademacher(), rule, lr="auto"))
        record = loop.tell([quadratic(np.ones(5))(x) for x in loop.ask()])
        rates.append(record.rates[0].lr)
    assert rates[1] == pytest.approx(0.1 * rates[0], rel=1e-9)


def test_fzoo_moves_as_far_as_plain_descent_would() -> None:
    """lr of FZOO is in units of the spread: lr / slope is the share of the edge."""
    lam = np.ones(30)
    loop = AskTell(np.ones(30), methods.fzoo(lr="auto", n=4))
    record = loop.tell([quadratic(lam)(x) for x in loop.ask()])
    expected = 0.7 * lr_bounds(30.0, 30.0, q=4)[0]
    assert record.rates[0].lr / record.aux[0] == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize(
    ("name", "f", "x0"),
    [
        ("steep", lambda x: 1e6 * float(x @ x), np.ones(10)),
        ("flat", lambda x: 1e-6 * float(x @ x), np.ones(10)),
        ("rank one", lambda x: float(np.sum(x)) ** 2, np.ones(10)),
        ("quartic", lambda x: float(np.sum(x**4)), 10 * np.ones(10)),
        ("exponential", lambda x: float(np.sum(np.cosh(x))), 5 * np.ones(5)),
    ],
)
def test_twelve_decades_of_curvature_need_no_search(name: str, f, x0: np.ndarray) -> None:
    """No learning rate is given, nothing diverges, and every scale descends by the same factor."""
    for seed in range(3):
        result = minimize(f, x0, methods.zo_sgd(lr="auto"), budget=3000, seed=seed)
        assert result.success
        floor = 5.0 if name == "exponential" else 0.0
        assert result.fun - floor < 1e-2 * (f(x0) - floor)


def test_the_rate_falls_at_a_noise_floor_and_not_before() -> None:
    """Additive noise: the signal share falls below 1/4 once the loss stands still; without noise it stays above 1/2."""
    lam = 1 / np.arange(1.0, 31.0)
    shares = {}
    for sigma, steps in ((0.0, 400), (1e-2, 3000)):
        rng = np.random.default_rng(0)
        loop = AskTell(np.ones(30), methods.zo_sgd(lr="auto", mu=0.1))
        for _ in range(steps):
            loop.tell([quadratic(lam)(x) + sigma * rng.normal() for x in loop.ask()])
        shares[sigma] = loop.run.control["signal"]
    assert shares[0.0] > 0.5
    assert shares[1e-2] < 0.25


@pytest.mark.parametrize("make", [methods.zo_sgd, methods.zo_adam], ids=["sgd", "adam"])
def test_replay_and_a_saved_state_continue_the_same_rates(make: Any) -> None:
    """Bit-equal weights and rates after replay of the tape, and after a state_dict in the middle."""
    method = make(lr="auto", n=2)
    whole = Run(Store(tensors(torch.float64)), method, 5)
    records = [whole.step(values_oracle) for _ in range(30)]
    replayed = Run(Store(tensors(torch.float64)), method, 5)
    replayed.replay(records[:17])
    resumed = Run(Store(tensors(torch.float64)), method, 5)
    resumed.replay(records[:9])
    saved = {"store": {k: v.clone() for k, v in resumed.store.state_dict().items()}, "run": resumed.state_dict()}
    third = Run(Store(tensors(torch.float64)), method, 0)
    third.store.load_state_dict(saved["store"])
    third.load_state_dict(saved["run"])
    for run, done in ((replayed, 17), (third, 9)):
        for record in records[done:]:
            again = run.step(values_oracle)
            assert again.rates == record.rates
            assert again.vector == record.vector
        assert digest(run.store.state_dict()) == digest(whole.store.state_dict())


def test_a_schedule_shapes_the_rate_and_a_limit_caps_it() -> None:
    lam = np.ones(6)
    seen = {}
    for name, auto in (
        ("level", AutoRate()),
        ("falling", AutoRate(shape=linear(1.0, 10))),
        ("low", AutoRate(limit=1e-3)),
    ):
        loop = AskTell(np.ones(6), methods.zo_sgd(lr=auto))
        seen[name] = [loop.tell([quadratic(lam)(x) for x in loop.ask()]).rates[0].lr for _ in range(10)]
    np.testing.assert_allclose(seen["falling"], np.array(seen["level"]) * (1 - np.arange(10) / 10), rtol=1e-6)
    assert max(seen["low"]) == 1e-3


def test_the_torch_door_shows_the_rate() -> None:
    w = torch.nn.Parameter(torch.ones(8))
    opt = ZOOptimizer([w], methods.zo_sgd(lr="auto"))
    for _ in range(200):
        opt.step(lambda: (w**2).sum())
    assert float((w**2).sum().detach()) < 0.05
    assert opt.param_groups[0]["lr"] == opt.last.rates[0].lr > 0


def test_a_rule_without_a_known_edge_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lr='auto' knows the edge .* AMSGrad makes another move"):
        Method(Central(1), Rademacher(), AMSGrad(), lr="auto")
    with pytest.raises(ValueError, match=r"TrustRate judges moves along the estimate, and Adam makes another move"):
        Method(Central(1), Rademacher(), Adam(), lr=TrustRate())
    with pytest.raises(ValueError, match="share of the largest stable learning rate"):
        AutoRate(safety=1.5)


@pytest.mark.parametrize("moments", ["full", "bfloat16"])
def test_with_adam_the_curvature_is_that_of_its_own_variables(moments: Any) -> None:
    """tr(P^-1 H), P = sqrt(s^) + eps of the moments in the slots, exact for signs and a diagonal H."""
    lam, q = np.array([3.0, 1.0, 0.3, 0.1]), 2
    x = torch.ones(4, dtype=torch.float64)
    run = Run(Store({"x": x}), Method(Central(q), Rademacher(), Adam(moments=moments), mu=1e-3, lr="auto"), 0)
    oracle = sequential(lambda: float(0.5 * (x * torch.from_numpy(lam) * x).sum()))
    traces: list[float] = []
    for k in range(1, 12):
        assert run.rates()[0].lr == 0.0 or k > 1, "without moments nothing moves"
        second = run.store.leaves[0].slots["exp_avg_sq"].double().numpy() / (1 - 0.999 ** (k - 1)) if k > 1 else lam
        slope = lam * x.numpy()
        record = run.step(oracle)
        meters = dict(record.meters)
        assert ("trace" in meters) == (1 < k < 9 or (k % 4 == 1 and k > 1)), k
        if "trace" not in meters:
            assert record.evaluations == 2 * q
            continue
        assert record.evaluations == 4 * q + 1
        found = float((lam / (np.sqrt(second) + 1e-8)).sum())
        assert meters["trace"] == pytest.approx(found, rel=1e-5 if moments == "full" else 5e-3)
        assert meters["slope2"] <= 4 * float((slope**2 / np.sqrt(second)).sum()) * (1 + 1e-5)  # Cauchy-Schwarz, d = 4
        traces.append(meters["trace"])
        expected = AutoRate().rate({**AutoRate().initial(), "seen": [(t, t * t) for t in traces]}, 0, q)
        assert record.rates[0].lr == pytest.approx(expected, rel=1e-2)


def test_adam_by_its_name_alone_keeps_a_number() -> None:
    """Its rate is measured by points of their own, so on request."""
    assert black_box("zo_adam", 10).controller.rate({}, 0) == BLACK_BOX_LR
    assert black_box("zo_adam", 10, lr="auto").controller.measures


def test_an_estimate_without_the_length_of_the_gradient_is_refused() -> None:
    for name in ("rank", "preference", "mirrored_es", "zo_sign_scalar", "cge", "zo_conservative"):
        with pytest.raises(ValueError, match="lr='auto' needs an estimate with the length of the gradient"):
            methods.make(name, lr="auto")


@pytest.mark.parametrize("name", ["spsa15", "zo_richardson", "zo_clip", "lozo", "zo_orthogonal", "dap", "p4", "zo_sam"])
def test_other_methods_take_it_too(name: str) -> None:
    """Whatever points the estimator asks for, the curvature is found among them or by one or two more."""
    lam = np.linspace(0.5, 2.0, 16)
    f = quadratic(lam)
    result = minimize(f, np.ones(16), methods.make(name, lr="auto"), budget=4000)
    assert result.fun < 0.05 * f(np.ones(16))


def test_a_combination_that_a_part_refuses_is_refused_with_auto_too() -> None:
    """Measuring does not hide the estimator from the checks of `Method`."""
    from zograd.estimators import SVRG
    from zograd.spaces import PositiveOrthant

    for lr in (0.1, "auto"):
        with pytest.raises(TypeError, match="SVRG returns to an earlier iterate along a straight line"):
            Method(SVRG(), Gaussian(), SGD(), PositiveOrthant(), lr=lr)


def called(method: Method) -> Any:
    """The estimator as a run calls it."""
    return Run(Store(tensors(torch.float64)), method).estimator


def test_a_rate_of_ones_own_drops_the_measurements() -> None:
    """The method keeps the estimator that it was given; the run measures around it, with lr="auto" only."""
    auto = methods.zo_sgd(lr="auto")
    assert auto.estimator == Central(1)
    assert called(auto) == Measured(Central(1))
    assert auto.evaluations == 4
    fixed = replace(auto, lr=1e-3)
    assert fixed == methods.zo_sgd(lr=1e-3)
    assert called(fixed) is fixed.estimator
    assert fixed.evaluations == 2
    records = [Run(Store(tensors(torch.float64)), m, 3).step(values_oracle) for m in (auto, fixed)]
    assert [r.evaluations for r in records] == [3, 2]
    assert [dict(r.meters).keys() >= {"trace"} for r in records] == [True, False]
    assert replace(fixed, lr="auto") == auto
    assert called(replace(auto, estimator=Forward(2))) == Measured(Forward(2))
    own = Method(Measured(Central(1), every=2), Rademacher(), SGD(), lr="auto")
    assert called(own) is own.estimator


@pytest.mark.parametrize("name", ["zo_svrg", "zo_lsvrg", "zpdvr"])
def test_terms_of_a_sum_keep_to_the_budget_with_a_measured_rate(name: str) -> None:
    """The most that a step costs is known of the estimator and of the measurements around it."""
    counted: list[int] = []

    def f(x: np.ndarray, rows: np.ndarray) -> float:
        counted.append(len(rows))
        return float(np.mean((x[rows % 4] - rows / 8) ** 2))

    for budget in (400, 413, 600):
        counted.clear()
        result = minimize(f, np.zeros(4), methods.make(name, lr="auto"), terms=8, budget=budget)
        assert result.nfev == sum(counted) <= budget


def test_refused_steps_teach_nothing() -> None:
    loop = AskTell(np.ones(4), methods.zo_sgd(lr="auto"))
    loop.tell([quadratic(np.ones(4))(x) for x in loop.ask()])
    before = {k: v for k, v in loop.run.control.items()}
    loop.tell([math.nan for _ in loop.ask()])
    assert loop.run.control == before


def test_smooth_is_minimised() -> None:
    result = minimize(lambda x: smooth(x), np.ones(20), methods.zo_sgd(lr="auto"), budget=4000)
    assert result.fun < smooth(np.ones(20)) - 1


@pytest.mark.slow
def test_auto_is_within_a_factor_two_of_a_grid_over_five_decades() -> None:
    """At least 8 of 10 problems, and never divergence: `python -m benchmarks.auto`."""
    from benchmarks.auto import measure

    result = measure()
    assert result["within_factor_2"] >= 8, result["rows"]
    assert result["diverged"] == 0


@pytest.mark.parametrize("name", sorted(set(methods.names(blocks=True)) - set(methods.names())))
def test_a_gradient_without_directions_has_no_measured_rate(name):
    """A Trainer then takes the entry's own rate; since Adam can be measured, these were given a rate of nothing."""
    with pytest.raises(ValueError, match=r"along random directions, and [A-Za-z]+ has a gradient without"):
        methods.make(name, lr="auto")
