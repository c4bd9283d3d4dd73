"""The spaces that the tests are parametrised over, points inside of them and their metrics, straight from formulas."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from zograd.spaces import (
    Box,
    Domain,
    Euclidean,
    Landing,
    Oblique,
    Polytope,
    PositiveOrthant,
    Product,
    Simplex,
    Sphere,
    Stiefel,
)


def two_walls(x: Tensor) -> Tensor:
    """A ball cut by a plane."""
    return torch.stack([4.0 - x.square().sum(), x.flatten()[0] + 0.5])


def ring(x: Tensor) -> Tensor:
    """Between two spheres: not convex."""
    return torch.stack([4.0 - x.square().sum(), x.square().sum() - 0.25])


TRIANGLE = ((1.0, 0.0), (0.0, 1.0), (-3.0, -3.0)), (1.0, 1.0, 3.0)
SPACES = (
    Euclidean(),
    PositiveOrthant(),
    PositiveOrthant("conformal"),
    Box(-1.0, 2.0),
    Box((0.0, -math.inf, -math.inf, -1.0), (1.0, 2.0, math.inf, math.inf)),
    Simplex(),
    Simplex(total=3.0),
    Simplex("conformal"),
    Simplex("fisher-rao"),
    Domain(two_walls),
    Domain(two_walls, metric="conformal"),
    Domain(ring),
    Polytope(*TRIANGLE),
    Polytope(*TRIANGLE, metric="conformal"),
    Polytope(*TRIANGLE, ridge=0.0),
    Sphere(),
    Sphere(2.0),
    Oblique(),
    Stiefel(),
    Stiefel("polar"),
    Landing(),
    Product({"v*": PositiveOrthant(), "w": Simplex(), "*": Euclidean()}),
)


def inside(space: object, seed: int, shape: tuple[int, ...] = (6, 4)) -> Tensor:
    """A random point of the space of leaf "w", away from edges, in the leaf's shape: (6, 4), or (2,) in a polytope."""
    g = torch.Generator().manual_seed(seed)
    u = torch.rand((2,) if isinstance(space, Polytope) else shape, generator=g, dtype=torch.float64)
    match space:
        case Product():
            return inside(space.of("w"), seed, shape)
        case Simplex():
            return space.total * (u + 0.1) / (u + 0.1).sum(-1, keepdim=True)
        case Sphere():
            return space.radius * (u - 0.5) / (u - 0.5).norm(dim=-1, keepdim=True)
        case Oblique():
            return (u - 0.5) / (u - 0.5).norm(dim=0)
        case Stiefel() | Landing():
            return torch.linalg.qr(u - 0.5).Q.contiguous()
        case Polytope():
            return 1.0 - 1.2 * u
        case Domain():
            return 0.8 * u / u.norm() * (1 + u.flatten()[0])
        case _:
            return 0.05 + 0.9 * u


def metric(space: object, x: Tensor) -> np.ndarray:
    """The matrix of the metric at x, d x d over the elements in order, in ambient coordinates."""
    if isinstance(space, Product):
        return metric(space.of("w"), x)
    v, n = x.numpy().ravel(), x.shape[-1] if x.ndim else 1
    by_row = v.reshape(-1, n)
    I = np.eye(v.size)  # noqa: E741
    match space:
        case PositiveOrthant(metric="log"):
            return np.diag(v**-2.0)
        case PositiveOrthant():
            return (1 + np.sum(v**-2.0)) * I
        case Box():
            low, high = (np.broadcast_to(b, by_row.shape).ravel() for b in (space.low, space.high))
            with np.errstate(invalid="ignore"):
                slope = 1 / (v - low) + 1 / (high - v)  # of log (x - low) - log (high - x)
            return np.diag(np.where(np.isinf(low) & np.isinf(high), 1.0, slope) ** 2)
        case Simplex(metric="log-ratio"):
            center = np.eye(n) - 1 / n
            return block_diagonal([np.diag(1 / p) @ center @ np.diag(1 / p) for p in by_row])
        case Simplex(metric="conformal"):
            return block_diagonal([(1 + np.sum(p**-2.0)) * np.eye(n) for p in by_row])
        case Simplex():
            return np.diag(1 / v)
        case Polytope():
            A, b = np.array(space.A), np.array(space.b)
            return walls(space, [(a, c - a @ v) for a, c in zip(A, b, strict=True)], I)
        case Domain():
            inner = v @ v - 0.25 if space.constraints is ring else v[0] + 0.5
            return walls(space, [(-2 * v, 4 - v @ v), (2 * v if space.constraints is ring else I[0], inner)], I)
        case _:
            return I


def walls(space: Domain | Polytope, walls: list[tuple[np.ndarray, float]], I: np.ndarray) -> np.ndarray:  # noqa: E741
    """From (grad d_k, d_k)."""
    if space.metric == "conformal":
        return (1 + sum(g @ g / d**2 for g, d in walls)) * I
    return space.ridge * I + sum(np.outer(g, g) / d**2 for g, d in walls)


def block_diagonal(blocks: list[np.ndarray]) -> np.ndarray:
    n = len(blocks[0])
    out = np.zeros((n * len(blocks), n * len(blocks)))
    for k, block in enumerate(blocks):
        out[k * n : (k + 1) * n, k * n : (k + 1) * n] = block
    return out


def dimension(space: object, x: Tensor) -> int:
    """Of the manifold."""
    if isinstance(space, Product):
        return dimension(space.of("w"), x)
    n = x.shape[-1]
    match space:
        case Simplex() | Sphere():
            return x.numel() - x.numel() // n
        case Oblique():
            return x.numel() - n
        case Stiefel() | Landing():
            return x.numel() - n * (n + 1) // 2
        case _:
            return x.numel()
