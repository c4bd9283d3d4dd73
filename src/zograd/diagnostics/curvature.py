"""Curvature from values: trace, largest eigenvalue, flatness."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from zograd.core.vector import Array, Slot, Vector
from zograd.diagnostics.problem import Measurement, Problem, mean
from zograd.laws import Law, Rademacher
from zograd.laws.coordinate import unit
from zograd.stores import Leaf

Product: TypeAlias = Callable[[Array], Array]


def trace(p: Problem, mu: float = 2.0**-7, *, n: int = 32, law: Law = Rademacher(), seed: int = 0) -> Measurement:
    """tr H = E[(f(x + mu v) - 2 f(x) + f(x - mu v)) / mu^2] over n directions (Hutchinson).

    Costs 2n + 2 evaluations, two of them f(x); where these differ 3n + 2: each term has an f(x) of its own then, since
    one for all would put the same error into all terms.

    Variance of one term: 2 (|H|_F^2 - sum H_ii^2) for signs, 2 |H|_F^2 for normals, plus 6 sigma^2 / mu^4 if the values
    have noise sigma. So use a larger mu than for gradients; `noise_floor` suggests one.
    """
    v = p.directions(law, n, seed)
    first, again, *f = p.values([Vector(), Vector(), *(side * mu * vj for vj in v for side in (1.0, -1.0))])
    here = np.full(n, first) if first == again else np.array(p.values([Vector()] * n))
    plus, minus = np.array(f[::2]), np.array(f[1::2])
    return mean((plus - 2 * here + minus) / mu**2, len(f) + 2 + (0 if first == again else n))


def flatness(
    p: Problem, mus: Sequence[float] = (2.0**-10, 2.0**-8, 2.0**-6, 2.0**-4), *, n: int = 16, seed: int = 0
) -> list[dict[str, float]]:
    """The penalty of the radius: zeroth-order descent minimises f_mu(x) = E f(x + mu v) ~ f(x) + (mu^2 / 2) tr H.

    Returns one row per mu: `penalty` = E[(f(x + mu v) + f(x - mu v)) / 2] - f(x), its standard error `error`, the
    `trace` that it implies (2 penalty / mu^2; constant while f is quadratic at that scale), `share` = penalty / |f|.
    Costs 2n + 3 evaluations per row, 3n + 3 where values differ. Theory: arXiv 2506.05454.
    """
    rows = []
    for mu in mus:
        t = trace(p, mu, n=n, seed=seed)
        f0 = float(p.values([Vector()])[0])
        penalty = 0.5 * mu**2 * t.value
        rows.append(
            {
                "mu": float(mu),
                "penalty": penalty,
                "error": 0.5 * mu**2 * t.error,
                "trace": t.value,
                "share": penalty / abs(f0) if f0 else math.inf,
            }
        )
    return rows


def largest_eigenvalue(p: Problem, product: Product, *, tolerance: float = 1e-4, seed: int = 0) -> float:
    """The algebraically largest eigenvalue of H by Lanczos, from products v -> H v (`gradient_hvp`, `values_hvp`).

    Needs SciPy (ARPACK's implicitly restarted Lanczos). Memory: about 20 vectors of the dimension.
    """
    try:
        from scipy.sparse.linalg import LinearOperator, eigsh
    except ImportError:
        raise ImportError("the largest eigenvalue needs SciPy: pip install 'zograd[diagnostics]'") from None
    d = p.dim
    if d < 3:
        h = np.stack([product(e) for e in np.eye(d)])
        return float(np.linalg.eigvalsh(0.5 * (h + h.T)).max())
    start = np.random.default_rng(seed).normal(size=d)
    operator = LinearOperator((d, d), matvec=product, dtype=np.float64)
    return float(eigsh(operator, k=1, which="LA", v0=start, tol=tolerance, return_eigenvectors=False)[0])


def values_hvp(p: Problem, mu: float = 2.0**-7) -> Product:
    """v -> H v from values alone, coordinate by coordinate. Costs 4 d evaluations per product, so only for small d.

    (H v)_i = (f(x + a + b) - f(x + a - b) - f(x - a + b) + f(x - a - b)) |v| / (4 mu^2), a = mu e_i, b = mu v / |v|.
    """

    name = "direction of values_hvp"  # no rule's: the store may be that of a run
    u = mu * Vector(((Slot(name), 1.0),))

    def product(v: Array) -> Array:
        v = np.asarray(v, dtype=np.float64).reshape(-1)
        size = float(np.linalg.norm(v))
        if size == 0.0:
            return np.zeros_like(v)
        p.store.require({name: 0.0})
        try:
            at = 0
            for leaf in p.store.leaves:
                leaf.slots[name].copy_(torch.from_numpy(v[at : at + leaf.numel] / size))
                at += leaf.numel
            out = np.empty(p.dim)
            shapes = [leaf.shape for leaf in p.store.leaves]
            for i in range(p.dim):
                e = mu * Vector(((unit(i, shapes), 1.0),))
                f = p.values([e + u, e - u, u - e, -(e + u)])
                out[i] = (f[0] - f[1] - f[2] + f[3]) * size / (4 * mu**2)
            return out
        finally:
            for leaf in p.store.leaves:
                del leaf.slots[name]

    return product


def gradient_hvp(closure: Callable[[], Any], p: Problem, mu: float = 2.0**-10) -> Product:
    """v -> H v = (grad f(x + mu u) - grad f(x - mu u)) |v| / (2 mu) with gradients by autograd, u = v / |v|.

    `closure` is the loss of `p`, differentiable in its tensors. Costs two gradients per product. The tensors are
    restored bit for bit.
    """
    tensors = [leaf.tensor for leaf in p.store.leaves]

    def product(v: Array) -> Array:
        v = np.asarray(v, dtype=np.float64).reshape(-1)
        size = float(np.linalg.norm(v))
        if size == 0.0:
            return np.zeros_like(v)
        u = mu * v / size
        return (
            _gradient_at(closure, p.store.leaves, tensors, u) - _gradient_at(closure, p.store.leaves, tensors, -u)
        ) * (size / (2 * mu))

    return product


def _gradient_at(closure: Callable[[], Any], leaves: Sequence[Leaf], tensors: list[torch.Tensor], u: Array) -> Array:
    saved = [t.detach().clone() for t in tensors]
    wanted = [t.requires_grad for t in tensors]
    try:
        with torch.no_grad():
            at = 0
            for t in tensors:
                t.add_(torch.from_numpy(u[at : at + t.numel()]).to(t).view_as(t))
                at += t.numel()
        for t in tensors:
            t.requires_grad_(True)
        with torch.enable_grad():
            gradients = torch.autograd.grad(closure(), tensors, allow_unused=True)
        parts = [
            torch.zeros(t.numel(), dtype=torch.float64) if g is None else g.detach().double().cpu().view(-1)
            for g, t in zip(gradients, tensors, strict=True)
        ]
        return np.asarray(torch.cat(parts).numpy())
    finally:
        for t, old, want in zip(tensors, saved, wanted, strict=True):
            t.requires_grad_(want)
            with torch.no_grad():
                t.copy_(old)
