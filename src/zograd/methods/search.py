"""The menu: search without an estimate of the gradient, by points that are taken or left."""

from __future__ import annotations

from zograd.core.method import Method
from zograd.estimators import Tried, Vertices
from zograd.laws import Gaussian
from zograd.methods.menu import entry
from zograd.rules import Improving
from zograd.sets import Box

__all__ = ["vertex_search"]


@entry(
    source="the idea of Square Attack, Andriushchenko et al. 2020, arXiv 1912.00049, for any box; schedule ours",
    extra_memory="two float32 slots a trained weight (the bounds)",
    formula="y: x with each coordinate at its other bound with probability p_t,  x <- y if f(y) <= f(x)",
    example={"box": Box(-1.0, 1.0)},
)
def vertex_search(box: Box, share: float = 0.5) -> Method[Tried]:
    """Random search on the vertices of a box, for attacks in the maximum norm and other functions that are least at
    vertices: box = Box(x0 - eps, x0 + eps), cut to the range of pixels. p_t = max(1/d, share / (1 + t / 20)); one
    coordinate always changes. 1 evaluation a step, which moves only downwards. Starts at a random vertex, wherever x0
    is. It never looks inside of the box. For values that repeat.

        >>> import numpy as np, zograd as zo
        >>> x0, weights = np.full(8, 0.5), np.arange(1.0, 9.0)
        >>> box = zo.sets.Box(np.clip(x0 - 0.2, 0, 1), np.clip(x0 + 0.2, 0, 1))
        >>> result = zo.minimize(lambda x: float(weights @ x), x0, zo.methods.vertex_search(box), budget=200)
        >>> bool(np.allclose(result.x, 0.3))
        True
    """
    return Method(Vertices(box, share), Gaussian(), Improving(), lr=1.0)
