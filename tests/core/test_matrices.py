"""Rules of matrices and of cosines against what they are by definition: polar factors, minima in sets, Adam, Muon."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from scipy.fft import dct
from torch import Tensor, nn

import zograd as zo
from zograd.core.query import Estimate
from zograd.core.vector import Slot, Vector
from zograd.rules import (
    Adam,
    CosineAdam,
    CosineAdamFeedback,
    InverseFisher,
    Lion,
    LowRankSparse,
    Rotated,
    RowLion,
    Rule,
    Signs,
    Sinkhorn,
    SpectralLion,
    Trion,
)
from zograd.rules.lowrank import msign_newton_schulz5
from zograd.stores import Rate, Store


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Fed:
    """One matrix moved by a rule whose estimate is the gradient that it is given."""

    def __init__(self, rule: Rule[Any], start: Tensor, weight_decay: float = 0.0) -> None:
        self.w = nn.Parameter(start.clone())
        self.rule, self.weight_decay, self.t = rule, weight_decay, 0
        self.state: dict[str, Any] = {}
        self.store = Store({"w": self.w})
        self.store.require({**rule.slots, "given": 0.0})

    def step(self, gradient: Tensor, lr: float) -> Tensor:
        self.store.leaves[0].slots["given"].copy_(gradient.reshape(-1))
        estimate: Estimate[Any] = Estimate(Vector(((Slot("given"), 1.0),)), 0.0, [], None)
        self.rule.apply(self.store.iterate([Rate(lr, self.weight_decay)], self.t), estimate, self.state)
        self.t += 1
        return self.w.detach().clone()


def polar(m: Tensor) -> Tensor:
    u, _, vt = torch.linalg.svd(m, full_matrices=False)
    return u @ vt


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5)], ids=str)
def test_aro_with_the_polar_map_is_the_polar_factor_for_every_rotation(shape: tuple[int, int]) -> None:
    """R f(R^T M) = polar(M) for every orthogonal R: each step is that of momentum, orthogonalised exactly."""
    fed, m = Fed(Rotated(0.9, polar), torch.zeros(shape, dtype=torch.float64)), torch.zeros(shape, dtype=torch.float64)
    w = fed.w.detach().clone()
    for t in range(6):
        g = normal(*shape, seed=t)
        m = 0.9 * m + 0.1 * g
        w = w - 0.1 * polar(m)
        torch.testing.assert_close(fed.step(g, 0.1), w, rtol=1e-12, atol=1e-12)
        r = fed.store.leaves[0].slots["rotation"][: min(shape) ** 2].view(min(shape), -1)
        torch.testing.assert_close(r.mT @ r, torch.eye(min(shape), dtype=r.dtype), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("base", [Signs(), Sinkhorn()], ids=repr)
def test_aro_turns_with_the_weights_after_its_first_rotation(base: Any) -> None:
    """f(W) and f(Q W) make runs that are Q times each other when the rotations start as I and Q; signs alone do not."""
    q = torch.linalg.qr(normal(4, 4, seed=9)).Q
    one, two = (Fed(Rotated(0.9, base), torch.zeros(4, 6, dtype=torch.float64)) for _ in range(2))
    first = normal(4, 6, seed=50)
    one.step(first, 0.0), two.step(q @ first, 0.0)
    two.store.leaves[0].slots["rotation"][:16].copy_(
        (q @ one.store.leaves[0].slots["rotation"][:16].view(4, 4)).view(-1)
    )
    for t in range(5):
        g = normal(4, 6, seed=t)
        torch.testing.assert_close(two.step(q @ g, 0.1), q @ one.step(g, 0.1), rtol=1e-10, atol=1e-10)
    assert (base(q @ first) - q @ base(first)).abs().max() > 0.1


def test_a_momentum_of_deficient_rank_leaves_a_rotation_that_is_orthogonal() -> None:
    fed = Fed(Rotated(0.9, Signs()), torch.zeros(3, 5, dtype=torch.float64))
    for t in range(3):
        g = torch.outer(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64), normal(5, seed=t))
        before = fed.w.detach().clone()
        moved = fed.step(g, 0.1) - before
        r = fed.store.leaves[0].slots["rotation"][:9].view(3, 3)
        torch.testing.assert_close(r.mT @ r, torch.eye(3, dtype=r.dtype), rtol=0.0, atol=1e-12)
        assert float(moved[2].abs().max()) == 0.0, "rows in which the gradient is 0 do not move"
        assert float(moved[:2].abs().max()) > 0.0


def test_trion_of_all_cosines_without_momentum_is_muon() -> None:
    """W <- W - lr sqrt(max(1, m / n)) msign(G): msign(G Q) Q^T = msign(G) for an orthogonal Q."""
    for shape in ((6, 4), (4, 6), (5, 1)):
        fed, w = Fed(Trion(rank=6, beta=0.0), normal(*shape)), normal(*shape)
        for t in range(3):
            g = normal(*shape, seed=t)
            w = w - 0.1 * max(1.0, shape[0] / shape[1]) ** 0.5 * msign_newton_schulz5(g)
            torch.testing.assert_close(fed.step(g, 0.1), w, rtol=1e-12, atol=1e-12)
        assert float(fed.store.leaves[0].slots["momentum"].abs().max()) < 1e-12


def test_trion_keeps_what_the_cosines_leave_out() -> None:
    """After a step, momentum = G - (1 - b) S_I Q_I^T, and the step lies in the span of the two strongest cosines."""
    g, fed = normal(6, 8), Fed(Trion(rank=2, beta=0.9), torch.zeros(6, 8, dtype=torch.float64))
    moved = fed.step(g, 1.0)
    s = dct(g.numpy(), axis=1, norm="ortho")
    order = np.argsort(-np.abs(s).sum(0))
    seen = np.abs(dct(moved.numpy(), axis=1, norm="ortho")).sum(0)
    assert set(np.flatnonzero(seen > 1e-10)) == set(order[:2])
    s[:, order[2:]] = 0.0
    left = g.numpy() - 0.1 * s @ dct(np.eye(8), axis=1, norm="ortho").T
    np.testing.assert_allclose(fed.store.leaves[0].slots["momentum"].view(6, 8), left, atol=1e-12)


def test_adam_of_all_cosines_is_adam_on_the_transform() -> None:
    """r = n: W Q moves as under torch's Adam with gradients G Q."""
    q = torch.from_numpy(dct(np.eye(5), axis=1, norm="ortho"))
    fed, theirs = Fed(CosineAdam(rank=5, eps=1e-6), normal(4, 5)), nn.Parameter(normal(4, 5) @ q)
    adam = torch.optim.Adam([theirs], lr=0.05, eps=1e-6)
    for t in range(10):
        g = normal(4, 5, seed=t)
        theirs.grad = g @ q
        adam.step()
        torch.testing.assert_close(fed.step(g, 0.05) @ q, theirs.detach(), rtol=1e-10, atol=1e-11)


