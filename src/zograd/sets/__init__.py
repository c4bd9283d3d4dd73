"""Constraint sets and penalties: what a method may ask of one is what it can do (linear minimiser, proximal map)."""

from zograd.sets.balls import L1Ball, L2Ball, LInfBall, Simplex
from zograd.sets.base import LinearMinimizer, Place, Projection, Prox
from zograd.sets.penalties import L1, Box, GroupL2, NonNegative
from zograd.sets.spectral import Nuclear, NuclearBall

__all__ = [
    "L1",
    "Box",
    "GroupL2",
    "L1Ball",
    "L2Ball",
    "LInfBall",
    "LinearMinimizer",
    "NonNegative",
    "Nuclear",
    "NuclearBall",
    "Place",
    "Projection",
    "Prox",
    "Simplex",
]
