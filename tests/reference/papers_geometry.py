"""The methods of `methods/geometry.py` as formulas in NumPy; the conventions are those of `papers`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from papers import Array, Directions, Loss


def hozo(
    f: Loss, x0: Array, directions: Directions, *, lr: float, mu: float, clip: float = np.inf, trust: float = np.inf
) -> Iterator[Array]:
    """c = (f(s e^(mu z)) - f(s e^(-mu z))) / (2 mu), clipped;  log s <- log s - clip(lr c z, trust)."""
    y = np.log(x0)
    for Z in directions:
        c = [(f(np.exp(y + mu * z)) - f(np.exp(y - mu * z))) / (2 * mu) for z in Z]
        g = np.mean([min(max(cj, -clip), clip) * z for cj, z in zip(c, Z, strict=True)], axis=0)
        y = y - np.clip(lr * g, -trust, trust)
        yield np.exp(y)


def qzo(f: Loss, x0: Array, directions: Directions, *, lr: float, mu: float, clip: float = np.inf) -> Iterator[Array]:
    """d = (f(s + eps z) - f(s - eps z)) / (2 eps), d' = clip(d, C);  s <- max(s - eta d' z, 0)  (Algorithm 1)."""
    s = x0
    for Z in directions:
        d = [(f(s + mu * z) - f(s - mu * z)) / (2 * mu) for z in Z]
        s = np.maximum(s - lr * np.mean([min(max(dj, -clip), clip) * z for dj, z in zip(d, Z, strict=True)], axis=0), 0)
        yield s
