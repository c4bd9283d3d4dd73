"""Laws of proximal maps: they minimise what they say, exact zeros are exact, and proximal descent finds the minimum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize as scipy_minimize

from zograd import methods
from zograd.core.query import Estimate
from zograd.core.run import Method, Run
from zograd.core.sums import Sum, row_sums_
from zograd.core.vector import Slot, Vector
from zograd.estimators import Central
from zograd.laws import Rademacher
from zograd.oracles import sequential
from zograd.rules import Proximal
from zograd.sets import L1, Box, GroupL2, L2Ball, LInfBall, Nuclear
from zograd.spaces import PositiveOrthant
from zograd.stores import Leaf, Rate, Store

VALUES = {
    L1: lambda r, z: r.weight * z.abs().sum(),
    GroupL2: lambda r, z: r.weight * z.norm(dim=1).sum(),
    Nuclear: lambda r, z: r.weight * torch.linalg.matrix_norm(z, "nuc"),
    Box: lambda r, z: 0.0,
    LInfBall: lambda r, z: 0.0,
}
PROXES = [L1(0.7), GroupL2(1.1), Nuclear(0.9), Box(-0.3, 0.8), LInfBall(0.5)]
by_prox = pytest.mark.parametrize("r", PROXES, ids=lambda r: type(r).__name__)


def matrix(seed: int, rows: int = 4, columns: int = 3) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prox(r, y: torch.Tensor, t: float) -> torch.Tensor:
    z = y.clone()
    return r.prox_(z.view(-1), t).view(y.shape) if r.unit == "element" else r.prox_(z, t)


def inside(r, z: torch.Tensor) -> torch.Tensor:
    """z for penalties; the nearest point of the set for sets."""
    return z.clamp(r.low, r.high) if isinstance(r, Box) else z.clamp(-0.5, 0.5) if isinstance(r, LInfBall) else z


@by_prox
@pytest.mark.parametrize("t", [0.05, 0.6, 5.0])
def test_the_map_minimises_its_definition(r, t: float) -> None:
    """No point that a search or chance finds has a smaller |z - y|^2 / 2 + t r(z)."""

    def objective(z: torch.Tensor) -> float:
        return float((z - y).square().sum() / 2 + t * VALUES[type(r)](r, z))

    for seed in range(3):
        y = matrix(seed)
        z = prox(r, y, t)
        best = objective(z)
        assert torch.equal(inside(r, z), z)
        for k in range(60):
            other = inside(r, z + 10.0 ** -(k % 6) * matrix(1000 + k))
            assert objective(other) >= best - 1e-12
        found = scipy_minimize(
            lambda v: objective(inside(r, torch.from_numpy(v).view(4, 3))),
            y.numpy().ravel(),
            method="Powell",
            options={"xtol": 1e-6, "ftol": 1e-9, "maxiter": 60},
        )
        assert found.fun >= best - 1e-9


@by_prox
def test_the_map_is_firmly_nonexpansive(r) -> None:
    """|P a - P b|^2 <= <P a - P b, a - b>, the mark of every proximal map of a convex function."""
    for seed in range(20):
        a, b = matrix(seed), matrix(seed + 50)
        moved = prox(r, a, 0.5) - prox(r, b, 0.5)
        assert float(moved.square().sum()) <= float((moved * (a - b)).sum()) + 1e-12


@pytest.mark.parametrize("r", PROXES[:3], ids=lambda r: type(r).__name__)
def test_moreau(r) -> None:
    """y = prox_{t r}(y) + projection of y onto t times the unit ball of the dual norm."""
    y, t = matrix(4), 0.6
    w = t * r.weight
    if isinstance(r, L1):
        dual = y.clamp(-w, w)
    elif isinstance(r, GroupL2):
        dual = y * (w / y.norm(dim=1, keepdim=True)).clamp(max=1.0)
    else:
        u, s, vt = torch.linalg.svd(y, full_matrices=False)
        dual = u @ torch.diag(s.clamp(max=w)) @ vt
    torch.testing.assert_close(prox(r, y, t) + dual, y, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("r", "y"), [(GroupL2(1.0), torch.zeros(2, 3)), (L1(1.0), torch.zeros(4)), (Nuclear(1.0), torch.zeros(2, 3))]
)
def test_zero_stays_zero(r, y: torch.Tensor) -> None:
    assert torch.equal(prox(r, y, 0.5), y)


# ---- the rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rounding", ["stochastic", "split"])
def test_small_weights_become_exact_zeros(dtype: torch.dtype, rounding: str) -> None:
    x = (0.01 * matrix(3, 40, 30)).to(dtype)
    x[0, 0] = 5.0
    run = Run(Store({"x": x}, rounding=rounding), methods.zo_prox(L1(1.0), lr=1.0))
    run.ask()
    run.tell([1.0, 1.0])
    assert int((x != 0).sum()) == 1
    assert float(x[0, 0]) == pytest.approx(4.0, rel=2.0**-7)
    group = (0.01 * matrix(3, 40, 30)).to(dtype)
    group[7] += 1.0
    run = Run(Store({"x": group}, rounding=rounding), methods.zo_prox(GroupL2(1.0), lr=1.0))
    run.ask()
    run.tell([1.0, 1.0])
    assert (group != 0).any(1).nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize("chunk", [4, 1 << 18])
def test_proximal_descent_solves_the_lasso(chunk: int, monkeypatch) -> None:
    """With exact gradients, over two leaves: the optimality conditions of |A x - b|^2 / 2 + w |x|_1 to 1e-8."""
    monkeypatch.setattr(Leaf, "block", chunk)
    rng = np.random.default_rng(0)
    A, b, w = rng.normal(size=(30, 12)), rng.normal(size=30), 6.0
    lr = 1 / np.linalg.norm(A, 2) ** 2
    x = [torch.zeros(7, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)]
    store = Store({"a": x[0], "b": x[1]})
    store.require({"g": 0.0})
    for _ in range(800):
        g = A.T @ (A @ torch.cat(x).numpy() - b)
        for leaf, part in zip(store.leaves, np.split(g, [7]), strict=True):
            leaf.slots["g"].copy_(torch.from_numpy(part))
        estimate = Estimate(Vector(((Slot("g"), 1.0),)), 0.0, [], None)
        Proximal(L1(w)).apply(store.iterate([Rate(lr)], 0), estimate, {})
    z = torch.cat(x).numpy()
    g = A.T @ (A @ z - b)
    assert 2 <= np.count_nonzero(z) <= 10
    np.testing.assert_allclose(g[z != 0], -w * np.sign(z[z != 0]), atol=1e-8)
    assert np.all(np.abs(g[z == 0]) <= w)


def test_zeroth_order_proximal_descent_finds_the_sparse_solution() -> None:
    """A separable lasso, whose solution is known: soft thresholding of the target, zeros exact. The gradient does not
    vanish at it, so plain estimates keep their noise; with the tracker of ZPDVR the noise goes away."""
    target = torch.tensor([2.0, -1.5, 0.1, -0.05, 0.0, 0.2], dtype=torch.float64)
    solution = torch.tensor([1.5, -1.0, 0, 0, 0, 0], dtype=torch.float64)
    x = torch.ones(6, dtype=torch.float64)
    run = Run(Store({"x": x}), methods.zpdvr(lr=0.03, p=0.5, rule=Proximal(L1(0.5))), seed=1)
    for _ in range(1200):
        run.step(sequential(lambda: (x - target).square().sum() / 2))
    torch.testing.assert_close(x, solution, atol=1e-6, rtol=0)
    assert x[2:].tolist() == [0.0] * 4

    run = Run(Store({"x": x}), methods.zo_prox(L1(0.5), lr=0.01), seed=1)
    for _ in range(300):
        run.step(sequential(lambda: (x - target).square().sum() / 2))
    assert 1e-4 < float((x - solution).norm()) < 0.1


def test_weight_decay_comes_before_the_map() -> None:
    x = torch.tensor([4.0], dtype=torch.float64)
    store = Store({"x": x})
    estimate = Estimate(Vector(), 0.0, [], None)
    Proximal(Box(0.0, 3.0)).apply(store.iterate([Rate(0.1, 5.0)], 0), estimate, {})
    assert x.item() == 2.0


@pytest.mark.parametrize(
    ("prox", "end"),
    [
        (Box(0.0, 1.0), 1.0),  # of 1.8; decay after the map: 0.5
        (Box(0.0, 9.0), 1.8),  # decay after the gradient: 1.9
        (L2Ball(1.0), 0.5**0.5),  # of 1.8, by projection; decay after it: 0.35
        (L1(1.0), 1.7),  # 1.8 - lr; decay after the map: 1.85, after the gradient: 1.8
    ],
    ids=["clipped", "inside", "projected", "penalty"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weight_decay_comes_before_the_gradient_and_the_map(prox: Any, end: float, dtype: torch.dtype) -> None:
    """x <- prox((1 - lr wd) x - lr g) with x = 4, g = 2, lr = 0.1, wd = 5."""
    x = torch.tensor([4.0, 4.0], dtype=dtype)
    store = Store({"x": x})
    store.require({"g": 2.0})
    estimate = Estimate(Vector(((Slot("g"), 1.0),)), 0.0, [], None)
    Proximal(prox).apply(store.iterate([Rate(0.1, 5.0)], 0), estimate, {})
    assert x.tolist() == pytest.approx([end, end], rel=1e-6)


def test_straight_lines_need_flat_space() -> None:
    with pytest.raises(TypeError, match="Proximal moves along straight lines, which PositiveOrthant does not have"):
        Method(Central(), Rademacher(), Proximal(L1(1.0)), PositiveOrthant())
    with pytest.raises(ValueError, match="L1 needs weight > 0, got 0"):
        L1(0.0)
    with pytest.raises(ValueError, match="needs low <= high, got low=1, high=0"):
        Box(1, 0)


# ---- sums ------------------------------------------------------------------------------------------------------------


def test_sums_do_not_depend_on_the_cut() -> None:
    """Bit-equal for every cut, and accurate."""
    a, b = matrix(0, 1, 20_001)[0].float(), matrix(1, 1, 20_001)[0].float()
    found = set()
    for step in (1_000_000, 4096, 4095, 333, 20_000):
        total = Sum()
        for start in range(0, len(a), step):
            total.add(a[start : start + step], b[start : start + step])
        found.add(total.value)
    assert len(found) == 1
    assert found.pop() == pytest.approx(float(a.double() @ b.double()), rel=1e-13)


@pytest.mark.parametrize("columns", [1, 2, 3, 7, 64, 1000])
def test_row_sums_depend_on_the_row_alone(columns: int) -> None:
    x = matrix(2, 9, columns).float()
    whole = row_sums_(x.clone())
    torch.testing.assert_close(whole, x.double().sum(1).float(), rtol=1e-6, atol=1e-5)
    assert torch.equal(torch.cat([row_sums_(row.clone()[None]) for row in x]), whole)
