"""Curvature against the size of the batch: what a batch adds to the largest eigenvalue, and not to the trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from zograd.diagnostics.curvature import Product, gradient_hvp, largest_eigenvalue, trace
from zograd.diagnostics.problem import Measurement, Problem, mean, problem

Rows: TypeAlias = npt.NDArray[np.intp]


def spiked_edge(lam: float, noise: float) -> float:
    """The largest eigenvalue of lam u u^T + W, W a symmetric Gaussian matrix of spectral radius 2 noise.

        lam + noise^2 / lam  if lam > noise, else 2 noise      (Baik, Ben Arous and Peche 2005, in the limit of size)

    W has elements of variance noise^2 / P in P dimensions.

        >>> spiked_edge(2.0, 0.5), spiked_edge(0.5, 1.0)
        (2.125, 2.0)
    """
    return lam + noise**2 / lam if lam > noise else 2 * noise


@dataclass(frozen=True)
class BatchCurvature:
    """Curvature of the losses of random batches, and a fit of the spiked model to it.

    sizes: of the batches. largest, traces: mean over batches of each size, with standard errors. terms: of the sum.
    lam, noise: of the fit, `largest` ~ spiked_edge(lam, noise sqrt(1 / B - 1 / terms)). misfit: the root mean square of
    its relative errors.
    """

    sizes: tuple[int, ...]
    largest: tuple[Measurement, ...]
    traces: tuple[Measurement, ...]
    terms: int
    lam: float
    noise: float
    misfit: float

    def edge(self, size: int) -> float:
        """The largest eigenvalue that the fit predicts for batches of this size."""
        return spiked_edge(self.lam, self.noise * math.sqrt(max(1 / size - 1 / self.terms, 0.0)))

    def largest_lr(self, size: int) -> float:
        """2 / edge: above it, descent along the exact gradient of a batch diverges on a quadratic."""
        return 2 / self.edge(size)


def batch_curvature(
    loss: Callable[[Rows], Tensor],
    x: Iterable[Tensor] | Mapping[str, Tensor],
    terms: int,
    sizes: Sequence[int],
    *,
    repeats: int = 6,
    n: int = 16,
    mu: float = 2.0**-7,
    product: Callable[[Callable[[], Any], Problem], Product] = gradient_hvp,
    seed: int = 0,
) -> BatchCurvature:
    """Largest eigenvalue and trace of the Hessians of random batches, by size, at the current x.

    The Hessian of a batch of B terms is that of the mean plus a matrix of noise of variance proportional to
    1/B - 1/terms (batches are drawn without repetition). In the spiked model (`spiked_edge`; arXiv 2006.09092) noise
    raises the largest eigenvalue, so the largest learning rate of exact gradients falls with small batches. The noise
    has mean zero, so the trace stays, and with it the edge of stability of zeroth-order steps (2 q / tr H for few
    directions, `learning_rate.lr_bounds`).

    loss(rows): the mean of these terms, differentiable for the default `product`. x: the tensors that it depends on, or
    a mapping of them by name. repeats: batches of each size. n, mu: of `trace`. product: products with the Hessian,
    from the loss and the problem; `lambda loss, p: values_hvp(p)` needs values alone.

    Costs repeats x (2 n + 2) evaluations (3 n + 2 where values differ) for each size, and about 20 to 60 products with
    the Hessian (two gradients each).

        >>> import torch
        >>> a, w = torch.eye(4).repeat(5, 1), torch.ones(4)
        >>> found = batch_curvature(lambda rows: (a[rows] @ w).square().mean() / 2, [w], 20, (2, 20))
        >>> [round(m.value, 2) for m in found.traces], found.largest[0].value > found.largest[1].value
        ([1.0, 1.0], True)

    Raises ValueError where fewer than two sizes are given, or one is not between 1 and `terms`.
    """
    ordered = tuple(sorted(set(sizes)))
    if len(ordered) < 2 or ordered[0] < 1 or ordered[-1] > terms:
        raise ValueError(f"sizes={tuple(sizes)}; pass at least two different sizes between 1 and terms={terms}")
    if repeats < 2:
        raise ValueError(f"repeats={repeats} gives no standard error; pass at least 2")
    tensors = x if isinstance(x, Mapping) else list(x)
    rng = np.random.default_rng(seed)
    tops, traces = [], []
    for size in ordered:
        top, sums, evaluations = [], [], 0
        for k in range(repeats):
            rows = np.sort(rng.choice(terms, size, replace=False))

            def closure(rows: Rows = rows) -> Tensor:
                return loss(rows)

            p = problem(closure, tensors)
            top.append(largest_eigenvalue(p, product(closure, p), tolerance=1e-3, seed=k))
            of_batch = trace(p, mu, n=n, seed=k)
            sums.append(of_batch.value)
            evaluations += of_batch.evaluations
        tops.append(mean(top, 0))
        traces.append(mean(sums, evaluations))
    lam, noise, misfit = _fit(ordered, [t.value for t in tops], terms)
    return BatchCurvature(ordered, tuple(tops), tuple(traces), terms, lam, noise, misfit)


def _fit(sizes: Sequence[int], largest: Sequence[float], terms: int) -> tuple[float, float, float]:
    """lam, noise > 0 of the least sum of squared differences of logarithms, and their root mean square."""
    from scipy.optimize import least_squares

    spread = np.sqrt([max(1 / size - 1 / terms, 0.0) for size in sizes])
    logs = np.log(np.maximum(largest, 1e-300))

    def residuals(z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        lam, noise = np.exp(z)
        return np.array([math.log(spiked_edge(lam, noise * s)) for s in spread]) - logs

    rough = logs[0] - math.log(max(spread[0], 1e-12))
    starts = [(logs[-1], rough + shift) for shift in (-2.0, -1.0, -math.log(2), 0.0)]
    best = min((least_squares(residuals, start) for start in starts), key=lambda found: float(found.cost))
    return float(np.exp(best.x[0])), float(np.exp(best.x[1])), float(np.sqrt(np.mean(best.fun**2)))
