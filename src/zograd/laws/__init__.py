"""Laws of directions: how v is drawn, with E[v v^T] = I in frame coordinates."""

from zograd.laws.base import DIRECTION, Draw, Gaussian, Law, Rademacher, Sphere

__all__ = ["DIRECTION", "Draw", "Gaussian", "Law", "Rademacher", "Sphere"]
