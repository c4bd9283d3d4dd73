"""A saddle point of fifty similar clients: one client a round answers values, and the server solves with its own data.

Rows      38
Paper     Luo et al., NeurIPS 2024, arXiv 2405.16126 (SVOGS)
Formula   z- = (1 - p) z + p w;  e = [F - F1](w) + [Fi - F1](z) - [Fi - F1](w) + a ([Fi - F1](z) - [Fi - F1](z'));
          z+ solves F1(u) + e + (u - z-) / eta = 0;  w <- z with probability p;  a = 1 - p, eta = 0.3 / delta, p = 1/n
Evidence  the solution of the linear system F(z) = 0; extragradient with exact fields, by the calls of clients
Extent    quadratic games with equal numbers of examples, in one process; no bound on rounds is claimed
Needs     nothing more
Seconds   4
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import zograd as zo
from zograd.estimators import Coordinates
from zograd.examples import Claim, Figure, Finding, Line

X, R, ROWS = 12, 8, 240
"""Coefficients x, and shifts r of the targets that an adversary chooses; examples a client."""


# %% Robust regression: min_x max_r mean_i f_i, f_i = mean_j (a_ij x - b_ij - c_ij r)^2 / 2 + l |x|^2 / 2 - h |r|^2 / 2.
Course = tuple[list[int], list[float]]


@dataclass
class Client:
    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    calls: int = 0

    def value(self, z: np.ndarray) -> float:
        error = self.a @ z[:X] - self.b - self.c @ z[X:]
        return float(error @ error / len(error) / 2 + 0.1 * z[:X] @ z[:X] / 2 - 1.5 * z[X:] @ z[X:] / 2)

    def field(self, z: np.ndarray) -> np.ndarray:
        """(grad_x f, -grad_r f) from 2 (X + R) values."""
        self.calls += 1
        slope: np.ndarray = zo.gradient(self.value, z, estimator=Coordinates(X + R, central=True), mu=0.1).value
        return np.concatenate([slope[:X], -slope[X:]])

    def exact(self) -> tuple[np.ndarray, np.ndarray]:
        """(M, q) of the field M z + q, from the formula; it judges, and serves the rival."""
        m, j = len(self.b), np.hstack([self.a, -self.c])
        h = j.T @ j / m + np.diag(np.r_[np.full(X, 0.1), np.full(R, -1.5)])
        sign = np.r_[np.ones(X), -np.ones(R)]
        return sign[:, None] * h, sign * (-j.T @ self.b / m)


def clients(n: int, seed: int) -> list[Client]:
    """Their data differ by sampling, and the coefficients a little from client to client."""
    rng = np.random.default_rng(seed)
    truth, made = rng.standard_normal(X), []
    for _ in range(n):
        a, c = rng.standard_normal((ROWS, X)), 0.7 * rng.standard_normal((ROWS, R))
        made.append(Client(a, a @ (truth + 0.3 * rng.standard_normal(X)) + 0.5 * rng.standard_normal(ROWS), c))
    return made


# %% The rounds. What the server owns is the data of client 0: its field, which is linear, is measured once.
def svogs(many: list[Client], delta: float, solution: np.ndarray, rounds: int, seed: int) -> Course:
    n, rng, d = len(many), np.random.default_rng(seed), X + R
    server = many[0]
    origin = server.field(np.zeros(d))
    own = np.stack([server.field(e) - origin for e in np.eye(d)], axis=1)
    server.calls = 0  # they cost no message
    eta, p = 0.3 / delta, 1 / n

    def server_field(z: np.ndarray) -> np.ndarray:
        return np.asarray(own @ z + origin)

    def all_fields(w: np.ndarray) -> list[np.ndarray]:
        return [client.field(w) for client in many]

    z = last = w = np.zeros(d)
    there = all_fields(w)
    calls, gaps = [], []
    for _ in range(rounds):
        i = int(rng.integers(n))
        here, before = (many[i].field(u) - server_field(u) for u in (z, last))
        e = np.mean(there, axis=0) - there[i] + here + (1 - p) * (here - before)
        last, anchor = z, (1 - p) * z + p * w
        z = np.linalg.solve(own + np.eye(d) / eta, anchor / eta - origin - e)
        if rng.random() < p:
            w, there = last, all_fields(last)
        calls.append(sum(client.calls for client in many))
        gaps.append(float(np.linalg.norm(z - solution)))
        if gaps[-1] < 1e-6:
            break
    return calls, gaps


def extragradient(m: np.ndarray, q: np.ndarray, n: int, solution: np.ndarray, most: int) -> Course:
    """The rival, with exact fields: each of its two fields a step asks all clients. The rate is the best of five."""
    best: Course = ([], [])
    for share in (0.3, 0.5, 0.7, 0.85, 1.0):
        z, gaps = np.zeros(len(q)), list[float]()
        while (not gaps or gaps[-1] > 1e-6) and len(gaps) * 2 * n < most:
            rate = share / np.linalg.norm(m, 2)
            z = z - rate * (m @ (z - rate * (m @ z + q)) + q)
            gaps.append(float(np.linalg.norm(z - solution)))
        if not best[1] or (len(gaps), gaps[-1]) < (len(best[1]), best[1][-1]):
            best = [2 * n * k for k in range(1, len(gaps) + 1)], gaps
    return best


def run(seed: int = 0, quick: bool = False) -> Finding:
    many = clients(20 if quick else 50, seed)
    fields = [client.exact() for client in many]
    m, q = (np.mean([field[k] for field in fields], axis=0) for k in (0, 1))
    delta = max(float(np.linalg.norm(own - m, 2)) for own, _ in fields)
    solution = np.linalg.solve(m, -q)
    calls, gaps = svogs(many, delta, solution, 300 if quick else 3000, seed)
    rival_calls, rival_gaps = extragradient(m, q, len(many), solution, 400 * len(many))
    z = np.ones(X + R)
    measured = float(np.abs(many[1].field(z) - fields[1][0] @ z - fields[1][1]).max())
    numbers = {
        "similarity delta": delta, "Lipschitz constant": float(np.linalg.norm(m, 2)), "distance": gaps[-1],
        "calls of clients": calls[-1], "calls of extragradient": rival_calls[-1],
        "distance of extragradient": rival_gaps[-1], "error of a measured field": round(measured, 9),
    }  # fmt: skip
    claims = (
        Claim("a field from values is the exact field, to 1e-8", measured < 1e-8),
        Claim("the distance from the solution falls by a factor of 10", gaps[-1] < gaps[0] / 10),
        Claim("the solution of the linear system is reached to 1e-6", gaps[-1] < 1e-6, full_only=True),
        Claim("extragradient needs more than four times the calls", rival_calls[-1] > 4 * calls[-1], full_only=True),
    )
    lines = (Line("one client a round", calls, gaps), Line("extragradient, exact fields", rival_calls, rival_gaps))
    return Finding(
        numbers, claims, (Figure("Distance from the saddle", "calls of clients", "distance", lines, log="y"),)
    )
