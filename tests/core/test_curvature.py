"""Laws of HiZOO: what the probes say of the Hessian's diagonal, and how the step uses it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zograd import AskTell, methods
from zograd.core.run import Method, Run
from zograd.core.schedules import constant
from zograd.estimators import Central, Curved
from zograd.laws import Gaussian, Rademacher
from zograd.oracles import sequential
from zograd.rules import DiagonalNewton, PublishedHiZOO
from zograd.spaces import Diagonal, Euclidean
from zograd.stores import Store

H = torch.tensor([[5.0, 1.0, 0.2], [1.0, 3.0, -0.5], [0.2, -0.5, 0.5]], dtype=torch.float64)
H0 = torch.tensor([2.0, 0.5, 1.5], dtype=torch.float64)
SMALL = 1e-9  # alpha so small that h does not move while its changes are added up


def quadratic(x: torch.Tensor) -> float:
    v = x.reshape(-1)
    return float(0.5 * v @ H @ v + v.sum())


def mean_ratio(method, shape: tuple[int, ...], h: torch.Tensor, steps: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error of the estimate of H_ii / h_i that the rule takes, at a point where it stays (lr = 0)."""
    x = torch.full(shape, 0.3, dtype=torch.float64)
    run = Run(Store({"x": x}, space=method.space), method, seed=5)
    slot = run.store.leaves[0].slots["log_curvature"]
    slot.copy_(h.log().view(slot.shape))
    path = [slot.flatten().clone()]
    for _ in range(steps):
        run.step(sequential(lambda: quadratic(x)))
        path.append(slot.flatten().clone())
    ratios = torch.stack(path).diff(dim=0).numpy() / SMALL + 1
    return ratios.mean(0), ratios.std(0) / np.sqrt(steps)


@pytest.mark.parametrize("n", [1, 2])
def test_the_estimate_of_the_diagonal_is_unbiased(n: int) -> None:
    """E[h c (z^2 - 1) / 2] = diag H, whatever h is, off-diagonal entries and the slope notwithstanding."""
    mean, error = mean_ratio(methods.hizoo(lr=0.0, alpha=SMALL, n=n), (3,), H0)
    assert np.all(np.abs(mean - (H.diagonal() / H0).numpy()) < 4 * error)
    assert np.all(error < 0.3 * mean.max())


def test_a_row_holds_the_mean_of_its_diagonal() -> None:
    """On a 1 x 3 leaf: one h, the mean of H_ii; and its estimate is less noisy than those of single elements."""
    mean, error = mean_ratio(methods.hizoo_row(lr=0.0, alpha=SMALL), (1, 3), torch.tensor([1.0], dtype=torch.float64))
    assert mean.shape == (1,)
    assert abs(mean[0] - float(H.diagonal().mean())) < 4 * error[0]


def test_the_published_estimate_is_dominated_by_the_trace() -> None:
    """E[|c| z_i^2] / 2 = tr M / 2 + M_ii: the flattest coordinate is taken for a steep one. (H is positive here.)"""
    M = (H0.rsqrt()[:, None] * H * H0.rsqrt()).numpy()
    mean, error = mean_ratio(methods.hizoo(lr=0.0, alpha=SMALL, published=True), (3,), H0)
    assert np.all(np.abs(mean - (np.trace(M) / 2 + np.diag(M))) < 4 * error)
    assert mean[2] > 10 * M[2, 2]


def test_without_adaptation_it_is_mezo() -> None:
    """alpha = 0 keeps h = 1: the path of MeZO from the same seed, with one evaluation more a step."""
    paths = []
    for method in (methods.hizoo(lr=1e-2, alpha=0.0), methods.hizoo_row(lr=1e-2, alpha=0.0), methods.mezo(lr=1e-2)):
        loop = AskTell(np.linspace(-1, 1, 9), method, seed=4)
        for _ in range(30):
            loop.tell([float(np.sum(np.cosh(x))) for x in loop.ask()])
        paths.append(loop.x)
    np.testing.assert_allclose(paths[0], paths[2], rtol=1e-12)
    np.testing.assert_allclose(paths[1], paths[2], rtol=1e-12)


