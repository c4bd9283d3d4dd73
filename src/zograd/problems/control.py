"""Control problems: a pole on a cart, many at once, with disturbances of what is seen, done, paid and moved."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

GRAVITY, CART, POLE, HALF, PUSH, TICK = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
ANGLE, PLACE = 12 * 2 * math.pi / 360, 2.4
"""Where an episode ends: |angle| beyond 12 degrees, |position| beyond 2.4."""
LONGEST = 200
"""Steps of an episode, at most."""


def pole_step(state: Array, right: npt.NDArray[np.bool_], length: Array | float = HALF) -> Array:
    """One step of 0.02 s of the pole on a cart (Barto, Sutton and Anderson 1983), by explicit Euler.

    state: (..., 4), position and speed of the cart, angle and speed of the pole. right: whether to push right, by 10 N.
    length: half of the pole's. The equations and the order of the updates are those of CartPole-v1 of gymnasium.
    """
    x, v, angle, turn = np.moveaxis(state, -1, 0)
    force = np.where(right, PUSH, -PUSH)
    sine, cosine = np.sin(angle), np.cos(angle)
    inertia = POLE * length
    pushed = (force + inertia * turn**2 * sine) / (CART + POLE)
    turning = (GRAVITY * sine - cosine * pushed) / (length * (4.0 / 3.0 - POLE * cosine**2 / (CART + POLE)))
    driven = pushed - inertia * turning * cosine / (CART + POLE)
    return np.stack([x + TICK * v, v + TICK * driven, angle + TICK * turn, turn + TICK * turning], axis=-1)


@dataclass(frozen=True)
class Disturbance:
    """What an adversary or the world does to an episode; all 0 does nothing.

    observation: deviation of normal noise on each number that the policy sees. flipped: share of the actions that are
    turned around. broken: share of the episodes whose return is replaced by -1000 or 1000. pole: relative deviation of
    the length of the pole from episode to episode.
    """

    observation: float = 0.0
    flipped: float = 0.0
    broken: float = 0.0
    pole: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flipped", "broken"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share and must lie in [0, 1], got {getattr(self, name)}")
        for name in ("observation", "pole"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is a deviation and must be >= 0, got {getattr(self, name)}")


def pole_returns(policies: npt.ArrayLike, seed: int, disturbance: Disturbance = Disturbance()) -> Array:
    """Steps that the pole stays up, at most 200, for each linear policy in an episode of its own.

    policies: (n, 4); policy w pushes right where w . state > 0. All n have the same start and the same random numbers,
    those of `seed`, so that their returns can be compared. 200 vectorised steps, about 10 ms for n = 16.

    >>> from zograd.problems.control import pole_returns
    >>> pole_returns([[0.1, 0.3, 3.0, 1.0], [0.0, 0.0, 0.0, 0.0]], seed=0).tolist()[0]
    200.0
    """
    w = np.atleast_2d(np.asarray(policies, float))
    if w.ndim != 2 or w.shape[1] != 4 or not np.all(np.isfinite(w)):
        raise ValueError(f"policies has shape {w.shape}, and expected are finite numbers of shape (n, 4)")
    rng = np.random.default_rng(seed)
    state = np.broadcast_to(rng.uniform(-0.05, 0.05, 4), w.shape).copy()
    length = HALF * math.exp(disturbance.pole * rng.standard_normal())
    fate = np.random.default_rng([seed, 1])  # of its own, so that the episode does not depend on how many there are
    replaced, broken = fate.choice([-1000.0, 1000.0], len(w)), fate.random(len(w)) < disturbance.broken
    up, returns = np.ones(len(w), bool), np.zeros(len(w))
    for _ in range(LONGEST):
        seen = state + disturbance.observation * rng.standard_normal(4)
        right = (np.einsum("ij,ij->i", w, seen) > 0) != (rng.random() < disturbance.flipped)
        state = np.where(up[:, None], pole_step(state, right, length), state)
        returns += up
        up &= (np.abs(state[:, 0]) <= PLACE) & (np.abs(state[:, 2]) <= ANGLE)
        if not up.any():
            break
    return np.where(broken, replaced, returns)
