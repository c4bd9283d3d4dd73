"""Values of a policy from recorded transitions: temporal differences with a control variate, from evaluations.

Rows      15, 16
Paper     Ma, Zhou and Zou, NeurIPS 2020 (VR-TDC); Ma, Chen, Zhou and Zou, ICLR 2021 (VR-Greedy-GQ)
Formula   theta += a r (D p - g p' (p.w)), w += a (r D p - (p.w) p); D = reward + g p'.theta - p.theta, held for a pair
Evidence  the fixed point of the recorded transitions by a linear system; for control Q-iteration on their counts
Extent    processes of 20 and 5 states; semi-gradients of linear values are far cheaper without zograd
Needs     nothing more
Seconds   35
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

import zograd as zo
from zograd.estimators import SVRG, Central, Coordinates, Estimator
from zograd.examples import Claim, Figure, Finding, Line
from zograd.oracles import Oracle, frozen

DISCOUNT = 0.8
Map = Callable[[Tensor], Tensor]
Make = Callable[[Tensor, Tensor], Oracle]


# %% A Garnet process: each action leads to one of three states; transitions under one policy, values of another.
def transitions(states: int, actions: int, n: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    kernel, reward = np.zeros((states, actions, states)), rng.standard_normal((states, actions))
    for i, j in product(range(states), range(actions)):
        kernel[i, j, rng.choice(states, 3, replace=False)] = rng.dirichlet(np.ones(3))
    target = rng.dirichlet(np.ones(actions), states)
    s, a = rng.integers(states, size=n), rng.integers(actions, size=n)
    after = np.array([rng.choice(states, p=kernel[i, j]) for i, j in zip(s, a, strict=True)])
    return {"s": s, "a": a, "after": after, "reward": reward[s, a], "ratio": target[s, a] * actions}


# %% The semi-gradient as an oracle: what `freeze` returns is held over a pair, and only theta' and w' are live.
def oracle(p: Tensor, ratio: Tensor, reward: Tensor, following: Map, theta: Tensor, w: Tensor) -> Oracle:
    """p: features of each transition. following: theta -> the features of its next state (and greedy action)."""

    def freeze(rows: Any) -> tuple[Tensor, Tensor]:
        part = slice(None) if rows is None else list(rows)
        now, rho, here = p[part], ratio[part], theta.clone()  # the loss is linear in theta' and w': two vectors stay
        then = following(here)[part]
        delta, fast = rho * (reward[part] + (DISCOUNT * then - now) @ here), now @ w
        slow = delta @ now - DISCOUNT * (rho * fast) @ then
        return slow / len(now), (delta - fast) @ now / len(now)

    def loss(held: tuple[Tensor, Tensor], rows: Any) -> Tensor:
        return -(held[0] @ theta + held[1] @ w)

    return frozen(loss, freeze)


def learned(
    make: Make, estimator: Estimator[Any], terms: int, lr: float, budget: int, seed: int, truth: np.ndarray
) -> tuple[list[float], list[float]]:
    """Evaluations of single transitions, and the distance of theta from the truth."""
    theta, w = (torch.zeros(len(truth), dtype=torch.float64) for _ in range(2))
    method = zo.Method(estimator, zo.laws.Rademacher(), zo.rules.SGD(), mu=0.1, lr=lr)
    run = zo.Run(zo.Store({"theta": theta, "w": w}), method, seed, terms=terms)
    answers, spent, apart = make(theta, w), [1.0], [float(np.linalg.norm(truth))]
    while run.evaluations < budget:
        run.step(answers)
        if run.evaluations > 1.03 * spent[-1]:
            spent.append(float(run.evaluations))
            apart.append(float(np.linalg.norm(theta.numpy() - truth)))
    return spent, apart


def of_batch(inner: Oracle, terms: int, batch: int, rng: np.random.Generator) -> Oracle:
    """The oracle of a fresh batch in each step, in place of all transitions: the plain stochastic step."""

    def evaluate(store: Any, queries: Any, key: int) -> Any:
        rows = tuple(int(i) for i in rng.choice(terms, batch, replace=False))
        return inner(store, [zo.Query(q.at, rows) for q in queries], key)

    return evaluate


# %% Evaluation of a policy with 5 features: the fixed point A theta = b of the recorded transitions.
def evaluation(seed: int, budget: int) -> tuple[dict[str, float], tuple[Line, ...], tuple[Claim, ...]]:
    n, d, batch = 500, 5, 4
    t = transitions(20, 3, n, seed)
    features = np.random.default_rng(seed + 1).standard_normal((20, d)) / np.sqrt(d)
    now, then = features[t["s"]], features[t["after"]]
    a = (t["ratio"][:, None] * now).T @ (now - DISCOUNT * then) / n
    truth = np.linalg.solve(a, now.T @ (t["ratio"] * t["reward"]) / n)
    p, q, rho, reward = (torch.from_numpy(v) for v in (now, then, t["ratio"], t["reward"]))

    make: Make = lambda theta, w: oracle(p, rho, reward, lambda _: q, theta, w)  # noqa: E731
    plain: Make = lambda theta, w: of_batch(make(theta, w), n, batch, np.random.default_rng(seed))  # noqa: E731
    exact = Coordinates(2 * d, central=True)
    reduced = learned(make, SVRG(2, batch, 200, exact), n, 0.1, budget, seed, truth)
    whole = learned(make, exact, n, 0.1, budget, seed, truth)
    spent, apart = learned(plain, Central(4), 0, 0.1, budget // (8 * batch), seed, truth)  # each is `batch` of them
    few = Line("batches of 4, an eighth of the budget", [batch * s for s in spent], apart)
    lines = (Line("anchor", *reduced), Line("all transitions a step", *whole), few)
    last = {line.name: line.y[-1] / line.y[0] for line in lines}
    claims = (
        Claim("the anchor ends below 5 % of the first distance", last["anchor"] < 0.05, full_only=True),
        Claim("it ends below all transitions a step", last["anchor"] < last["all transitions a step"]),
        Claim("batches without it stand still above 10 %", min(apart[len(apart) // 2 :]) > 0.1 * apart[0]),
    )
    return {f"distance left, {name}": value for name, value in last.items()}, lines, claims


# %% Control: the next action is the greedy one at the centre of the pair; a table of 5 states and 2 actions.
def control(seed: int, budget: int) -> tuple[dict[str, float], tuple[Line, ...], Claim]:
    n, states, actions = 500, 5, 2
    t = transitions(states, actions, n, seed)
    truth = q_iteration(t, states, actions).reshape(-1)
    table = torch.eye(states * actions, dtype=torch.float64)
    p, after = table[torch.from_numpy(t["s"] * actions + t["a"])], torch.from_numpy(t["after"])
    greedy: Map = lambda theta: table[after * actions + theta.view(states, actions)[after].argmax(1)]  # noqa: E731
    ones, reward = torch.ones(n, dtype=torch.float64), torch.from_numpy(t["reward"])
    make: Make = lambda theta, w: oracle(p, ones, reward, greedy, theta, w)  # noqa: E731
    exact = Coordinates(2 * states * actions, central=True)
    reduced = learned(make, SVRG(8, 8, 100, exact), n, 0.5, budget, seed, truth)
    whole = learned(make, exact, n, 0.5, budget, seed, truth)
    lines = (Line("control: anchor", *reduced), Line("control: all transitions a step", *whole))
    last = {line.name: line.y[-1] / line.y[0] for line in lines}
    good = last["control: anchor"] < min(0.4, last["control: all transitions a step"])
    claim = Claim("greedy control with the anchor ends below 40 %, and below all transitions", good, full_only=True)
    return {f"distance left, {name}": value for name, value in last.items()}, lines, claim


def q_iteration(t: dict[str, np.ndarray], states: int, actions: int) -> np.ndarray:
    """Q of the process that the recorded transitions are counted to."""
    counts, rewards = np.zeros((states, actions, states)), np.zeros((states, actions))
    np.add.at(counts, (t["s"], t["a"], t["after"]), 1)
    np.add.at(rewards, (t["s"], t["a"]), t["reward"])
    q = np.zeros((states, actions))
    for _ in range(600):
        q = (rewards + DISCOUNT * counts @ q.max(1)) / counts.sum(2)
    return q


def run(seed: int = 0, quick: bool = False) -> Finding:
    numbers, lines, claims = evaluation(seed, 50_000 if quick else 250_000)
    more, curves, claim = control(seed, 50_000 if quick else 400_000)
    figure = Figure("Distance from the fixed point", "evaluations", "distance", (*lines, *curves), log="xy")
    return Finding(numbers | more, (*claims, claim), (figure,))
