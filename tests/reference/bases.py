"""Every kind of basis vector in plain NumPy, from `zograd.noise.reference` and the definition in its docstring.

A leaf is a dense matrix here, factors are dense matrices, QR and the DCT come from NumPy and from their formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from zograd.noise import reference
from zograd.noise.reference import fold

Array = npt.NDArray[Any]
Shapes = Sequence[tuple[int, ...]]
Slots = Mapping[str, Array]
SIGN, NORMAL = reference.SIGN, reference.NORMAL

EXPANSIONS: dict[str, Callable[[Any, Shapes, Slots], Array]] = {}
"""By the name of the class: its elements on all leaves end to end."""


def expansion(name: str):
    def register(function):
        EXPANSIONS[name] = function
        return function

    return register


def expand(e: Any, shapes: Shapes, slots: Slots | None = None) -> Array:
    """The elements of a basis vector on all leaves, end to end; `slots` are whole arrays, "x" the iterate."""
    return EXPANSIONS[type(e).__name__](e, shapes, slots or {})


def noise(kind: int, key: int, leaf: int, n: int) -> Array:
    return reference.integers(kind, key, leaf, np.arange(n)) * 2.0**-16


def by_leaf(shapes: Shapes, element: Callable[[int, tuple[int, ...]], Array]) -> Array:
    return np.concatenate([np.reshape(element(leaf, shape), -1) for leaf, shape in enumerate(shapes)])


def numel(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


@expansion("Noise")
def _(e, shapes, slots):
    return by_leaf(shapes, lambda leaf, shape: noise(e.kind, e.key, leaf, numel(shape)))


@expansion("Slot")
def _(e, shapes, slots):
    return slots[e.name]


@expansion("Unit")
def _(e, shapes, slots):
    return by_leaf(shapes, lambda leaf, shape: np.eye(1, numel(shape), e.element) * (leaf == e.leaf))


@expansion("OffMemory")
def _(e, shapes, slots):
    def element(leaf, shape):
        rows = slots["memory"][leaf]
        columns = numel(shape) // shape[0]
        rows = rows[np.any(rows != 0, axis=1)]
        free = columns - len(rows)
        r = min(e.rank, free)
        n = gaussian(e.right, leaf, columns, max(r, 1))
        q, t = np.linalg.qr(n - rows.T @ (rows @ n))
        q = q * np.sign(np.diag(t))
        return np.sqrt(free / r) * gaussian(e.key, leaf, shape[0], r) @ q.T

    return by_leaf(shapes, element)


@expansion("Power")
def _(e, shapes, slots):
    return (np.abs(slots[e.slot]) + e.floor) ** e.exponent


@expansion("RowSigns")
def _(e, shapes, slots):
    def signs(leaf, shape):
        rows = noise(SIGN, e.key, leaf, numel(shape)).reshape(shape[0] if shape else 1, -1)
        return rows * (np.arange(len(rows)) == e.row)[:, None] * (leaf == e.leaf)

    return by_leaf(shapes, signs)


@expansion("WalshSigns")
def _(e, shapes, slots):
    def signs(leaf, shape):
        walsh = [(-1.0) ** bin(i & e.j).count("1") for i in range(numel(shape))]
        return walsh * noise(SIGN, e.key, leaf, numel(shape))

    return by_leaf(shapes, signs)


# ---- low rank --------------------------------------------------------------------------------------------------------


def gaussian(key: int, leaf: int, rows: int, rank: int) -> Array:
    """rows x rank, a key for each column."""
    return np.stack([noise(NORMAL, fold(key, s), leaf, rows) for s in range(rank)], axis=1)


def orthonormal(key: int, leaf: int, rows: int, rank: int) -> Array:
    """Q of the QR factorisation with positive diagonal of R."""
    q, r = np.linalg.qr(gaussian(key, leaf, rows, rank))
    return q * np.sign(np.diag(r))


def matrices(e, shapes, element: Callable[[int, int, int], Array]) -> Array:
    """`element(leaf, m, n)` on leaves of several columns, Gaussian noise of the vector's own key on others."""

    def one(leaf, shape):
        m, n = (shape[0], numel(shape[1:])) if shape else (1, 1)
        return element(leaf, m, n) if n > 1 else noise(NORMAL, e.key, leaf, m * n)

    return by_leaf(shapes, one)


