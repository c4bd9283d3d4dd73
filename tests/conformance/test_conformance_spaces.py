"""Spaces: lifts and retractions stay inside, agree with the metric to first order, commute with symmetries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_problems import CASES, SPACES

from zograd import AskTell, methods
from zograd.estimators import Central
from zograd.laws import Rademacher
from zograd.rules import SGD, Adam, Momentum
from zograd.run import Method, Run
from zograd.spaces import Diagonal, Euclidean, PositiveOrthant
from zograd.stores import Store

by_space = pytest.mark.parametrize("space", SPACES, ids=lambda s: type(s).__name__)
METRIC = {  # |v|^2 at x of a tangent vector v
    "Euclidean": lambda v, x: float((v**2).sum()),
    "PositiveOrthant": lambda v, x: float(((v / x) ** 2).sum()),
    "Diagonal": lambda v, x: float((SLOTS["log_curvature"].exp() * v**2).sum()),
}
OUTSIDE = {"Euclidean": [], "PositiveOrthant": [0.0, -1.0, float("nan")], "Diagonal": []}
SLOTS = {"log_curvature": torch.linspace(-3.0, 5.0, 50, dtype=torch.float64)}


def points(seed: int, d: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(d, generator=g, dtype=torch.float64) + 0.01, torch.randn(d, generator=g, dtype=torch.float64)


@by_space
@pytest.mark.parametrize("size", [1e-6, 1.0, 30.0])
def test_moves_stay_in_the_space(space, size: float) -> None:
    """explain(Retr_x(v)) is None for tangent vectors of any length."""
    for seed in range(20):
        x, z = points(seed)
        assert space.explain(x) is None
        moved = space.move_(x.clone(), space.lift_(size * z, x, SLOTS))
        assert space.explain(moved) is None


@by_space
def test_moves_and_lifts_happen_in_place(space) -> None:
    x, z = points(0)
    assert space.lift_(z, x, SLOTS) is z
    assert space.move_(x, z) is x


@by_space
def test_nothing_moves_by_the_zero_vector(space) -> None:
    x, _ = points(1)
    before = x.clone()
    space.move_(x, space.lift_(torch.zeros_like(x), x, SLOTS))
    assert torch.equal(x, before)


@by_space
def test_lift_is_linear_and_isometric(space) -> None:
    """<lift z, lift z>_x = |z|^2: white noise in the frame is white noise in the metric."""
    x, z = points(2)
    _, w = points(3)
    lifted = space.lift_(z.clone(), x, SLOTS)
    torch.testing.assert_close(space.lift_(2 * z + w, x, SLOTS), 2 * lifted + space.lift_(w.clone(), x, SLOTS))
    assert METRIC[type(space).__name__](lifted, x) == pytest.approx(float((z**2).sum()))


@by_space
def test_retraction_agrees_with_the_line_to_first_order(space) -> None:
    """|Retr_x(t v) - x - t v| = O(t^2): slope at least 2 in log-log (or no error at all)."""
    x, z = points(4)
    v = space.lift_(z.clone(), x, SLOTS)
    t = np.array([1e-1, 1e-2, 1e-3])
    gaps = np.array([float((space.move_(x.clone(), s * v) - x - s * v).norm()) for s in t])
    assert np.all(gaps < 1e-14) or np.polyfit(np.log(t), np.log(gaps), 1)[0] > 1.95


@by_space
def test_what_lies_outside_is_named(space) -> None:
    for bad in OUTSIDE[type(space).__name__]:
        x = torch.ones(5, dtype=torch.float64)
        x[3] = bad
        why = space.explain(x)
        assert why is not None
        assert "element 3" in why
        with pytest.raises(ValueError, match="element 3"):
            Store({"w": x}, space=space)


@by_space
def test_a_run_never_leaves_the_space(space) -> None:
    """Neither the points that are asked nor the iterates, at a radius and a step of order one."""
    loop = AskTell(np.full(12, 0.5), Method(Central(2), Rademacher(), SGD(), space=space, mu=0.5, lr=0.2), seed=3)
    for _ in range(50):
        asked = loop.ask()
        for x in (*asked, loop.x):
            assert space.explain(torch.from_numpy(x)) is None
        loop.tell([float(np.sum(np.log(x) ** 2)) if space == PositiveOrthant() else float(np.sum(x**2)) for x in asked])


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
    with pytest.raises(ValueError, match="store stands in Euclidean, the method in PositiveOrthant"):
        Run(Store({"x": torch.ones(3)}), Method(Central(), Rademacher(), SGD(), space=PositiveOrthant()))


def test_weight_decay_has_no_place_where_zero_has_none() -> None:
    with pytest.raises(ValueError, match="use weight_decay=0"):
        Method(Central(), Rademacher(), SGD(), space=PositiveOrthant(), weight_decay=0.1)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_the_menu_says_where_it_stands(case) -> None:
    """In flat space, unless the entry has a metric of its own."""
    space = case.method().space
    assert isinstance(space, Diagonal if case.name.startswith("hizoo") else Euclidean)
    assert methods.describe(case.name)["space"] == type(space).__name__
