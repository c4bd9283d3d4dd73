"""Spaces: lifts and retractions stay inside, agree with the metric to first order, commute with symmetries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from places import dimension, inside, metric
from small_problems import CASES, SPACES

from zograd import AskTell, check_space, methods
from zograd.core.run import Method, Run
from zograd.estimators import Central
from zograd.laws import Gaussian, Rademacher
from zograd.rules import SGD, Adam, Momentum
from zograd.spaces import Box, Diagonal, Domain, Euclidean, Oblique, Polytope, PositiveOrthant, Simplex, Sphere, Stiefel
from zograd.stores import Leaf, Store

by_space = pytest.mark.parametrize("space", SPACES, ids=lambda s: f"{type(s).__name__}{getattr(s, 'metric', '')}")


def case(space, seed: int):
    """The space of leaf "w", a point of it as a store shows it to the space, noise like it, and slots."""
    part, leaf = space.of("w"), inside(space, seed)
    x = leaf.flatten() if part.unit == "element" else leaf
    g = torch.Generator().manual_seed(seed + 100)
    slots = {"log_curvature": torch.linspace(-3.0, 5.0, x.numel(), dtype=x.dtype).view(x.shape)}
    return part, x, torch.randn(x.shape, generator=g, dtype=x.dtype), slots


def draw(seed: int, like: torch.Tensor) -> torch.Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=like.dtype)


@by_space
def test_the_laws_of_spaces_hold(space) -> None:
    """Linear, white, first order, inside after 1e5 moves (fewer where leaves are whole), gradients within 2 errors."""
    part, x, _, slots = case(space, 5)
    draws = None if part.unit != "leaf" else 200 if isinstance(part, Domain | Polytope) else 1000
    check_space(part, x, 1, slots={k: slots[k] for k in part.slots}, draws=draws).raise_()


@by_space
def test_a_space_states_what_it_is(space) -> None:
    assert isinstance(space.complete, bool)
    assert isinstance(space.curvature, float | str)
    assert space.flat in (True, False)
    assert space.flat == isinstance(space, Euclidean)
    assert hash(space) == hash(space)


@by_space
@pytest.mark.parametrize("size", [1e-6, 1.0, 30.0])
def test_moves_stay_in_the_space(space, size: float) -> None:
    """explain(Retr_x(v)) is None for tangent vectors of any length."""
    for seed in range(20):
        part, x, z, slots = case(space, seed)
        assert part.explain(x) is None
        moved = part.move_(x.clone(), part.lift_(size * z, x, slots))
        assert part.explain(moved) is None


@by_space
def test_a_space_that_takes_any_vector_stays_in_itself(space) -> None:
    """explain(Retr_x(v)) is None for vectors that are not tangent."""
    assert space.ambient == isinstance(space, Euclidean | Stiefel)
    for seed in range(20):
        part, x, z, _ = case(space, seed)
        if part.ambient:
            assert part.explain(part.move_(x.clone(), 30 * z)) is None


@by_space
def test_moves_and_lifts_happen_in_place(space) -> None:
    part, x, z, slots = case(space, 0)
    before = x.clone()
    assert part.lift_(z, x, slots) is z
    assert torch.equal(x, before)
    assert part.move_(x, z) is x


@by_space
def test_nothing_moves_by_the_zero_vector(space) -> None:
    """To the bit, or to rounding where a move ends with a normalisation."""
    part, x, _, slots = case(space, 1)
    before = x.clone()
    part.move_(x, part.lift_(torch.zeros_like(x), x, slots))
    rounds = isinstance(part, Simplex | Sphere | Oblique | Stiefel) or type(part).__name__ == "Landing"
    torch.testing.assert_close(x, before, rtol=1e-14 if rounds else 0.0, atol=1e-15 if rounds else 0.0)


@by_space
def test_lift_is_linear_and_white_in_the_metric(space) -> None:
    """L^T A L is a projection of rank dim: white noise in the frame is white in the metric A and fills the tangents."""
    part, x, z, slots = case(space, 2)
    w = draw(3, x)
    lifted = part.lift_(z.clone(), x, slots)
    torch.testing.assert_close(part.lift_(2 * z + w, x, slots), 2 * lifted + part.lift_(w.clone(), x, slots))
    frame = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
    L = torch.stack([part.lift_(e.clone(), x, slots).flatten() for e in frame], 1).numpy()
    A = np.diag(slots["log_curvature"].exp().numpy()) if isinstance(part, Diagonal) else metric(space, inside(space, 2))
    gram = L.T @ A @ L
    np.testing.assert_allclose(gram @ gram, gram, atol=1e-10)
    assert np.trace(gram) == pytest.approx(dimension(space, inside(space, 2)))
    assert float(part.inner(x, lifted, lifted, slots)) == pytest.approx(
        z.flatten().numpy() @ gram @ z.flatten().numpy()
    )


@by_space
def test_retraction_agrees_with_the_line_to_first_order(space) -> None:
    """|Retr_x(t v) - x - t v| = O(t^2): slope at least 2 in log-log (or no error at all)."""
    part, x, z, slots = case(space, 4)
    v = part.lift_(z.clone(), x, slots)
    t = np.array([1e-2, 1e-3, 1e-4])
    gaps = np.array([float((part.move_(x.clone(), s * v) - x - s * v).norm()) for s in t])
    assert np.all(gaps < 1e-14) or np.polyfit(np.log(t), np.log(gaps), 1)[0] > 1.95


OUTSIDE = [
    *((PositiveOrthant(), (1.0, 1.0, 1.0, bad), "element 3") for bad in (0.0, -1.0, float("nan"))),
    (Box(), (0.5, 1.0), "element 1 is 1, but the box needs it strictly between 0 and 1"),
    (Box((0.0, 0.0), (1.0, 2.0)), ((0.5, 1.5), (0.5, 2.0)), "element 3 is 2, .* between 0 and 2"),
    (Box((0.0, 0.0), 1.0), (0.5, 0.5, 0.5), "low has 2 bounds, but the last axis has 3 elements"),
    (Simplex(), ((0.5, 0.5), (1.0, 0.0)), "element 3 is 0"),
    (Simplex(), ((0.5, 0.5), (0.5, 0.6)), r"row 1 .* sums to 1\.1"),
    (Sphere(2.0), (2.0, 0.5), "row 0 .* norm 2.06"),
    (Oblique(), ((1.0, 0.5), (0.0, 0.5)), "column 1 has norm 0.70"),
    (Oblique(), (1.0, 0.5), "consists of matrices"),
    (Stiefel(), ((1.0, 0.5), (0.0, 0.5)), "X|torch.linalg.qr"),
    (Stiefel(), ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), "at least as many rows"),
    (Polytope(((1.0, 0.0), (0.0, 1.0)), (1.0, 1.0)), (0.0, 1.5), "constraint 1 is -0.5"),
    (Polytope(((1.0, 0.0), (0.0, 1.0)), (1.0, 1.0)), (0.0, 0.0, 0.0), "3 elements, but A has 2 columns"),
    (Domain(lambda x: x.square().sum() - 1.0), (2.0, 0.0), "should give a vector"),
]


@pytest.mark.parametrize(("space", "values", "why"), OUTSIDE, ids=lambda v: type(v).__name__)
def test_what_lies_outside_is_named(space, values, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Store({"w": torch.tensor(values, dtype=torch.float64)}, space=space)


@by_space
@pytest.mark.parametrize("law", [Rademacher(), Gaussian()], ids=lambda v: type(v).__name__)
def test_a_run_never_leaves_the_space(space, law) -> None:
    """Neither the points that are asked nor the iterates, at a radius and a step of order one."""
    x0, part = inside(space, 7), space.of("w")
    loop = AskTell(x0.numpy(), Method(Central(2), law, SGD(), space=part, mu=0.5, lr=0.2), seed=3)
    for _ in range(50):
        asked = loop.ask()
        for x in (*asked, loop.x):
            assert part.explain(torch.from_numpy(x)) is None
        loop.tell([float(np.sum(np.tanh(x) ** 2 * np.arange(x.size).reshape(x.shape))) for x in asked])


def walk(space, chunk: int, threads: int, monkeypatch, dtype=torch.float32) -> tuple[torch.Tensor, list]:
    monkeypatch.setattr(Leaf, "block", chunk)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = inside(space, 9).to(dtype)
        run = Run(
            Store({"w": x}, space=space), Method(Central(1), Gaussian(), Adam(), space=space, mu=1e-3, lr=1e-2), 5
        )
        records = [run.step(_oracle) for _ in range(4)]
    finally:
        torch.set_num_threads(before)
    return x, records


def _oracle(store, queries, key) -> list[float]:
    losses = []
    for query in queries:
        out = torch.empty_like(store.leaves[0].flat)
        store.point_(out, store.leaves[0], query.at)
        losses.append(float((out.double() * torch.arange(out.numel()).cos()).sum()))
    return losses


@by_space
def test_bits_depend_neither_on_blocks_nor_on_threads_and_replay_is_equal(space, monkeypatch) -> None:
    x, records = walk(space, 1 << 18, 1, monkeypatch)
    for chunk, threads in ((1, 1), (7, 2), (64, 2)):
        other, _ = walk(space, chunk, threads, monkeypatch)
        assert torch.equal(x, other)
    again = inside(space, 9).float()
    assert not torch.equal(again, x)
    method = Method(Central(1), Gaussian(), Adam(), space=space, mu=1e-3, lr=1e-2)
    Run(Store({"w": again}, space=space), method, 5).replay(records)
    assert torch.equal(again, x)


@pytest.mark.parametrize("rule", [SGD(), Momentum(), Adam()], ids=lambda r: type(r).__name__)
def test_positive_orthant_forgets_the_units_of_x(rule) -> None:
    """Scaling x by any positive vector scales the whole trajectory; powers of two scale it exactly."""
    method = Method(Central(2), Rademacher(), rule, space=PositiveOrthant(), mu=2.0**-6, lr=2.0**-5)
    x0 = np.linspace(0.5, 2.0, 8)

    def f(x: np.ndarray) -> float:
        return float(np.sum((x - 1.3) ** 2) + x[0] * x[1])

    def walk(scale: np.ndarray) -> np.ndarray:
        loop, path = AskTell(x0 * scale, method, seed=1), []
        for _ in range(40):
            loop.tell([f(x / scale) for x in loop.ask()])
            path.append(loop.x / scale)
        return np.stack(path)

    plain = walk(np.ones(8))
    assert np.ptp(plain, axis=0).min() > 1e-3
    np.testing.assert_array_equal(walk(2.0 ** np.arange(-4, 4)), plain)
    np.testing.assert_allclose(walk(np.linspace(0.1, 7.0, 8)), plain, rtol=1e-9)


@pytest.mark.parametrize("rule", [SGD(), Momentum(), Adam()], ids=lambda r: type(r).__name__)
def test_a_rule_on_the_positive_orthant_is_the_rule_on_log_x(rule) -> None:
    """The isometry y = log x turns one run into the other."""
    x0 = np.linspace(0.5, 2.0, 8)

    def f(x: np.ndarray) -> float:
        return float(np.sum((x - 1.3) ** 2) + x[0] * x[1])

    settings = {"mu": 1e-2, "lr": 3e-2}
    on_x = AskTell(x0, Method(Central(1), Rademacher(), rule, space=PositiveOrthant(), **settings), seed=4)
    on_y = AskTell(np.log(x0), Method(Central(1), Rademacher(), rule, **settings), seed=4)
    for _ in range(60):
        on_x.tell([f(x) for x in on_x.ask()])
        on_y.tell([f(np.exp(y)) for y in on_y.ask()])
    np.testing.assert_allclose(on_x.x, np.exp(on_y.x), rtol=1e-8)


def test_a_method_and_a_store_of_two_spaces_are_refused() -> None:
    with pytest.raises(ValueError, match="store is in Euclidean, the method in PositiveOrthant"):
        Run(Store({"x": torch.ones(3)}), Method(Central(), Rademacher(), SGD(), space=PositiveOrthant()))


def test_weight_decay_has_no_place_where_zero_has_none() -> None:
    with pytest.raises(ValueError, match="use weight_decay=0"):
        Method(Central(), Rademacher(), SGD(), space=PositiveOrthant(), weight_decay=0.1)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_the_menu_says_where_it_stands(case) -> None:
    """In flat space, unless the entry has a metric of its own."""
    space = case.method().space
    own = {"hizoo": Diagonal, "hizoo_row": Diagonal, "hozo": PositiveOrthant}
    own |= dict.fromkeys(("snes", "sep_cma", "cr_fm_nes"), Diagonal)
    assert isinstance(space, own.get(case.name, Euclidean))
    assert methods.describe(case.name)["space"] == type(space).__name__