def test_moments_of_cosines_are_r_of_n_of_those_of_adam() -> None:
    weights = {"w": torch.zeros(32, 64), "v": torch.zeros(10)}
    held = {}
    for rule in (Adam(), CosineAdam(rank=16)):
        store = Store({name: w.clone() for name, w in weights.items()})
        store.require(rule.slots)
        held[type(rule)] = sum(slot.numel() for slot in store.leaves[0].slots.values())
    assert held[CosineAdam] / held[Adam] == 16 / 64


def test_error_feedback_brings_back_what_a_step_left_out() -> None:
    """A constant gradient with one cosine kept a step: without feedback the weaker cosines never move."""
    q = dct(np.eye(4), axis=1, norm="ortho")
    g = torch.from_numpy(np.ones((3, 1)) * (4 * q[:, 0] + 3 * q[:, 2]))
    moved = {}
    for rule in (CosineAdam(rank=1), CosineAdamFeedback(rank=1)):
        fed = Fed(rule, torch.zeros(3, 4, dtype=torch.float64))
        for _ in range(6):
            w = fed.step(g, 0.01)
        moved[type(rule)] = np.abs(w.numpy() @ q).sum(0) > 1e-6
    assert moved[CosineAdam].tolist() == [True, False, False, False]
    assert moved[CosineAdamFeedback].tolist() == [True, False, True, False]


