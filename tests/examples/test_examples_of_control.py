"""What the examples on control, constraints and budgets rest on, against exact answers."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize

from zograd.control import Augmented, RelativeGap, allocate
from zograd.design import Sample
from zograd.examples import black_box_constraints as black_box
from zograd.examples import compute_where_it_pays as compute
from zograd.examples import constrained_game as game
from zograd.examples import digits_bandit as digits
from zograd.examples import few_shot_clusters as clusters
from zograd.examples import knapsack_without_slack as slackless
from zograd.examples import newton_with_sketches as sketches
from zograd.examples import points_that_differ as differ
from zograd.examples import solver_that_learns as relax
from zograd.problems import binary
from zograd.problems import games as games_of
from zograd.problems.constrained import PROBLEMS, equal_scores
from zograd.problems.solvers import relaxation

# ---- row 44: a solver that learns its setting ------------------------------------------------------------------------


def test_the_bandit_learns_omega_from_iterations() -> None:
    """Over 2,000 solves within 25 % of the best omega in hindsight; with the shift as context below every omega."""
    table = relaxation()
    best = table.iterations.mean(0).min()
    for seed in range(2):
        plain, defect = relax.without_context(table, 2000, np.random.default_rng(seed))
        assert plain.mean() < 1.25 * best
        assert defect < 1e-12
        late = relax.with_context(table, 3000, np.random.default_rng(seed))[1000:]
        assert table.iterations.min(1).mean() <= late.mean() < 0.9 * best


def test_the_bandit_over_rates_reaches_the_goal_where_most_rates_do_not() -> None:
    problem = relax.method_problem("quadratic-100")
    rates = np.geomspace(1e-3, 1, 7).tolist()
    goal = 0.6
    reached = [relax.descend(problem, problem.x0, rate, 1500, goal, 0).fun <= goal for rate in rates]
    assert sum(reached) <= 4
    assert relax.tuned_descent(problem, rates, goal, 0) < 3000


# ---- row 62: combinatorial problems without slack bits ---------------------------------------------------------------


def test_multipliers_find_knapsacks_that_enumeration_finds() -> None:
    for seed in range(3):
        program = binary.knapsack(seed)
        best, share, _ = slackless.search(program, Augmented(rho=0.1), 100, np.random.default_rng(seed))
        assert program.optimum() <= best[-1] <= 0.98 * program.optimum()
        assert 0.3 < share < 1


def test_cutting_planes_maximize_the_dual_over_the_samples() -> None:
    """Cuts of all feasible and infeasible points: the value is the linear relaxation, by another program."""
    program = binary.knapsack(2, items=8)
    points = program.points
    lam = slackless.cutting_planes(points @ program.cost, program.violation(points))
    relaxed = linprog(program.cost, program.rows, program.right, bounds=(0, 1))
    assert program.dual(lam) == pytest.approx(relaxed.fun, rel=1e-9)
    assert lam == pytest.approx(-relaxed.ineqlin.marginals, abs=1e-8)


def test_slack_bits_reach_every_whole_number_up_to_the_limit() -> None:
    """The rival is fair: with slack bits, the least energy over x and slack is the penalty-free cost where feasible."""
    program = binary.knapsack(0, items=3, limits=1)
    wide = slackless.with_slack(program)
    x = program.points[program.feasible(program.points)]
    slack = (np.arange(2 ** (wide.bits - 3))[:, None] >> np.arange(wide.bits - 3)) & 1
    for point in x:
        z = np.hstack([np.tile(point, (len(slack), 1)), slack])
        assert np.min(np.abs(wide.violation(z))) == 0


# ---- row 56: a bandit that reads digits ------------------------------------------------------------------------------


def logits(first, second, x, moved, signs):
    """(arms, sign vectors), in torch."""
    return (torch.relu(x @ first) @ second)[:, None] + signs @ moved


def test_the_regression_steps_along_the_gradient_of_autograd() -> None:
    network = digits.Regression(np.random.default_rng(0), rate=0.5)
    start = network.theta
    x = np.random.default_rng(1).standard_normal(64)
    network.learn(x, 2, 1.0)  # away from the start, so that the sign vectors count
    before = network.theta
    theta = torch.tensor(before, requires_grad=True)
    signs = torch.tensor(network.signs)
    first, second = theta[: 64 * 32].reshape(64, 32), theta[64 * 32 :].reshape(32, 10)
    found = logits(first, second, torch.tensor(x), theta - torch.tensor(start), signs)
    assert network.predictions(x) == pytest.approx(torch.sigmoid(found).detach().numpy(), rel=1e-12)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(found[7], torch.zeros(5, dtype=torch.float64))
    loss.backward()
    network.learn(x, 7, 0.0)
    assert network.theta == pytest.approx(before - 0.5 * theta.grad.numpy(), rel=1e-10, abs=1e-14)


def test_a_policy_sees_the_loss_of_its_own_class_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(digits.Regression, "learn", lambda self, x, arm, loss: seen.append((arm, loss)))
    losses = digits.play(digits.greedy(1.0), 300, seed=0)
    assert [loss for _, loss in seen] == losses.tolist()
    assert {arm for arm, _ in seen} == set(range(10))
    assert 0.8 < losses.mean() < 1.0


def test_gaps_lose_less_than_epsilon_greedy_on_digits() -> None:
    for seed in range(2):
        relative = digits.play(RelativeGap(300.0).probabilities, 2500, seed)
        assert relative[1250:].mean() < 0.8 * digits.play(digits.greedy(0.1), 2500, seed)[1250:].mean()


# ---- row 57: points that differ --------------------------------------------------------------------------------------


def test_errors_are_those_of_the_projection_where_all_points_are_taken() -> None:
    """Each point once and equal weights: the ratio is 1. With fewer points it is never below 1, for every law."""
    problem = differ.patients()
    every = Sample(np.arange(442), np.ones(442))
    assert differ.ratios(problem, lambda x, n, rng: every, 442, 1, 0) == pytest.approx([1.0], abs=1e-12)
    for draw in differ.DRAWS.values():
        assert np.all(differ.ratios(problem, draw, 22, 10, 0) >= 1)


def test_volume_beats_leverage_with_few_points() -> None:
    for problem, m in ((differ.kink(), 10), (differ.patients(), 11)):
        volume, leverage = (differ.ratios(problem, differ.DRAWS[law], m, 60, 0) for law in ("volume", "leverage"))
        assert 1.3 * np.median(volume) < np.median(leverage)
        assert 3 * np.quantile(volume, 0.95) < np.quantile(leverage, 0.95)


# ---- row 18: correlated equilibria within a budget -------------------------------------------------------------------


def test_the_stationary_law_is_an_eigenvector() -> None:
    regrets = np.random.default_rng(0).random((5, 3, 3))
    for q, p in zip(regrets, game.stationary(regrets), strict=True):
        rates = q - np.diag(np.diag(q))
        assert p @ (rates - np.diag(rates.sum(1))) == pytest.approx(np.zeros(3), abs=1e-8)
        assert p.sum() == pytest.approx(1)


def test_players_and_price_reach_the_budget() -> None:
    """Chicken with a price on playing apart: at 0.1, a player who gets 0.7 there is as well off with 0.6 together."""
    payoffs = np.array([[6.0, 2, -9], [7, 0, -9], [-9, -9, -9]])
    both, cost = np.stack([payoffs, payoffs.T]) / 10, np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 0]])
    games = games_of.Games(both[None, None], cost[None, None], np.zeros((1, 3, 3, 0)))
    free = game.learn(games, np.array([9.0]), 5000)
    assert free.last == 0
    play = game.learn(games, 0.5 * free.spent, 10_000, kappa=10.0)
    assert play.price == pytest.approx([0.1], abs=1e-3)
    assert play.spent == pytest.approx(0.5 * free.spent, abs=0.005)
    assert game.gains(games, play.joint, play.price)[0] < 0.001
    best = -games_of.least(-both.sum(0), both - play.price[0] * cost, cost, 0.5 * float(free.spent[0]), slack=0.005)
    assert np.sum(both.sum(0) * play.joint[0, 0]) <= best + 1e-9


# ---- row 64: few-shot clusters ---------------------------------------------------------------------------------------


def small_task(seed: int) -> tuple[clusters.Task, np.ndarray]:
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((8, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return clusters.Task(points[:2], points[2:], np.zeros(6)), clusters.graph(points[2:])


def test_an_update_minimizes_the_bound_of_the_energy() -> None:
    """Against SciPy's minimizer of energy - (lam / 2) (y - y0) w (y - y0), a convex function of y with y0 fixed."""
    t, w = small_task(0)
    y0 = np.random.default_rng(1).dirichlet(np.ones(2), 6)

    def bound(first: np.ndarray) -> float:
        y = np.clip(np.c_[first, 1 - first], 1e-12, 1)
        above = 0.3 / 2 * np.sum((y - y0) * (w @ (y - y0)))
        return clusters.energy(t, w, 0.3, y, t.labelled) + above

    found = minimize(bound, np.full(6, 0.5), bounds=[(1e-9, 1 - 1e-9)] * 6, tol=1e-14)
    update = clusters.softmax(-10.0 * clusters.distances(t.points, t.labelled) + 0.3 * (w @ y0), axis=1)
    assert update[:, 0] == pytest.approx(found.x, abs=1e-4)
    assert bound(update[:, 0]) <= found.fun + 1e-9


