"""Problems with a domain: what their losses are, that spaces stay inside, and that flat coordinates do not."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from zograd import methods
from zograd.problems import GeometryProblem, View, Walk, near_boundary, problem_named
from zograd.problems.base import OUTSIDE, leaving
from zograd.problems.gaussian_process import Likelihood, data
from zograd.problems.mesh import Net, interpolate, locate, net, require_skfem
from zograd.problems.pde import Equation, Walls, reference
from zograd.problems.simplex import on_plane, project
from zograd.problems.stiefel import orthogonality, polar


def walked(problem: GeometryProblem, view: str, method: str, lr: float, steps: int, outside: str = "never") -> Walk:
    at = problem.view(view)
    walk = Walk(at, replace(methods.make(method, lr=lr, mu=at.mu), space=at.space), outside, seed=0)
    for _ in range(steps):
        walk.step()
    return walk


def log_normal(mesh: Net, sd: float, rng: np.random.Generator) -> Any:
    z = sd * rng.normal(size=mesh.neighbours.shape)
    w = np.exp(z - z.max(1, keepdims=True))
    return w / w.sum(1, keepdims=True)


# ---- meshes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 10, 20])
def test_the_uniform_net(n: int) -> None:
    mesh = net(n)
    assert mesh.neighbours.shape == ((n - 1) ** 2, 6)
    assert mesh.areas(mesh.nodes) == pytest.approx(np.full(2 * n * n, 0.5 / n**2), rel=1e-12)
    assert np.abs(mesh.place(np.full(mesh.neighbours.shape, 1 / 6)) - mesh.nodes).max() < 1e-14
    for t, beyond in enumerate(mesh.across):
        for k, other in enumerate(beyond):
            edge = {mesh.triangles[t][(k + 1) % 3], mesh.triangles[t][(k + 2) % 3]}
            if other >= 0:
                assert edge == set(mesh.triangles[t]) & set(mesh.triangles[other])
    assert (mesh.across < 0).sum() == 4 * n


@pytest.mark.parametrize("n", [10, 20])
@pytest.mark.parametrize("sd", [0.5, 2.0, 8.0, 300.0])
def test_every_choice_of_weights_is_a_valid_mesh(n: int, sd: float) -> None:
    """Floater's theorem, in float64 too: at sd = 300 nearly every weight is at the floor."""
    mesh, rng = net(n), np.random.default_rng(0)
    for _ in range(20):
        nodes = mesh.place(log_normal(mesh, sd, rng))
        assert mesh.valid(nodes)
        assert mesh.areas(nodes).sum() == pytest.approx(1.0, abs=1e-12)


def test_means_of_where_neighbours_were_are_no_valid_mesh() -> None:
    """Why the weights define a linear system: moved one by one into the old stars, nodes pass each other."""
    mesh, rng = net(10), np.random.default_rng(0)
    broken = 0
    for _ in range(20):
        w = log_normal(mesh, 2.0, rng)
        nodes = mesh.moved((w[..., None] * mesh.nodes[mesh.neighbours]).sum(1))
        broken += not mesh.valid(nodes)
    assert broken == 20


def test_every_valid_mesh_has_weights() -> None:
    mesh, rng = net(10), np.random.default_rng(1)
    made = mesh.place(log_normal(mesh, 1.0, rng))
    shaken = mesh.moved(mesh.nodes[mesh.interior] + rng.uniform(-0.024, 0.024, (len(mesh.interior), 2)))
    for nodes in (made, shaken):
        assert mesh.valid(nodes)
        w = mesh.weights(nodes)
        assert w.min() > 0
        assert w.sum(1) == pytest.approx(np.ones(len(w)))
        assert np.abs(mesh.place(w) - nodes).max() < 1e-12


