"""Row 54: routing of experts by multipliers of their loads, against the linear program of the balanced assignment."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog

from zograd.control import Ascent, SignAscent
from zograd.examples.balanced_router import balanced, exact


def assignment(scores: np.ndarray) -> float:
    """Most score with two experts a token, no expert above the mean load: inequalities in place of the equalities."""
    tokens, experts = scores.shape
    rows = np.zeros((tokens, tokens, experts))
    rows[np.arange(tokens), np.arange(tokens)] = 1
    columns = np.zeros((experts, tokens, experts))
    columns[np.arange(experts), :, np.arange(experts)] = 1
    found = linprog(
        -scores.reshape(-1),
        A_ub=columns.reshape(experts, -1), b_ub=np.full(experts, 2 * tokens / experts),
        A_eq=rows.reshape(tokens, -1), b_eq=np.full(tokens, 2.0), bounds=(0, 1), method="highs-ipm",
    )  # fmt: skip
    return float(-found.fun)


@pytest.mark.parametrize("seed", range(3))
def test_router_has_the_duals_of_the_linear_program(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((64, 4)) + np.linspace(0, 1.5, 4)
    course = balanced(scores, Ascent(0.3, decay=0.05), 800)
    value, biases = exact(scores)
    assert value == pytest.approx(assignment(scores), rel=1e-9)
    assert course.loads.tolist() == [32] * 4
    assert course.value == pytest.approx(value, rel=1e-9)
    assert dual(scores, course.biases) == pytest.approx(value, rel=1e-6)
    assert dual(scores, biases) == pytest.approx(value, rel=1e-9)
    assert dual(scores, 0 * biases) > value + 0.1


def dual(scores: np.ndarray, biases: np.ndarray) -> float:
    """sum_t (the two largest of s_te + b_e) - (mean load) sum_e b_e, at least the value of the linear program."""
    tokens, experts = scores.shape
    return float(np.sort(scores + biases, axis=1)[:, -2:].sum() - 2 * tokens / experts * biases.sum())


def test_signs_stay_in_a_band_and_do_not_reach_the_optimum() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((64, 4)) + np.linspace(0, 1.5, 4)
    coarse, fine = (balanced(scores, SignAscent(step), 800) for step in (0.5, 0.01))
    gaps = [dual(scores, course.biases) - exact(scores)[0] for course in (coarse, fine)]
    assert gaps[0] > 10 * max(gaps[1], 1e-3)
