"""Correlated equilibria within a budget: players learn from their own payoffs, a multiplier prices the resource.

Rows      18
Paper     Chen, Ma and Zhou 2022, NeurIPS: correlated equilibria of constrained Markov games, primal-dual
Formula   each player, in each state, has no internal regret on r_i - lam c (plays the stationary law of its positive
          regrets); lam <- [lam + 0.5 / sqrt(t) (E c - b)]_+; the output is the mean joint play
Evidence  linear programs over correlated equilibria (SciPy, HiGHS); the gains of all swaps, exactly
Extent    two players with three actions; one state, or one state and then one of two; payoffs are expectations over the
          mixture of the other player, not samples
Needs     nothing more
Seconds   10
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zograd.control import Ascent
from zograd.examples import Claim, Figure, Finding, Line
from zograd.problems.games import ACTIONS, Games, least, random_games, swaps


# %% How players learn: positive internal regrets are rates of a Markov chain; its stationary law is the next mixture.
def stationary(regrets: np.ndarray) -> np.ndarray:
    """Of three states, by the matrix tree theorem: the weight of a is the sum over trees directed to a."""
    q = np.maximum(regrets, 0.0) + 1e-9
    weights = [
        q[..., b, a] * q[..., c, a] + q[..., c, b] * q[..., b, a] + q[..., b, c] * q[..., c, a]
        for a, b, c in ((0, 1, 2), (1, 2, 0), (2, 0, 1))
    ]
    p = np.stack(weights, axis=-1)
    return np.asarray(p / p.sum(-1, keepdims=True))


@dataclass(frozen=True)
class Play:
    """joint: mean joint play. last, price: multipliers at the end, and their mean over the second half of a run."""

    joint: np.ndarray
    last: np.ndarray
    price: np.ndarray
    spent: np.ndarray
    course: np.ndarray


def learn(games: Games, budget: np.ndarray, rounds: int, kappa: float = 0.0) -> Play:
    count, states = games.cost.shape[:2]
    regrets, total = np.zeros((count, states, 2, ACTIONS, ACTIONS)), np.zeros(games.cost.shape)
    state = Ascent(0.5).initial(["at most"] * count)
    course = np.empty((rounds, count))
    for t in range(1, rounds + 1):
        p = stationary(regrets)
        joint = p[:, :, 0, :, None] * p[:, :, 1, None, :]
        payoffs, cost = games.totals(joint)
        course[t - 1] = np.asarray(state["multipliers"])
        priced = payoffs - course[t - 1][:, None, None, None, None] * cost[:, :, None]
        first = np.einsum("gsab,gsb->gsa", priced[:, :, 0], p[:, :, 1])
        u = np.stack([first, np.einsum("gsab,gsa->gsb", priced[:, :, 1], p[:, :, 0])], axis=2)
        regrets += p[..., None] * (u[..., None, :] - u[..., None])
        total += joint
        spent = np.einsum("gab,gab->g", cost[:, 0], joint[:, 0])
        Ascent(0.5 / np.sqrt(t), kappa=kappa).observe(state, spent - budget)
    mean = total / rounds
    spent = np.einsum("gab,gab->g", games.totals(mean)[1][:, 0], mean[:, 0])
    return Play(mean, np.asarray(state["multipliers"]), course[rounds // 2 :].mean(0), spent, course)


def gains(games: Games, joint: np.ndarray, price: np.ndarray) -> np.ndarray:
    """The largest gain of a swap in each game, over players and states, at this price."""
    payoffs, cost = games.totals(joint)
    priced = payoffs - price[:, None, None, None, None] * cost[:, :, None]
    each = [
        [(swaps(r) @ mu.ravel()).max() for r, mu in zip(*pair, strict=True)] for pair in zip(priced, joint, strict=True)
    ]
    return np.asarray(np.max(each, axis=1))


def equilibria(games: Games, play: Play, budget: np.ndarray, price: np.ndarray, close: float) -> np.ndarray:
    """Which games have ended in an equilibrium of the priced game, within the budget, with a price where it binds."""
    excess = play.spent - budget
    good = (gains(games, play.joint, price) <= close) & (excess <= close) & (np.abs(price * excess) <= 2 * close)
    return np.asarray(good)


def run(seed: int = 0, quick: bool = False) -> Finding:
    rounds, count, close = (3000, 8, 0.02) if quick else (20_000, 20, 0.005)
    # %% One state: the budget is 1.02 times the cost of the cheapest correlated equilibrium.
    games = random_games(count, 1, seed)
    one = list(zip(games.payoffs[:, 0], games.cost[:, 0], strict=True))
    budget = np.array([1.02 * least(cost, payoffs, cost) for payoffs, cost in one])
    play, damped = learn(games, budget, rounds), learn(games, budget, rounds, kappa=10.0)
    reached = equilibria(games, damped, budget, damped.price, close)
    plain = equilibria(games, play, budget, play.price, close), equilibria(games, play, budget, play.last, close)
    above = [
        float(np.sum(r.sum(0) * mu[0])) + least(-r.sum(0), r - price * c, c, float(b), slack=close)
        for (r, c), mu, price, b, ok in zip(one, damped.joint, damped.price, budget, reached, strict=True) if ok
    ]  # fmt: skip
    # %% Two stages: the budget is 0.85 times what players spend without one.
    staged = random_games(count, 3, seed)
    wanted = 0.85 * learn(staged, np.full(count, 9.0), rounds).spent
    late = learn(staged, wanted, rounds, kappa=10.0)
    staged_reached = equilibria(staged, late, wanted, late.price, close)
    above_budget = damped.spent - budget > close
    rising = damped.last[above_budget] > damped.course[rounds // 2, above_budget]
    shares = reached.mean(), staged_reached.mean(), plain[0].mean(), plain[1].mean()
    numbers = {
        "one state: share of games in equilibrium within the budget": shares[0],
        "two stages: share of games in equilibrium within the budget": shares[1],
        "one state: without damping (kappa = 0)": shares[2],
        "one state: without damping, at the last price": shares[3],
        "one state: median gain of a swap": float(np.median(gains(games, damped.joint, damped.price))),
        "one state: share of games above the budget": float(above_budget.mean()),
        "one state: welfare above that of the linear program, largest": max(above),
    }
    claims = (
        Claim("at least 70 % of games end in an equilibrium within the budget", shares[0] >= 0.7),
        Claim("in two stages at least 65 %", shares[1] >= 0.65, full_only=True),
        Claim("no welfare is above that of the linear program of the priced game", max(above) <= 1e-9),
        Claim("not all games do; where the budget is missed, the price rises until the end", bool(np.all(rising))),
        Claim("damping (kappa = 10) loses no game, and without it the last price is worse than the mean price",
              shares[3] <= shares[2] <= shares[0], full_only=True),
    )  # fmt: skip
    busiest = int(np.argmax(np.where(reached, play.price, 0)))
    every = rounds // 300
    courses = {"kappa = 0": play.course[::every, busiest], "kappa = 10": damped.course[::every, busiest]}
    lines = tuple(Line(name, range(1, rounds + 1, every), course.tolist()) for name, course in courses.items())
    return Finding(numbers, claims, (Figure("Price of the resource in one game", "round", "multiplier", lines),))
