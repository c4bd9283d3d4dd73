"""CR-FM-NES: how a covariance D (I + v v^T) D follows its population, in linear time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zograd.core.query import Estimate
from zograd.core.sums import Sum
from zograd.core.vector import Slot, Vector, combination
from zograd.estimators.evolution import Restricted
from zograd.rules.curvature import TINY
from zograd.rules.evolution import _Adapted, check_relative, drawn, settled, spread, squares_
from zograd.stores import Block, Iterate

LEAST = 1e-4
"""The smallest element of H that is divided by."""


@dataclass(frozen=True, slots=True)
class _Gradient:
    """The natural gradient of the weighted log-likelihood in (v, log D), as far as scalars determine it.

    Every y_k enters linearly, with the weight a_k, so sums over k come first: A_0 = sum a, A_2 = sum a <y, v/|v|>^2,
    and, element by element, B = sum a <y, v/|v|> y and S = sum a y^2. Akimoto, Auger and Hansen 2014 (VD-CMA), Theorem
    3.6, in the form of Nomura and Ono 2022, Algorithm 1.
    """

    vv: float
    a_0: float
    a_2: float
    alpha: float
    """The share of the off-diagonal part of the Fisher matrix that is kept, so that its inverse exists."""

    @property
    def b(self) -> float:
        return 2 * self.alpha**2 - (1 - self.alpha**2) * self.vv**2 / (1 + self.vv)

    def least(self, most: float) -> float:
        """The smallest element of H, where `most` is the largest one of v/|v|."""
        return 2 - max(self.b + 2 * self.alpha**2, 0.0) * most**2

    def along(self, unit: Tensor, big_b: Tensor) -> Tensor:
        """t = B - v/|v| (A_2 + (1 + |v|^2) A_0) / 2."""
        return big_b.sub(unit, alpha=0.5 * (self.a_2 + (1 + self.vv) * self.a_0))

    def scaled(self, unit: Tensor, big_b: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        """(s before the diagonal matrix H is inverted, H), H = 2 - (b + 2 alpha^2) v^2/|v|^2."""
        vv, gamma, square = self.vv, 1 + self.vv, unit.square()
        s = squares.sub_(self.a_0).addcmul_(unit, big_b, value=-vv / gamma)
        s.addcmul_(unit, self.along(unit, big_b), value=-self.alpha / gamma * (2 + vv))
        s.add_(square, alpha=self.alpha / gamma * vv * 0.5 * (self.a_2 - gamma * self.a_0))
        return s, square.mul_(-(self.b + 2 * self.alpha**2)).add_(2.0)


@dataclass(frozen=True, slots=True)
class FastMovingNES(_Adapted):
    """x <- x + sigma D sum_k w_k y_k, then v and D by natural gradients, D to det(D (I + v v^T) D) = 1, and sigma.

    CR-FM-NES (Nomura and Ono 2022, arXiv 2201.11422, Algorithm 1): the natural gradient takes the population with rate
    eta_B and the path p_c of the mean with rate c_1; sigma <- sigma exp(eta_sigma G_sigma / 2). The scalars are those
    of `RestrictedEvolution`, which holds v, p_sigma and p_c / D in slots. sigma D is the metric of `Diagonal`,
    h = mu^2 / (sigma D)^2. Two passes over the noise and two over slots; no slots besides those. In one step D shrinks
    by a factor of 1e-6 at most, where the paper's formula could make it negative; c_1 = 0 for d <= 5; and a v that has
    come to lie along one axis, where the inverse of the Fisher matrix is lost in rounding, goes into D. The meter
    "sigma" is the paper's sigma. relative: see `prepare`.
    """

    relative: float | None = None

    def __post_init__(self) -> None:
        check_relative(self.relative)

    @property
    def reads(self) -> type[Restricted]:
        return Restricted

    @property
    def remedy(self) -> str:
        return "Use RestrictedEvolution(n), or methods.cr_fm_nes()."

    def unread(self, estimator: Any) -> str | None:
        return None  # what `reads` says

    def apply(self, x: Iterate, estimate: Estimate[Restricted], state: dict[str, Any]) -> None:
        vv, growth_of_sigma, eta, c_1, along, *_ = estimate.aux
        pairs = estimate.aux.pairs
        if not any(u for _, u in pairs):
            return settled(x, state)
        d, gamma, norm = x.dim, 1 + vv, math.sqrt(vv)
        most = max(float(b.slots["direction"].abs().max()) for b in x.blocks()) / norm
        a = [*(eta * u for _, u in pairs), c_1]
        inner = [*(math.sqrt(gamma) * t / norm for t, _ in pairs), along / norm]
        n = _Gradient(
            vv,
            math.fsum(a),
            math.fsum(w * y * y for w, y in zip(a, inner, strict=True)),
            min(1.0, math.sqrt(vv**2 + (2 * gamma - math.sqrt(gamma)) / most**2) / (2 + vv)),
        )
        if n.least(most) < LEAST:
            return _into_diagonal(x, estimate, state)
        v, stretch = Vector(((Slot("direction"), 1.0),)), (math.sqrt(gamma) - 1) / vv
        y = [z + stretch * t * v for z, (t, _) in zip(drawn(estimate), pairs, strict=True)]
        y.append(Vector(((Slot("mean_path"), 1.0),)))
        big_b = combination([w * i for w, i in zip(a, inner, strict=True)], y)

        def scaled(b: Block, at: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            """v/|v|, B, s before H, and H."""
            unit = b.slots["direction"] / norm
            return unit, at[0], *n.scaled(unit, at[0], squares_(at[1:], a))

        own, cross = Sum(), Sum()
        for b in x.blocks(big_b, *y):
            unit, _, s, h = scaled(b, b.v)
            part = unit.square_().div_(h)
            own.add(part, part.mul(h))
            cross.add(part, s)
        share = n.b / (1 + n.b * own.value) * cross.value
        along_s = cross.value - share * own.value  # <v^2/|v|^2, s>

        growth, square = Sum(), Sum()
        for b in x.blocks(estimate.vector, big_b, *y):
            unit, b_k, s, h = scaled(b, b.v[1:])
            b.step_(b.v[0])
            s.addcmul_(unit, unit, value=-share).div_(h)
            t = n.along(unit, b_k).addcmul_(unit, s, value=-n.alpha * (2 + vv)).add_(unit, alpha=n.alpha * along_s)
            direction, log_h = b.slots["direction"], b.slots["log_curvature"]
            direction.add_(t, alpha=1 / norm)
            log_d = s.clamp_(min=TINY - 1).log1p_()
            log_h.sub_(log_d, alpha=2.0)
            b.slots["mean_path"].mul_(torch.exp(-log_d))
            growth.add(log_d)
            square.add(direction, direction)
        before = math.log(gamma) if "moves" in state else 0.0  # the paper starts at D = 1, whatever v is
        state["moves"] = state.get("moves", 0) + 1
        root = (growth.value + 0.5 * (math.log1p(square.value) - before)) / d
        metric = Sum()
        for b in x.blocks():
            log_h = b.slots["log_curvature"].add_(2 * (root - growth_of_sigma))
            b.slots["mean_path"].mul_(math.exp(root))
            metric.add(log_h)
        state["sigma"] = spread(x, metric) * math.exp(0.5 * math.log1p(square.value) / d)


def _into_diagonal(x: Iterate, estimate: Estimate[Restricted], state: dict[str, Any]) -> None:
    """The step of the mean and of sigma; D^2 <- D^2 (1 + v^2) / (1 + v^2/|v|^2), v <- v/|v|.

    Where v lies along one axis, D (I + v v^T) D is as it was.
    """
    vv, growth_of_sigma, *_ = estimate.aux
    metric = Sum()
    for b in x.blocks(estimate.vector):
        b.step_(b.v[0])
        direction, log_h = b.slots["direction"], b.slots["log_curvature"]
        log_d = direction.square().log1p_()
        direction.mul_(1 / math.sqrt(vv))
        log_d.sub_(direction.square().log1p_()).mul_(0.5)
        log_h.sub_(log_d, alpha=2.0).sub_(2 * growth_of_sigma)
        b.slots["mean_path"].mul_(torch.exp(-log_d))
        metric.add(log_h)
    state["moves"] = state.get("moves", 0) + 1
    state["sigma"] = spread(x, metric) * 2 ** (0.5 / x.dim)