def test_the_inverse_of_the_fisher_matrix_gains_little_over_descent_at_its_best_rate() -> None:
    """The negative result: on an ill-conditioned logistic loss of 30 weights, with 8 directions an estimate, 4,000
    evaluations end within a factor of ten of plain descent, each at the best of its rates (0.1 of 0.01 to 1; 10 of 0.6
    to 10; three seeds: 2.6e-7 to 3.3e-7 above the minimum, and 5.1e-7 to 1.0e-6)."""
    rng = np.random.default_rng(0)
    data = rng.normal(size=(200, 30)) * np.logspace(0, -1.5, 30)
    labels = np.sign(data @ rng.normal(size=30) * 3 + rng.logistic(size=200))

    def f(x: np.ndarray) -> float:
        return float(np.mean(np.logaddexp(0.0, -labels * (data @ x))) + 1e-3 * x @ x)

    least = scipy.optimize.minimize(f, np.zeros(30), tol=1e-12).fun
    methods = zo.methods.mfac(lr=0.1, n=8), zo.methods.zo_sgd(lr=10.0, n=8)
    fisher, plain = (zo.minimize(f, np.zeros(30), m, budget=4000, seed=0).fun - least for m in methods)
    assert fisher < 1e-5, "it does minimise"
    assert plain / 10 < fisher < plain * 10


def test_a_fisher_matrix_needs_a_window_and_a_damping() -> None:
    with pytest.raises(ValueError, match="at least 1 estimate, got 0"):
        InverseFisher(0)
    with pytest.raises(ValueError, match="damping must be > 0"):
        InverseFisher(4, 0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Trion(rank=0), "rank is the number of cosines"),
        (lambda: CosineAdam(refresh=0), "at least 1, got 0"),
        (lambda: Sinkhorn(0), "at least one pass, got 0; for signs"),
        (lambda: Rotated(1.0), "beta must lie in"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def box(w: float, x: Tensor, kind: str) -> Tensor:
    """The projection onto rows of norm at most sqrt(columns) / w, or onto spectral norm at most 1 / w."""
    if kind == "rows":
        most = x.shape[1] ** 0.5 / w
        return x * (most / x.norm(dim=1, keepdim=True)).clamp(max=1.0)
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    return (u * s.clamp(max=1 / w)) @ vt


@pytest.mark.parametrize(
    ("rule", "kind"), [(RowLion(), "rows"), (SpectralLion(), "spectral")], ids=["rows", "spectral"]
)
def test_lion_k_with_decay_solves_the_constrained_problem(rule: Any, kind: str) -> None:
    """min <X - A, H (X - A)> / 2 over the set, against projected gradient descent: within 1e-3 of its value."""
    h, a = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)), 1.5 * normal(3, 5, seed=2)

    def f(x: Tensor) -> float:
        return 0.5 * float(((x - a) * (h @ (x - a))).sum())

    x = torch.zeros(3, 5, dtype=torch.float64)
    for _ in range(2000):
        x = box(2.0, x - 0.2 * h @ (x - a), kind)
    fed = Fed(rule, torch.zeros(3, 5, dtype=torch.float64), weight_decay=2.0)
    w = fed.w.detach().clone()
    for t in range(3000):
        w = fed.step(h @ (w - a), 0.05 / (1 + 0.02 * t))
    assert f(a) < f(x) - 0.1, "the constraint binds"
    assert f(w) == pytest.approx(f(x), rel=1e-3)
    torch.testing.assert_close(w, box(2.0, w, kind), rtol=0.0, atol=1e-3)


