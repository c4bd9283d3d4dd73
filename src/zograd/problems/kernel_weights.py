"""Weights of fixed kernels of a Gaussian process, on the orthant: the likelihood of each agent's share of the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from zograd.core.vector import Array


@dataclass(frozen=True)
class KernelWeights:
    """y ~ N(0, sum_q theta_q K_q + noise^2 I), theta >= 0, with spectral kernels on a grid of frequencies m_q:

        k_q(t) = exp(-2 pi^2 t^2 width^2) cos(2 pi m_q t).

    `points` times in [0, 10], drawn by `seed` from the model with two weights that are not 0, and dealt to `agents` in
    turn. An agent sees its own share, so the losses add up to a likelihood of independent blocks. The minimum
    is sparse.
    """

    points: int = 240
    agents: int = 4
    kernels: int = 12
    width: float = 0.08
    noise: float = 0.3
    seed: int = 0

    @property
    def frequencies(self) -> Array:
        return np.linspace(0.2, 0.2 * self.kernels, self.kernels)

    def gram(self, a: Array, b: Array) -> Array:
        """(kernels, |a|, |b|): each kernel at all differences."""
        d = a[:, None] - b[None, :]
        bell = np.exp(-2 * np.pi**2 * d**2 * self.width**2)
        return np.asarray(bell * np.cos(2 * np.pi * self.frequencies[:, None, None] * d))

    @cached_property
    def truth(self) -> Array:
        """The weights of which the data are drawn."""
        theta = np.zeros(self.kernels)
        theta[self.kernels // 6], theta[(7 * self.kernels) // 12] = 1.0, 0.5
        return theta

    @cached_property
    def shares(self) -> list[tuple[Array, Array]]:
        """(t, y) of each agent; every fifth point is held out."""
        t, y, kept = self._drawn
        mine = np.flatnonzero(kept)
        return [(t[mine[j :: self.agents]], y[mine[j :: self.agents]]) for j in range(self.agents)]

    @cached_property
    def held_out(self) -> tuple[Array, Array]:
        """(t, y) that no agent has."""
        t, y, kept = self._drawn
        return t[~kept], y[~kept]

    @cached_property
    def _drawn(self) -> tuple[Array, Array, Any]:
        rng = np.random.default_rng(self.seed)
        t = np.sort(rng.uniform(0, 10, self.points))
        k = np.tensordot(self.truth, self.gram(t, t), 1) + (self.noise**2) * np.eye(self.points)
        y = np.linalg.cholesky(k) @ rng.standard_normal(self.points)
        return t, y, np.arange(self.points) % 5 != 4

    @cached_property
    def _grams(self) -> list[Array]:
        return [self.gram(t, t) for t, _ in self.shares]

    def _factor(self, theta: Array, agent: int) -> tuple[float, Any, Array]:
        """(value, Cholesky factor, (K + noise^2 I)^-1 y) of one agent; infinite where K is not positive definite."""
        from scipy.linalg import LinAlgError, cho_factor, cho_solve

        y = self.shares[agent][1]
        try:
            low = cho_factor(np.tensordot(theta, self._grams[agent], 1) + self.noise**2 * np.eye(len(y)), lower=True)
        except (LinAlgError, ValueError):
            return math.inf, None, y
        a = cho_solve(low, y)
        value = 0.5 * y @ a + np.log(np.diag(low[0])).sum() + 0.5 * len(y) * math.log(2 * math.pi)
        return float(value), low, a

    def value(self, theta: Array, agent: int) -> float:
        """-log p(y of the agent | theta), over all points of all agents; infinite outside of the domain."""
        return self._factor(theta, agent)[0] / self.kept

    def gradient(self, theta: Array, agent: int) -> tuple[float, Array]:
        """(value, gradient): tr((C^-1 - a a^T) K_q) / 2, a = C^-1 y (Rasmussen and Williams 2006, eq. 5.9)."""
        from scipy.linalg import cho_solve

        value, low, a = self._factor(theta, agent)
        if low is None:
            return math.inf, np.zeros(self.kernels)
        inverse = cho_solve(low, np.eye(len(a)))
        slopes = [0.5 * (float(np.sum(inverse * k)) - float(a @ k @ a)) for k in self._grams[agent]]
        return value / self.kept, np.array(slopes) / self.kept

    def total(self, theta: Array) -> float:
        """The sum over the agents."""
        return sum(self.value(theta, j) for j in range(self.agents))

    @property
    def kept(self) -> int:
        """Points that some agent has."""
        return self.points - self.points // 5

    @cached_property
    def best(self) -> Array:
        """The weights of least total value, by L-BFGS-B with analytic gradients."""
        from scipy.optimize import minimize

        def both(theta: Array) -> tuple[float, Array]:
            found = [self.gradient(theta, j) for j in range(self.agents)]
            return sum(f for f, _ in found), np.sum([g for _, g in found], axis=0)

        start = np.full(self.kernels, 0.1)
        return np.asarray(minimize(both, start, jac=True, bounds=[(0, None)] * self.kernels, method="L-BFGS-B").x)

    def error(self, theta: Array) -> float:
        """Root mean square error on the held-out points, predicted from all shares together."""
        t = np.concatenate([share[0] for share in self.shares])
        y = np.concatenate([share[1] for share in self.shares])
        at, wanted = self.held_out
        k = np.tensordot(theta, self.gram(t, t), 1) + self.noise**2 * np.eye(len(t))
        return float(np.sqrt(np.mean((np.tensordot(theta, self.gram(at, t), 1) @ np.linalg.solve(k, y) - wanted) ** 2)))
