"""Row 43: the second stage against an integer program of SciPy, and constraint generation with the exact value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp

from zograd.examples.two_stage_knapsack import generate, inputs
from zograd.problems.two_stage import TwoStageKnapsack


def second_stage(problem: TwoStageKnapsack, x: np.ndarray, xi: np.ndarray) -> float:
    """V(x, xi) by HiGHS: variables y and r."""
    d, n = problem.data, problem.items
    gain = np.r_[d["f"] - d["d"] * xi, d["d"] * xi]
    rows = [
        LinearConstraint(np.r_[d["c"], d["t"]][None], ub=float(d["C"])),
        LinearConstraint(np.hstack([np.eye(n), np.zeros((n, n))]), ub=x),
        LinearConstraint(np.hstack([-np.eye(n), np.eye(n)]), ub=np.zeros(n)),
    ]
    found = milp(-gain, integrality=np.ones(2 * n), bounds=Bounds(0, 1), constraints=rows)
    return float(x @ (d["p"] - d["f"]) - found.fun)


@pytest.mark.parametrize("seed", range(3))
def test_the_second_stage_is_that_of_an_integer_program(seed: int) -> None:
    problem = TwoStageKnapsack(7, 2, seed)
    rng = np.random.default_rng(seed)
    x = problem.choices[rng.integers(2**7, size=25)]
    xi = problem.scenarios[rng.integers(len(problem.scenarios), size=25)]
    exact = [second_stage(problem, a, b) for a, b in zip(x, xi, strict=True)]
    assert problem.second_stage(x, xi) == pytest.approx(exact)


def test_the_optimum_is_the_best_worst_case() -> None:
    problem = TwoStageKnapsack(5, 2, 1)
    assert len(problem.scenarios) == 1 + 5 + 10
    table = [[second_stage(problem, x, xi) for xi in problem.scenarios] for x in problem.choices]
    assert problem.worst(problem.choices) == pytest.approx(np.min(table, axis=1))
    assert problem.optimum == pytest.approx(np.max(np.min(table, axis=1)))


def test_with_the_exact_value_constraint_generation_finds_the_optimum() -> None:
    """V in place of the network: the choice of the lowest bound is optimal once its own worst scenario is known."""
    problem = TwoStageKnapsack(6, 2, 3)

    def network(sets: torch.Tensor, sure: torch.Tensor) -> torch.Tensor:
        x, xi = sets[:, :, 0].numpy().astype(int), sets[:, :, 1].numpy().astype(int)
        return torch.tensor(problem.second_stage(x, xi))

    best, solves = generate(problem, network, 25)  # type: ignore[arg-type]
    assert best == pytest.approx(problem.optimum)
    assert solves == 25 * len(problem.scenarios)


def test_the_network_sees_a_set_without_order() -> None:
    problem = TwoStageKnapsack(6, 2, 0)
    from zograd.examples.two_stage_knapsack import Value

    sets, sure = inputs(problem, problem.choices[:20], np.broadcast_to(problem.scenarios[3], (20, 6)))
    network, order = Value(), torch.randperm(6)
    assert torch.allclose(network(sets, sure), network(sets[:, order], sure), atol=1e-6)
    assert float(sets[0].abs().sum()) == 0.0  # nothing accepted
