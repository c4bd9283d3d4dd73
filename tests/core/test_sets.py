"""Laws of the sets: the linear minimiser is one, projections are nearest points, Frank-Wolfe never leaves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zograd import AskTell, methods
from zograd.core.query import Estimate
from zograd.core.run import Method, Run
from zograd.core.vector import Slot, Vector
from zograd.estimators import Central
from zograd.laws import Gaussian, Orthogonal
from zograd.oracles import sequential
from zograd.rules import FrankWolfe, Proximal
from zograd.sets import Box, L1Ball, L2Ball, LInfBall, NonNegative, NuclearBall, Place, Simplex
from zograd.sets.spectral import top_singular_pair
from zograd.stores import Leaf, Rate, Store

SETS = [L1Ball(1.5), L2Ball(1.5), LInfBall(0.4), Simplex(1.5), NuclearBall(1.5)]
by_set = pytest.mark.parametrize("C", SETS, ids=lambda c: type(c).__name__)
SHAPES = ((4, 3), (5,), (2, 6))


def random(seed: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=g, dtype=torch.float64) for s in SHAPES]


def flat(leaves: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([x.reshape(-1) for x in leaves])


def member(C, seed: int) -> list[torch.Tensor]:
    """A random point of the boundary."""
    x = random(seed)
    if isinstance(C, Simplex):
        x = [v.exp() for v in x]
        return [C.radius * v / flat(x).sum() for v in x]
    size = {
        L1Ball: lambda: flat(x).abs().sum(),
        L2Ball: lambda: flat(x).norm(),
        LInfBall: lambda: flat(x).abs().max(),
        NuclearBall: lambda: sum(torch.linalg.matrix_norm(v.view(len(v), -1), "nuc") for v in x),
    }[type(C)]()
    return [C.radius * v / size for v in x]


def minimiser(C, g: list[torch.Tensor], chunk: int) -> tuple[list[torch.Tensor], float]:
    """argmin <g, s> by the two passes, in blocks of `chunk` (whole leaves for sets of matrices)."""
    found, start, places = None, 0, []
    for leaf in g:
        shape = (leaf.shape[0], leaf[0].numel())
        step = leaf.numel() if C.whole_leaf else chunk
        for a in range(0, leaf.numel(), step):
            block = leaf.reshape(-1)[a : a + step]
            places.append((block, Place(start, shape)))
            found = C.scan(block, places[-1][1], found)
            start += len(block)
    s = torch.cat([C.vertex_(torch.full_like(b, 7.0), b, at, found) for b, at in places])
    return [part.view(x.shape) for part, x in zip(s.split([x.numel() for x in g]), g, strict=True)], C.lowest(found)


@by_set
@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_the_linear_minimiser_is_one(C, chunk: int) -> None:
    """s lies in the set, <g, s> is what `lowest` says, and no point of the set is below."""
    for seed in range(10):
        g = random(seed)
        s, lowest = minimiser(C, g, chunk)
        assert C.explain(*s) is None
        assert float(flat(g) @ flat(s)) == pytest.approx(lowest, rel=1e-12)
        for other in range(100, 160):
            assert float(flat(g) @ flat(member(C, other))) >= lowest - 1e-12


@by_set
def test_a_zero_gradient_has_a_minimiser_too(C) -> None:
    s, lowest = minimiser(C, [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES], 4)
    assert C.explain(*s) is None
    assert lowest == 0.0


@by_set
def test_what_lies_outside_is_explained(C) -> None:
    inside = member(C, 3)
    assert C.explain(*inside) is None
    why = C.explain(*[1.01 * x for x in inside])
    assert why is not None
    assert f"{1.01 * C.radius:g}" in why
    with pytest.raises(ValueError, match="radius > 0, got -1"):
        type(C)(-1.0)


def test_the_simplex_needs_positive_elements() -> None:
    why = Simplex(1.0).explain(torch.tensor([1.5, -0.5]))
    assert why == "its least element is -0.5, but the simplex needs every element >= 0"


@pytest.mark.parametrize("shape", [(150, 160), (300, 140), (129, 500)])
def test_power_iteration_finds_the_top_pair_of_large_matrices(shape: tuple[int, int]) -> None:
    g = torch.Generator().manual_seed(0)
    m = torch.randn(shape, generator=g, dtype=torch.float64)
    m += 40 * torch.outer(torch.ones(shape[0]), torch.arange(shape[1]) % 3 - 1.0) / 10
    sigma, u, v = top_singular_pair(m)
    U, S, Vt = torch.linalg.svd(m, full_matrices=False)
    assert sigma == pytest.approx(float(S[0]), rel=1e-9)
    assert abs(float(u @ U[:, 0])) == pytest.approx(1.0, abs=1e-6)
    assert abs(float(v @ Vt[0])) == pytest.approx(1.0, abs=1e-6)
    assert float(u @ m @ v) == pytest.approx(sigma, rel=1e-6)


# ---- Frank-Wolfe -----------------------------------------------------------------------------------------------------


def quadratic(target: np.ndarray):
    w = np.linspace(1.0, 3.0, target.size)
    return lambda x: float(np.sum(w * (x.reshape(-1) - target) ** 2))


@by_set
def test_frank_wolfe_is_feasible_at_every_iterate(C) -> None:
    """Up to rounding, and the loss falls although the minimum lies outside."""
    x0 = np.full((6, 4), C.radius / 24) if isinstance(C, Simplex) else np.zeros((6, 4))
    f = quadratic(np.linspace(-1, 2, 24))
    loop = AskTell(x0, methods.frank_wolfe(C, n=4), seed=1)
    for _ in range(150):
        loop.tell([f(x) for x in loop.ask()])
        assert C.explain(torch.from_numpy(loop.x)) is None
    assert f(loop.x) < f(x0) - 0.1


@by_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_frank_wolfe_is_feasible_in_few_bits(C, dtype: torch.dtype) -> None:
    """Within the spacing of the dtype, over several leaves."""
    x = [v.to(dtype) for v in member(C, 8)]
    store = Store({f"x{i}": v for i, v in enumerate(x)}, rounding="nearest")
    rule, state = FrankWolfe(C), {}
    store.require({**rule.slots, "g": 0.0})
    for t in range(30):
        for leaf, g in zip(store.leaves, random(t), strict=True):
            leaf.slots["g"].copy_(g.reshape(-1))
        estimate = Estimate(Vector(((Slot("g"), 1.0),)), 0.0, [], None)
        rule.apply(store.iterate([Rate(1.0)], t), estimate, state)
        slack = 1e-6 if dtype == torch.float32 else 2.0**-6
        assert type(C)(C.radius * (1 + slack)).explain(*x) is None or isinstance(C, Simplex)
    if isinstance(C, Simplex):
        assert abs(float(flat(x).double().sum()) - C.radius) < C.radius * slack
        assert float(flat(x).min()) >= 0.0


@by_set
@pytest.mark.parametrize("chunk", [3, 1 << 18])
def test_exact_gradients_give_classical_frank_wolfe(C, chunk: int, monkeypatch) -> None:
    """fade = 0: the gap is at least f(x) - min f, and falls (Jaggi 2013: min gap <= 27 L D^2 / (4 (t + 2)))."""
    monkeypatch.setattr(Leaf, "block", chunk)
    target, x = random(5), member(C, 2)
    store = Store({f"x{i}": v for i, v in enumerate(x)})
    rule, state, path = FrankWolfe(C, fade=0.0), {}, []
    store.require({**rule.slots, "g": 0.0})
    for t in range(300):
        for leaf, here, there in zip(store.leaves, x, target, strict=True):
            leaf.slots["g"].copy_((2 * (here - there)).reshape(-1))
        f = float((flat(x) - flat(target)).square().sum())
        before = [v.clone() for v in x]
        rule.apply(store.iterate([Rate(1.0)], t), Estimate(Vector(((Slot("g"), 1.0),)), 0.0, [], None), state)
        s, lowest = minimiser(C, [2 * (a - b) for a, b in zip(before, target, strict=True)], 10_000)
        torch.testing.assert_close(
            flat(x), flat(before) + 2 / (t + 2) * (flat(s) - flat(before)), rtol=1e-12, atol=1e-13
        )
        assert state["gap"] == pytest.approx(2 * float((flat(before) - flat(target)) @ flat(before)) - lowest, rel=1e-9)
        path.append((f, state["gap"]))
    f, gap = np.array(path).T
    assert np.all(gap >= f - f.min() - 1e-9)
    diameter = 2 * C.radius * (np.sqrt(29) if isinstance(C, LInfBall) else 1)
    assert gap.min() <= 27 * 2 * diameter**2 / (4 * 302)


def test_the_gap_is_shown_and_falls_on_sparse_logistic_regression() -> None:
    """l1 ball, 20 features of which 3 count: every iterate feasible, the gap of the last third below the first."""
    rng = np.random.default_rng(0)
    A = rng.normal(size=(200, 20))
    y = np.sign(A[:, :3] @ [2.0, -1.5, 1.0] + 0.1 * rng.normal(size=200))
    ball = L1Ball(3.0)
    loop = AskTell(np.zeros(20), methods.frank_wolfe(ball, n=8), seed=0)
    gaps = []
    for _ in range(240):
        record = loop.tell([float(np.mean(np.log1p(np.exp(-y * (A @ x))))) for x in loop.ask()])
        gaps.append(dict(record.meters)["gap"])
        assert ball.explain(torch.from_numpy(loop.x)) is None
    assert np.mean(gaps[160:]) < 0.5 * np.mean(gaps[:80])
    assert set(np.argsort(-np.abs(loop.x))[:3]) == {0, 1, 2}


def test_variance_reduction_converges_where_the_bare_estimate_does_not() -> None:
    """A finite sum whose terms nearly cancel, without averaging: the vertex of one direction stays random, that of the
    reduced estimate becomes the right one. 6,000 evaluations of terms each."""
    d, N, center = 8, 10, np.array([0.0, 2.0, 0, 0, -2.0, 0, 0, 0])
    tilt = np.random.default_rng(1).normal(size=(N, d)) * 20
    tilt -= tilt.mean(0)
    ball = L1Ball(3.0)
    lowest = 2 * 0.5**2  # at (0, 1.5, 0, 0, -1.5, 0, 0, 0)

    def above_the_minimum(method) -> float:
        x = torch.zeros(d, dtype=torch.float64)

        def loss(rows=range(N)) -> float:
            here = x.sub(0.0).numpy()  # through torch, so that the probe is seen
            return float(np.sum((here - center) ** 2) + tilt[list(rows)].mean(0) @ here)

        run = Run(Store({"x": x}), method, 0, terms=N)
        while run.evaluations < 6000:
            run.step(sequential(loss))
        return float(np.sum((x.numpy() - center) ** 2)) - lowest

    bare = Method(Central(1), Gaussian(), FrankWolfe(ball, fade=0.0), lr=1.0)
    assert -1e-6 <= above_the_minimum(methods.frank_wolfe_vr(ball, batch=3, p=0.5)) < 0.5
    assert above_the_minimum(bare) > 4.0


@pytest.mark.parametrize("make", [lambda: FrankWolfe(L1Ball(1.0), rho=0.0), lambda: FrankWolfe(L1Ball(1.0), fade=-1.0)])
def test_averaging_outside_of_its_range_is_refused(make) -> None:
    with pytest.raises(ValueError, match="must"):
        make()


def test_l2_projection_is_the_nearest_point() -> None:
    ball, y = L2Ball(1.5), random(3)
    found = None
    for v in y:
        found = ball.measure(v.reshape(-1), found)
    z = torch.cat([ball.project_block_(v.reshape(-1).clone(), found) for v in y])
    torch.testing.assert_close(z, 1.5 * flat(y) / flat(y).norm())
    small = flat(y) / 100
    assert torch.equal(ball.project_block_(small.clone(), ball.measure(small, None)), small)


# ---- one object, three maps ------------------------------------------------------------------------------------------

BOUNDED = [*SETS, Box(-0.3, 0.8)]
by_bounded = pytest.mark.parametrize("C", BOUNDED, ids=lambda c: type(c).__name__)


def tensor(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape or (4, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@by_bounded
@pytest.mark.parametrize("shape", [(4, 3), (7,), (2, 3, 2), ()], ids=str)
def test_the_projection_is_the_nearest_point(C, shape: tuple[int, ...]) -> None:
    """P y lies in the set, and <y - P y, s - P y> <= 0 for the s of the set where that is largest: the certificate."""
    for seed in range(15):
        y = 2.0 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        z = y.clone()
        assert C.project_(z) is z
        assert C.explain(z) is None
        normal = y - z
        s = C.lmo_(-normal)
        assert float((normal * (s - z)).sum()) <= 1e-10
        again = C.project_(z.clone())
        torch.testing.assert_close(again, z, rtol=1e-12, atol=1e-12)
        for t in (0.1, 7.0):
            assert torch.equal(C.prox_(y.clone(), t), z)


@by_bounded
def test_projections_are_firmly_nonexpansive(C) -> None:
    for seed in range(20):
        a, b = tensor(seed), 3 * tensor(seed + 50)
        moved = C.project_(a.clone()) - C.project_(b.clone())
        assert float(moved.square().sum()) <= float((moved * (a - b)).sum()) + 1e-12


@by_bounded
def test_the_linear_minimiser_of_one_tensor_is_that_of_the_passes(C) -> None:
    g = tensor(3)
    s, lowest = minimiser(C, [g], 5)
    assert torch.equal(C.lmo_(g.clone()), s[0])
    assert float((g * s[0]).sum()) == pytest.approx(lowest)
    for seed in range(30):
        assert float((g * C.project_(tensor(100 + seed))).sum()) >= lowest - 1e-12


@pytest.mark.parametrize(
    ("C", "y", "z"),
    [
        (L1Ball(1.0), [2.0, 0.5, -1.5], [0.75, 0.0, -0.25]),
        (L1Ball(9.0), [2.0, 0.5, -1.5], [2.0, 0.5, -1.5]),
        (Simplex(1.0), [0.2, -3.0, 0.4], [0.4, 0.0, 0.6]),
        (L2Ball(1.0), [3.0, 4.0, 0.0], [0.6, 0.8, 0.0]),
        (LInfBall(1.0), [3.0, -4.0, 0.5], [1.0, -1.0, 0.5]),
        (Box(0.0, float("inf")), [3.0, -4.0, 0.5], [3.0, 0.0, 0.5]),
        (NonNegative(), [3.0, -4.0, 0.5], [3.0, 0.0, 0.5]),
        (NuclearBall(1.0), [[3.0, 0.0], [0.0, 2.5]], [[0.75, 0.0], [0.0, 0.25]]),
    ],
    ids=lambda v: type(v).__name__,
)
def test_projections_by_hand(C, y, z) -> None:
    y, z = (torch.tensor(v, dtype=torch.float64) for v in (y, z))
    torch.testing.assert_close(C.project_(y.clone()), z)
    strided = torch.stack([y, torch.zeros_like(y)], -1)[..., 0]
    torch.testing.assert_close(C.project_(strided), z)


@pytest.mark.parametrize(
    "C", [L1Ball(0.5), Simplex(0.5), NuclearBall(0.5), L2Ball(0.5)], ids=lambda c: type(c).__name__
)
@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
def test_the_streamed_projection_is_that_of_all_leaves_end_to_end(C, chunk: int, monkeypatch) -> None:
    """One step of `Proximal` over several leaves, cut in any way."""
    monkeypatch.setattr(Leaf, "block", chunk)
    x = random(11)
    y = [0.9 * v for v in x]  # x - lr g with g = x
    store = Store({f"x{i}": v for i, v in enumerate(x)})
    Proximal(C).apply(store.iterate([Rate(0.1)], 0), Estimate(Vector(((Slot("x"), 1.0),)), 0.0, [], None), {})
    if isinstance(C, NuclearBall):
        assert C.explain(*x) is None
        values = torch.cat([torch.linalg.svdvals(v.view(len(v), -1)) for v in y])
        theta = float((values - Simplex(0.5).project_(values.clone()))[values.argmax()])
        for before, after in zip(y, x, strict=True):
            u, s, vt = torch.linalg.svd(before.view(len(before), -1), full_matrices=False)
            torch.testing.assert_close(after.view(len(after), -1), u @ torch.diag((s - theta).clamp(min=0)) @ vt)
    else:
        torch.testing.assert_close(flat(x), C.project_(flat(y)))


def test_proximal_descent_on_the_l1_ball_finds_the_constrained_minimum() -> None:
    """min |x - c|^2 over |x|_1 <= 1 is the projection of c; every iterate is feasible. Orthogonal: exact gradients."""
    c = np.array([1.0, -0.8, 0.3, 0.0, 0.1])
    ball = L1Ball(1.0)
    loop = AskTell(np.zeros(5), Method(Central(5), Orthogonal(), Proximal(ball), mu=1e-4, lr=0.05), seed=0)
    for _ in range(200):
        loop.tell([float(np.sum((x - c) ** 2)) for x in loop.ask()])
        assert ball.explain(torch.from_numpy(loop.x)) is None
    np.testing.assert_allclose(loop.x, ball.project_(torch.from_numpy(c.copy())).numpy(), atol=1e-3)


def test_boxes_without_an_end_have_no_linear_minimiser() -> None:
    with pytest.raises(ValueError, match=r"no point of Box\(0, inf\)"):
        Box(0.0, float("inf")).lmo_(torch.ones(2))
    with pytest.raises(ValueError, match=r"bound it, as Box\(0.0, high\)"):
        NonNegative().lmo_(torch.ones(2))
    with pytest.raises(ValueError, match="low <= high"):
        Box(1.0, 0.0)


def test_boxes_say_what_lies_outside() -> None:
    assert Box(0.0, 1.0).explain(torch.tensor([0.0, 1.0]), torch.tensor([0.5])) is None
    assert "reach from 0 to 1.5" in Box(0.0, 1.0).explain(torch.tensor([0.0, 1.5]))
    assert NonNegative().explain(torch.tensor([0.0, 2.0])) is None
    assert "least element is -1" in NonNegative().explain(torch.tensor([0.0, -1.0]))


def test_frank_wolfe_stays_in_a_box() -> None:
    box = Box(-1.0, 0.5)
    loop = AskTell(np.zeros(4), methods.frank_wolfe(box, n=4), seed=0)
    for _ in range(150):
        loop.tell([float(np.sum((x - np.array([2.0, -3.0, 0.1, 0.4])) ** 2)) for x in loop.ask()])
        assert box.explain(torch.from_numpy(loop.x)) is None
    np.testing.assert_allclose(loop.x, [0.5, -1.0, 0.1, 0.4], atol=0.1)


@pytest.mark.parametrize("cut", [1, 2, 3, 5], ids="in blocks of {}".format)
@pytest.mark.parametrize(
    ("C", "g", "expected"),
    [
        (L1Ball(1.5), [1.0, -2.0, 2.0, -2.0, 2.0], [0.0, 1.5, 0.0, 0.0, 0.0]),
        (L1Ball(1.5), [1.0, 2.0, -2.0, 2.0, -2.0], [0.0, -1.5, 0.0, 0.0, 0.0]),
        (Simplex(1.5), [1.0, -2.0, 0.0, -2.0, -2.0], [0.0, 1.5, 0.0, 0.0, 0.0]),
        (Box(-1.0, 3.0), [0.0, 1.0, -1.0, -0.0, 2.0], [3.0, -1.0, 3.0, 3.0, -1.0]),
    ],
    ids=["l1, a negative one first", "l1, a positive one first", "simplex", "box"],
)
def test_of_equal_minimisers_the_documented_one_is_taken_however_the_leaf_is_cut(C, g, expected, cut: int) -> None:
    """The first of equal elements for balls and simplices, the upper bound of a box where g is 0: a replay needs it."""
    assert minimiser(C, [torch.tensor(g, dtype=torch.float64).view(5, 1)], cut)[0][0].flatten().tolist() == expected