def cosines(method, steps: int = 20) -> list[float]:
    """Of the displacement that was probed and the one that was made, at each step."""
    x = torch.full((3,), 0.3, dtype=torch.float64)
    run = Run(Store({"x": x}, space=method.space), method, seed=2)
    found = []
    for _ in range(steps):
        queries, before, out = run.ask(), x.clone(), torch.empty(3, dtype=torch.float64)
        points = [run.store.point_(out, run.store.leaves[0], q.at).clone() for q in queries]
        probe = points[1] - before
        run.tell([quadratic(p) for p in points])
        moved = x - before
        found.append(abs(float(probe @ moved / probe.norm() / moved.norm())))
    return found


def test_the_move_is_along_the_probe() -> None:
    """Cosine 1 while h changes; the released code divides by the h of after."""
    assert min(cosines(methods.hizoo(lr=1e-2, alpha=1e-2))) > 1 - 1e-9
    assert min(cosines(methods.hizoo(lr=1e-2, alpha=1e-2, published=True))) < 1 - 1e-6


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_published_alpha_is_not_lost_to_few_bits(dtype: torch.dtype, published: bool) -> None:
    """alpha = 1e-8 with 16-bit weights: h = 1 + O(1e-8) is kept, which 16 bits or 1 + 1e-8 in float32 would lose."""
    x = torch.full((64,), 0.1).to(dtype)
    run = Run(Store({"x": x}, space=Diagonal()), methods.hizoo(lr=0.0, published=published), seed=0)
    for _ in range(5):
        run.ask()
        run.tell([1.0, 1.0 + 1e-6, 1.0 + 1e-6])  # c = 2
    log_h = run.store.leaves[0].slots["log_curvature"]
    assert log_h.dtype == torch.float32
    assert bool((log_h != 0).all())
    assert float(log_h.abs().max()) < 1e-6


def test_h_stays_within_its_bounds() -> None:
    x = torch.full((50,), 0.1, dtype=torch.float64)
    run = Run(Store({"x": x}, space=Diagonal()), methods.hizoo(lr=0.0, alpha=0.5, low=0.2, high=30.0), seed=0)
    for k in range(40):
        run.ask()
        run.tell([1.0, 1.0 + 1e-4 * (-1) ** k, 1.0 + 1e-4 * (-1) ** k])
        h = run.store.leaves[0].slots["log_curvature"].exp()
        assert float(h.min()) >= 0.2 * (1 - 1e-12)
        assert float(h.max()) <= 30.0 * (1 + 1e-12)
    assert float(h.max()) > 29.9


def test_it_ends_lower_than_mezo_where_scales_differ() -> None:
    """Diagonal quadratic of condition 1000 at equal evaluations. MeZO's rate is held below 2 / trace by the steepest
    coordinate (it diverges at 2^-10); a warm-up gives h the time to make them alike."""
    scales = np.logspace(0, 3, 10)

    def end(method) -> float:
        loop = AskTell(np.ones(10), method, seed=0)
        while loop.evaluations < 4500:
            loop.tell([float(0.5 * np.sum(scales * x**2)) for x in loop.ask()])
        return float(0.5 * np.sum(scales * loop.x**2))

    mezo = min(end(methods.mezo(lr=lr)) for lr in (2.0**-11, 2.0**-12))
    assert end(methods.hizoo(lr=constant(1 / 64, warmup=1500), alpha=1e-4)) < mezo / 1000


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(TypeError, match=r"DiagonalNewton keeps its curvature in the metric .* Euclidean has none"):
        Method(Curved(), Gaussian(), DiagonalNewton(), Euclidean())
    with pytest.raises(TypeError, match=r"z_i\^2 - 1 with z normal, and Rademacher draws other directions"):
        Method(Curved(), Rademacher(), DiagonalNewton(), Diagonal())
    with pytest.raises(
        TypeError, match=r"DiagonalNewton reads the Curvatures of an estimate, but Central .* Use Curved"
    ):
        Method(Central(), Gaussian(), DiagonalNewton(), Diagonal())
    with pytest.raises(TypeError, match="PublishedHiZOO has one h an element"):
        Method(Curved(), Gaussian(), PublishedHiZOO(), Diagonal(by_row=True))
    with pytest.raises(ValueError, match=r"alpha is the share .* got 2"):
        DiagonalNewton(alpha=2)
    with pytest.raises(ValueError, match="0 < low <= 1 <= high"):
        PublishedHiZOO(low=2.0)
