"""Whether stated probabilities are met: calibration errors, and the temperature that would mend them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What `calibration` measures of probabilities.

    accuracy, confidence: the share of right predictions, and the mean probability that is stated for them.
    ece: sum over bins of equal width of (share of examples) |accuracy - confidence|, in [0, 1]; 0 where stated
        probabilities are met. adaptive_ece: the same with bins of equal numbers of examples.
    brier: mean over examples of sum_k (p_k - [k is right])^2. nll: mean of -log p of the right class.
    temperature: T that minimises the loss of softmax(log p / T) on every other example, 1 where nothing is gained;
        above 1 the model is overconfident. ece_scaled: `ece` at that T, on the examples that it was not fitted to.
    curve: (mean confidence, accuracy, examples) of each bin that is not empty.
    """

    examples: int
    accuracy: float
    confidence: float
    ece: float
    adaptive_ece: float
    brier: float
    nll: float
    temperature: float
    ece_scaled: float
    curve: tuple[tuple[float, float, int], ...]


def calibration(probabilities: Any, labels: Any, bins: int = 15) -> Calibration:
    """Expected calibration error and its relatives (Guo et al. 2017), from predictions on held-out examples.

    probabilities: [examples, classes], each row at least 0 with sum 1. labels: [examples], numbers of classes. bins: of
    confidence; a confidence on an edge belongs to the bin above it. The error is biased upwards with few examples: it
    is not 0 for a calibrated model. ValueError for rows that are no probabilities, labels that are no classes, fewer
    than 2 examples, and fewer than 1 bin.

    >>> found = calibration([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.9, 0.1]], [0, 0, 1, 1])
    >>> round(found.ece, 3), found.accuracy
    (0.225, 0.75)
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if p.ndim != 2 or p.shape[1] < 2 or y.shape != p.shape[:1] or len(y) < 2:
        raise ValueError(f"probabilities {p.shape} and labels {y.shape}; pass [examples, classes] and [examples], >= 2")
    if not np.isfinite(p).all() or (p < 0).any() or np.abs(p.sum(1) - 1.0).max() > 1e-4:
        raise ValueError("each row of probabilities must be finite, at least 0, and sum to 1; take a softmax first")
    if not (np.issubdtype(y.dtype, np.integer) and y.min() >= 0 and y.max() < p.shape[1]):
        raise ValueError(f"labels are integers from 0 to {p.shape[1] - 1}, got {y.dtype} from {y.min()} to {y.max()}")
    if bins < 1:
        raise ValueError(f"bins counts intervals of confidence, at least 1, got {bins}")
    rows = np.arange(len(y))
    right = np.zeros_like(p)
    right[rows, y] = 1.0
    of_label = np.maximum(p[rows, y], 1e-300)
    error, curve = _ece(p, y, bins)
    even, odd = rows % 2 == 0, rows % 2 == 1
    t = _temperature(p[even], y[even])
    return Calibration(
        examples=len(y),
        accuracy=float((p.argmax(1) == y).mean()),
        confidence=float(p.max(1).mean()),
        ece=error,
        adaptive_ece=_adaptive(p, y, bins),
        brier=float(((p - right) ** 2).sum(1).mean()),
        nll=float(-np.log(of_label).mean()),
        temperature=t,
        ece_scaled=_ece(_scaled(p[odd], t), y[odd], bins)[0],
        curve=curve,
    )


def _ece(p: Array, y: Any, bins: int) -> tuple[float, tuple[tuple[float, float, int], ...]]:
    """The error over bins of equal width, and its bins."""
    confidence, hit = p.max(1), (p.argmax(1) == y).astype(float)
    edges = np.arange(bins + 1) / bins  # unlike those of linspace, the nearest numbers to k / bins
    which = np.minimum(np.searchsorted(edges, confidence, side="right") - 1, bins - 1)
    parts = [np.flatnonzero(which == b) for b in range(bins)]
    curve = tuple((float(confidence[i].mean()), float(hit[i].mean()), len(i)) for i in parts if len(i))
    return sum(count * abs(a - c) for c, a, count in curve) / len(y), curve


def _adaptive(p: Array, y: Any, bins: int) -> float:
    """The error over bins of equal numbers of examples, in the order of confidence."""
    confidence, hit = p.max(1), (p.argmax(1) == y).astype(float)
    parts = np.array_split(np.argsort(confidence, kind="stable"), min(bins, len(y)))
    return float(sum(abs(hit[i].sum() - confidence[i].sum()) for i in parts) / len(y))


def _scaled(p: Array, temperature: float) -> Array:
    """softmax(log p / T), row by row."""
    z = np.log(np.maximum(p, 1e-300)) / temperature
    e = np.exp(z - z.max(1, keepdims=True))
    scaled: Array = e / e.sum(1, keepdims=True)
    return scaled


def _temperature(p: Array, y: Any) -> float:
    """The T between e^-4 and e^4 of least loss; the loss is convex in 1 / T."""
    rows = np.arange(len(y))

    def loss(log_t: float) -> float:
        return float(-np.log(np.maximum(_scaled(p, np.exp(log_t))[rows, y], 1e-300)).mean())

    found = minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0
