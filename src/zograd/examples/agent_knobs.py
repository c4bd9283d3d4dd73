"""Knobs of an agent: a bandit finds the prompt, comparisons find biases of its answers, and tokens are the budget.

Rows      9
Paper     research programme of the founding talk; the bandit is Zimmert and Seldin 2021, arXiv 1807.07623
Formula   arm ~ TsallisINF over 40 prompts, loss 1 - accuracy on 32 questions; then argmax_k (s_k + b_k) / T, with b and
          T by the order of eight points (zo.AskTell, rank)
Evidence  the best of all 40 prompts is known from the recording; random search at equal tokens
Extent    one model, one task, prompts and biases alone: no tools, no search; answers are recorded, not asked
Needs     nothing more
Seconds   15
"""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax

import zograd as zo
from zograd.control import TsallisINF
from zograd.examples import Claim, Figure, Finding, Line
from zograd.problems.recorded import PROMPTS, Answers, answers

ASKED, PRICE = 32, 0.10
"""Questions for each try of a prompt; dollars for a million tokens."""


# %% The agent: an answer costs the tokens of its prompt once; asked again, it comes from the cache.
class Agent:
    def __init__(self, recorded: Answers, budget: int) -> None:
        self.recorded, self.budget = recorded, budget
        self.right = recorded.right()
        self.known = np.zeros(self.right.shape, bool)

    @property
    def spent(self) -> int:
        return int(self.recorded.tokens[self.known].sum())

    def cost(self, prompt: int, questions: np.ndarray) -> int:
        return int(self.recorded.tokens[prompt, questions][~self.known[prompt, questions]].sum())

    def try_out(self, prompt: int, questions: np.ndarray) -> float | None:
        """The accuracy of a prompt on some questions; None where the budget does not allow it."""
        if self.spent + self.cost(prompt, questions) > self.budget:
            return None
        self.known[prompt, questions] = True
        return float(self.right[prompt, questions].mean())

    def best(self) -> int:
        """The prompt with the highest lower bound of its accuracy: mean - sqrt(1 / n) of the n answers known."""
        n = self.known.sum(1)
        mean = (self.right & self.known).sum(1) / np.maximum(n, 1)
        return int(np.argmax(np.where(n > 0, mean - np.sqrt(1 / np.maximum(n, 1)), -np.inf)))


def by_bandit(agent: Agent, seed: int) -> list[tuple[int, int]]:
    """(tokens, best prompt so far) after each try."""
    rng, rule, course = np.random.default_rng(seed), TsallisINF(len(PROMPTS)), []
    state = rule.initial()
    while True:
        arm = int(rng.choice(len(PROMPTS), p=rule.probabilities(state)))
        accuracy = agent.try_out(arm, rng.choice(agent.known.shape[1], ASKED, replace=False))
        if accuracy is None:
            return course
        rule.observe(state, arm, 1 - accuracy)
        course.append((agent.spent, agent.best()))


def at_random(agent: Agent, seed: int) -> list[tuple[int, int]]:
    """The same, with a prompt drawn anew for each try, on three times the questions."""
    rng, course = np.random.default_rng([seed, 1]), []
    for arm in rng.permutation(len(PROMPTS)):
        if agent.try_out(int(arm), rng.choice(agent.known.shape[1], 3 * ASKED, replace=False)) is None:
            break
        course.append((agent.spent, agent.best()))
    return course


# %% Biases of the six labels and a temperature, by ask and tell: the method sees the order of eight losses, no more.
def calibrated(scores: np.ndarray, labels: np.ndarray, rounds: int, seed: int) -> np.ndarray:
    """(7,): six biases and log T, of least log loss on the answers that are known already. It costs no token."""
    loop = zo.AskTell(np.zeros(7), zo.methods.rank(lr=0.15, mu=0.1, n=8), seed=seed)
    for _ in range(rounds):
        loop.tell([log_loss(scores, labels, point) for point in loop.ask()])
    return np.asarray(loop.x)


def log_loss(scores: np.ndarray, labels: np.ndarray, knobs: np.ndarray) -> float:
    logp = log_softmax((scores + knobs[:6]) * np.exp(-knobs[6]), axis=1)
    return float(-logp[np.arange(len(labels)), labels].mean())


def accuracy(recorded: Answers, prompt: int, knobs: np.ndarray | None = None) -> float:
    scores = recorded.scores[prompt] + (0 if knobs is None else knobs[:6])
    return float((scores.argmax(1) == recorded.labels).mean())


def run(seed: int = 0, quick: bool = False) -> Finding:
    tuning, test = answers("validation"), answers("test")
    budget, seeds, rounds = (60_000, 2, 60) if quick else (150_000, 5, 250)
    found: dict[str, list[float]] = {name: [] for name in ("bandit", "bandit and biases", "random", "regret", "loss")}
    courses = []
    for s in range(seed, seed + seeds):
        agent, rival = Agent(tuning, budget), Agent(tuning, budget)
        course, rivals = by_bandit(agent, s), at_random(rival, s)
        prompt = course[-1][1]
        known = np.flatnonzero(agent.known[prompt])
        knobs = calibrated(tuning.scores[prompt, known], tuning.labels[known], rounds, s)
        found["bandit"].append(accuracy(test, prompt))
        found["bandit and biases"].append(accuracy(test, prompt, knobs))
        found["random"].append(accuracy(test, rivals[-1][1]))
        found["regret"].append(float(tuning.right().mean(1).max() - tuning.right()[prompt].mean()))
        before = log_loss(test.scores[prompt], test.labels, np.zeros(7))
        found["loss"].append(log_loss(test.scores[prompt], test.labels, knobs) - before)
        courses.append((course, rivals))
    numbers = {
        f"test accuracy, {name}: median": float(np.median(found[name]))
        for name in ("bandit", "bandit and biases", "random")
    }
    numbers |= {
        "test accuracy, first prompt": accuracy(test, 0),
        "test accuracy, best of all 40 on validation": accuracy(test, int(tuning.right().mean(1).argmax())),
        "validation accuracy below the best prompt's: median": float(np.median(found["regret"])),
        "change of the test loss by biases and temperature: median": float(np.median(found["loss"])),
        "tokens": budget, "share of the tokens of all answers": budget / float(tuning.tokens.sum()),
        "dollars at 0.10 a million": budget * PRICE / 1e6,
    }  # fmt: skip
    lines = []
    for k, name in enumerate(("bandit", "random")):
        grid = np.linspace(budget / 10, budget, 20)
        at = [[accuracy(test, [0, *(p for t, p in c[k] if t <= g)][-1]) for g in grid] for c in courses]
        lines.append(Line(name, grid, np.median(at, 0), np.min(at, 0), np.max(at, 0)))
    gain = numbers["test accuracy, bandit and biases: median"] - numbers["test accuracy, first prompt"]
    claims = (
        Claim("at least 5 points above the first prompt", gain > 0.05),
        Claim("in the median within 5 points of the best prompt there is", np.median(found["regret"]) < 0.05, True),
        Claim("biases and temperature lower the test loss for every seed", max(found["loss"]) < 0, True),
        Claim("random search at equal tokens is within 3 points: with 40 arms and this budget the bandit gains little",
              abs(numbers["test accuracy, bandit: median"] - numbers["test accuracy, random: median"]) < 0.03, True),
    )  # fmt: skip
    return Finding(numbers, claims, (Figure("Test accuracy of the prompt so far", "tokens", "accuracy", tuple(lines)),))
