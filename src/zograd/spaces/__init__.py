"""Spaces: what a step means at x. A direction, drawn in frame coordinates, is lifted to a tangent and retracted."""

from zograd.spaces.adapters import from_geoopt, from_pymanopt
from zograd.spaces.base import Euclidean, Extent, Space, riemannian_gradient
from zograd.spaces.box import Box
from zograd.spaces.check import Check, SpaceReport, check_space
from zograd.spaces.diagonal import Diagonal
from zograd.spaces.domain import Domain, Polytope
from zograd.spaces.orthant import PositiveOrthant
from zograd.spaces.product import Product
from zograd.spaces.simplex import Simplex
from zograd.spaces.sphere import Sphere
from zograd.spaces.stiefel import Landing, Oblique, Stiefel

__all__ = [
    "Box",
    "Check",
    "Diagonal",
    "Domain",
    "Euclidean",
    "Extent",
    "Landing",
    "Oblique",
    "Polytope",
    "PositiveOrthant",
    "Product",
    "Simplex",
    "Space",
    "SpaceReport",
    "Sphere",
    "Stiefel",
    "check_space",
    "from_geoopt",
    "from_pymanopt",
    "riemannian_gradient",
]