@pytest.mark.parametrize(
    ("rule", "norm"),
    [
        (Lion(0.9, 0.99), lambda c: c.abs().sum()),
        (RowLion(0.9, 0.99), lambda c: 5**0.5 * c.norm(dim=1).sum()),
        (SpectralLion(0.9, 0.99), lambda c: torch.linalg.svdvals(c).sum()),
    ],
    ids=["l1", "rows", "nuclear"],
)
def test_the_lyapunov_function_of_lion_k_falls(rule: Any, norm: Any) -> None:
    """H = g f(x) + (1 - e g) / (1 + e w) (K(m) + w <m, x>) in the set, g = (1 - b2) / lr, e g = 1 - b1 (Lion-K)."""
    lr, decay = 1e-4, 1.0
    a, w = 0.3 * normal(3, 5, seed=2), 0.1 * normal(3, 5, seed=3)
    fed, gamma, epsilon = Fed(rule, w, weight_decay=decay), 0.01 / lr, 0.1 * lr / 0.01
    values = []
    for _ in range(3000):
        m = fed.store.leaves[0].slots["momentum"].view(3, 5)
        f = 0.5 * float((w - a).square().sum())
        values.append(gamma * f + (1 - 0.1) / (1 + epsilon * decay) * float(norm(m) + decay * (m * w).sum()))
        w = fed.step(w - a, lr)
    rises = np.diff(values)
    assert rises.max() < 1e-3 * (values[0] - values[-1])
    assert values[-1] < values[0] - 1.0


def planted(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A 20 x 20 matrix of rank 2 plus 20 elements of size 3, and its parts."""
    g = torch.Generator().manual_seed(seed)
    u, v = (torch.randn(20, 2, generator=g, dtype=torch.float64) for _ in "uv")
    low = u @ v.T
    sparse = torch.zeros(400, dtype=torch.float64)
    where = torch.randperm(400, generator=g)[:20]
    sparse[where] = 3.0 * torch.randn(20, generator=g, dtype=torch.float64).sign()
    return low + sparse.view(20, 20), low, sparse.view(20, 20)


def test_a_low_rank_matrix_and_a_sparse_one_are_told_apart_with_exact_gradients() -> None:
    """f = |X - A|^2 / 2 with A of rank 2 plus 5 % sparse: the controller ends at these sizes, and L is near A's."""
    a, low, _ = planted()
    rule = LowRankSparse(rank=0.1, density=0.05, rho=1.0, gain=0.02, every=20)
    fed = Fed(rule, torch.zeros(20, 20, dtype=torch.float64))
    fed.rule.prepare(fed.store)
    for _ in range(12000):
        w = fed.w.detach()
        fed.step(w - a, 0.1)
    ((found, sparse),) = rule.parts(fed.store).values()
    singular = torch.linalg.svdvals(found)
    rank = int((singular.square().cumsum(0) < 0.999 * singular.square().sum()).sum()) + 1
    assert rank == 2
    assert float((sparse != 0).double().mean()) == pytest.approx(0.05, abs=0.02)
    assert float((fed.w.detach() - found - sparse).norm()) < 0.05 * float(a.norm())
    assert float((found - low).norm()) < 0.15 * float(low.norm())


def test_without_penalties_salaad_is_descent() -> None:
    """Targets of 1 keep both penalties at 0: M stays X of the last round, and L is X itself."""
    fed = Fed(LowRankSparse(rank=1.0, density=1.0, every=1), normal(4, 5))
    fed.rule.prepare(fed.store)
    w = normal(4, 5)
    for t in range(5):
        g = normal(4, 5, seed=t)
        w = w - 0.1 * g
        torch.testing.assert_close(fed.step(g, 0.1), w, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="rank is a share"):
        LowRankSparse(rank=2.0)
    with pytest.raises(ValueError, match="every counts moves"):
        LowRankSparse(every=0)
