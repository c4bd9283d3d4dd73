"""Boxes with arrays, linear sets and intersections: nearest points by the variational inequality and by SciPy."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, lsq_linear, minimize

from zograd import AskTell, methods
from zograd.core.run import Run
from zograd.oracles import sequential
from zograd.sets import (
    L1,
    Affine,
    Box,
    GroupL2,
    Halfspace,
    Intersection,
    L1Ball,
    L2Ball,
    NonNegative,
    Nuclear,
    Polyhedron,
    Simplex,
)
from zograd.stores import Leaf, Store

rng = np.random.default_rng(0)
D = 6
LOW, HIGH = np.array([0.0, -1, -np.inf, 2, -1, -np.inf]), np.array([1.0, np.inf, 0.5, 2, 1, np.inf])
A, B = rng.normal(size=(9, D)), rng.uniform(0.1, 2.0, 9)  # 0 lies inside of A x <= B
SETS = {
    "box": (Box(LOW, HIGH), [Bounds(LOW, HIGH)]),
    "affine": (Affine(A[:3], B[:3]), [LinearConstraint(A[:3], B[:3], B[:3])]),
    "affine of low rank": (Affine(A[[0, 1, 0]], B[[0, 1, 0]]), [LinearConstraint(A[:2], B[:2], B[:2])]),
    "half-space": (Halfspace(A[0], 0.3), [LinearConstraint(A[:1], -np.inf, 0.3)]),
    "polyhedron": (Polyhedron(A, B), [LinearConstraint(A, -np.inf, B)]),
    "simplex as intersection": (
        Intersection(Affine(np.ones((1, D)), 1.0), NonNegative()),
        [Bounds(0, np.inf), LinearConstraint(np.ones((1, D)), 1, 1)],
    ),
    "box and polyhedron": (
        Intersection(Polyhedron(A, B), Box(np.full(D, -0.3), 0.4), tolerance=1e-9),
        [Bounds(-0.3, 0.4), LinearConstraint(A, -np.inf, B)],
    ),
}
by_set = pytest.mark.parametrize(("C", "constraints"), SETS.values(), ids=SETS)


def projected(C, y: np.ndarray) -> np.ndarray:
    return C.project_(torch.from_numpy(y.copy())).numpy()


@by_set
def test_the_projection_is_that_of_scipy(C, constraints) -> None:
    """min |z - y|^2 by SLSQP on the same constraints; near points and far ones, points inside as they are."""
    bounds = next((c for c in constraints if isinstance(c, Bounds)), None)
    linear = [c for c in constraints if isinstance(c, LinearConstraint)]
    for scale in (0.01, 1.0, 30.0):
        y = scale * rng.normal(size=D)
        z = projected(C, y)
        found = minimize(
            lambda v, y=y: 0.5 * np.sum((v - y) ** 2), z + 0.01 * rng.normal(size=D), jac=lambda v, y=y: v - y,
            bounds=bounds, constraints=linear, method="SLSQP", options={"ftol": 1e-15, "maxiter": 500},
        )  # fmt: skip
        np.testing.assert_allclose(z, found.x, atol=2e-6 * max(1, scale))
        assert C.explain(torch.from_numpy(z)) is None
        np.testing.assert_allclose(projected(C, z), z, atol=1e-8)


@by_set
def test_the_variational_inequality_holds(C, constraints) -> None:
    """<y - P y, s - P y> <= 0 for every s of the set (here projections of random points)."""
    members = [projected(C, 3 * rng.normal(size=D)) for _ in range(25)]
    for scale in (0.3, 10.0):
        y = scale * rng.normal(size=D)
        z = projected(C, y)
        assert max(float((y - z) @ (s - z)) for s in members) <= 1e-7 * scale * max(1, scale)


def test_a_polyhedron_agrees_with_bounded_least_squares() -> None:
    """Boxes as polyhedra: P(y) = argmin |z - y|^2 under bounds, by `lsq_linear`. Redundant rows change nothing."""
    low, high = -rng.uniform(0, 1, D), rng.uniform(0, 1, D)
    rows = np.vstack([np.eye(D), -np.eye(D), 3 * np.eye(D)[:2], np.zeros((1, D))])
    C = Polyhedron(rows, np.concatenate([high, -low, 3 * high[:2], [0.0]]))
    for _ in range(10):
        y = 2 * rng.normal(size=D)
        np.testing.assert_allclose(projected(C, y), lsq_linear(np.eye(D), y, (low, high)).x, atol=1e-9)
        np.testing.assert_allclose(projected(C, y), projected(Box(low, high), y), atol=1e-12)


def test_a_fixed_variable_stays_and_an_open_side_is_open() -> None:
    z = projected(Box(LOW, HIGH), np.array([5.0, 7, -9, 0, -3, 1e6]))
    np.testing.assert_array_equal(z, [1.0, 7, -9, 2, -1, 1e6])


def test_sets_are_values() -> None:
    """Equal numbers, however given, are equal sets with equal hashes; copies survive pickle; nothing can be set."""
    for a, b, other in (
        (Box([0.0, 1.0], 2.0), Box(np.array([0, 1]), torch.tensor(2.0)), Box([0.0, 1.5], 2.0)),
        (Affine([[1.0, 2.0]], 1.0), Affine(np.array([[1.0, 2.0]]), [1.0]), Affine([[1.0, 2.0]], 2.0)),
        (Halfspace([1.0, 2.0], 1), Halfspace(np.array([1.0, 2.0]), 1.0), Halfspace([1.0, 2.5], 1.0)),
        (Intersection(L2Ball(1.0), NonNegative()), Intersection(L2Ball(1.0), NonNegative()),
         Intersection(NonNegative(), L2Ball(1.0))),
    ):  # fmt: skip
        assert a == b
        assert hash(a) == hash(b)
        assert a != other
        assert repr(a) != repr(other)
        for again in (pickle.loads(pickle.dumps(a)), copy.deepcopy(a)):
            assert again == a
            torch.testing.assert_close(again.project_(torch.ones(2)), a.project_(torch.ones(2)))
        with pytest.raises((AttributeError, TypeError)):
            a.tolerance = 1.0
    given = np.zeros(2)
    box = Box(given, 1.0)
    given[:] = 5.0
    assert box == Box([0.0, 0.0], 1.0)


def test_an_intersection_says_how_far_outside_it_is() -> None:
    """Within tolerance max(1, |x|) of each set, exactly in the last one; a loose tolerance is a loose result."""
    y, distances = torch.tensor([4.0, -3.0, 2.0], dtype=torch.float64), []
    for tolerance in (1e-2, 1e-6, 1e-10):
        C = Intersection(Halfspace([1.0, 0.2, 0.0], 0.1), L2Ball(1.0), Halfspace([0.0, 1.0, 1.0], 0.0), L1Ball(1.2),
                         tolerance=tolerance)  # fmt: skip
        z = C.project_(y.clone())
        assert L1Ball(1.2).explain(z) is None
        assert C.distance(z) <= 1.01 * tolerance * max(1.0, float(z.norm()))
        distances.append(max(float((part.project_(z.clone()) - z).norm()) for part in C.sets))
        assert C.distance(z) == pytest.approx(distances[-1])
        assert C.explain(z) is None
    assert "farthest of the sets" in C.explain(y)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Box([0.0, 2.0], 1.0), "low=2, high=1 at element 1"),
        (lambda: Box([0.0, np.nan], 1.0), "the low bounds of a Box hold NaN at element 1"),
        (lambda: Box([0.0, 1.0], [1.0, 2.0, 3.0]), "as many lower as upper bounds, got 2 and 3"),
        (lambda: Box([0.0, 1.0], 2.0).project_(torch.zeros(3)), "bounds for 2 elements, and x has 3"),
        (lambda: Affine([[1.0, 1.0], [1.0, 1.0]], [0.0, 1.0]), "no x satisfies A x = b"),
        (lambda: Affine([1.0, 1.0], 1.0), r"A of shape \(m, d\)"),
        (lambda: Halfspace([0.0, 0.0], 1.0), "finite a that is not 0"),
        (lambda: Polyhedron([[1.0], [-1.0]], [-1.0, 0.0]).project_(torch.zeros(1)), "has no solution"),
        (lambda: Polyhedron([[1.0]], np.inf), "leave rows without a bound out"),
        (lambda: Intersection(Box(0.0, 1.0)), "two sets or more, got 1"),
        (lambda: Intersection(Box(0.0, 1.0), GroupL2(1.0)), "no set that can be projected onto"),
        (lambda: Intersection(Halfspace([1.0], -1.0), NonNegative(), rounds=50).project_(torch.ones(1)), "still lies"),
        (lambda: methods.frank_wolfe(Halfspace([1.0], 0.0)), "linear minimiser, and Halfspace has none"),
    ],
)
def test_what_makes_no_set_is_refused(make, said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        make()


@pytest.mark.parametrize("chunk", [1, 3, 1 << 18])
def test_proximal_descent_projects_all_leaves_as_one_vector(chunk: int, monkeypatch) -> None:
    """Two leaves, cut in any way: one step of a menu method is the projection of the moved vector."""
    monkeypatch.setattr(Leaf, "block", chunk)
    C = Intersection(Affine(np.ones((1, D)), 1.0), Box(LOW, HIGH))
    x = [torch.ones(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)]
    run = Run(Store({"a": x[0], "b": x[1]}), methods.zo_prox(C, lr=0.1, n=2), 1)
    record = run.step(sequential(lambda: (x[0] - 2).square().sum() + x[1].sum().square()))
    assert record.moved > 0
    z = torch.cat([v.reshape(-1) for v in x])
    assert C.explain(z) is None
    plain = [torch.ones(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)]
    Run(Store({"a": plain[0], "b": plain[1]}), methods.zo_sgd(lr=0.1, n=2), 1).step(
        sequential(lambda: (plain[0] - 2).square().sum() + plain[1].sum().square())
    )
    torch.testing.assert_close(z, C.project_(torch.cat([v.reshape(-1) for v in plain])), rtol=0, atol=1e-12)


def test_frank_wolfe_takes_a_box_with_arrays() -> None:
    box = Box([-1.0, 0.0, 0.5, -2.0], [0.5, 3.0, 0.5, 2.0])
    loop = AskTell(np.array([0.0, 0, 0.5, 0]), methods.frank_wolfe(box, n=4, lr="auto"), seed=0)
    for _ in range(150):
        loop.tell([float(np.sum((x - np.array([2.0, -3.0, 9.0, 0.4])) ** 2)) for x in loop.ask()])
        assert box.explain(torch.from_numpy(loop.x)) is None
    np.testing.assert_allclose(loop.x[:3], [0.5, 0.0, 0.5], atol=0.1)


def test_penalties_are_no_sets_to_stay_in() -> None:
    for prox in (L1(1.0), Nuclear(1.0)):
        with pytest.raises(ValueError, match="needs a set to stay in"):
            methods.zo_prox(prox, queries="feasible")
    for C in (Simplex(1.0), Affine([[1.0, 1.0]], 1.0), Box([0.0, 1.0], [1.0, 1.0])):
        with pytest.raises(ValueError, match="has no interior"):
            methods.zo_prox(C, queries="feasible")
