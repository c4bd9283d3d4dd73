"""Differences along single coordinates, and how many of them each tensor deserves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zograd.core import keys
from zograd.core.query import Ask, Estimate, Query, Routine
from zograd.core.sums import mean
from zograd.core.vector import Slot, Vector, combination
from zograd.estimators.base import Estimator
from zograd.estimators.differences import Forward, pairs, positive_count, slopes
from zograd.estimators.standalone import answered, asking
from zograd.estimators.wrappers import moved
from zograd.laws import Rademacher
from zograd.laws.coordinate import Unit
from zograd.noise import fold
from zograd.oracles import sequential
from zograd.stores import Store


@dataclass(frozen=True, slots=True)
class Coordinates(Estimator[None]):
    """g = sum_{i in S} (f(x + mu e_i) - f(x)) / mu e_i over `count` coordinates S: coordinate-wise estimation (CGE).

    Costs count + 1 evaluations, or 2 count with `central`, which has bias O(mu^2) in place of mu H_ii / 2. With count
    >= d, S is everything and g = grad f up to that bias: no variance. Otherwise g is the gradient of the chosen
    coordinates, unscaled, and 0 elsewhere.

    densities: how dense S is in each leaf relative to the others (`grasp_densities` measures them); empty: alike.
        The count of a leaf is in proportion to its density times its size.
    refresh: S is drawn anew every so many steps; 0: once for the run. Drawing takes memory for the chosen coordinates.
    The law of directions is not used.

    A side whose value is not finite gives way to the other one, (f(x) - f(x - mu e_i)) / mu, at one more evaluation for
    each (with `central`, one of f(x) for all). Where that is not finite either, or not lower than f(x), g_i = 0.
    """

    count: int = 64
    densities: tuple[float, ...] = ()
    central: bool = False
    refresh: int = 1

    def __post_init__(self) -> None:
        positive_count(self.count)
        if self.refresh < 0:
            raise ValueError(f"refresh is a number of steps, 0 for never; got {self.refresh}")
        if self.densities and not (min(self.densities) >= 0 and sum(self.densities) > 0):
            raise ValueError(f"densities must be >= 0 and not all 0, got {self.densities}")

    estimates_gradient: ClassVar[bool] = False
    takes_failures: ClassVar[bool] = True
    mends_pairs: ClassVar[bool] = True

    @property
    def evaluations(self) -> int:
        return 2 * self.count if self.central else self.count + 1

    @property
    def fewest_evaluations(self) -> int:
        """Where there are fewer coordinates than `count`."""
        return 2

    def in_dimensions(self, dim: int) -> Coordinates:
        return replace(self, count=min(self.count, dim))

    def chosen(self, ask: Ask) -> list[Unit]:
        """The coordinates of this step, in order of leaf and element."""
        wanted = range(len(ask.shapes)) if ask.within is None else ask.within
        sizes = [math.prod(shape) if leaf in wanted else 0 for leaf, shape in enumerate(ask.shapes)]
        period = ask.step // self.refresh if self.refresh else 0
        key = keys.coordinates(ask.run, period)
        units = []
        for leaf, (size, count) in enumerate(zip(sizes, self._counts(sizes, key), strict=True)):
            rng = np.random.Generator(np.random.Philox(fold(key, leaf)))
            elements = rng.choice(size, count, replace=False) if count < size else np.arange(size)
            units += [Unit(leaf, int(i)) for i in np.sort(elements)]
        return units

    def _counts(self, sizes: Sequence[int], key: int) -> list[int]:
        """Coordinates a leaf: shares of `count` rounded at random with the right mean, none beyond the leaf's size."""
        if self.densities and len(self.densities) != len(sizes):
            raise ValueError(f"got densities for {len(self.densities)} leaves, and there are {len(sizes)}")
        if self.count >= sum(sizes):
            return list(sizes)
        mass = np.array(self.densities or [1.0] * len(sizes)) * np.array(sizes)
        shares = self.count * mass / mass.sum()
        # Systematic sampling: counts are the shares rounded up or down, and add up to `count`.
        edges = np.floor(np.cumsum(np.append(0.0, shares)) + fold(key, 1 << 32) / 2**64)
        edges[-1] = edges[0] + self.count
        return [min(int(b - a), size) for a, b, size in zip(edges[:-1], edges[1:], sizes, strict=True)]

    def __call__(self, ask: Ask) -> Routine[None]:
        e = [Vector(((u, 1.0),)) for u in self.chosen(ask)]
        if self.central:
            f = yield pairs(e, ask.mu)
            plus, minus = np.array(f[::2]), np.array(f[1::2])
            if np.all(np.isfinite(f)):
                return Estimate(combination(slopes(f, ask.mu), e), mean(f), f, None)
            (f0,) = yield [Query()]
            up, down = _way_down(plus, f0, ask.mu), _way_down(minus, f0, ask.mu)
            slope = np.where(np.isfinite(plus) & np.isfinite(minus), (plus - minus) / (2 * ask.mu), up - down)
            f = [*f, f0]
        else:
            f0, *f = yield [Query(), *(Query(ask.mu * ei) for ei in e)]
            slope, failed = (np.array(f) - f0) / ask.mu, np.flatnonzero(~np.isfinite(f))
            f = [f0, *f]
            if math.isfinite(f0) and failed.size:
                others = yield [Query(-ask.mu * e[i]) for i in failed]
                slope[failed] = -_way_down(np.array(others), f0, ask.mu)
                f += others
        if not math.isfinite(f0):
            return Estimate(Vector(), f0, f, None)
        return Estimate(combination(slope, e), f0, f, None)


