"""Row 35: the reference run of the example, against a recurrence with gradients written by hand."""

from __future__ import annotations

import numpy as np
import torch

from zograd.examples.calibration_by_sharpness import RHO, by_gradients, digits, regression, start


def test_the_steps_with_gradients_are_those_of_numpy() -> None:
    """Softmax regression: grad = X^T (P - Y) / n at x, and with rows weighted by d/dz of -(1 + p)^-g log p there."""
    data, gamma = digits(), 2.0
    x, y = data[0].numpy(), data[1].numpy()
    rows, one = np.arange(len(y)), np.eye(10)[y]

    def softmax(w: np.ndarray) -> np.ndarray:
        z = x @ w
        e = np.exp(z - z.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    w = start(0, 640).numpy().reshape(64, 10)
    for _ in range(5):
        g = x.T @ (softmax(w) - one) / len(y)
        P = softmax(w + RHO * g / np.linalg.norm(g))
        p = P[rows, y]
        # dl/dp of l = -(1 + p)^-gamma log p, and dp/dz = p (1_y - P)
        slope = gamma * (1 + p) ** (-gamma - 1) * np.log(p) - (1 + p) ** -gamma / p
        slope = np.where(p > 0.5, slope, -1 / p)
        w = w - 0.5 * x.T @ ((slope * p)[:, None] * (one - P)) / len(y)
    found = by_gradients(regression, start(0, 640), data, gamma, 5)
    torch.testing.assert_close(found, torch.from_numpy(w.ravel()), rtol=1e-9, atol=1e-11)
