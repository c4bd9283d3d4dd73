"""Evolution strategies with independent coordinates: how SNES and sep-CMA adapt the spread of their population."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from zograd.core.query import Estimate
from zograd.core.sums import Sum
from zograd.core.vector import Noise, Vector
from zograd.estimators.evolution import Evolution, length_of_normal
from zograd.laws import Gaussian
from zograd.rules.base import Rule
from zograd.spaces import Diagonal
from zograd.stores import Iterate, Store

if TYPE_CHECKING:
    from zograd.core.method import Method


class _Adapted(Rule[Any]):
    """What rules share that keep the spread sigma_i of a normal population in the metric: h_i = (mu / sigma_i)^2."""

    __slots__ = ()
    relative: float | None
    """sigma at the start, times mu, in units of the root mean square of the weights; None: mu itself."""
    meters: ClassVar[tuple[str, ...]] = ("sigma",)

    def misfit(self, method: Method[Any]) -> str | None:
        mine, law = type(self).__name__, type(method.law).__name__
        if not isinstance(method.space, Diagonal) or method.space.by_row:
            return f"{mine} keeps its spread in the metric of the space, one number a weight; use space=Diagonal()"
        if not isinstance(method.law, Gaussian):
            return f"{mine} tells spreads by z_i^2 - 1 with z normal, and {law} draws others; use law=Gaussian()"
        return self.unread(method.estimator)

    def unread(self, estimator: Any) -> str | None:
        """Why the rule cannot read this estimator; None where it can."""
        if isinstance(estimator, Evolution):
            return None
        other = type(estimator).__name__
        return f"{type(self).__name__} reads weights by rank off the estimate, and {other} has none; use Evolution(n)"

    def prepare(self, store: Store) -> None:
        """sigma_i = mu relative |x| / sqrt(d) (mu where x = 0), unless the metric has been adapted before."""
        metrics = [leaf.slots["log_curvature"] for leaf in store.leaves]
        if self.relative is None or any(bool(h.any()) for h in metrics):
            return
        square = Sum()
        for leaf in store.leaves:
            for start, stop in store.pieces(leaf, leaf.block):
                x = store.master(leaf, start, stop)
                square.add(x, x)
        size = self.relative * math.sqrt(square.value / store.dim)
        for h in metrics:
            h.fill_(-2 * math.log(size) if size > 0 else 0.0)


def settled(x: Iterate, state: dict[str, Any]) -> None:
    """A step whose losses were all equal: nothing changes."""
    if "sigma" not in state:
        total = Sum()
        for b in x.blocks():
            total.add(b.slots["log_curvature"])
        state["sigma"] = spread(x, total)


def spread(x: Iterate, log_h: Sum) -> float:
    """The geometric mean of mu / sqrt(h), where lr = mu, as with all rules here."""
    return x.rates[0].lr * math.exp(-0.5 * log_h.value / x.dim)


def check_relative(relative: float | None) -> None:
    if relative is not None and not (math.isfinite(relative) and relative > 0):
        raise ValueError(f"relative is the first spread over the size of the weights and must be > 0, got {relative}")


def drawn(estimate: Estimate[Any]) -> list[Vector]:
    """z_1 .. z_n, the noise that the estimate is made of."""
    return [Vector(((e, 1.0),)) for e, _ in estimate.vector.terms if isinstance(e, Noise)]


def squares_(z: list[Tensor], weights: list[float]) -> Tensor:
    """sum_k w_k z_k^2, element by element; z is overwritten."""
    total = z[0].square_().mul_(weights[0])
    for z_k, w in zip(z[1:], weights[1:], strict=True):
        total.addcmul_(z_k, z_k, value=w)
    return total


@dataclass(frozen=True, slots=True)
class SeparableNES(_Adapted):
    """x <- x + sigma sum_k u_k z_k, then log sigma <- log sigma + eta/2 sum_k u_k (z_k^2 - 1), element by element.

    SNES: the natural gradient of E f(x + sigma z) in x and log sigma (Schaul, Glasmachers and Schmidhuber 2011;
    Wierstra et al. 2014, Algorithm 6), with eta = (3 + ln d) / (5 sqrt(d)), and 1 for x. u_k and z_k are those of
    `Evolution`.
    sigma is the metric of `Diagonal`: one slot, log h = -2 log(sigma / mu), and no other state. The meter "sigma" is
    the geometric mean of sigma. relative: see `prepare`.
    """

    relative: float | None = None

    def __post_init__(self) -> None:
        check_relative(self.relative)

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        u = [-c for _, c in estimate.vector.terms]
        if not any(u):
            return settled(x, state)
        eta = (3 + math.log(x.dim)) / (5 * math.sqrt(x.dim))
        total = Sum()
        for b in x.blocks(estimate.vector, *drawn(estimate)):
            g, *z = b.v
            b.step_(g)
            log_h = b.slots["log_curvature"]
            log_h.sub_(squares_(z, u).sub_(math.fsum(u)), alpha=eta)
            total.add(log_h)
        state["sigma"] = spread(x, total)


@dataclass(frozen=True, slots=True)
class SeparableCMA(_Adapted):
    """x <- x + sigma sqrt(C) z_w; C <- (1 - c_1 - c_mu) C + c_1 p_c^2 + c_mu sum_k w_k C z_k^2, a diagonal C.

    z_w = sum_k w_k z_k; p_c is a running mean of sqrt(C) z_w, and sigma grows by exp(c_s / d_s (|p_s| / E|z| - 1)) with
    p_s one of z_w. CMA-ES with a diagonal matrix (Ros and Hansen 2008): c_1 and c_mu are (d + 2) / 3 times those of the
    full matrix, all others as in Hansen 2016 (arXiv 1604.00772, Algorithm 1 with Table 1) without negative weights.

    sigma sqrt(C) is the metric of `Diagonal`, h = mu^2 / (sigma^2 C). Slots besides it: "sigma_path" (p_s) and
    "mean_path" (p_c / sqrt(C)). w_k and z_k are those of `Evolution(weights="cma")`. The meter "sigma" is the geometric
    mean of sigma sqrt(C). relative: see `prepare`.
    """

    relative: float | None = None

    def __post_init__(self) -> None:
        check_relative(self.relative)

    @property
    def slots(self) -> Mapping[str, float]:
        return {"sigma_path": 0.0, "mean_path": 0.0}

    def unread(self, estimator: Any) -> str | None:
        if isinstance(estimator, Evolution) and estimator.weights != "cma":
            return (
                f"SeparableCMA takes weights whose sum is 1, and those of Evolution(weights={estimator.weights!r}) add "
                f"up to 0, so that the spread would vanish; use Evolution(n, weights='cma')"
            )
        return _Adapted.unread(self, estimator)

    def apply(self, x: Iterate, estimate: Estimate[Any], state: dict[str, Any]) -> None:
        w = [-c for _, c in estimate.vector.terms]
        if not any(w):
            return settled(x, state)
        d, mu_eff = x.dim, 1 / math.fsum(c * c for c in w)
        c_s = (mu_eff + 2) / (d + mu_eff + 5)
        d_s = 1 + 2 * max(0.0, math.sqrt((mu_eff - 1) / (d + 1)) - 1) + c_s
        c_c = (4 + mu_eff / d) / (d + 4 + 2 * mu_eff / d)
        faster = (d + 2) / 3
        c_1 = min(1.0, faster * 2 / ((d + 1.3) ** 2 + mu_eff))
        c_mu = min(1 - c_1, faster * 2 * (mu_eff - 2 + 1 / mu_eff) / ((d + 2) ** 2 + mu_eff))

        square = Sum()
        for b in x.blocks(estimate.vector):
            p = b.slots["sigma_path"]
            p.mul_(1 - c_s).sub_(b.v[0], alpha=math.sqrt(c_s * (2 - c_s) * mu_eff))
            square.add(p, p)
        state["moves"] = moves = state.get("moves", 0) + 1
        length = math.sqrt(square.value) / length_of_normal(d)
        calm = length / math.sqrt(1 - (1 - c_s) ** (2 * moves)) < 1.4 + 2 / (d + 1)
        kept = 1 - c_1 - c_mu + (0.0 if calm else c_1 * c_c * (2 - c_c))

        total = Sum()
        for b in x.blocks(estimate.vector, *drawn(estimate)):
            g, *z = b.v
            q, log_h = b.slots["mean_path"], b.slots["log_curvature"]
            q.mul_(1 - c_c)
            if calm:
                q.sub_(g, alpha=math.sqrt(c_c * (2 - c_c) * mu_eff))
            b.step_(g)
            ratio = squares_(z, [c_mu * c for c in w]).addcmul_(q, q, value=c_1).add_(kept)
            q.mul_(ratio.rsqrt())
            log_h.sub_(ratio.log_().add_(2 * c_s / d_s * (length - 1)))
            total.add(log_h)
        state["sigma"] = spread(x, total)