def _way_down(side: NDArray[np.float64], f0: float, mu: float) -> NDArray[np.float64]:
    """The slope from f0 to one side where it is finite and lies lower; otherwise 0."""
    found: NDArray[np.float64] = np.where(side < f0, (side - f0) / mu, 0.0)
    return found


def grasp_densities(
    loss: Callable[[], float | Tensor],
    tensors: Mapping[str, Tensor],
    density: float = 0.1,
    *,
    n: int = 192,
    mu: float = 5e-3,
    seed: int = 0,
) -> tuple[float, ...]:
    """The share of each tensor's weights among the density d weights that carry the gradient flow: ZO-GraSP.

    With g(x) a `Forward(n)` estimate and s = mu g / |g|: score = -x (g(x + s) - g(x)), which is -x H g up to a positive
    factor. Of all weights the lowest `density` are kept, as GraSP does, and only how many lie in each tensor is
    returned. Costs 2 (n + 1) evaluations and three d-sized tensors. Both estimates have the same directions, so that
    their difference is H s seen along them and not the noise of two samples.

    DeepZero (Chen et al. 2024, arXiv 2310.02025), section 4, after GraSP (Wang et al. 2020).
    """
    if not 0 < density <= 1:
        raise ValueError(f"density is a share of the weights and must lie in (0, 1], got {density}")
    store, law = Store(tensors), Rademacher()
    ask, oracle = asking(store, law, keys.Part.DENSITIES, mu=mu, seed=seed), sequential(loss)
    g = answered(Forward(n)(ask), oracle, store, seed).vector
    if not (length := ask.norm(g)):
        raise ValueError("the loss does not change along any of the probes: there is no gradient flow to measure")
    store.require({"score": 0.0})
    store.assign({"score": g * (mu / length)})
    there = answered(moved(Forward(n)(ask), Vector(((Slot("score"), 1.0),))), oracle, store, seed)
    change = there.vector - g
    store.assign({"score": change})
    scores = [-store.master(leaf) * leaf.slots["score"] for leaf in store.leaves]
    kept = torch.topk(torch.cat(scores), max(1, round(density * store.dim)), largest=False).values[-1]
    return tuple(float((score <= kept).double().mean()) for score in scores)
