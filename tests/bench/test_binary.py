"""Programs over bits against hand-made ones, and against a solver for mixed integer programs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from zograd.problems import binary


@pytest.mark.parametrize("make", [binary.knapsack, binary.independent_set, binary.salesman])
@pytest.mark.parametrize("seed", range(3))
def test_the_optimum_is_that_of_a_solver(make, seed: int) -> None:
    p = make(seed)
    low = p.right if p.kind == "equal" else -np.inf
    limits = LinearConstraint(p.rows, low, p.right)
    found = milp(p.cost, constraints=limits, integrality=np.ones(p.bits), bounds=Bounds(0, 1))
    assert p.optimum() == pytest.approx(found.fun, rel=1e-9)
    if make is binary.salesman:
        assert binary.shortest_tour(p) == pytest.approx(found.fun, rel=1e-9)


def test_the_dual_bounds_the_optimum_and_its_maximum_is_the_relaxation() -> None:
    """A knapsack's Lagrangian dual is its linear relaxation, of which the solver gives value and multipliers."""
    p = binary.knapsack(1)
    relaxed = milp(p.cost, constraints=LinearConstraint(p.rows, -np.inf, p.right), bounds=Bounds(0, 1))
    lam = -linprog(p.cost, p.rows, p.right, bounds=(0, 1)).ineqlin.marginals
    assert p.dual(lam) == pytest.approx(relaxed.fun, rel=1e-9)
    rng = np.random.default_rng(0)
    assert all(p.dual(rng.uniform(0, 3, 2)) <= relaxed.fun + 1e-9 for _ in range(20))
    assert relaxed.fun <= p.optimum()


def test_feasibility() -> None:
    p = binary.BinaryProgram(np.array([-1.0, -2.0]), np.array([[1.0, 1.0]]), np.array([1.0]))
    assert p.points.tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    assert p.feasible(p.points).tolist() == [True, True, True, False]
    assert p.optimum() == -2.0
    exactly = binary.BinaryProgram(p.cost, p.rows, p.right, "equal")
    assert exactly.feasible(p.points).tolist() == [False, True, True, False]
    assert binary.BinaryProgram(p.cost, p.rows, np.array([-1.0])).optimum() == np.inf


def test_many_bits_are_not_enumerated() -> None:
    with pytest.raises(ValueError, match="at most 20 bits"):
        binary.knapsack(0, items=21).optimum()
