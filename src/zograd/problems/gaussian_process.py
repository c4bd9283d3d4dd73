"""Positive hyper-parameters of a Gaussian process, fitted by its marginal likelihood."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from zograd.core.vector import Array
from zograd.problems.base import OUTSIDE, GeometryProblem, View, half_decades
from zograd.spaces import PositiveOrthant

LEAST = 1e-4
"""The smallest value onto which flat methods project; the open orthant itself has no nearest point."""


@cache
def data(n: int) -> tuple[Array, Array]:
    """(x, y), both standardised: the first n patients of scikit-learn's diabetes data, 10 features."""
    try:
        from sklearn.datasets import load_diabetes
    except ImportError:
        raise ImportError("this problem needs scikit-learn: pip install 'zograd[bench]'") from None
    x, y = load_diabetes(return_X_y=True)
    x, y = x[:n], y[:n]
    return np.asarray((x - x.mean(0)) / x.std(0)), np.asarray((y - y.mean()) / y.std())


class Likelihood:
    """-log p(y | x, theta) / n for theta = (length scales l, signal, noise).

    k(a, b) = signal^2 exp(-|(a - b) / l|^2 / 2), y ~ N(0, K + noise^2 I). NaN if theta is not positive or the matrix
    is not numerically positive definite.
    """

    def __init__(self, x: Array, y: Array) -> None:
        self.y, self.n = y, len(y)
        self.squares = (x.T[:, :, None] - x.T[:, None, :]) ** 2

    def __call__(self, theta: Array) -> float:
        found = self._factor(theta)
        return OUTSIDE if found is None else found[0]

    def _factor(self, theta: Array) -> tuple[float, Array, Array, Array] | None:
        """(value, K, Cholesky factor, (K + noise^2 I)^-1 y)."""
        from scipy.linalg import LinAlgError, cho_solve, cholesky

        if not (np.all(theta > 0) and np.all(np.isfinite(theta))):
            return None
        scales, signal, noise = theta[:-2], theta[-2], theta[-1]
        try:
            with np.errstate(all="ignore"):  # after an overflow the factorisation fails
                k = signal**2 * np.exp(-0.5 * np.tensordot(scales**-2.0, self.squares, 1))
                low = cholesky(k + noise**2 * np.eye(self.n), lower=True)
        except (LinAlgError, ValueError):
            return None
        a = cho_solve((low, True), self.y)
        value = 0.5 * (self.y @ a) + np.log(np.diag(low)).sum() + 0.5 * self.n * math.log(2 * math.pi)
        return float(value / self.n), k, low, a

    def gradient(self, theta: Array) -> tuple[float, Array]:
        """(value, gradient in log theta): tr(((K + noise^2 I)^-1 - a a^T) dK) / 2 n (Rasmussen and Williams, 5.9)."""
        from scipy.linalg import cho_solve

        found = self._factor(theta)
        if found is None:
            return math.inf, np.zeros_like(theta)
        value, k, low, a = found
        w = cho_solve((low, True), np.eye(self.n)) - np.outer(a, a)
        scales = [np.sum(w * k * s) / length**2 for s, length in zip(self.squares, theta[:-2], strict=True)]
        both = [2 * np.sum(w * k), 2 * theta[-1] ** 2 * np.trace(w)]
        return value, np.asarray([*scales, *both]) / (2 * self.n)

    def minimum(self, theta: Array, starts: int = 6) -> float:
        """The smallest value that L-BFGS finds in log theta, from `starts` starts, within e^-12 .. e^12."""
        from scipy.optimize import minimize

        rng = np.random.default_rng(0)
        found: list[Any] = [
            minimize(
                lambda z: self.gradient(np.exp(z)),
                np.log(theta) + shift,
                jac=True,
                method="L-BFGS-B",
                bounds=[(-12.0, 12.0)] * theta.size,
            ).fun
            for shift in (0.0, *1.5 * rng.normal(size=(starts - 1, theta.size)))
        ]
        return float(min(found))


@cache
def hyperparameters(n: int = 150) -> GeometryProblem:
    """The problem: ten length scales, signal and noise for n patients, from l = 1, signal 1, noise 0.1."""
    x, y = data(n)
    f = Likelihood(x, y)
    start = np.concatenate([np.ones(x.shape[1]), [1.0, 0.1]])

    def inside(theta: Array) -> bool:
        return bool(np.all((theta > 0) & np.isfinite(theta)))

    space = View(start, f, inside, mu=1e-3, rates=half_decades(1e-4, 1.0), space=PositiveOrthant())
    conformal = View(start, f, inside, mu=1e-3, space=PositiveOrthant("conformal"))
    return GeometryProblem(
        "gp-diabetes",
        "Hyper-parameters of a Gaussian process on the positive orthant",
        f"-log p(y | x) / n of a Gaussian process with a length scale for each of 10 features, signal and noise, on "
        f"the first {n} patients of the diabetes data, from l = 1, signal 1, noise 0.1; minimum by L-BFGS with exact "
        f"gradients",
        space,
        View(start, f, inside, mu=1e-4, rates=half_decades(1e-3, 10.0), project=lambda theta: np.maximum(theta, LEAST)),
        minimum=f.minimum(start),
        budget=1500,
        others={"conformal": ("curved", conformal)},
        measure=lambda view, theta: {"noise": float(theta[-1]), "longest": float(theta[:-2].max())},
    )