def test_interpolation_walks_to_the_right_triangle() -> None:
    """Exact for linear functions on any valid mesh; elsewhere what scikit-fem's own search finds."""
    skfem = require_skfem()
    mesh, rng = net(10), np.random.default_rng(2)
    points = rng.random((500, 2))
    start = locate(mesh, points)
    for sd in (0.3, 1.0, 3.0):
        nodes = mesh.place(log_normal(mesh, sd, rng))
        plane = 1 + 2 * points[:, 0] - 3 * points[:, 1]
        found = interpolate(mesh, nodes, 1 + 2 * nodes[:, 0] - 3 * nodes[:, 1], points, start)
        assert found == pytest.approx(plane, abs=1e-9)
        u = rng.normal(size=len(nodes))
        at_once = interpolate(mesh, nodes, u, points, start)
        assert interpolate(mesh, nodes, u, points, start, steps=0) == pytest.approx(at_once, abs=1e-7)
        several = np.stack([[u, -u], [2 * u, u + 1]])
        for steps in (200, 0):
            each = [[interpolate(mesh, nodes, f, points, start, steps) for f in pair] for pair in several]
            assert np.array_equal(interpolate(mesh, nodes, several, points, start, steps), each)
        if sd < 1:
            theirs = skfem.MeshTri(nodes.T.copy(), mesh.triangles.T.copy())
            basis = skfem.Basis(theirs, skfem.ElementTriP1())
            order = [int(np.where((x == theirs.p.T).all(1))[0][0]) for x in nodes]
            values = np.empty(len(nodes))
            values[order] = u
            assert at_once == pytest.approx(basis.interpolator(values)(points.T), abs=1e-10)


@pytest.mark.parametrize("k", [0.0, 10.0])
def test_the_solver_converges_at_second_order(k: float) -> None:
    errors = [Equation(n, 60, k).error(net(n).nodes) for n in (15, 30)]
    assert errors[0] / errors[1] == pytest.approx(4.0, abs=0.5)


def test_the_boundary_conditions_hold() -> None:
    mesh = net(10)
    edge = np.setdiff1d(np.arange(len(mesh.nodes)), mesh.interior)
    assert not Equation(10, 40).solution(mesh.nodes)[edge].any()
    fine = reference(60, 10.0)
    right = fine.points[:, 0] == 1.0
    before = fine.points[:, 0] == 59 / 60
    inner = slice(15, 45)  # away from the corners
    slope = (fine.u[right] - fine.u[before])[inner] * 60
    at = 0.5 * (fine.u[right] + fine.u[before])[inner]
    assert np.abs(slope - 10j * at).max() < 0.06 * np.abs(10 * at).max()


def test_a_tangled_mesh_has_no_error() -> None:
    mesh, equation = net(10), Equation(10, 40)
    nodes = mesh.nodes.copy()
    nodes[mesh.interior[0]] = 0.9
    assert not mesh.valid(nodes)
    assert math.isnan(equation.error(nodes))
    assert not mesh.valid(np.full_like(nodes, np.nan))


def test_poisson_adapts_and_every_mesh_on_the_way_is_valid() -> None:
    """The error falls, by an independent score as well; the mesh gathers at the source."""
    problem = problem_named("mesh-poisson")
    start = problem.value(problem.x0)
    walk = walked(problem, "curved", "zo_adam", 0.03, 150)
    assert walk.value < 0.8 * start
    assert (walk.census.probes, walk.census.iterates) == (300, 150)
    assert walk.census.probes_outside == walk.census.iterates_outside == walk.census.refused == 0
    found = problem.measure("curved", walk.x)
    assert found["rescored"] == pytest.approx(walk.value, rel=0.05)
    assert found["inverted"] == 0
    mesh = net(10)
    near = np.linalg.norm(mesh.place(walk.x) - [0.3, 0.65], axis=1) < 0.15
    assert near.sum() > (np.linalg.norm(mesh.nodes - [0.3, 0.65], axis=1) < 0.15).sum()


def test_flat_moves_tangle_the_mesh_unless_they_are_taken_back() -> None:
    problem = problem_named("mesh-poisson")
    naive = walked(problem, "flat", "zo_sgd", 0.1, 25, "leave")
    assert naive.census.iterates_outside == 1
    assert naive.census.refused == naive.run.refused_in_a_row > 10, "no step brings it back"
    assert problem.measure("flat", naive.x)["inverted"] > 0
    kept = walked(problem, "flat", "zo_sgd", 0.1, 25, "revert")
    assert kept.census.reverted > 0
    assert math.isfinite(kept.value)
    assert problem.measure("flat", kept.x)["inverted"] == 0


def test_areas_as_walls_keep_the_nodes_apart() -> None:
    """The Dikin metric of `Domain`: coordinates of nodes that stay a valid mesh at a rate that tangles flat ones."""
    mesh, walls, rng = net(10), Walls(net(10)), np.random.default_rng(3)
    nodes = mesh.place(log_normal(mesh, 1.0, rng))
    x = torch.from_numpy(nodes[mesh.interior])
    moving = np.isin(mesh.triangles, mesh.interior).any(1)
    assert walls(x).numpy() == pytest.approx(mesh.areas(nodes)[moving], rel=1e-12)
    assert (torch.func.jacrev(walls)(x) - walls.jacobian(x)).abs().max() < 1e-15
    problem = problem_named("mesh-poisson")
    coordinates, view = problem.others["Dikin"]
    assert coordinates == "flat"
    walk = Walk(view, replace(methods.make("zo_sgd", lr=10.0, mu=view.mu), space=view.space), seed=0)
    for _ in range(8):
        walk.step()
    assert walk.census.probes_outside == walk.census.iterates_outside == 0
    assert np.abs(walk.x - view.x0).max() > 0.01


