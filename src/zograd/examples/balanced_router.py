"""A router of experts in balance: one dual step an iteration, by the load of each expert.

Rows      54
Paper     Han and Zhong 2025, arXiv 2512.03915; Wang et al. 2024, arXiv 2408.15664
Formula   token t goes to the k experts of largest s_te + b_e; then b_e <- b_e - u_i sign(load_e - mean load), or
          b_e <- b_e - u_i (load_e - mean load) / mean load, with u_i = u or u / (1 + i / 20)
Evidence  the linear program of the balanced assignment (SciPy, HiGHS): its value, and its dual variables
Extent    the routing of one batch of fixed scores; no model with experts is trained
Needs     bench
Seconds   4
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import kron, vstack
from sklearn.datasets import load_digits

from zograd.control import Ascent, Dual, SignAscent
from zograd.examples import Claim, Figure, Finding, Line

CHOSEN = 2
"""Experts for each token."""


# %% What is exact: the assignment of tokens to experts of largest total score, with equal loads, is a linear program.
def exact(scores: np.ndarray) -> tuple[float, np.ndarray]:
    """Value of the balanced assignment, and the biases that its dual variables give, with mean 0."""
    tokens, experts = scores.shape
    each_token = kron(np.eye(tokens), np.ones((1, experts)))
    each_expert = kron(np.ones((1, tokens)), np.eye(experts))
    wanted = np.r_[np.full(tokens, CHOSEN), np.full(experts, tokens * CHOSEN / experts)]
    found = linprog(-scores.reshape(-1), A_eq=vstack([each_token, each_expert]), b_eq=wanted, bounds=(0, 1))
    biases = found.eqlin.marginals[tokens:]
    return -found.fun, biases - biases.mean()


# %% What is shown: the router sees the loads alone. A load is the derivative of the dual function with respect to b.
@dataclass
class Course:
    """A run of a rule: loads of the last step, biases with mean 0, value, and the course of imbalance and dual."""

    loads: np.ndarray
    biases: np.ndarray
    value: float
    imbalance: list[float]
    dual: list[float]


def balanced(scores: np.ndarray, rule: Dual, steps: int) -> Course:
    """Route the batch `steps` times; the rule moves the multipliers -b of "load = mean load" after each."""
    tokens, experts = scores.shape
    mean = tokens * CHOSEN / experts
    state = rule.initial(["equal"] * experts)
    imbalance, dual = [], []
    for _ in range(steps + 1):
        biases = -np.asarray(state["multipliers"])
        chosen = np.argsort(-(scores + biases), axis=1, kind="stable")[:, :CHOSEN]
        loads = np.bincount(chosen.reshape(-1), minlength=experts)
        value = float(np.take_along_axis(scores, chosen, 1).sum())
        imbalance.append(loads.max() / mean)
        dual.append(value + float(biases @ (loads - mean)))
        rule.observe(state, (loads - mean) / mean)
    return Course(loads, biases - biases.mean(), value, imbalance, dual)


# %% Two batches of scores: random ones that prefer some experts, and a random linear router on images of digits.
def batches(seed: int, tokens: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    ramp = rng.standard_normal((tokens, 8)) + np.linspace(0, 2, 8)
    pixels = load_digits().data[rng.permutation(1797)[:tokens]] / 16
    return {"ramp": ramp, "digits": pixels @ rng.standard_normal((64, 8)) / 2}


def run(seed: int = 0, quick: bool = False) -> Finding:
    tokens, steps = (256, 300) if quick else (512, 1500)
    rules: dict[str, Dual] = {
        "signs": SignAscent(0.01), "proportional": Ascent(0.3), "falling steps": Ascent(0.3, decay=0.05),
    }  # fmt: skip
    numbers: dict[str, float] = {}
    claims, lines = [], []
    for name, scores in batches(seed, tokens).items():
        value, biases = exact(scores)
        courses = {rule: balanced(scores, moves, steps) for rule, moves in rules.items()}
        numbers[f"{name}: value of the linear program"] = value
        numbers[f"{name}: largest load / mean before"] = courses["signs"].imbalance[0]
        for rule, course in courses.items():
            numbers[f"{name}: largest load / mean, {rule}"] = course.imbalance[-1]
            numbers[f"{name}: value, {rule}"] = course.value
            if name == "ramp":
                lines.append(Line(rule, range(1, steps + 2), course.imbalance))
        best = courses["falling steps"]
        apart = float(np.abs(best.biases - biases).max())
        numbers[f"{name}: largest |bias - dual variable|"] = apart
        above = min(min(course.dual) for course in courses.values()) - value
        claims += [
            Claim(
                f"{name}: falling steps balance the loads within 1 %, signs within 3 %",
                best.imbalance[-1] < 1.01 and courses["signs"].imbalance[-1] < 1.03,
                full_only=True,
            ),
            Claim(f"{name}: each rule more than halves the excess load", halved(courses)),
            Claim(f"{name}: the value is that of the linear program within 0.1 %", abs(best.value / value - 1) < 1e-3),
            Claim(f"{name}: the biases are its dual variables within 0.02", apart < 0.02, full_only=True),
            Claim(f"{name}: no dual value lies below that of the linear program", above > -1e-9 * abs(value)),
        ]
        rises = sum(b > a + 1e-9 for a, b in zip(best.dual, best.dual[1:], strict=False))
        numbers[f"{name}: steps at which the dual value rose"] = rises
    figure = Figure("Load of the busiest expert (ramp)", "step", "largest load / mean load", tuple(lines), log="x")
    return Finding(numbers, tuple(claims), (figure,))


def halved(courses: dict[str, Course]) -> bool:
    """Whether each rule ends with less than half of the excess that it began with."""
    return all(c.imbalance[-1] - 1 < (c.imbalance[0] - 1) / 2 for c in courses.values())
