"""Poisson and Helmholtz equations on adaptive meshes: the error of finite elements as a function of the mesh."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zograd.core.vector import Array
from zograd.problems.base import OUTSIDE, GeometryProblem, View, half_decades
from zograd.problems.mesh import Ints, Net, interpolate, locate, net, require_skfem
from zograd.spaces import Domain, Simplex

CENTRE = (0.3, 0.65)
SHARPNESS = 100.0


def source(x: Array, y: Array) -> Array:
    """A peak of width 0.07: 100 exp(-100 ((x - 0.3)^2 + (y - 0.65)^2))."""
    return np.asarray(100.0 * np.exp(-SHARPNESS * ((x - CENTRE[0]) ** 2 + (y - CENTRE[1]) ** 2)))


def solve(
    mesh: Any, k: float = 0.0, *, quadratic: bool = False, order: int = 4, leaving: Any = None
) -> tuple[Any, Array]:
    """(basis, u) of -lap u - k^2 u = source by finite elements on a scikit-fem mesh.

    k = 0: u = 0 on the boundary. k > 0: waves leave through the boundary, du/dn = i k u, and u is complex. order: of
    the quadrature. leaving: the matrix of this boundary condition, if it is known.
    """
    skfem = require_skfem()
    basis = skfem.Basis(mesh, skfem.ElementTriP2() if quadratic else skfem.ElementTriP1(), intorder=order)

    def energy(u: Any, v: Any, w: Any) -> Any:
        return u.grad[0] * v.grad[0] + u.grad[1] * v.grad[1] - k * k * (u * v)

    def load(v: Any, w: Any) -> Any:
        return source(w.x[0], w.x[1]) * v

    a, f = skfem.BilinearForm(energy).assemble(basis), skfem.LinearForm(load).assemble(basis)
    if not k:
        return basis, np.asarray(skfem.solve(*skfem.condense(a, f, D=basis.get_dofs())))
    leaving = boundary(mesh, basis.elem) if leaving is None else leaving
    return basis, np.asarray(skfem.solve(a - 1j * k * leaving, f.astype(complex)))


def boundary(mesh: Any, element: Any) -> Any:
    """The matrix of the integral of u v over the boundary."""
    skfem = require_skfem()
    return skfem.BilinearForm(lambda u, v, w: u * v).assemble(skfem.FacetBasis(mesh, element, intorder=4))


@cache
def fixed_boundary(n: int) -> Any:
    """The boundary matrix of linear elements on the net; it does not depend on the interior nodes."""
    skfem, mesh = require_skfem(), net(n)
    return boundary(skfem.MeshTri(mesh.nodes.T.copy(), mesh.triangles.T.copy(), validate=False), skfem.ElementTriP1())


@dataclass(frozen=True)
class Reference:
    """A fine solution by quadratic elements on m x m cells: values at the vertices, and the L2 norm of that grid."""

    m: int
    k: float
    points: Array
    u: Array
    mass: Any

    def norm(self, e: Array) -> float:
        return float(np.sqrt(np.real(np.vdot(e, self.mass @ e))))


@cache
def reference(m: int, k: float) -> Reference:
    skfem = require_skfem()
    grid = np.linspace(0.0, 1.0, m + 1)
    fine = skfem.MeshTri.init_tensor(grid, grid)
    basis, u = solve(fine, k, quadratic=True, order=8)
    mass = skfem.BilinearForm(lambda u, v, w: u * v).assemble(skfem.Basis(fine, skfem.ElementTriP1()))
    return Reference(m, k, fine.p.T.copy(), u[basis.nodal_dofs[0]], mass)


@dataclass(frozen=True)
class Equation:
    """The relative L2 error, against a fine solution, of linear elements on the net of n x n cells with moved nodes.

    The error is evaluated at the fixed points of the fine grid. If it were integrated over the moving elements, a mesh
    could hide error between their quadrature points.
    """

    n: int
    fine: int
    k: float = 0.0

    @property
    def mesh(self) -> Net:
        return net(self.n)

    def error(self, nodes: Array, *, fine: int | None = None, order: int = 4) -> float:
        """|u_h - u| / |u|; NaN for a mesh that is not valid."""
        if not self.mesh.valid(nodes):
            return OUTSIDE
        against = reference(fine or self.fine, self.k)
        u = self.solution(nodes, order)
        e = interpolate(self.mesh, nodes, u, against.points, _start(self.n, against.m, self.k)) - against.u
        return against.norm(e) / against.norm(against.u)

    def solution(self, nodes: Array, order: int = 4) -> Array:
        """u_h at the nodes."""
        mesh = require_skfem().MeshTri(np.ascontiguousarray(nodes.T), self.mesh.triangles.T.copy(), validate=False)
        return solve(mesh, self.k, order=order, leaving=fixed_boundary(self.n) if self.k else None)[1]


@cache
def _start(n: int, m: int, k: float) -> Ints:
    return locate(net(n), reference(m, k).points)


DIKIN = 100
"""Up to this many moving nodes the metric of `Domain` is used; each of its lifts needs a dense eigendecomposition."""


class Walls:
    """The areas of the triangles that may move, as inequalities of `spaces.Domain` on node coordinates (I, 2)."""

    def __init__(self, mesh: Net) -> None:
        moving = np.isin(mesh.triangles, mesh.interior).any(1)
        self.nodes, self.interior = torch.from_numpy(mesh.nodes), torch.from_numpy(mesh.interior)
        self.triangles = torch.from_numpy(mesh.triangles[moving])
        self.place = torch.full((len(mesh.nodes),), -1)
        self.place[self.interior] = torch.arange(len(mesh.interior))

    def corners(self, x: Tensor) -> tuple[Tensor, ...]:
        nodes = self.nodes.index_copy(0, self.interior, x)
        return tuple(nodes[self.triangles[:, k]] for k in range(3))

    def __call__(self, x: Tensor) -> Tensor:
        a, b, c = self.corners(x)
        ab, ac = b - a, c - a
        return 0.5 * (ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0])

    def jacobian(self, x: Tensor) -> Tensor:
        """(triangles, I, 2): the gradient of an area in a corner is half the opposite edge, turned by a right angle."""
        corners, t = self.corners(x), torch.arange(len(self.triangles))
        found = x.new_zeros(len(t), *x.shape)
        for k in range(3):
            p, q, at = corners[(k + 1) % 3], corners[(k + 2) % 3], self.place[self.triangles[:, k]]
            slope = 0.5 * torch.stack([p[:, 1] - q[:, 1], q[:, 0] - p[:, 0]], 1)
            found[t[at >= 0], at[at >= 0]] = slope[at >= 0]
        return found


def adaptive(name: str, title: str, equation: Equation, facts: str, budget: int) -> GeometryProblem:
    """The error of the equation, as a function of weights on a product of simplices and of node coordinates.

    There is no projection onto the valid meshes, so flat methods can only undo moves.
    """
    mesh = equation.mesh
    uniform = np.full(mesh.neighbours.shape, 1.0 / mesh.neighbours.shape[1])

    last: dict[bytes, Array] = {}

    def placed(p: Array) -> Array:
        """place(p), cached, because the loss and the check of validity both need it."""
        if (key := p.tobytes()) not in last:
            last.clear()
            last[key] = mesh.place(p)
        return last[key]

    def nodes(view: str, x: Array) -> Array:
        return mesh.moved(x) if view == "flat" else placed(x)

    def measure(view: str, x: Array) -> dict[str, float]:
        at = nodes(view, x)
        areas = mesh.areas(at)
        return {
            "rescored": equation.error(at, fine=RESCORE * equation.fine, order=10),
            "least_area": float(areas.min() / np.abs(mesh.areas(mesh.nodes)).min()),
            "inverted": int((areas <= 0).sum()),
        }

    curved = View(
        uniform,
        lambda p: equation.error(placed(p)),
        lambda p: mesh.valid(placed(p)),
        mu=1e-2,
        rates=half_decades(1e-2, 10.0),
        space=Simplex(),
    )
    flat = View(
        mesh.nodes[mesh.interior],
        lambda x: equation.error(mesh.moved(x)),
        lambda x: mesh.valid(mesh.moved(x)),
        mu=1e-3,
        rates=half_decades(1e-4, 1e-1),
    )

    walls = Walls(mesh)
    areas = View(flat.x0, flat.value, flat.inside, mu=1e-2, rates=curved.rates, space=Domain(walls, walls.jacobian))

    def picture(view: str, x: Array) -> list[float]:
        return [round(float(c), 4) for c in nodes(view, x)[mesh.interior].ravel()]

    return GeometryProblem(
        name,
        title,
        facts,
        curved,
        flat,
        budget=budget,
        others={"Dikin": ("flat", areas)} if mesh.interior.size <= DIKIN else {},
        flatten=lambda p: mesh.place(p)[mesh.interior],
        measure=measure,
        picture=picture,
    )


RESCORE = 2
"""The factor by which the grid is finer for the second score of final meshes, with over-integrated loads."""


def poisson() -> GeometryProblem:
    return adaptive(
        "mesh-poisson",
        "Poisson's equation on a mesh that adapts",
        Equation(10, 40),
        "-lap u = a peak of width 0.07, u = 0 on the boundary, linear elements on 10 x 10 cells, relative L2 error "
        "against quadratic elements on 40 x 40",
        budget=1500,
    )


def helmholtz() -> GeometryProblem:
    return adaptive(
        "mesh-helmholtz",
        "Helmholtz' equation on a mesh that adapts",
        Equation(20, 60, 10.0),
        "-lap u - 100 u = a peak of width 0.07, du/dn = 10 i u on the boundary, linear elements on 20 x 20 cells, "
        "relative L2 error against quadratic elements on 60 x 60",
        budget=800,
    )
