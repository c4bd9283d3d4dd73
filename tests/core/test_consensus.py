"""Consensus-based optimization: the population contracts to the softmin, and finds the minimum among many."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from zograd import AskTell, methods
from zograd.core.run import Method, Run
from zograd.core.vector import Address, Noise, Slot, Vector, fill_
from zograd.estimators import Consensus
from zograd.estimators.elementwise import Product
from zograd.laws import Gaussian
from zograd.noise import Kind
from zograd.rules import SGD
from zograd.spaces import PositiveOrthant
from zograd.stores import Store


def rastrigin(x: np.ndarray) -> float:
    """Minimum 0 at 1, and about 10^d local minima at distance 1 from each other."""
    z = x - 1.0
    return float(np.sum(z**2 - 10 * np.cos(2 * np.pi * z) + 10))


@pytest.mark.slow
def test_it_finds_the_minimum_of_rastrigin() -> None:
    """d = 4, from each of 3 seeds: every coordinate within 0.25 of it, where all other minima lie 1 away."""
    method, found = methods.cbo(mu=2.0, n=80, alpha=10.0, sigma=3.0), 0
    for seed in range(3):
        loop = AskTell(np.zeros(4), method, seed=seed)
        for _ in range(100):
            loop.tell([rastrigin(x) for x in loop.ask()])
        found += bool(np.all(np.abs(loop.x - 1.0) < 0.25))
    assert found == 3


def particles(loop: AskTell) -> np.ndarray:
    return np.stack(loop.ask())


def test_the_first_particles_lie_around_the_start_and_the_iterate_goes_to_their_softmin() -> None:
    loop = AskTell(np.full(3, 2.0), methods.cbo(mu=0.5, n=200, alpha=2.0), seed=1)
    first = particles(loop)
    np.testing.assert_allclose(first.mean(0), 2.0, atol=4 * 0.5 / math.sqrt(200))
    np.testing.assert_allclose(first.std(0), 0.5, rtol=0.2)
    losses = np.array([float(np.sum(x**2)) for x in first])
    loop.tell(losses)
    w = np.exp(-2.0 * losses)
    np.testing.assert_allclose(loop.x, w @ first / w.sum(), rtol=1e-12)


def test_without_noise_the_particles_drift_to_the_consensus() -> None:
    """sigma = 0: x_i - c shrinks by exactly 1 - lam dt."""
    loop = AskTell(np.zeros(3), methods.cbo(n=5, sigma=0.0, lam=1.5, dt=0.2), seed=0)
    before = particles(loop)
    loop.tell([float(np.sum((x - 1) ** 2)) for x in before])
    np.testing.assert_allclose(particles(loop) - loop.x, 0.7 * (before - loop.x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("componentwise", [False, True])
def test_the_noise_has_the_size_of_the_distance(componentwise: bool) -> None:
    """E|x_i' - c|^2 = ((1 - lam dt)^2 + k sigma^2 dt) |x_i - c|^2, k = d or 1: the docstring's law of contraction."""
    d, dt = 200, 0.1
    loop = AskTell(np.zeros(d), methods.cbo(n=40, sigma=0.7, dt=dt, componentwise=componentwise), seed=3)
    before = particles(loop)
    loop.tell([0.0] * 40)  # equal losses: c is the mean
    c = before.mean(0)
    np.testing.assert_allclose(loop.x, c, atol=1e-12)
    growth = np.sum((particles(loop) - c) ** 2, axis=1) / np.sum((before - c) ** 2, axis=1)
    assert growth.mean() == pytest.approx((1 - dt) ** 2 + (1 if componentwise else d) * 0.49 * dt, rel=0.05)


def test_huge_losses_do_not_overflow_the_weights() -> None:
    """Log-sum-exp: the best particle keeps its weight, whatever the offset and the spread."""
    loop = AskTell(np.zeros(2), methods.cbo(n=3, alpha=1e3), seed=0)
    points = particles(loop)
    loop.tell([1e200, -1e200, 0.0])
    np.testing.assert_array_equal(loop.x, points[1])


def test_the_population_is_what_its_slots_say() -> None:
    """n + 1 slots, and they are saved with the run."""
    store = Store({"x": torch.zeros(4)})
    Run(store, methods.cbo(n=6))
    assert len(store.leaves[0].slots) == 7
    with pytest.raises(TypeError, match="Consensus averages points, which PositiveOrthant does not allow"):
        Method(Consensus(), Gaussian(), SGD(), PositiveOrthant())
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\], got lam=20"):
        Consensus(lam=20)
    with pytest.raises(ValueError, match="alpha is an inverse temperature"):
        Consensus(alpha=0.0)


def test_products_are_elementwise() -> None:
    """`Product` writes (a_1 e_1 + a_2 e_2) * e_3, at any cut."""
    a, noise = torch.linspace(-1, 1, 20, dtype=torch.float64), Noise(Kind.NORMAL, 7)
    slots = {"a": a}
    product = Product(((Slot("a"), 2.0), (Noise(Kind.SIGN, 3), 0.5)), noise)
    assert product.reads == ("a",)

    def numbers(v: Vector, start: int = 0, stop: int = 20) -> torch.Tensor:
        out = torch.empty(stop - start, dtype=torch.float64)
        return fill_(out, v, Address(0, start, (20,)), {"a": a[start:stop]})

    whole = numbers(Vector(((product, 3.0),)))
    expected = 3.0 * numbers(Vector(product.terms)) * numbers(Vector(((noise, 1.0),)))
    torch.testing.assert_close(whole, expected, rtol=1e-14, atol=0)
    assert slots["a"] is a
    assert torch.equal(torch.cat([numbers(Vector(((product, 3.0),)), k, k + 5) for k in range(0, 20, 5)]), whole)
