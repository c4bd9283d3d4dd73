"""Random search on the vertices of a box: where it moves, what it costs, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zograd import AskTell, methods, minimize
from zograd.core.run import Method, Run
from zograd.estimators import Vertices
from zograd.laws import Rademacher
from zograd.rules import Improving
from zograd.sets import Box
from zograd.stores import Store

D = 12
LOW, HIGH = np.linspace(-1.0, 0.0, D), np.linspace(0.3, 2.0, D)
COSTS = np.cos(1.0 + np.arange(D))


def linear(x: np.ndarray) -> float:
    return float(COSTS @ x)


def test_every_point_is_a_vertex_and_a_step_costs_one_evaluation() -> None:
    seen: list[np.ndarray] = []

    def f(x: np.ndarray) -> float:
        seen.append(x.copy())
        return linear(x)

    result = minimize(f, np.full(D, 0.1), methods.vertex_search(Box(LOW, HIGH)), budget=100)
    steps = np.stack([x for x in seen if not np.array_equal(x, np.full(D, 0.1))])
    gap = np.minimum(np.abs(steps - LOW), np.abs(steps - HIGH))
    assert gap.max() < 1e-14
    assert len(seen) == result.nfev <= 100
    assert {record.evaluations for record in result.tape} == {1}


def test_values_never_rise_and_the_minimum_of_a_linear_function_is_found() -> None:
    """argmin_{x in box} <c, x> = low where c > 0, high elsewhere: SciPy's linear programming agrees."""
    from scipy.optimize import linprog

    best = linprog(COSTS, bounds=list(zip(LOW, HIGH, strict=True))).fun
    taken: list[float] = []
    result = minimize(
        linear, np.zeros(D), methods.vertex_search(Box(LOW, HIGH)), budget=400,
        callback=lambda x: taken.append(linear(x)),
    )  # fmt: skip
    assert result.fun == pytest.approx(best, abs=1e-12)
    assert (np.diff(taken) <= 1e-14).all()
    assert taken[0] > best + 0.1


def test_the_share_that_changes_sides_follows_its_schedule() -> None:
    """Share p_t of 4,000 coordinates, within four standard errors, and one coordinate at least where p_t is small."""
    d, method = 4000, methods.vertex_search(Box(-1.0, 1.0))
    store = Store({"x": torch.full((d,), -1.0, dtype=torch.float64)})
    run = Run(store, method, 0)
    for t in range(60):
        before = store.leaves[0].tensor.clone()
        (query,) = run.ask()
        there = torch.empty(d, dtype=torch.float64)
        store.point_(there, store.leaves[0], query.at)
        changed = int((before != there).sum())
        p = max(1 / d, 0.5 / (1 + t / 20))
        assert abs(changed - d * p) <= 4 * np.sqrt(d * p * (1 - p)) + 1
        assert changed >= 1
        run.tell([1.0])


def test_a_worse_point_leaves_every_bit_of_x() -> None:
    asked = AskTell(np.zeros(D), methods.vertex_search(Box(LOW, HIGH)))
    asked.ask()
    asked.tell([1.0])
    x = asked.x.copy()
    for value in (2.0, 1.5):
        asked.ask()
        asked.tell([value])
        np.testing.assert_array_equal(asked.x, x)
    (there,) = asked.ask()
    asked.tell([1.0])  # equal values are taken
    np.testing.assert_allclose(asked.x, there, rtol=0, atol=1e-14)


def test_the_trajectory_depends_on_the_seed_alone() -> None:
    def path(seed: int) -> bytes:
        return minimize(linear, np.zeros(D), methods.vertex_search(Box(LOW, HIGH)), budget=30, seed=seed).x.tobytes()

    assert path(3) == path(3)
    assert len({path(seed) for seed in range(5)}) > 1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: methods.vertex_search(Box(0.0, float("inf"))), "two finite bounds"),
        (lambda: methods.vertex_search(Box(0.0, 1.0), share=0.7), "in \\(0, 0.5\\], got 0.7"),
        (lambda: minimize(linear, np.zeros(D), methods.vertex_search(Box([0.0] * 3, 1.0))), "3 elements, and x has 12"),
        (lambda: Method(Vertices(Box(0.0, 1.0)), Rademacher(), Improving()), "law=Gaussian"),
    ],
    ids=["open", "share", "size", "law"],
)
def test_what_cannot_work_is_refused_with_the_remedy(make, says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        make()


def test_another_set_is_refused() -> None:
    from zograd.sets import L2Ball

    with pytest.raises(TypeError, match="got L2Ball; pass Box"):
        Vertices(L2Ball(1.0))  # type: ignore[arg-type]
