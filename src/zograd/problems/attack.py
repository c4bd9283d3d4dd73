"""Attacks on a classifier of digits: the margin of an image within a box around it, from values alone."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch

from zograd.core.vector import Array
from zograd.sets import Box

HIDDEN, STEPS = 32, 60
TRAINING = 1297
"""Digits that the network is trained on; the attacked ones come from the other 500."""


@dataclass(frozen=True)
class Network:
    """One hidden layer of ReLU: logits(x) = max(0, x A + a) B + b. Arrays of float64."""

    A: Array = field(repr=False)
    a: Array = field(repr=False)
    B: Array = field(repr=False)
    b: Array = field(repr=False)

    def logits(self, x: Array) -> Array:
        return np.asarray(np.maximum(x @ self.A + self.a, 0.0) @ self.B + self.b)


@dataclass(frozen=True)
class Attack:
    """An image x0 of class `label`, and the box {x : |x - x0| <= radius, 0 <= x <= 1} in which the class shall change.

    The image has 64 pixels in 0..1, in rows of 8.
    """

    network: Network
    x0: Array = field(repr=False)
    label: int
    radius: float

    @property
    def low(self) -> Array:
        return np.asarray(np.maximum(self.x0 - self.radius, 0.0))

    @property
    def high(self) -> Array:
        return np.asarray(np.minimum(self.x0 + self.radius, 1.0))

    @property
    def box(self) -> Box:
        return Box(self.low, self.high)

    def margin(self, x: Array) -> float:
        """z_label - max over the other classes of z_k, z the logits. Below 0 the attack has succeeded."""
        z = self.network.logits(np.asarray(x, dtype=np.float64).reshape(-1))
        return float(z[self.label] - np.delete(z, self.label).max())


@cache
def trained(seed: int = 0) -> Any:
    """scikit-learn's `MLPClassifier` with 32 hidden units and alpha = 1, after 60 L-BFGS steps on 1,297 digits.

    Takes about a second. Raises ImportError without scikit-learn.
    """
    x, y = _digits()
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        network = MLPClassifier((HIDDEN,), alpha=1.0, solver="lbfgs", max_iter=STEPS, random_state=seed)
        return network.fit(x[:TRAINING], y[:TRAINING])


def digits_network(seed: int = 0) -> Network:
    """The weights of `trained`."""
    (A, B), (a, b) = trained(seed).coefs_, trained(seed).intercepts_
    return Network(A, a, B, b)


def _digits() -> tuple[Array, Any]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("this problem needs scikit-learn: pip install 'zograd[bench]'") from None
    x, y = load_digits(return_X_y=True)
    return np.asarray(x / 16.0, dtype=np.float64), y


def digits_attacks(count: int = 20, radius: float = 0.2, seed: int = 0) -> tuple[Attack, ...]:
    """The first `count` of the last 500 digits that the network classifies correctly, each to be attacked.

    >>> from zograd.problems.attack import digits_attacks
    >>> attacks = digits_attacks()
    >>> len(attacks), min(a.margin(a.x0) for a in attacks) > 0
    (20, True)
    """
    network, (x, y) = digits_network(seed), _digits()
    right = [i for i in range(TRAINING, len(y)) if int(network.logits(x[i]).argmax()) == y[i]]
    return tuple(Attack(network, x[i], int(y[i]), radius) for i in right[:count])


def white_box(attack: Attack, steps: int = 100, starts: int = 5, seed: int = 0) -> float:
    """The lowest margin that projected gradient descent finds with the gradients of torch, as a reference.

    Madry et al. 2018: x <- P(x - 0.02 sign(grad margin)), from x0 and from random points of the box.
    """
    A, a, B, b = (torch.from_numpy(w) for w in vars(attack.network).values())
    low, high = torch.from_numpy(attack.low), torch.from_numpy(attack.high)
    others = torch.arange(len(b)) != attack.label
    rng, lowest = np.random.default_rng(seed), np.inf
    x = torch.from_numpy(np.stack([attack.x0, *rng.uniform(attack.low, attack.high, (starts - 1, len(attack.x0)))]))
    for _ in range(steps):
        x = x.detach().requires_grad_()
        z = torch.relu(x @ A + a) @ B + b
        margins = z[:, attack.label] - z[:, others].max(1).values
        lowest = min(lowest, float(margins.detach().min()))
        (slope,) = torch.autograd.grad(margins.sum(), x)
        x = torch.clamp(x.detach() - 0.02 * slope.sign(), low, high)
    return lowest
