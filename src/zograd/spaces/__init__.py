"""Spaces: what a step means at x. A direction, drawn in frame coordinates, is lifted to a tangent and retracted."""

from zograd.spaces.base import Euclidean, Space, Unit
from zograd.spaces.diagonal import Diagonal
from zograd.spaces.orthant import PositiveOrthant

__all__ = ["Diagonal", "Euclidean", "PositiveOrthant", "Space", "Unit"]