def test_clusters_have_no_more_energy_than_any_labelling_on_most_small_tasks() -> None:
    below = []
    for seed in range(20):
        t, w = small_task(seed)
        _, course = clusters.cluster(t, w, 0.3, rounds=30)
        assert np.all(np.diff(course) <= 1e-10)
        below.append(course[-1] <= clusters.least_labelling(t, w, 0.3) + 1e-9)
    assert np.mean(below) >= 0.7


# ---- row 20: compute where it pays -----------------------------------------------------------------------------------


def test_an_allocation_is_that_of_the_linear_program_up_to_one_question() -> None:
    """On recorded answers, against enumeration for six questions, and against the relaxation for 100."""
    found = compute.levels(np.arange(300))
    gain, cost = found.right[300:306] + 0.01 * np.arange(4), found.cost[300:306]
    choices = np.array(list(product(range(4), repeat=6)))
    spent, value = (table[np.arange(6), choices].sum(1) for table in (cost, gain))
    for budget in (150.0, 300.0, 800.0):
        got = allocate(gain, cost, budget)
        exact = value[spent <= budget].max()
        assert exact - 1.04 < got.gained <= exact + 1e-12
        assert got.spent <= budget
        assert exact <= compute.relaxed(gain, cost, budget) + 1e-9
    gain, cost = found.right[300:400] + 0.01 * np.arange(4), found.cost[300:400]
    for budget in (3000.0, 6000.0):
        assert 0 <= compute.relaxed(gain, cost, budget) - allocate(gain, cost, budget).gained < 1.04


