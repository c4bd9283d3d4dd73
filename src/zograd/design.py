"""Which points to evaluate: samples that determine a least-squares fit, by leverage scores and determinants.

A model y(x) = sum_j a_j phi_j(x) is to be fitted to few evaluations of a function at points of a finite set. The rows
of a matrix hold phi(x) of all candidates; what matters is the span of its columns.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.intp]
Seed: TypeAlias = int | np.random.Generator


class Sample(NamedTuple):
    """Points to evaluate. indices: rows of the features, (n,), possibly repeated. weights: of each in the fit, (n,)."""

    indices: Indices
    weights: Array


def leverage(features: npt.ArrayLike) -> Array:
    """l_i = |q_i|^2 for the rows q_i of an orthonormal basis Q of the columns: (N,), in [0, 1], with sum m.

    features: (N, m) with independent columns. O(N m^2).

        >>> leverage([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]).round(4).tolist()
        [0.8333, 0.3333, 0.8333]
    """
    q = _basis(features)
    return np.asarray(np.einsum("ij,ij->i", q, q))


def leverage_sample(features: npt.ArrayLike, n: int, seed: Seed = 0) -> Sample:
    """n independent draws i with probability l_i / m, and weights m / (N l_i).

    With n >= c m log(m / delta) the weighted fit is within a constant of the best approximation with probability
    1 - delta (Cohen and Migliorati 2017). Below that it may be arbitrarily bad.

    Raises ValueError where the columns are dependent or n < m.
    """
    q = _basis(features)
    _enough(n, q.shape[1])
    scores = np.einsum("ij,ij->i", q, q)
    return _weighted(_draws(scores, n, np.random.default_rng(seed)), scores)


def volume_sample(features: npt.ArrayLike, n: int, seed: Seed = 0) -> Sample:
    """m points from a determinantal process, the others by leverage, and weights m / (N l_i).

    The first m points S have probability det(Q_S)^2: the squared volume of their rows of the orthonormal basis Q. They
    repel each other and never make a singular fit. They are drawn one after the other, each with probability
    proportional to the squared distance of its row from the span of the rows drawn before. The fit

        argmin_a sum_i w_i (f(x_i) - phi(x_i) a)^2

    is unbiased: its mean over samples is the best approximation on all N points (Derezinski, Warmuth and Hsu 2018).
    Nouy and Michel (arXiv 2312.14057) give bounds for n = O(m log m), and find that fewer suffice.

    features: (N, m) with independent columns. n: evaluations, at least m. seed: a number, or a generator. O(N m^2).
    Returns `Sample`; `weighted_fit` takes it. Raises ValueError where the columns are dependent or n < m.

        >>> t = np.linspace(-1, 1, 200)
        >>> features = np.polynomial.legendre.legvander(t, 4)
        >>> sample = volume_sample(features, 8)
        >>> fit = weighted_fit(features, t[sample.indices] ** 3, sample)
        >>> np.abs(fit - [0, 0.6, 0, 0.4, 0]).max() < 1e-12    # t^3 = (3 P_1 + 2 P_3) / 5
        np.True_
    """
    q = _basis(features)
    _enough(n, q.shape[1])
    scores = np.einsum("ij,ij->i", q, q)
    rng = np.random.default_rng(seed)
    first = _projection_process(q, rng)
    return _weighted(np.concatenate([first, _draws(scores, n - len(first), rng)]), scores)


def weighted_fit(features: npt.ArrayLike, values: npt.ArrayLike, sample: Sample) -> Array:
    """argmin_a sum_i w_i (values_i - phi(x_i) a)^2: coefficients (m,), from the values at the points of the sample.

    features: those of all candidates, (N, m). values: (n,), in the order of `sample.indices`.
    """
    y = np.asarray(values, dtype=np.float64)
    if y.shape != sample.indices.shape:
        raise ValueError(f"values has shape {y.shape}; pass one for each of the {len(sample.indices)} sampled points")
    root = np.sqrt(sample.weights)
    phi = np.asarray(features, dtype=np.float64)[sample.indices]
    return np.asarray(np.linalg.lstsq(root[:, None] * phi, root * y, rcond=None)[0])


def _basis(features: npt.ArrayLike) -> Array:
    """An orthonormal basis of the columns."""
    phi = np.asarray(features, dtype=np.float64)
    if phi.ndim != 2 or phi.shape[1] < 1 or not np.all(np.isfinite(phi)):
        raise ValueError(f"features has shape {phi.shape}; pass finite numbers (points, functions)")
    scale = np.linalg.norm(phi, axis=0)
    rank = int(np.linalg.matrix_rank(phi / np.where(scale > 0, scale, 1.0)))
    if rank < phi.shape[1]:
        raise ValueError(
            f"the {phi.shape[1]} columns of features have rank {rank} on {phi.shape[0]} points; leave the dependent "
            f"ones out"
        )
    return np.linalg.qr(phi)[0]


def _enough(n: int, m: int) -> None:
    if n < m:
        raise ValueError(f"n={n} points do not determine {m} coefficients; pass n >= {m}")


def _draws(scores: Array, n: int, rng: np.random.Generator) -> Indices:
    return np.asarray(rng.choice(len(scores), n, p=scores / scores.sum()), dtype=np.intp)


def _weighted(indices: Indices, scores: Array) -> Sample:
    return Sample(indices, scores.sum() / (len(scores) * scores[indices]))


def _projection_process(q: Array, rng: np.random.Generator) -> Indices:
    """m rows with probability det(Q_S)^2. Drawn rows are projected out of all others, twice against rounding."""
    rest, chosen = q.copy(), []
    left = np.einsum("ij,ij->i", q, q)
    for _ in range(q.shape[1]):
        i = int(rng.choice(len(q), p=left / left.sum()))
        chosen.append(i)
        direction = rest[i] / np.linalg.norm(rest[i])
        for _ in range(2):
            rest -= np.outer(rest @ direction, direction)
        left = np.einsum("ij,ij->i", rest, rest)
        left[chosen] = 0.0
    return np.array(chosen, dtype=np.intp)
