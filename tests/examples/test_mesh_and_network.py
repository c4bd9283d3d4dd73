"""Rows 8 and 12: the Poisson problem with many sources, and the gradient of its black box against the Jacobian."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import zograd as zo
from zograd.problems.mesh_network import Network, softmax
from zograd.problems.sources import Sources, load, places

pytest.importorskip("skfem")


@pytest.fixture(scope="module")
def small() -> tuple[Sources, np.ndarray]:
    rng = np.random.default_rng(0)
    return Sources(3, 8), places(rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.1, 0.3, 3))


def test_the_coarse_solution_converges_to_the_exact_one() -> None:
    """Of second order in the width of a cell, and zero on the boundary."""
    at = places(np.array([0.3, 2.0]), np.array([0.1, 0.25]))
    errors = []
    for n in (8, 16, 32):
        problem = Sources(n, 16)
        exact = problem.exact(at)
        errors.append(np.sqrt(((problem.coarse(np.full(problem.shape, 1 / 6), at) - exact) ** 2).mean()))
    assert errors[0] / errors[1] > 3
    assert errors[1] / errors[2] > 3
    edge = np.any((problem.points == 0) | (problem.points == 1), axis=1)
    assert np.all(exact[:, edge] == 0)


def test_the_exact_solution_solves_the_equation() -> None:
    """Five-point differences of the values on the grid of 48 cells: -lap u = source to the order of the differences."""
    at = places(np.array([1.0]), np.array([0.2]))
    problem = Sources(4, 48)
    u = problem.exact(at)[0].reshape(49, 49)
    laplacian = 48**2 * (u[2:, 1:-1] + u[:-2, 1:-1] + u[1:-1, 2:] + u[1:-1, :-2] - 4 * u[1:-1, 1:-1])
    x, y = problem.points.reshape(49, 49, 2)[1:-1, 1:-1].transpose(2, 0, 1)
    assert np.abs(-laplacian - load(at[0], x, y)).max() < 0.05 * load(at[0], x, y).max()


def test_the_gradient_in_the_mesh_is_that_of_the_jacobian_in_the_mean(small: tuple[Sources, np.ndarray]) -> None:
    """200 estimates against 2 x 24 central differences: each entry within 4 standard errors."""
    problem, at = small
    solver = lambda m: problem.coarse(softmax(m), at)  # noqa: E731
    rng = np.random.default_rng(1)
    m, a = 0.3 * rng.standard_normal(problem.shape), rng.standard_normal((3, 81))
    exact = np.empty(m.size)
    for k in range(m.size):
        step = np.zeros(m.size)
        step[k] = 1e-4
        step = step.reshape(m.shape)
        exact[k] = np.vdot(solver(m + step) - solver(m - step), a) / 2e-4
    box = zo.black_box(solver, n=1, mu=1e-3)
    found = np.array([box.pullback(m, a).reshape(-1) for _ in range(200)])
    error = found.std(0, ddof=1) / np.sqrt(len(found))
    assert np.all(np.abs(found.mean(0) - exact) < 4 * error)
    assert np.linalg.norm(found.mean(0) - exact) < 0.5 * np.linalg.norm(exact)


def test_one_step_along_the_estimate_lowers_the_error_of_the_mesh() -> None:
    problem = Sources(6, 16)
    at = places(np.linspace(0, 6, 6), np.full(6, 0.2))
    exact = torch.from_numpy(problem.exact(at))
    box = zo.black_box(lambda m: problem.coarse(softmax(m), at), n=16)
    m = torch.zeros(problem.shape, dtype=torch.float64, requires_grad=True)
    opt, losses = torch.optim.Adam([m], 0.05), []
    for _ in range(12):
        loss = ((box(m) - exact) ** 2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
        assert problem.net.valid(problem.net.place(softmax(m.detach().numpy())))
    assert losses[-1] < 0.9 * losses[0]


def test_the_average_of_the_network_is_that_of_each_point_and_its_neighbours(small: tuple[Sources, np.ndarray]) -> None:
    network = Network(small[0], True)
    h = torch.randn(3, 81, 5)
    found = network.averaged(h).reshape(3, 9, 9, 5)
    for i, j in ((0, 0), (4, 8), (5, 3)):
        around = h.reshape(3, 9, 9, 5)[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
        torch.testing.assert_close(found[:, i, j], around.mean((1, 2)))


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="a fine that divides 48"):
        Sources(6, 10)