@expansion("Outer")
def _(e, shapes, slots):
    r = e.rank
    return matrices(
        e, shapes, lambda leaf, m, n: gaussian(e.key, leaf, m, r) @ gaussian(e.right, leaf, n, r).T / math.sqrt(r)
    )


@expansion("SignOuter")
def _(e, shapes, slots):
    def one(leaf, shape):
        m, n = (shape[0], numel(shape[1:])) if shape else (1, 1)
        signs = noise(SIGN, e.key, leaf, m + n)
        return np.outer(signs[:m], signs[m:]) if n > 1 else noise(SIGN, e.key, leaf, m * n)

    return by_leaf(shapes, one)


@expansion("Trilinear")
def _(e, shapes, slots):
    def mixture(leaf, m, n):
        tau = np.diag(gaussian(e.key, leaf, e.rank, 1)[:, 0])
        return gaussian(e.left, leaf, m, e.rank) @ tau @ gaussian(e.right, leaf, n, e.rank).T / math.sqrt(e.rank)

    return matrices(e, shapes, mixture)


@expansion("Sandwich")
def _(e, shapes, slots):
    def sandwich(leaf, m, n):
        a, b = min(e.rank, m), min(e.rank, n)
        u, v = orthonormal(e.left, leaf, m, a), orthonormal(e.right, leaf, n, b)
        return math.sqrt(m * n / (a * b)) * u @ gaussian(e.key, leaf, a, b) @ v.T

    return matrices(e, shapes, sandwich)


@expansion("Lifted")
def _(e, shapes, slots):
    def lifted(leaf, m, n):
        a = min(e.rank, m)
        return math.sqrt(m / a) * orthonormal(e.left, leaf, m, a) @ gaussian(e.key, leaf, n, a).T

    return matrices(e, shapes, lifted)


def dct(n: int) -> Array:
    """The orthonormal DCT matrix: column k is a cosine of k half waves over n points."""
    j, k = np.arange(n)[:, None], np.arange(n)[None, :]
    return np.where(k == 0, np.sqrt(1 / n), np.sqrt(2 / n) * np.cos(np.pi * (2 * j + 1) * k / (2 * n)))


@expansion("Waves")
def _(e, shapes, slots):
    def waves(leaf, m, n):
        order = noise(NORMAL, e.choice, leaf, n) + 2.0**-20 * noise(NORMAL, fold(e.choice, 0), leaf, n)
        chosen = list(e.columns) or np.argsort(order)[: min(e.rank, n)]
        return math.sqrt(n / len(chosen)) * gaussian(e.key, leaf, m, len(chosen)) @ dct(n)[:, chosen].T

    return matrices(e, shapes, waves)


@expansion("Sides")
def _(e, shapes, slots):
    before = sum(numel(shape) for shape in shapes[: e.leaf])
    changes = expand(e.of, shapes, slots) > e.threshold
    changes[before + e.element] = True
    x, low, high = slots["x"], slots["low"], slots["high"]
    return np.where((x > (low + high) / 2) != changes, high, low) - x


@expansion("OnLeaves")
def _(e, shapes, slots):
    whole = sum(c * expand(of, shapes, slots) for of, c in e.terms)
    sizes = [numel(shape) for shape in shapes]
    scales = [e.inside if leaf in e.leaves else e.outside for leaf in range(len(shapes))]
    return whole * np.repeat(scales, sizes)


# ---- masks -----------------------------------------------------------------------------------------------------------


@expansion("Ones")
def _(e, shapes, slots):
    return np.ones(sum(map(numel, shapes)))


@expansion("OnSmall")
def _(e, shapes, slots):
    return (np.abs(slots["x"]) <= slots["mask_threshold"]) * expand(e.of, shapes, slots)


@expansion("OnMask")
def _(e, shapes, slots):
    return slots["mask"] * expand(e.of, shapes, slots)


@expansion("OnScatter")
def _(e, shapes, slots):
    u = by_leaf(shapes, lambda leaf, shape: noise(NORMAL, e.key, leaf, numel(shape)))
    return (u <= slots["mask_quantile"]) * expand(e.of, shapes, slots)