def test_two_levels_at_random_are_a_chord_of_their_costs() -> None:
    found = compute.levels(np.arange(300))
    every = np.arange(600)
    means = found.alone.mean(0)
    assert compute.mixed(found, every, float(means[1])) >= found.right[:, 1].mean() - 1e-12
    half = compute.mixed(found, every, float(means[:2].mean()))
    assert half >= found.right[:, :2].mean() - 1e-12


# ---- row 40: constraints of a black box ------------------------------------------------------------------------------


def test_sketches_solve_to_the_accuracy_that_is_asked() -> None:
    rng = np.random.default_rng(0)
    root = rng.standard_normal((9, 9))
    a, b = (
        np.block([[root @ root.T + np.eye(9), root[:, :2]], [root[:, :2].T, np.zeros((2, 2))]]),
        rng.standard_normal(11),
    )
    for theta in (0.5, 1e-3, 1e-9):
        z = sketches.sketched(a, b, theta, np.random.default_rng(1))
        assert np.linalg.norm(a @ z - b) <= theta * np.linalg.norm(b)
    assert z == pytest.approx(np.linalg.solve(a, b), rel=1e-5, abs=1e-6)


def test_derivatives_of_value_and_constraint_are_those_of_the_formula() -> None:
    """HS7: f = log(1 + x^2) - y, c = (1 + x^2)^2 + y^2 - 4."""
    x, y = 0.7, 1.3
    point = sketches.examined(sketches.Counted(PROBLEMS[1]), np.array([x, y]), curved=True)
    assert point.first == pytest.approx(np.array([[2 * x / (1 + x * x), -1.0], [4 * x * (1 + x * x), 2 * y]]), abs=1e-8)
    curved = 2 * (1 - x * x) / (1 + x * x) ** 2
    assert point.second[0] == pytest.approx(np.array([[curved, 0], [0, 0]]), abs=1e-5)
    assert point.second[1] == pytest.approx(np.array([[4 + 12 * x * x, 0], [0, 2.0]]), abs=1e-5)


def test_newton_ends_at_the_known_minimum_from_several_seeds() -> None:
    for case in (PROBLEMS[1], PROBLEMS[4]):
        for seed in range(3):
            found, residuals, _ = sketches.newton(case, seed)
            assert case.f(found) == pytest.approx(case.best, abs=1e-7)
            assert residuals[-1] < 1e-8


def test_equal_scores_are_equal_and_cost_something() -> None:
    """Value and constraint from one pass, against SLSQP."""
    case = equal_scores()
    ours, slsqp = black_box.by_zograd(case, 20_000), black_box.by_scipy(case, "SLSQP")
    assert ours.value == pytest.approx(slsqp.value, rel=1e-6)
    assert ours.violation < 1e-6
    assert ours.value > 5 * minimize(case.f, case.x0).fun
