"""The problems on which methods are compared: their values, minima, rotations, batches, ranks and projections."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from zograd import methods
from zograd.core.run import Run
from zograd.core.vector import Noise, Query, Vector
from zograd.problems.problem import FlatStore, L1Projection, Problem, project_l1
from zograd.problems.small import (
    METHOD_PROBLEMS,
    auto_problems,
    logistic,
    method_problem,
    mlp_digits,
    quadratic,
    softmax_digits,
    sparse_logistic,
)
from zograd.spaces import Euclidean


def gradient(f, x: np.ndarray, h: float = 1e-6) -> np.ndarray:
    return np.array([(f(x + h * e) - f(x - h * e)) / (2 * h) for e in np.eye(x.size)])


def hessian_of(problem: Problem) -> np.ndarray:
    """H of a quadratic by polarisation: exact up to rounding."""
    f, eye = problem.value, np.eye(problem.dim)
    single = np.array([f(e) for e in eye])
    return np.array([[f(a + b) - single[i] - single[j] for j, b in enumerate(eye)] for i, a in enumerate(eye)])


@pytest.mark.parametrize("fast", [False, True])
def test_the_rotation_keeps_the_spectrum_and_shares_the_start(fast: bool) -> None:
    lam = np.logspace(0, -3, 60)
    p = quadratic("q", lam, fast=fast)
    h = hessian_of(p)
    found, vectors = np.linalg.eigh(h)
    np.testing.assert_allclose(found[::-1], lam, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(np.abs(vectors.T @ p.x0), 1.0, rtol=1e-6)
    assert p.value(p.x0) == pytest.approx(lam.sum() / 2, rel=1e-12)


@pytest.mark.parametrize("fast", [False, True])
def test_the_rotation_hides_the_axes(fast: bool) -> None:
    """The diagonal varies by lam.std() / sqrt(d) only; a few reflections would leave it as it was."""
    lam = np.logspace(0, -3, 200)
    diagonal = np.diag(hessian_of(quadratic("q", lam, fast=fast)))
    assert diagonal.std() < 3 * lam.std() / math.sqrt(lam.size)
    assert diagonal.mean() == pytest.approx(lam.mean())


@pytest.mark.parametrize("name", list(METHOD_PROBLEMS))
def test_every_problem_starts_above_its_minimum_and_says_what_it_is(name: str) -> None:
    p = method_problem(name)
    assert p.name == name
    session = p.begin(Euclidean(), 0)
    assert session.start == session.judge()["value"] == p.value(p.x0) - p.minimum > 0
    assert f"d = {p.dim}" in p.about()
    assert sum(math.prod(s) for s in p.shapes or ((p.dim,),)) == p.dim
    assert METHOD_PROBLEMS[name]().about() == p.about()


@pytest.mark.parametrize("problem", [logistic(), softmax_digits(), mlp_digits(hidden=4)], ids=lambda p: p.name)
def test_the_parts_of_a_sum_are_its_terms(problem: Problem) -> None:
    assert problem.part is not None
    x = problem.x0 + 0.1 * np.random.default_rng(0).normal(size=problem.dim)
    each = [problem.part(x, np.array([i])) for i in range(problem.terms)]
    assert np.mean(each) == pytest.approx(problem.value(x), rel=1e-12)


def test_the_minimum_of_the_logistic_loss_is_one() -> None:
    """By an independent minimiser, and no better by a random direction."""
    from scipy.optimize import minimize

    p = logistic()
    assert minimize(p.value, p.x0, method="BFGS", tol=1e-10).fun == pytest.approx(p.minimum, abs=1e-8)


def test_the_constrained_minimum_satisfies_the_optimality_condition() -> None:
    """max_{s in ball} <grad, x - s> = <grad, x> + radius |grad|_inf = 0 only at the minimum: it bounds f - min f."""
    p = sparse_logistic(n=100, d=20, radius=3.0)
    best = np.inf
    x = p.x0
    for t in range(1000):  # Frank-Wolfe: slow, but independent of projections
        g = gradient(p.value, x)
        k = int(np.argmax(np.abs(g)))
        s = np.zeros_like(x)
        s[k] = -p.radius * np.sign(g[k])
        best = min(best, p.value(x))
        assert p.value(x) - p.minimum <= g @ (x - s) + 1e-9
        x = x + 2 / (t + 2) * (s - x)
    assert -1e-12 <= best - p.minimum < 5e-3


def test_the_projection_is_the_nearest_point() -> None:
    rng = np.random.default_rng(1)
    for scale in (0.01, 1.0, 100.0):
        y = scale * rng.normal(size=30)
        x = project_l1(y, 2.0)
        assert np.abs(x).sum() <= 2.0 * (1 + 1e-12)
        for _ in range(50):  # <y - x, s - x> <= 0 for s in the ball
            s = rng.normal(size=30)
            s *= 2.0 * rng.random() / np.abs(s).sum()
            assert (y - x) @ (s - x) <= 1e-9 * scale
    inside = np.array([0.5, -0.5])
    assert project_l1(inside, 2.0) is inside
    tensor = torch.tensor([[3.0], [-1.0]], dtype=torch.float64)
    np.testing.assert_allclose(L1Projection(2.0).prox_(tensor, 0.1).numpy()[:, 0], [2.0, 0.0])


def test_a_step_sees_one_batch_and_a_method_for_sums_all_terms() -> None:
    p = softmax_digits(batch=8)
    store = p.begin(Euclidean(), 3).store
    store.array += np.random.default_rng(0).normal(size=p.dim)  # type: ignore[attr-defined]
    oracle, whole = p.oracle(3), p.oracle(3, whole=True)
    first = oracle(store, [Query(), Query()], 5)
    assert first[0] == first[1]
    assert oracle(store, [Query()], 6) != first[:1]
    x = store.array  # type: ignore[attr-defined]
    assert whole(store, [Query()], 5)[0] == pytest.approx(p.value(x), rel=1e-12)
    assert p.part is not None
    assert whole(store, [Query(rows=(1, 7))], 5)[0] == p.part(x, np.array([1, 7]))


def test_only_ranks_are_told() -> None:
    """Any increasing map of f gives the same answers."""
    p = method_problem("quadratic-ranks")
    store = p.begin(Euclidean(), 0).store
    points = [Query(t * Vector(((Noise(0, 5), 1.0),))) for t in (0.0, 0.3, -0.2, 0.3)]  # type: ignore[arg-type]
    told = p.oracle(0)(store, points, 1)
    values = [p.value(store.point(q.at)) for q in points]  # type: ignore[attr-defined]
    assert told == [float(sorted(set(values)).index(v)) for v in values]


def test_a_store_of_several_tensors_is_one_flat_array() -> None:
    p = mlp_digits(hidden=4)
    store = FlatStore(p.x0, p.shapes, Euclidean())
    assert [leaf.shape for leaf in store.leaves] == [(65, 4), (4, 10), (10,)]
    assert np.array_equal(store.point(Vector()), p.x0)
    before = store.array.copy()
    run = Run(store, methods.mezo(lr=1e-2, mu=1e-3), 0)
    run.step(p.oracle(0))
    assert np.all(store.array != before)
    assert np.array_equal(store.point(Vector()), store.array)
    assert np.array_equal(p.x0, before), "the problem keeps its start"


def test_the_ten_problems_of_auto_are_as_they_were() -> None:
    problems = auto_problems()
    assert [p.name for p in problems][:2] == ["quadratic-100", "quadratic-1000"]
    assert problems[1].value(problems[1].x0) == pytest.approx(0.5 * (1 / np.arange(1, 1001)).sum())
