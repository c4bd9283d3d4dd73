"""Spaces, sets and rules, as users who trust nothing would try them: far away, in float32, at a boundary."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import zograd as zo
from zograd import methods, minimize, rules, sets, spaces
from zograd.core.method import Method
from zograd.estimators import Central
from zograd.laws import Memory, NullSpace, Rademacher, Scattered
from zograd.problems.base import half_decades
from zograd.problems.small import rosenbrock

BOX = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1]])


def far(x: Any) -> float:
    return float(np.sum((x - 100) ** 2))


# ---- minimize on a space ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "x0"),
    [
        (spaces.Euclidean(), np.zeros(2)), (spaces.Box(-np.inf, np.inf), np.zeros(2)),
        (spaces.PositiveOrthant(), np.ones(2)), (spaces.PositiveOrthant("conformal"), np.ones(2)),
        (spaces.Box(-1e4, 1e4), np.zeros(2)),
    ],
)  # fmt: skip
def test_a_minimum_beyond_the_first_coordinates_is_found(space: Any, x0: Any) -> None:
    res = minimize(far, x0, space=space)
    assert res.success
    assert res.x == pytest.approx([100, 100], rel=1e-4)


def test_and_on_a_large_sphere_and_simplex() -> None:
    start = 1000 * np.array([math.sin(0.1), math.cos(0.1), 0])
    assert minimize(lambda x: float(x[1]), start, space=spaces.Sphere(1000.0)).fun == pytest.approx(-1000)
    aim = np.array([9000.0, 500, 300, 200])
    res = minimize(lambda x: float(np.sum((x - aim) ** 2)), np.full(4, 2500.0), space=spaces.Simplex(total=1e4))
    assert res.x == pytest.approx(aim, rel=1e-4)


def test_a_search_whose_moves_are_shortened_is_no_success_before_its_end() -> None:
    """A move in the conformal metric is at most rho here: 15,000 evaluations are too few."""
    aim = np.array([9000.0, 500, 300, 200])
    simplex = spaces.Simplex(total=1e4, metric="conformal")
    res = minimize(lambda x: float(np.sum((x - aim) ** 2)), np.full(4, 2500.0), space=simplex, budget=2000)
    assert not res.success
    assert "still" in res.message or "falling" in res.message


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_minimum_on_the_boundary_of_a_box_is_a_success(dtype: Any) -> None:
    res = minimize(lambda x: float(np.sum((x - 5.0) ** 2)), np.zeros(2, dtype), space=spaces.Box(-1, 1))
    assert res.success
    assert res.fun == pytest.approx(32, rel=1e-6)


@pytest.mark.parametrize(
    ("space", "x0", "lowest"),
    [
        (spaces.Polytope(BOX, [1.0] * 4), np.zeros(2), -3.0), (spaces.Box(-1, 1), np.zeros(2), -3.0),
        (spaces.PositiveOrthant(), np.ones(2), 0.0), (spaces.Simplex(), np.full(2, 0.5), 1.0),
    ],
)  # fmt: skip
def test_a_vertex_is_found_from_inside(space: Any, x0: Any, lowest: float) -> None:
    res = minimize(lambda x: float(x[0] + 2 * x[1]), x0, space=space)
    assert res.success
    assert res.fun == pytest.approx(lowest, abs=1e-4)


@pytest.mark.parametrize(
    ("space", "x0"),
    [(spaces.PositiveOrthant("conformal"), np.ones(2)), (spaces.Simplex(metric="conformal"), np.full(3, 1 / 3))],
)
def test_an_end_beside_a_wall_of_a_conformal_metric_is_no_success(space: Any, x0: Any) -> None:
    """All moves become as short as the distance to the wall, far from the minimum elsewhere."""
    res = minimize(lambda x: float(x @ np.arange(1, x.size + 1)), x0, space=space)
    assert res.fun > (0.1 if x0.size == 2 else 1.1)
    assert not res.success
    assert "in the conformal metric a wall shortens all of them" in res.message


def test_without_a_retraction_there_are_no_coordinates() -> None:
    rng = np.random.default_rng(0)
    shift, start = rng.normal(size=(4, 2)), np.linalg.qr(rng.normal(size=(4, 2)))[0]

    def value(x: Any) -> float:
        return float(np.sum((x + shift) ** 2))

    res = minimize(value, start, space=spaces.Landing(), budget=1000)
    assert res.strategy == "zo_sgd"
    assert "the space has no coordinates" in res.reason


def test_a_space_of_rows_gets_rows() -> None:
    class Rows(spaces.Sphere):
        def move_(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            assert x.ndim == 2
            return super().move_(x, v)

    res = minimize(lambda x: float(x[0]), np.array([0.6, 0.8]), space=Rows())
    assert res.fun == pytest.approx(-1)
    assert minimize(lambda x: float(x), 1.0, space=spaces.Simplex()).fun == 1.0


def test_the_orthant_and_the_box_are_not_left_by_long_moves() -> None:
    for dtype in (torch.float32, torch.float64):
        for move in (-800.0, 800.0):
            x = torch.ones(2, dtype=dtype)
            orthant = spaces.PositiveOrthant()
            for _ in range(2):
                orthant.move_(x, orthant.lift_(torch.full_like(x, move), x, {}))
            assert bool(((x > 0) & x.isfinite()).all())
    box, x = spaces.Box(0.0, 1.0), torch.full((2,), 0.5)
    box.move_(x, box.lift_(torch.full_like(x, -110.0), x, {}))
    for _ in range(100):
        box.move_(x, box.lift_(torch.full_like(x, 0.4), x, {}))
    assert bool((x > 1e-30).all())


# ---- starts, rates and decay of rules --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "start"),
    [
        (methods.optimistic_mirror(rules.Entropy()), [-1.0, 2.0]),
        (methods.frank_wolfe(sets.L2Ball(1.0), lr=0.1), [30.0, 40.0]),
    ],
)
def test_no_optimizer_starts_outside_of_the_set_of_its_rule(method: Any, start: list[float]) -> None:
    w = torch.nn.Parameter(torch.tensor(start))
    opt = zo.ZOOptimizer([w], method)
    with pytest.raises(ValueError, match=r"^x is not in"):
        opt.step(lambda: w.square().sum())
    assert w.tolist() == start


def test_frank_wolfe_does_not_leave_its_set_by_the_rate_of_a_group() -> None:
    w = torch.nn.Parameter(torch.zeros(2))
    opt = zo.ZOOptimizer([{"params": [w], "lr": 3.0}], methods.frank_wolfe(sets.L2Ball(1.0)))
    with pytest.raises(TypeError, match=r"lr is in \[0, 1\], got 3"):
        opt.step(lambda: w.sum())
    assert w.tolist() == [0, 0]


def test_optimistic_mirror_descent_refuses_the_decay_that_it_does_not_apply() -> None:
    rule = rules.OptimisticMirror(rules.EuclideanMap(sets.L2Ball(10.0)))
    with pytest.raises(TypeError, match="has no weight decay"):
        Method(Central(1), Rademacher(), rule, lr=0.5, weight_decay=0.9)
    w = torch.nn.Parameter(torch.zeros(2))
    opt = zo.ZOOptimizer([{"params": [w], "weight_decay": 1.0}], Method(Central(1), Rademacher(), rule, lr=0.5))
    with pytest.raises(TypeError, match="has no weight decay"):
        opt.step(lambda: w.sum())


def test_what_is_remembered_is_not_rounded_away() -> None:
    law = NullSpace(Memory({"w": torch.eye(4)[:, :1]}))
    with pytest.raises(TypeError, match="bfloat16 rounds each element"):
        Method(Central(1), law, rules.Momentum(moments="bfloat16"), lr=0.1)
    Method(Central(1), law, rules.Momentum(), lr=0.1)


# ---- sets ------------------------------------------------------------------------------------------------------------


def test_a_start_in_several_arrays_outside_of_a_set_is_refused() -> None:
    calls: list[float] = []

    def value(x: Any) -> float:
        calls.append(float(np.abs(x["a"]).sum() + abs(x["b"])))
        return calls[-1]

    with pytest.raises(ValueError, match="x0 is not in L1Ball"):
        minimize(value, {"a": np.full(2, 9.0), "b": np.float64(0.0)}, constraints=sets.L1Ball(1.0))
    assert not calls
    minimize(value, {"a": np.full(2, 0.1), "b": np.float64(0.0)}, constraints=sets.L1Ball(1.0), budget=300)
    assert max(calls) <= 1 + 1e-9


def test_a_plane_far_away_does_not_move_the_points_that_are_evaluated() -> None:
    plane = sets.Halfspace([1, 1, 1.0], 1e6)
    res = minimize(lambda x: float(np.sum((x - 3) ** 2)), np.full(3, 0.1), constraints=plane, budget=2000)
    assert res.x == pytest.approx([3, 3, 3], abs=1e-3)
    for b in (1e6, 5.0, 0.0, -5.0, -1e6):
        ball = sets.Halfspace([3.0, 4.0], b).ball(2)
        center: Any = ball.center
        assert float(torch.tensor([0.6, 0.8], dtype=torch.float64) @ center) + ball.radius == pytest.approx(
            b / 5, abs=1e-6
        )


def test_a_box_holds_its_own_boundary_in_float32_and_no_nan() -> None:
    box = sets.Box(-0.1, 0.1)
    assert box.explain(torch.full((3,), 0.1)) is None
    assert box.explain(box.project_(torch.full((3,), 9.0))) is None
    assert box.explain(torch.full((3,), 0.1000001)) is not None
    res = minimize(lambda x: float(x @ x), np.full(3, 0.1, np.float32), methods.frank_wolfe(box), budget=100)
    assert res.fun < 0.03
    for one in (sets.Box(0.0, 1.0), sets.Box([0.0, 0.0], [1.0, 1.0])):
        assert one.explain(torch.tensor([math.nan, 0.5])) is not None


@pytest.mark.parametrize("offset", [-1e6, -1e4, 0.0, 1e3, 1e6])
def test_projections_onto_a_simplex_add_up(offset: float) -> None:
    x = torch.tensor([0.3, 0.1, -0.3]) + offset
    simplex = sets.Simplex(1.0)
    found = simplex.project_(x.clone())
    assert float(found.double().sum()) == pytest.approx(1, abs=2e-7)
    assert simplex.explain(found) is None
    ball = sets.L1Ball(1.0).project_(x.clone() if offset else 9 * x)
    assert float(ball.double().abs().sum()) == pytest.approx(1, abs=2e-7)


@pytest.mark.parametrize("made", [sets.L1Ball, sets.L2Ball, sets.LInfBall, sets.Simplex, sets.NuclearBall])
def test_linear_minimizers_take_transposed_tensors(made: Callable[[float], Any]) -> None:
    g = torch.arange(6.0).view(2, 3) - 2
    assert torch.equal(made(1.0).lmo_(g.T.clone().contiguous()), made(1.0).lmo_(g.clone().T))


def test_equations_that_contradict_each_other_beside_large_ones_are_seen() -> None:
    with pytest.raises(ValueError, match=r"no x satisfies A x = b: the best leaves 0\.15 in row 1"):
        sets.Affine([[1.0, 1, 0], [0, 0, 1], [0, 0, 1]], [1e9, 0.5, 0.2])
    with pytest.raises(ValueError, match="no x satisfies"):
        sets.Affine([[0.0, 0.0]], [1.0])
    found = sets.Affine([[1e-9, 0.0], [0.0, 1e9]], [1e-9, 2e9]).project_(torch.zeros(2, dtype=torch.float64))
    assert found.tolist() == pytest.approx([1, 2])


@pytest.mark.parametrize(
    "made",
    [
        sets.Simplex(1.0), sets.Affine([[1.0, 1.0]], [1.0]), sets.Polyhedron(BOX, np.ones(4)),
        sets.Intersection(sets.L2Ball(1.0), sets.Halfspace([1.0, 0.0], 0.5)),
    ],
)  # fmt: skip
def test_a_set_in_which_no_ball_is_known_is_refused_with_what_to_type(made: Any) -> None:
    x0 = np.array([0.5, 0.5])

    def value(x: Any) -> float:
        return float(np.sum((x - 0.2) ** 2))

    with pytest.raises(
        ValueError, match=r"pass method=methods.zo_prox\(set, lr='auto', mu='auto', queries='relaxed'\)"
    ):
        minimize(value, x0, constraints=made)
    assert minimize(value, x0, methods.zo_prox(made, lr="auto", mu="auto", queries="relaxed"), budget=400).fun < 0.2


def test_a_set_and_a_space_do_not_go_together() -> None:
    with pytest.raises(ValueError, match=r"L1Ball\(\.\.\.\) is a set, and does not go together with space="):
        minimize(far, np.zeros(2), constraints=sets.L1Ball(1.0), space=spaces.Euclidean())


# ---- the rest --------------------------------------------------------------------------------------------------------


def test_settings_that_would_do_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="below 1e-05 would leave nothing"):
        Scattered(5e-6)
    with pytest.raises(ValueError, match="d >= 2"):
        rosenbrock(d=1)
    assert rosenbrock(d=5).x0.size == 5


def test_a_grid_of_rates_ends_before_its_upper_end() -> None:
    assert half_decades(1, 9.9) == (1.0, 3.16)
    assert half_decades(1e-3, 1e-1) == (1e-3, 3.16e-3, 1e-2, 3.16e-2, 0.1)
