"""The record of a step: what a tape keeps, and what is shown."""

from __future__ import annotations

from zograd.core.messages import message
from zograd.core.vector import Vector
from zograd.stores import Rate


@message(slots=True)
class Record:
    """What one step did: everything that a replay needs, and numbers to show."""

    step: int
    vector: Vector
    loss: float
    rates: tuple[Rate, ...]
    aux: tuple[float, ...] | None
    writes: tuple[tuple[str, Vector], ...] = ()
    evaluations: int = 0
    refused: bool = False
    losses: tuple[float, ...] = ()
    mu: float = 0.0
    moved: float = 0.0
    """Fraction of the weights whose bits changed."""
    meters: tuple[tuple[str, float], ...] = ()
    """Numbers that the estimator and the rule measured, by name."""
