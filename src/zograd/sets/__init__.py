"""Constraint sets and penalties: what a method may ask of one is what it can do (linear minimiser, proximal map)."""

from zograd.sets.balls import L1Ball, L2Ball, LInfBall, Simplex
from zograd.sets.base import Ball, LinearMinimizer, Penalty, Place, Projection, Prox
from zograd.sets.box import Box
from zograd.sets.intersection import Intersection
from zograd.sets.linear import Affine, Halfspace, Polyhedron
from zograd.sets.penalties import L1, GroupL2, NonNegative
from zograd.sets.spectral import Nuclear, NuclearBall

__all__ = [
    "L1",
    "Affine",
    "Ball",
    "Box",
    "GroupL2",
    "Halfspace",
    "Intersection",
    "L1Ball",
    "L2Ball",
    "LInfBall",
    "LinearMinimizer",
    "NonNegative",
    "Nuclear",
    "NuclearBall",
    "Penalty",
    "Place",
    "Polyhedron",
    "Projection",
    "Prox",
    "Simplex",
]
