"""Manifolds of geoopt and pymanopt as spaces."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from zograd.spaces.base import Extent, Space


def from_geoopt(manifold: Any, *, embedded: bool = False) -> Imported:
    """A geoopt manifold as a space: its `retr` moves, its `proju` and `inner` give lifts that are white in its metric.

    embedded: say True when the metric is that of the ambient space (Sphere, EuclideanStiefel): then `proju` alone is
    the lift, instead of d projections and O(d^3). Raises ImportError without geoopt (`pip install zograd[manifolds]`).
    """
    _need("geoopt", manifold)
    return Imported(Geoopt(manifold), embedded)


def from_pymanopt(manifold: Any, *, embedded: bool = False) -> Imported:
    """A pymanopt manifold whose points are one NumPy array as a space; see `from_geoopt`. Calls convert to NumPy."""
    _need("pymanopt", manifold)
    return Imported(Pymanopt(manifold), embedded)


def _need(package: str, manifold: Any) -> None:
    try:
        base = importlib.import_module(f"{package}.manifolds.{'base' if package == 'geoopt' else 'manifold'}")
    except ImportError as missing:
        raise ImportError(f"{package} is not installed; pip install zograd[manifolds]") from missing
    if not isinstance(manifold, base.Manifold):
        raise TypeError(f"from_{package} takes a manifold of {package}, got {type(manifold).__name__}")


@dataclass(frozen=True, slots=True)
class Geoopt:
    """The five operations that a lift and a move need, of a geoopt manifold."""

    manifold: Any

    def project(self, x: Tensor, z: Tensor) -> Tensor:
        return cast(Tensor, self.manifold.proju(x, z))

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return cast(Tensor, self.manifold.inner(x, u, v)).sum()

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return cast(Tensor, self.manifold.retr(x, v))

    def explain(self, x: Tensor) -> str | None:
        inside, why = self.manifold.check_point_on_manifold(x, explain=True)
        return None if inside else str(why)


@dataclass(frozen=True, slots=True)
class Pymanopt:
    """The same of a pymanopt manifold, which works on NumPy arrays in float64."""

    manifold: Any

    def project(self, x: Tensor, z: Tensor) -> Tensor:
        return self._call(self.manifold.to_tangent_space, x, self.manifold.projection(*_arrays(x, z)))

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return torch.tensor(float(self.manifold.inner_product(*_arrays(x, u, v))), dtype=x.dtype, device=x.device)

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return self._call(self.manifold.retraction, x, v)

    def explain(self, x: Tensor) -> str | None:
        """Points are those that the retraction of the zero vector leaves where they are."""
        off = float((self.retract(x, torch.zeros_like(x)) - x).abs().max())
        return None if off <= 1e-5 * (1.0 + float(x.abs().max())) else f"retracting 0 moves it by {off:g}"

    def _call(self, f: Any, *tensors: Any) -> Tensor:
        return torch.as_tensor(f(*_arrays(*tensors)), device="cpu").to(tensors[0])


def _arrays(*tensors: Any) -> list[Any]:
    return [t.detach().cpu().double().numpy() if isinstance(t, Tensor) else t for t in tensors]


@dataclass(frozen=True, slots=True)
class Imported(Space):
    """A manifold of another library; one leaf of it is one point.

    Unless embedded, lift z = E (G^+)^(1/2) z with E the projections of the unit vectors on the tangent space and G
    their inner products: white in any metric (projected white noise is not), for d projections and O(d^3) a lift.
    """

    manifold: Geoopt | Pymanopt
    embedded: bool = False
    flat: ClassVar[bool] = False
    unit: ClassVar[Extent] = "leaf"
    curvature: ClassVar[str] = "see its library"

    @property
    def complete(self) -> bool:
        """Assumed: moves use the retraction of the library."""
        return True

    def frame(self, x: Tensor) -> Tensor:
        """The matrix of lift: d x d."""
        units = torch.eye(x.numel(), dtype=x.dtype, device=x.device).view(-1, *x.shape)
        columns = [self.manifold.project(x, e) for e in units]
        E = torch.stack([c.reshape(-1) for c in columns], 1)
        G = torch.stack([torch.stack([self.manifold.inner(x, u, v) for v in columns]) for u in columns])
        size, Q = torch.linalg.eigh(0.5 * (G + G.mT))
        kept = size > 1e-9 * size[-1]
        return cast(Tensor, E @ (Q * size.rsqrt().where(kept, 0.0)) @ Q.mT)

    def lift_(self, z: Tensor, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        lifted = self.manifold.project(x, z) if self.embedded else (self.frame(x) @ z.reshape(-1)).view(z.shape)
        return z.copy_(lifted)

    def colift_(self, w: Tensor, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        lifted = self.manifold.project(x, w) if self.embedded else (self.frame(x).mT @ w.reshape(-1)).view(w.shape)
        return w.copy_(lifted)

    def move_(self, x: Tensor, v: Tensor) -> Tensor:
        return x.copy_(self.manifold.retract(x, v))

    def inner(self, x: Tensor, u: Tensor, v: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        return self.manifold.inner(x, u, v)

    def explain(self, x: Tensor) -> str | None:
        return self.manifold.explain(x)
