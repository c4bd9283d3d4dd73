"""One labelled image a class: clusters of unlabelled images around prototypes, by a bound that falls at each step.

Rows      64
Paper     Transductive few-shot learning by clustering, 2021, arXiv 2106.09516; its family of bound optimizers
Formula   E(y, c) = T sum_pk y_pk |z_p - c_k|^2 + sum y log y - (lam / 2) sum_pq w_pq y_p y_q, labelled points fixed;
          20 times y_p <- softmax(-T |z_p - c|^2 + lam sum_q w_pq y_q), then c_k <- weighted means; 10 such rounds
Evidence  enumeration of all labellings of 6 points; the energy, evaluated; nearest prototypes as the rival
Extent    digits through 20 principal components, 5 classes, 1 label each; no network of features, no meta-learning
Needs     bench
Seconds   26
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import softmax, xlogy
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

import zograd as zo
from zograd.examples import Claim, Figure, Finding, Line

TEMPERATURE, NEIGHBOURS = 10.0, 5


# %% A task: five classes, one labelled point and 15 others of each. Features have length 1.
@dataclass(frozen=True)
class Task:
    labelled: np.ndarray
    points: np.ndarray
    classes: np.ndarray


def features() -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = load_digits(return_X_y=True)
    z = PCA(20, random_state=0).fit_transform(pixels)
    return z / np.linalg.norm(z, axis=1, keepdims=True), labels


def task(z: np.ndarray, labels: np.ndarray, rng: np.random.Generator, ways: int = 5, queries: int = 15) -> Task:
    drawn = [rng.choice(np.flatnonzero(labels == k), queries + 1, replace=False) for k in rng.permutation(10)[:ways]]
    rest = np.concatenate([d[1:] for d in drawn])
    return Task(z[[d[0] for d in drawn]], z[rest], np.repeat(np.arange(ways), queries))


def graph(points: np.ndarray) -> np.ndarray:
    """w_pq = 1 / 2 for each of the two that has the other among its 5 nearest; a diagonal makes w semidefinite."""
    apart = distances(points, points)
    np.fill_diagonal(apart, np.inf)
    w = np.zeros_like(apart)
    np.put_along_axis(w, np.argsort(apart, axis=1)[:, :NEIGHBOURS], 1.0, axis=1)
    w = (w + w.T) / 2
    return w + max(0.0, -float(np.linalg.eigvalsh(w)[0])) * np.eye(len(w))


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(np.sum((a[:, None] - b[None]) ** 2, axis=2))


# %% The bound: with w semidefinite, -y w y lies below its tangent, whose minimum over y is the softmax.
def energy(t: Task, w: np.ndarray, lam: float, y: np.ndarray, c: np.ndarray) -> float:
    fixed = np.sum((t.labelled - c) ** 2)
    pairs = np.sum(y * (w @ y))
    return float(TEMPERATURE * (fixed + np.sum(y * distances(t.points, c))) + np.sum(xlogy(y, y)) - lam / 2 * pairs)


def cluster(t: Task, w: np.ndarray, lam: float, rounds: int = 10) -> tuple[np.ndarray, list[float]]:
    """(y, energy after each round). No round: nearest prototypes, as probabilities."""
    c = t.labelled
    y = softmax(-TEMPERATURE * distances(t.points, c), axis=1)
    course = []
    for _ in range(rounds):
        for _ in range(20):
            y = softmax(-TEMPERATURE * distances(t.points, c) + lam * (w @ y), axis=1)
        c = (t.labelled + y.T @ t.points) / (1 + y.sum(0))[:, None]
        course.append(energy(t, w, lam, y, c))
    return y, course


def accuracy(t: Task, y: np.ndarray) -> float:
    return float(np.mean(y.argmax(1) == t.classes))


# %% What is exact: on 6 points and 2 classes, the least energy of all 64 labellings with their own prototypes.
def least_labelling(t: Task, w: np.ndarray, lam: float) -> float:
    found = np.inf
    for code in range(2 ** len(t.points)):
        y = np.eye(2)[[code >> p & 1 for p in range(len(t.points))]]
        c = (t.labelled + y.T @ t.points) / (1 + y.sum(0))[:, None]
        found = min(found, energy(t, w, lam, y, c))
    return found


def tuned(tasks: list[tuple[Task, np.ndarray]], budget: int) -> float:
    """lam of the least error on these tasks, from values alone: the probability of the wrong classes."""

    def error(x: np.ndarray) -> float:
        found = [(t, cluster(t, w, float(x[0]))[0]) for t, w in tasks]
        return 1 - float(np.mean([y[np.arange(len(y)), t.classes].mean() for t, y in found]))

    return float(zo.minimize(error, np.array([0.3]), bounds=[(0.0, 3.0)], budget=budget).x[0])


def run(seed: int = 0, quick: bool = False) -> Finding:
    count, budget = (40, 6) if quick else (500, 40)
    rng, (z, labels) = np.random.default_rng(seed), features()
    drawn = [task(z, labels, rng) for _ in range(count + 20)]
    tasks = [(t, graph(t.points)) for t in drawn]
    lam = tuned(tasks[count:], budget)
    results = {
        "nearest prototypes": [cluster(t, w, 0.0, rounds=0) for t, w in tasks[:count]],
        "clusters, lam = 0": [cluster(t, w, 0.0) for t, w in tasks[:count]],
        "clusters, lam tuned": [cluster(t, w, lam) for t, w in tasks[:count]],
        "clusters, lam = 1": [cluster(t, w, 1.0) for t, w in tasks[:count]],
    }
    right = {name: np.array([accuracy(t, y) for (t, _), (y, _) in zip(tasks, found, strict=False)])
             for name, found in results.items()}  # fmt: skip
    rises = max(float(np.diff(course).max()) for _, course in results["clusters, lam = 1"])
    near, plain, best, strong = right.values()
    gained, error = (best - plain).mean(), (best - plain).std() / np.sqrt(count)
    # %% Small tasks against enumeration. A probability is a mixture of labellings, so its energy may lie below.
    small = [task(z, labels, rng, ways=2, queries=3) for _ in range(20 if quick else 100)]
    below = [cluster(t, graph(t.points), 0.3)[1][-1] <= least_labelling(t, graph(t.points), 0.3) + 1e-9 for t in small]
    numbers = {f"accuracy of {name}": float(found.mean()) for name, found in right.items()}
    numbers |= {f"standard error of {name}": float(found.std() / np.sqrt(count)) for name, found in right.items()}
    numbers |= {"lam tuned on 20 other tasks": lam, "accuracy gained by the tuned lam": float(gained)}
    numbers |= {"standard error of that gain": float(error), "largest rise of the energy in a round": rises}
    numbers["share of small tasks with no labelling of less energy"] = float(np.mean(below))
    claims = (
        Claim("the energy falls at each round of each task", rises <= 1e-9),
        Claim("clusters are right more often than nearest prototypes, by 5 points", plain.mean() > near.mean() + 0.05),
        Claim("the pairs of neighbours gain nothing here: less than 1 point with the tuned lam",
              gained < 0.01, full_only=True),
        Claim("and lam = 1 loses", strong.mean() < plain.mean(), full_only=True),
        Claim("on at least 70 % of small tasks no labelling has less energy; others end in a local minimum",
              float(np.mean(below)) >= 0.7),
    )  # fmt: skip
    courses = [np.array([c for _, c in results[f"clusters, lam = {k}"]]) for k in (0, 1)]
    lines = tuple(
        Line(f"lam = {k}", range(1, 11), (c - c[:, -1:]).mean(0).tolist()) for k, c in zip((0, 1), courses, strict=True)
    )
    return Finding(
        numbers, claims, (Figure("Energy above its last value, mean of all tasks", "round", "energy", lines),)
    )
