"""A bandit that reads digits: only the reward of the class it names is shown, and a network predicts the losses.

Rows      56
Paper     Deb, Ban, Zuo, He and Banerjee 2024, arXiv 2312.07145
Formula   prediction y_a = mean_s sigma(f_a + c (theta - theta_0) e_s,a / m^(1/4)) over 5 sign vectors e_s,a, c = 0.1;
          online gradient on the logarithmic loss of the arm taken; SquareCB: p_a = 1 / (K + gamma (y_a - y_b)),
          FastCB: p_a = y_b / (K y_b + gamma (y_a - y_b)), the rest to b = argmin y
Evidence  the best policy names the right class and has loss 0, so the mean loss is the regret
Extent    one data set, 4,000 rounds, a network of 2,410 weights; no bound of the paper is checked
Needs     bench
Seconds   14
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.datasets import load_digits

from zograd.control import InverseGap, RelativeGap
from zograd.examples import Claim, Figure, Finding, Line

Policy = Callable[[np.ndarray], np.ndarray]
ARMS, WIDTH, SIGNS, C = 10, 32, 5, 0.1
GAMMA = 300.0


# %% The network: 64 pixels, 32 hidden units, one output for the loss of each class; a gradient of one output.
class Regression:
    def __init__(self, rng: np.random.Generator, rate: float) -> None:
        self.first = rng.standard_normal((64, WIDTH)) / 8
        self.second = rng.standard_normal((WIDTH, ARMS)) / np.sqrt(WIDTH)
        self.rate = rate
        self.start = self.theta
        self.signs = rng.choice([-1.0, 1.0], (ARMS, SIGNS, self.start.size)) * C / WIDTH**0.25

    @property
    def theta(self) -> np.ndarray:
        return np.concatenate([self.first.ravel(), self.second.ravel()])

    def hidden(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x @ self.first, 0.0)

    def predictions(self, x: np.ndarray) -> np.ndarray:
        """(arms, sign vectors), in (0, 1)."""
        away = self.signs @ (self.theta - self.start)
        return np.asarray(1 / (1 + np.exp(-((self.hidden(x) @ self.second)[:, None] + away))))

    def learn(self, x: np.ndarray, arm: int, loss: float) -> None:
        """A step along the gradient of -loss log y - (1 - loss) log(1 - y), in the mean over the sign vectors."""
        error = self.predictions(x)[arm] - loss
        hidden = self.hidden(x)
        inner = np.outer(x, self.second[:, arm] * (hidden > 0)) * error.mean()
        outer = np.zeros_like(self.second)
        outer[:, arm] = hidden * error.mean()
        moved = self.rate * (np.concatenate([inner.ravel(), outer.ravel()]) + error @ self.signs[arm] / SIGNS)
        self.first -= moved[: self.first.size].reshape(self.first.shape)
        self.second -= moved[self.first.size :].reshape(self.second.shape)


def greedy(epsilon: float) -> Policy:
    """Epsilon-greedy."""
    return lambda y: np.where(np.arange(ARMS) == np.argmin(y), 1 - epsilon + epsilon / ARMS, epsilon / ARMS)


# %% A round: a digit, a class drawn by the policy from the predictions, its loss, a step of the regression.
def play(policy: Policy, rounds: int, seed: int, rate: float = 0.07) -> np.ndarray:
    """The losses of all rounds."""
    rng = np.random.default_rng(seed)
    pixels, labels = load_digits(return_X_y=True)
    pixels = (pixels - pixels.mean(0)) / 8
    network, losses = Regression(rng, rate), np.empty(rounds)
    for t, i in enumerate(rng.integers(0, len(labels), rounds)):
        x = pixels[i]
        arm = int(rng.choice(ARMS, p=policy(network.predictions(x).mean(1))))
        losses[t] = float(arm != labels[i])
        network.learn(x, arm, losses[t])
    return losses


def run(seed: int = 0, quick: bool = False) -> Finding:
    rounds, seeds = (800, range(seed, seed + 1)) if quick else (4000, range(seed, seed + 3))
    policies: dict[str, Policy] = {
        "relative gap (FastCB)": RelativeGap(GAMMA).probabilities,
        "inverse gap (SquareCB)": InverseGap(GAMMA).probabilities,
        "greedy with epsilon = 0.1": greedy(0.1),
        "greedy": greedy(0.0),
        "uniform": InverseGap(0.0).probabilities,
    }
    losses = {name: np.array([play(policy, rounds, s) for s in seeds]) for name, policy in policies.items()}
    regret = {name: found.mean(1) for name, found in losses.items()}
    numbers = {f"{name}: mean loss": float(found.mean()) for name, found in regret.items()}
    numbers |= {f"{name}: largest mean loss of a seed": float(found.max()) for name, found in regret.items()}
    numbers |= {
        f"{name}: mean loss of the last quarter": float(x[:, -rounds // 4 :].mean()) for name, x in losses.items()
    }
    relative, inverse, epsilon, none, uniform = regret.values()
    lines = []
    for name, found in losses.items():
        t = range(rounds // 40, rounds + 1, rounds // 40)
        course = np.array([found[:, :n].mean(1) for n in t])
        lines.append(Line(name, t, course.mean(1).tolist(), course.min(1).tolist(), course.max(1).tolist()))
    return Finding(
        numbers,
        (
            Claim("every policy that learns loses less than uniform draws, on every seed",
                  bool(np.all(np.max([relative, inverse, epsilon, none], 0) < 0.9 * uniform))),
            Claim("relative gaps lose less than inverse gaps of the same gamma, on every seed",
                  bool(np.all(relative < inverse)), full_only=True),
            Claim("inverse gaps lose less than epsilon-greedy, on every seed",
                  bool(np.all(inverse < epsilon)), full_only=True),
            Claim("greed alone does as well here: its mean loss is within 15 % of that of relative gaps",
                  abs(none.mean() / relative.mean() - 1) < 0.15, full_only=True),
        ),
        (Figure("Mean loss so far (band: all seeds)", "rounds", "mean loss = regret a round", tuple(lines)),),
    )  # fmt: skip
