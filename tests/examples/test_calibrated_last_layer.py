"""Row 23: the bound of the Bayesian last layer, against NumPy, samples and the likelihood that it bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zograd.examples.calibrated_last_layer import (
    CLASSES,
    NOISE,
    by_gradients,
    fitted,
    free_energy,
    inputs,
    labels,
    of_a_point,
    probabilities,
    sampled,
)

ROWS = slice(0, 60)


def layer(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    m = torch.randn(CLASSES, width, generator=generator, dtype=torch.float64)
    return 0.5 * m, -2.0 + torch.rand(m.shape, generator=generator, dtype=torch.float64)


def test_the_free_energy_is_that_of_numpy() -> None:
    """mean[logsumexp(m.phi + (phi S phi + s^2) / 2) - m_y.phi] + KL / N, written out for each example."""
    x, y = inputs("train", 8, ROWS), labels("train", ROWS)
    m, r = layer(9)
    total = 0.0
    for phi, label in zip(x.numpy(), y.numpy(), strict=True):
        spread = [phi @ np.diag(np.exp(row)) @ phi + NOISE**2 for row in r.numpy()]
        mean = m.numpy() @ phi
        total += np.log(np.exp(mean + np.array(spread) / 2).sum()) - mean[label]
    s = np.exp(r.numpy())
    divergence = 0.5 * (s + m.numpy() ** 2 - 1 - np.log(s)).sum()
    assert float(free_energy(m, r, x, y)) == pytest.approx((total + divergence) / 60, rel=1e-12)


def test_the_bound_is_below_the_likelihood_and_is_that_of_samples() -> None:
    """E log p(y | w) >= the bound without its KL (Jensen), and both terms are means over samples."""
    x, y = inputs("train", 8, ROWS), labels("train", ROWS)
    m, r = layer(9)
    value, error = sampled(m, r, x, y, 20_000, 1)
    assert abs(value - float(free_energy(m, r, x, y))) < 3 * error < 0.05
    generator = torch.Generator().manual_seed(2)
    w = m + (r / 2).exp() * torch.randn(4000, *m.shape, generator=generator, dtype=m.dtype)
    logp = torch.log_softmax(torch.einsum("skf,nf->snk", w, x), 2)
    seen = -float(logp.gather(2, y.expand(4000, -1)[..., None]).mean())
    divergence = 0.5 * float((r.exp() + m * m - 1 - r).sum()) / 60
    assert seen < float(free_energy(m, r, x, y)) - divergence


def test_the_bound_is_that_of_the_vbll_package() -> None:
    """Its bound, the mean of log p below, and its divergence, which leaves the constant of each weight out."""
    classification = pytest.importorskip("vbll.layers.classification", reason="needs the package vbll")
    x, y = inputs("train", 8, ROWS), labels("train", ROWS)
    m, r = layer(9)
    theirs = classification.DiscClassification(9, CLASSES, regularization_weight=1 / 60, parameterization="diagonal")
    theirs.double()
    with torch.no_grad():
        theirs.W_mean.copy_(m)
        theirs.W_logdiag.copy_(r / 2)  # of the scale
        theirs.noise_logdiag.fill_(float(np.log(NOISE)))
        bound = float(theirs.jensen_bound(x, y).mean())
        divergence = float(classification.gaussian_kl(theirs.W(), 1.0)) - 0.5 * m.numel()
    assert float(free_energy(m, r, x, y)) == pytest.approx(-bound + divergence / 60, rel=1e-10)


def test_without_spread_the_layer_is_a_point() -> None:
    x = inputs("test", 8, ROWS)
    m, _ = layer(9)
    sure = torch.full_like(m, -60.0)
    both = [probabilities(w, x, 0, draws=4000) for w in ({"m": m}, {"m": m, "r": sure})]
    assert both[0] == pytest.approx(both[1], abs=0.01)  # s is left
    assert both[1].sum(1) == pytest.approx(1.0)


def test_evaluations_find_the_minimum_of_gradients() -> None:
    x, y = inputs("train", 4, ROWS), labels("train", ROWS)
    w = fitted(x, y, True, 15, 0)
    assert float(free_energy(w["m"], w["r"], x, y)) - by_gradients(x, y) < 2e-2
    point = fitted(x, y, False, 15, 0)
    m = point["m"].clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(of_a_point(m, x, y), m)
    assert float(slope.norm()) < 2e-2
