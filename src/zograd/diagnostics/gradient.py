"""Compares a zeroth-order estimate with the gradient of autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from zograd.core import keys
from zograd.diagnostics.problem import Measurement, Problem, mean
from zograd.estimators.base import Estimator
from zograd.estimators.standalone import answered, asking
from zograd.laws import Law, Rademacher


def gradient_cosine(
    closure: Callable[[], Any],
    p: Problem,
    estimator: Estimator[Any] | None = None,
    *,
    law: Law = Rademacher(),
    mu: float = 2.0**-10,
    n: int = 8,
    seed: int = 0,
) -> Measurement:
    """The mean of cos(g^, grad f) over n independent estimates; autograd computes grad f, and needs its memory.

    closure: the loss of `p`, differentiable in its tensors. In d dimensions `Central(q)` has a cosine of about
    sqrt(q / (d + q)) (its root mean square), and the mean for q = 1 is sqrt(2 / (pi d)); one that is far from it points
    to a bug in the loss or the method.
    """
    if estimator is None:
        from zograd.estimators import Central

        estimator = Central(1)
    tensors = [leaf.tensor for leaf in p.store.leaves]
    wanted = [t.requires_grad for t in tensors]
    for t in tensors:
        t.requires_grad_(True)
    try:
        with torch.enable_grad():
            gradients = torch.autograd.grad(closure(), tensors, allow_unused=True)
    finally:
        for t, want in zip(tensors, wanted, strict=True):
            t.requires_grad_(want)
    cosines, cost = [], 0
    for k in range(n):
        ask = asking(p.store, law, keys.Part.DIAGNOSTICS, mu=mu, seed=seed, step=k)
        estimate = answered(estimator(ask), p.oracle, p.store, k)
        cost += len(estimate.losses)
        dot = size = total = 0.0
        for block in p.store.blocks(estimate.vector):
            g = gradients[block.leaf.index]
            v = block.v[0].double()
            size += float(v @ v)
            if g is not None:
                part = g.detach().reshape(-1)[block.start : block.start + v.numel()].double()
                dot += float(v @ part)
                total += float(part @ part)
        cosines.append(dot / max(np.sqrt(size * total), 1e-300))
    return mean(cosines, cost)
