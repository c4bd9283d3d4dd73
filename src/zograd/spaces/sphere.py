"""Spheres, one a row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zograd.spaces.base import Extent, Space, row_sum


@dataclass(frozen=True, slots=True)
class Sphere(Space):
    """{x : |x| = radius} for each row along the last axis, with the metric of the ambient space: compact, complete.

    exp_x(v) = x cos t + v sin(t) / t with t = |v| / radius. mu and lr are in units of x; |v| above pi radius goes
    round. For columns of unit norm see `Oblique`.
    """

    radius: float = 1.0
    flat: ClassVar[bool] = False
    unit: ClassVar[Extent] = "row"
    complete: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.radius < math.inf:
            raise ValueError(f"a sphere needs radius > 0, got {self.radius}")

    @property
    def curvature(self) -> float:
        return self.radius**-2

    def lift_(self, z: Tensor, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        """z - x <x, z> / |x|^2, symmetric."""
        return z.sub_(x * (row_sum(x * z) / row_sum(x * x)))

    def move_(self, x: Tensor, v: Tensor) -> Tensor:
        y = sphere_exp(x, v, self.radius)
        return x.copy_(y.mul_(self.radius / norm(y)))

    def inner(self, x: Tensor, u: Tensor, v: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        return (u * v).sum()

    def explain(self, x: Tensor) -> str | None:
        sizes = norm(x.double().view(-1, x.shape[-1] if x.ndim else 1))[:, 0]
        slack = self.radius * max(1e-6, 8 * torch.finfo(x.dtype).eps)
        if len(bad := torch.nonzero(~((sizes - self.radius).abs() <= slack))):
            row = int(bad[0])
            return f"row {row} along the last axis has norm {sizes[row].item():g}, but the sphere {self.radius:g}"
        return None

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """Where the great circle from x with velocity v is after unit time."""
        return self.move_(x.clone(), v.clone())

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The shortest v with exp(x, v) = y, for y that is not opposite to x."""
        return sphere_log(x, y, self.radius)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """The length of the great circle from x to y, one a row."""
        return norm(sphere_log(x, y, self.radius))[..., 0]

    def transport(self, x: Tensor, y: Tensor, u: Tensor) -> Tensor:
        """u, tangent at x, carried in parallel along the great circle to y."""
        return sphere_transport(x, y, u, self.radius)


def norm(rows: Tensor) -> Tensor:
    return row_sum(rows * rows).sqrt_()


def sphere_exp(x: Tensor, v: Tensor, radius: float) -> Tensor:
    """x cos t + v sin(t) / t, t = |v| / radius (torch.sinc(t / pi) is sin(t) / t, 1 at 0)."""
    t = norm(v).div_(radius)
    return x * t.cos() + v * torch.sinc(t / math.pi)


def sphere_log(x: Tensor, y: Tensor, radius: float) -> Tensor:
    """t radius u / |u| with u = y - x cos t the part of y across x and t the angle between them."""
    u = y - x * (row_sum(x * y) / radius**2)
    sine, cosine = norm(u) / radius, row_sum(x * y) / radius**2
    t = torch.atan2(sine, cosine)
    return u / torch.sinc(t / math.pi).clamp_min_(torch.finfo(x.dtype).tiny)  # |u| = radius sin t


def sphere_transport(x: Tensor, y: Tensor, u: Tensor, radius: float) -> Tensor:
    """u - <y, u> / (radius^2 + <x, y>) (x + y): the rotation of the plane of x and y that takes x to y."""
    return u - (x + y) * (row_sum(y * u) / (radius**2 + row_sum(x * y)))