def test_helmholtz_adapts() -> None:
    problem = problem_named("mesh-helmholtz")
    start = problem.value(problem.x0)
    walk = walked(problem, "curved", "fzoo", 0.1, 12)
    assert walk.value < 0.95 * start
    assert walk.census.probes_outside == walk.census.iterates_outside == 0


def test_without_scikit_fem_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skfem", None)
    with pytest.raises(ImportError, match=r"pip install 'zograd\[pde\]'"):
        require_skfem()


# ---- simplices -------------------------------------------------------------------------------------------------------


def test_the_projection_is_the_nearest_point_of_the_simplex() -> None:
    """<y - p, z - p> <= 0 for every z of the simplex."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        y = rng.normal(size=8)
        p = project(y)
        assert p.min() >= 0
        assert p.sum() == pytest.approx(1.0, abs=1e-12)
        assert ((rng.dirichlet(np.ones(8), 100) - p) @ (y - p)).max() <= 1e-12
    assert project(p) == pytest.approx(p, abs=1e-15)
    assert on_plane(y).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["kl", "square"])
def test_losses_on_the_simplex(kind: str) -> None:
    problem = near_boundary(kind, 20)
    q = 1 / 20 - (finite_slope(problem, 20) if kind == "square" else 0.0)
    assert problem.value(problem.x0) == pytest.approx(problem.flat.value(problem.flat.x0))
    assert problem.minimum == 0
    if kind == "square":
        assert q.sum() == pytest.approx(1.0, abs=1e-6)
        assert 1e-7 < q.min() < 1e-4
        assert problem.value(q) < 1e-12
    outside = np.full(20, 1 / 19)
    outside[0] = -0.001
    assert math.isnan(problem.flat.value(outside))
    assert not problem.flat.inside(outside)
    edge = project(outside)
    assert problem.flat.inside(edge)
    assert math.isfinite(problem.flat.value(edge))


def finite_slope(problem: GeometryProblem, d: int) -> Any:
    """p - q at p = 1/d, by differences of f = |p - q|^2 / 2."""
    x, e = problem.x0, 1e-5 * np.eye(d)
    return np.array([(problem.value(x + e[i]) - problem.value(x - e[i])) / 2e-5 for i in range(d)])


def test_probes_never_leave_the_space_and_often_the_flat_simplex() -> None:
    problem = near_boundary("kl", 20)
    walk = walked(problem, "curved", "zo_adam", 0.1, 300)
    assert walk.value < 0.1
    at = walk.x
    inner, flat = leaving(problem.curved, at, (1e-3, 1e-1, 5.0)), leaving(problem.flat, at, (1e-4, 1e-3, 1e-1))
    assert set(inner.values()) == {0.0}
    assert flat[1e-1] == 1.0
    assert flat[1e-4] <= flat[1e-3] <= flat[1e-1]
    assert flat[1e-3] > 0.5


# ---- hyper-parameters ------------------------------------------------------------------------------------------------


def test_the_likelihood_is_that_of_scikit_learn() -> None:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    x, y = data(40)
    f, rng = Likelihood(x, y), np.random.default_rng(0)
    for _ in range(3):
        theta = np.exp(0.5 * rng.normal(size=12))
        kernel = ConstantKernel(theta[10] ** 2) * RBF(theta[:10]) + WhiteKernel(theta[11] ** 2)
        theirs = GaussianProcessRegressor(kernel, optimizer=None, alpha=0.0).fit(x, y)
        assert f(theta) == pytest.approx(-theirs.log_marginal_likelihood_value_ / 40, rel=1e-9)
        value, slope = f.gradient(theta)
        e = 1e-5 * np.eye(12)
        differences = [(f(theta * np.exp(e[i])) - f(theta * np.exp(-e[i]))) / 2e-5 for i in range(12)]
        assert value == f(theta)
        assert slope == pytest.approx(differences, abs=1e-7)
    assert math.isnan(f(-theta))
    assert math.isnan(f(np.full(12, np.inf)))
    assert math.isnan(f(np.full(12, 1e200)))


def test_hyperparameters_approach_the_minimum() -> None:
    problem = problem_named("gp-diabetes")
    start = problem.value(problem.x0)
    assert problem.minimum < start - 0.2
    walk = walked(problem, "curved", "zo_adam", 0.1, 200)
    assert problem.minimum <= walk.value < start - 0.15
    assert walk.census.probes_outside == 0


# ---- frames ----------------------------------------------------------------------------------------------------------


def test_frames_stay_orthonormal_to_rounding() -> None:
    problem = problem_named("stiefel-trace")
    assert problem.minimum == pytest.approx(-(1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5))
    start = problem.value(problem.x0)
    walk = walked(problem, "curved", "zo_sgd", 0.01, 500)
    assert orthogonality(walk.x) <= 1e-12
    assert walk.census.probes_outside == walk.census.iterates_outside == 0
    assert problem.minimum < walk.value < start - 0.7 * (start - problem.minimum)
    naive = walked(problem, "flat", "zo_sgd", 0.01, 500, "leave")
    assert naive.value < problem.minimum - 1, "off the manifold there is no minimum"
    assert naive.census.iterates_outside == 500


def test_the_polar_factor_is_the_nearest_frame() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 3))
    u = polar(x)
    assert orthogonality(u) < 1e-14
    for _ in range(50):
        assert np.linalg.norm(x - u) <= np.linalg.norm(x - np.linalg.qr(rng.normal(size=(7, 3)))[0])
    assert np.linalg.eigvalsh(u.T @ x).min() > 0
    assert u.T @ x == pytest.approx((u.T @ x).T)


# ---- walks -----------------------------------------------------------------------------------------------------------


def corner() -> View:
    """f(x) = x_1 + x_2 over x > 0, from (1, 1)."""
    return View(
        np.ones(2),
        lambda x: float(x.sum()) if np.all(x > 0) else OUTSIDE,
        lambda x: bool(np.all(x > 0)),
        mu=1e-3,
        project=lambda x: np.maximum(x, 0.01),
    )


@pytest.mark.parametrize("outside", ["leave", "revert", "project"])
def test_what_is_done_about_the_outside(outside: str) -> None:
    view = corner()
    walk = Walk(view, methods.make("zo_sgd", lr=0.3, mu=1e-3), outside, seed=0)
    for _ in range(60):
        before = walk.x
        walk.step()
        if outside == "revert" and walk.census.reverted:
            assert np.array_equal(walk.x, before)
            break
    assert walk.census.iterates_outside > 0
    assert view.inside(walk.x) == (outside != "leave")
    if outside == "leave":
        assert walk.run.refused_in_a_row == walk.census.refused > 0
        assert math.isnan(walk.value)
    if outside == "project":
        assert walk.value == pytest.approx(0.02)
        assert walk.census.refused == 0


def test_probes_and_iterates_are_counted() -> None:
    walk = Walk(corner(), methods.make("fzoo", lr=1e-3, mu=1e-3), seed=0)
    for _ in range(4):
        walk.step()
    assert (walk.census.probes, walk.census.iterates) == (36, 4)
    wide = Walk(corner(), methods.make("zo_sgd", lr=1e-3, mu=2.0), seed=0)
    for _ in range(10):
        wide.step()
    assert wide.census.refused == 10, "of 1 +- 2 v at most one point is inside"
    assert 10 <= wide.census.probes_outside < 20
    assert wide.census.iterates == 0


def test_a_view_without_a_projection_says_so() -> None:
    with pytest.raises(ValueError, match="use outside='revert'"):
        Walk(problem_named("mesh-poisson").flat, methods.make("zo_sgd"), "project")
    problem = problem_named("stiefel-trace")
    with pytest.raises(ValueError, match="as many rates"):
        replace(problem, flat=replace(problem.flat, rates=(1.0,)))


@pytest.mark.parametrize("name", ["simplex-kl-20", "mesh-poisson", "gp-diabetes", "stiefel-trace"])
def test_both_views_show_the_same_loss(name: str) -> None:
    problem = problem_named(name)
    at = problem.x0
    assert problem.curved.inside(at)
    assert problem.space.explain(torch.from_numpy(at)) is None
    assert problem.flat.value(problem.flatten(at)) == pytest.approx(problem.value(at), rel=1e-12)
    assert problem.flat.inside(problem.flatten(at))
    assert f"{problem.dim} numbers" in problem.about()
