"""Dual controllers against duals in closed form, a linear program, and their own formulas."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.optimize import linprog

from zograd.control import Ascent, Augmented, SignAscent, allocate


def program(seed: int):
    """min |x - a|^2 / 2 s.t. G x <= h, A x = b: (a, G, h, A, b) with a solution; rows nearly orthogonal."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(6)
    Q = np.linalg.qr(rng.standard_normal((6, 6)))[0][:4] * rng.uniform(0.5, 2, (4, 1))
    h = Q[:3] @ a + np.array([-0.5, 0.3, -1.0]) * rng.uniform(0.5, 1, 3)  # the first and the last row are active
    return a, Q[:3], h, Q[3:], rng.standard_normal(1)


def solution(a, G, h, A, b):
    """Orthogonal rows: lam_i = [(g_i a - h_i) / |g_i|^2]_+, nu = (A a - b) / |A|^2, x = a - G^T lam - A^T nu."""
    lam = np.maximum(0, (G @ a - h) / np.sum(G * G, 1))
    nu = (A @ a - b) / np.sum(A * A, 1)
    return a - G.T @ lam - A.T @ nu, np.concatenate([lam, nu])


def minimizer(rule, state, a, G, h, A, b):
    """argmin_x L(x) by Newton on the pieces of a quadratic: a few exact solves with the active rows."""
    lam = np.array(state["multipliers"])
    if not isinstance(rule, Augmented):
        return a - np.vstack([G, A]).T @ lam
    rho, rows, right, x = np.array(state["rho"]), np.vstack([G, A]), np.concatenate([h, b]), a
    for _ in range(20):
        on = lam + rho * (rows @ x - right) > 0
        on[len(G) :] = True
        R, r, s, t = rows[on], rho[on], lam[on], right[on]
        x = np.linalg.solve(np.eye(6) + R.T @ (r[:, None] * R), a - R.T @ (s - r * t))
    return x


RULES = [(Ascent(0.3), 400, 1e-8), (Ascent(0.2, kappa=0.5), 400, 1e-8), (Augmented(2.0), 60, 1e-9)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rule", "periods", "tolerance"), RULES, ids=repr)
def test_multipliers_reach_the_dual_in_closed_form(rule, periods, tolerance, seed) -> None:
    p = program(seed)
    _, G, h, A, b = p
    x_best, lam_best = solution(*p)
    state = rule.initial(["at most"] * 3 + ["equal"])
    for _ in range(periods):
        x = minimizer(rule, state, *p)
        rule.observe(state, np.concatenate([G @ x - h, A @ x - b]))
        assert min(state["multipliers"][:3]) >= 0
    assert state["multipliers"] == pytest.approx(lam_best, abs=tolerance)
    assert x == pytest.approx(x_best, abs=tolerance)
    assert json.loads(json.dumps(state)) == state


@pytest.mark.parametrize("seed", range(3))
def test_augmented_lagrangian_is_the_maximum_over_multipliers(seed: int) -> None:
    """L(x) = max_mu>=0 f + mu c - (mu - lam)^2 / 2 rho on a grid of mu: Rockafellar's form."""
    rng = np.random.default_rng(seed)
    rule = Augmented(0.7)
    state = rule.initial(["at most", "equal"])
    state["multipliers"] = [float(rng.uniform(0, 2)), float(rng.standard_normal())]
    c = rng.standard_normal(2)
    mu = np.linspace(-20, 20, 400_001)
    inner = [float(np.max(m * ci - (m - lam) ** 2 / 1.4)) for ci, lam, m in
             zip(c, state["multipliers"], (mu[mu >= 0], mu), strict=True)]  # fmt: skip
    assert rule.lagrangian(state, 3.0, c) == pytest.approx(3.0 + sum(inner), abs=1e-7)


def test_rho_grows_only_where_the_violation_stalls() -> None:
    rule = Augmented(1.0, grow=3.0, stall=0.25, most=20.0)
    state = rule.initial(["equal", "equal", "at most"])
    for c in ([1.0, 1.0, -5.0], [0.2, 0.5, -5.0], [0.04, 0.4, -5.0], [0.008, 0.3, -5.0], [0.001, 0.2, -5.0]):
        rule.observe(state, c)
    assert state["rho"] == [1.0, 20.0, 1.0]


def test_decay_and_damping_follow_their_formula() -> None:
    rule = Ascent(1.0, decay=1.0, kappa=2.0)
    state = rule.initial(["equal"])
    rule.observe(state, [1.0])
    rule.observe(state, [0.5])  # 1 + (0.5 + 2 (0.5 - 1)) / 2
    assert state["multipliers"] == [0.75]


def test_sign_ascent_balances_within_its_step() -> None:
    """min (x - 1)^2 / 2 s.t. x <= 0.3: x = 1 - lam, and the multiplier ends within one step of 0.7."""
    rule = SignAscent(0.01)
    state = rule.initial(["at most"])
    for _ in range(200):
        rule.observe(state, [1 - state["multipliers"][0] - 0.3])
    assert abs(state["multipliers"][0] - 0.7) <= 0.0101


@pytest.mark.parametrize("seed", range(4))
def test_allocation_is_the_linear_program_up_to_one_item(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, cost = 40, np.array([1.0, 2.0, 4.0, 8.0])
    gain = np.cumsum(rng.uniform(0, 1, (n, 4)), axis=1)
    budget = 100.0
    found = allocate(gain, cost, budget)
    best = linprog(-gain.reshape(-1), A_ub=np.tile(cost, n)[None], b_ub=[budget],
                   A_eq=np.kron(np.eye(n), np.ones(4)), b_eq=np.ones(n), bounds=(0, 1))  # fmt: skip
    assert found.spent == cost[found.choice].sum() <= budget
    assert found.gained == pytest.approx(gain[np.arange(n), found.choice].sum())
    assert -best.fun - np.max(np.ptp(gain, axis=1)) <= found.gained <= -best.fun + 1e-9
    dual = np.sum(np.max(gain - found.price * cost, axis=1)) + found.price * budget
    assert dual == pytest.approx(-best.fun, rel=1e-9), "strong duality: the price is an optimal multiplier"
    assert allocate(gain, cost, 1e9).price == 0.0


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        Augmented().initial(["below"])
    state = Augmented().initial(["equal"])
    with pytest.raises(ValueError, match="c has 2 values, but there are 1"):
        Augmented().observe(state, [1.0, 2.0])
    with pytest.raises(ValueError, match="cheapest options cost 6"):
        allocate([[1.0, 2.0]] * 3, [2.0, 3.0], 5)
    for wrong in (lambda: Ascent(0.0), lambda: Augmented(rho=-1.0), lambda: SignAscent(-1.0)):
        with pytest.raises(ValueError, match="needs"):
            wrong()
