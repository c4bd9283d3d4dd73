"""Random search on the vertices of a box: the recurrence in NumPy, and its case."""

from statistics import NormalDist

import numpy as np
from problems import Case

from zograd.sets import Box


def vertex_search(f, x0, directions, *, box, mu, rng, share=0.5):
    """Andriushchenko et al. 2020, Algorithm 1, for coordinates in place of squares: flip, keep what is no worse."""
    x, value, d = x0, np.inf, len(x0)
    for t, (z,) in enumerate(directions):
        p = max(1 / d, share / (1 + t / 20))
        flipped = z > NormalDist().inv_cdf(1 - p)
        flipped[rng(t).integers(d)] = True
        y = np.where((x > (box.low + box.high) / 2) != flipped, box.high, box.low)
        if f(y) <= value:
            x, value = y, f(y)
        yield x


CASES = [Case("vertex_search", vertex_search, {"box": Box(-1.0, 1.25)}, pulls=True)]
