"""Intersections of sets, projected onto by Dykstra's algorithm to a stated tolerance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zograd.sets.base import Whole


class Intersection(Whole):
    """{x : x in every one of the sets}. The projection is the limit of Dykstra's algorithm:

        z_i = P_i(x + p_i),  p_i <- x + p_i - z_i,  x <- z_i,  for the sets in turn, over and over, from x = y, p = 0.

    It ends when in one round no p_i changed by more than e = `tolerance` max(1, |x|) (Birgin and Raydan 2005) and x
    lies no farther than e from each set: the result is a point of the last set, up to rounding, and **outside of the
    others by up to e**, as `distance` measures. Name the set that must hold exactly last. Rounds converge linearly for
    polyhedra, at a rate that depends on their angles, and slower where curved sets touch.

    sets: two or more with a projection `project_` of a flat vector: `Box`, balls, `Simplex`, `NonNegative`, `Affine`,
        `Halfspace`, `Polyhedron`. rounds: after which ValueError says how far outside x still is; the sets may not
    meet. Costs a projection onto each set a round, d numbers of memory for each, in float64. Source: Boyle and Dykstra
    1986.

    >>> import torch, zograd as zo
    >>> both = zo.sets.Intersection(zo.sets.Affine([[1.0, 1.0]], [1.0]), zo.sets.NonNegative())
    >>> both.project_(torch.tensor([3.0, -1.0]))
    tensor([1., 0.])
    """

    __slots__ = ("rounds", "sets", "tolerance")

    def __init__(self, *sets: Any, tolerance: float = 1e-10, rounds: int = 10_000) -> None:
        if len(sets) < 2:
            raise ValueError(f"Intersection needs two sets or more, got {len(sets)}; write Intersection(a, b)")
        for part in sets:
            if not hasattr(part, "project_"):
                raise TypeError(f"{type(part).__name__} is no set that can be projected onto; pass a set, such as Box")
            if part.unit in ("row", "leaf"):
                raise TypeError(
                    f"{type(part).__name__} sees matrices, and an intersection is projected onto as a vector"
                )
        if not (tolerance > 0 and rounds >= 1):
            raise ValueError(f"tolerance must be > 0 and rounds >= 1, got {tolerance} and {rounds}")
        for name, value in (("sets", sets), ("tolerance", float(tolerance)), ("rounds", int(rounds))):
            object.__setattr__(self, name, value)

    sets: tuple[Any, ...]
    tolerance: float
    rounds: int

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"an Intersection does not change; make another one instead of setting {name}")

    def _key(self) -> tuple[Any, ...]:
        return self.sets, self.tolerance, self.rounds

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Intersection) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"Intersection({', '.join(map(repr, self.sets))}, tolerance={self.tolerance!r}, rounds={self.rounds})"

    def __reduce__(self) -> Any:
        return _made, (self.sets, self.tolerance, self.rounds)

    def distance(self, *leaves: Tensor) -> float:
        """max_i |x - P_i(x)|: how far x lies from the farthest of the sets. The intersection itself may be farther."""
        x = torch.cat([leaf.detach().double().reshape(-1) for leaf in leaves])
        return max(float((part.project_(x.clone()) - x).norm()) for part in self.sets)

    def nearest(self, y: Tensor) -> Tensor:
        """The nearest point to y, [d] in float64, to the tolerance of the set."""
        rounding = 8 * torch.finfo(y.dtype).eps * float(y.norm())
        x, p = y.clone(), [torch.zeros_like(y) for _ in self.sets]
        for _ in range(self.rounds):
            change = 0.0
            for i, part in enumerate(self.sets):
                from_here = x + p[i]
                x = part.project_(from_here.clone())
                new = from_here - x
                change = max(change, float((new - p[i]).norm()))
                p[i] = new
            allowed = self._allowed(x) + rounding
            if change <= allowed and self.distance(x) <= allowed:
                return x
        raise ValueError(
            f"after {self.rounds} rounds x still lies {self.distance(x):.3g} from the farthest set, and "
            f"{self._allowed(x):.3g} was wanted; the sets may have no point in common, or pass a larger tolerance or "
            f"more rounds"
        )

    def explain(self, *leaves: Tensor) -> str | None:
        allowed = 2 * self._allowed(torch.cat([leaf.detach().double().reshape(-1) for leaf in leaves]))
        off = self.distance(*leaves)
        return None if off <= allowed else f"it lies {off:g} from the farthest of the sets, and {allowed:g} is allowed"

    def _allowed(self, x: Tensor) -> float:
        return self.tolerance * max(1.0, float(x.norm()))


def _made(sets: tuple[Any, ...], tolerance: float, rounds: int) -> Intersection:
    return Intersection(*sets, tolerance=tolerance, rounds=rounds)
