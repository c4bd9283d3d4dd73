"""Compute where it pays: a price on tokens decides which questions get a longer prompt.

Rows      20
Paper     Adaptive test-time compute, 2026, arXiv 2604.14853
Formula   a_i = argmax_b gain_ib - lam cost_ib, lam by bisection to sum_i cost = budget; a forest predicts the gains of
          new questions from the scores of the cheapest answer
Evidence  the linear program of the budget (SciPy, HiGHS); all questions at one level, and mixtures of two levels
Extent    answers of SmolLM2-135M to 600 questions of trec, recorded once; levels are prompts, not chains of thought
Needs     bench
Seconds   6
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import block_diag, csr_matrix
from scipy.special import entr, softmax
from sklearn.ensemble import RandomForestRegressor
from sklearn.tree import DecisionTreeRegressor

from zograd.control import allocate
from zograd.examples import Claim, Figure, Finding, Line
from zograd.problems.recorded import PROMPTS, answers

BUDGETS = (25.0, 30.0, 45.0, 60.0)
"""Tokens a question, in the mean."""


# %% All questions of both splits; a split of ours draws the questions on which prompts and forest are chosen.
@dataclass(frozen=True)
class Levels:
    """right, cost: (questions, levels), after the cheapest prompt was asked. alone: cost without it. features."""

    right: np.ndarray
    cost: np.ndarray
    alone: np.ndarray
    features: np.ndarray


def levels(train: np.ndarray) -> Levels:
    """No demonstrations, the 2 and the 4 nearest, and 4 prompts together: each the best on the training questions."""
    both = [answers(split) for split in ("validation", "test")]
    scores, tokens = (np.concatenate([getattr(a, name) for a in both], axis=1) for name in ("scores", "tokens"))
    labels = np.concatenate([a.labels for a in both])
    order = np.argsort(-(scores.argmax(2) == labels)[:, train].mean(1), kind="stable").tolist()

    def best(number: int) -> int:
        return next(i for i in order if PROMPTS[i].number == number and PROMPTS[i].demonstrations != "drawn")

    first = best(0)
    asked = [[first], [best(2)], [best(4)], [i for i in order if PROMPTS[i].demonstrations == "nearest"][:4]]
    right = np.array([scores[prompts].mean(0).argmax(1) == labels for prompts in asked], dtype=float).T
    alone = np.array([tokens[prompts].sum(0) for prompts in asked], dtype=float).T
    cost = alone + tokens[first][:, None] * (np.arange(4) > 0)
    p = softmax(scores[first].astype(float), axis=1)
    high = np.sort(p, axis=1)
    return Levels(right, cost, alone, np.c_[entr(p).sum(1), high[:, -1] - high[:, -2], tokens[first], p])


# %% What it is compared with: the relaxation of the allocation, and the same level, or a mixture of two, for everyone.
def relaxed(gain: np.ndarray, cost: np.ndarray, budget: float) -> float:
    """max sum gain x over shares x of levels for each question, with sum cost x <= budget."""
    one = block_diag([np.ones((1, gain.shape[1]))] * len(gain))
    found = linprog(-gain.ravel(), csr_matrix(cost.reshape(1, -1)), [budget], one, np.ones(len(gain)), bounds=(0, 1))
    return -float(found.fun)


def mixed(found: Levels, test: np.ndarray, budget: float) -> float:
    """The best share of right answers of two levels that are dealt at random, at this mean cost."""
    points = sorted(zip(found.alone[test].mean(0), found.right[test].mean(0), strict=True))
    pairs = [(a, b) for a in points for b in points if a[0] <= budget <= b[0] and a[0] < b[0]]
    return max(float(np.interp(budget, (a[0], b[0]), (a[1], b[1]))) for a, b in pairs)


def run(seed: int = 0, quick: bool = False) -> Finding:
    splits, trees = (3, 40) if quick else (10, 200)
    gained = {budget: np.empty((splits, 4)) for budget in BUDGETS}
    short, over = 0.0, 0.0
    for k in range(splits):
        drawn = np.random.default_rng([seed, k]).permutation(600)
        train, test = drawn[:300], drawn[300:]
        found = levels(train)
        forest = RandomForestRegressor(trees, min_samples_leaf=10, random_state=k)
        tree = DecisionTreeRegressor(max_depth=6, min_samples_leaf=15, random_state=0)
        predicted = [
            m.fit(found.features[train], found.right[train]).predict(found.features[test]) for m in (forest, tree)
        ]
        cost, right = found.cost[test], found.right[test]
        for budget, row in gained.items():
            choices = [allocate(gain, cost, budget * len(test)) for gain in (*predicted, right)]
            row[k] = [*(right[np.arange(len(test)), c.choice].mean() for c in choices), mixed(found, test, budget)]
            over = max(over, choices[0].spent - budget * len(test))
            if k == 0:
                short = max(short, relaxed(predicted[0], cost, budget * len(test)) - choices[0].gained)
    names = ("forest and price", "tree and price", "price with known answers", "two levels at random")
    numbers = {f"{b:g} tokens, {name}: right": float(row[:, j].mean())
               for b, row in gained.items() for j, name in enumerate(names)}  # fmt: skip
    gain = {b: row[:, 0] - row[:, 3] for b, row in gained.items()}
    numbers |= {f"{b:g} tokens: gain of the forest, least split": float(g.min()) for b, g in gain.items()}
    numbers |= {"largest distance below the linear program, in questions": short}
    claims = (
        Claim("the allocation is within one question of the linear program", short < 1),
        Claim("no budget is exceeded", over <= 1e-9),
        Claim("with 30 tokens a question the forest beats two levels at random, on every split", gain[30.0].min() > 0),
        Claim("by more than two points in the mean", gain[30.0].mean() > 0.02),
        Claim("one tree gains less than the forest at every budget",
              all(r[:, 1].mean() < r[:, 0].mean() for r in gained.values())),
        Claim("with 60 tokens, enough for the best prompt, it gains less than with 30, and loses on some split",
              gain[60.0].mean() < gain[30.0].mean() and gain[60.0].min() < 0, full_only=True),
    )  # fmt: skip
    lines = tuple(Line(name, BUDGETS, [float(r[:, j].mean()) for r in gained.values()]) for j, name in enumerate(names))
    return Finding(numbers, claims, (Figure("Right answers at equal tokens", "tokens a question", "right", lines),))
