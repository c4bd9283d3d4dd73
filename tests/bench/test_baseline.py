"""The loop that is compared with is the published one: it learns, and it drifts."""

from __future__ import annotations

import pytest
import torch

from zograd.bench.baseline import cycle_, mezo_step, perturb_, update_


@pytest.fixture(autouse=True)
def _own_randomness():
    with torch.random.fork_rng():
        yield


def test_a_perturbation_is_repeated_by_its_seed_and_has_the_stated_scale():
    a, b = torch.zeros(40_000), torch.zeros(40_000)
    perturb_([a], 1.0, 0.5, seed=3)
    perturb_([b], 1.0, 0.5, seed=3)
    assert torch.equal(a, b)
    assert float(a.std()) == pytest.approx(0.5, rel=4 / (2 * 40_000) ** 0.5)  # four standard errors
    perturb_([b], 1.0, 0.5, seed=4)
    assert not torch.equal(a, b)


def test_the_update_takes_back_the_perturbation_of_the_same_seed():
    a = torch.zeros(100, dtype=torch.float64)
    perturb_([a], 1.0, 0.5, seed=3)
    update_([a], 0.5, 1.0, seed=3)
    assert float(a.abs().max()) < 1e-15


def test_a_step_is_algorithm_1():
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    start, mu, lr = x.clone(), 1e-3, 0.1
    torch.manual_seed(7)
    z = torch.normal(0.0, 1.0, x.shape, dtype=torch.float64)
    slope = mezo_step([x], lambda: float((x**2).sum()), mu=mu, lr=lr, seed=7)
    assert slope == pytest.approx(float(2 * start @ z), rel=1e-9)
    torch.testing.assert_close(x, start - lr * slope * z)


@pytest.mark.parametrize(("dtype", "least", "most"), [(torch.bfloat16, 0.05, 0.2), (torch.float32, 0.0, 1e-5)])
def test_idle_cycles_drift_in_bfloat16(dtype: torch.dtype, least: float, most: float):
    w = (0.02 * torch.randn(1 << 14, generator=torch.Generator().manual_seed(0))).to(dtype)
    before = w.double()
    for seed in range(300):
        cycle_([w], 1e-3, seed)
    assert least < float((w.double() - before).norm() / before.norm()) < most
