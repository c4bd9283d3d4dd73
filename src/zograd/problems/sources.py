"""The Poisson equation with a source at a place that differs from case to case, on one coarse mesh for all cases."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from zograd.core.vector import Array
from zograd.problems.mesh import Net, interpolate, locate, net, require_skfem

STRENGTH, SHARPNESS = 100.0, 60.0
REFINED = 48
"""Cells a side of the reference mesh; a multiple of those of the fine grid."""


def load(place: Array, x: Array, y: Array) -> Array:
    """The source 100 exp(-60 |(x, y) - place|^2): a peak of width 0.09. place: two numbers, or two arrays of them."""
    return np.asarray(STRENGTH * np.exp(-SHARPNESS * ((x - place[0]) ** 2 + (y - place[1]) ** 2)))


def places(angle: Array, radius: Array) -> Array:
    """(cases, 2) places on circles around the middle of the unit square."""
    return np.stack([0.5 + radius * np.cos(angle), 0.5 + radius * np.sin(angle)], axis=1)


@dataclass(frozen=True)
class Sources:
    """-lap u = source in the unit square, u = 0 on its boundary, by linear elements on a net of n x n cells.

    The nodes of the net are means of their neighbours with weights on a product of simplices (`mesh.Net.place`), so
    any weights > 0 give a valid mesh. Values are read at the vertices of a uniform grid of fine x fine cells.
    """

    n: int = 6
    fine: int = 16

    def __post_init__(self) -> None:
        if self.n < 2 or self.fine < 1 or REFINED % self.fine:
            raise ValueError(
                f"Sources(n={self.n}, fine={self.fine}) needs n >= 2, and a fine that divides {REFINED}, such as 16"
            )

    @property
    def net(self) -> Net:
        return net(self.n)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weights: (interior nodes, neighbours)."""
        return self.net.neighbours.shape[0], self.net.neighbours.shape[1]

    @cached_property
    def points(self) -> Array:
        """(points, 2): the vertices of the fine grid, row by row."""
        line = np.linspace(0.0, 1.0, self.fine + 1)
        return np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)

    def coarse(self, weights: Array, at: Array) -> Array:
        """(cases, points): the solutions on the mesh of these weights. One assembly and one search serve all cases.

        weights: (interior nodes, 6), rows that sum to 1. at: (cases, 2), the places of the sources.
        """
        skfem, nodes = require_skfem(), self.net.place(weights)
        mesh = skfem.MeshTri(np.ascontiguousarray(nodes.T), self.net.triangles.T.copy(), validate=False)
        u = _solve(skfem.Basis(mesh, skfem.ElementTriP1(), intorder=4), at, self.net.interior)
        return interpolate(self.net, nodes, u, self.points, _start(self.n, self.fine))

    def exact(self, at: Array) -> Array:
        """(cases, points): by quadratic elements on 48 x 48 cells."""
        skfem = require_skfem()
        grid = np.linspace(0.0, 1.0, REFINED + 1)
        mesh = skfem.MeshTri.init_tensor(grid, grid)
        basis = skfem.Basis(mesh, skfem.ElementTriP2(), intorder=6)
        u = _solve(basis, at, np.setdiff1d(np.arange(basis.N), basis.get_dofs().flatten()))[:, basis.nodal_dofs[0]]
        order = {tuple(p): k for k, p in enumerate(np.rint(mesh.p.T * REFINED).astype(int))}
        wanted = np.rint(self.points * REFINED).astype(int)
        return np.asarray(u[:, [order[tuple(p)] for p in wanted]])


def _solve(basis: Any, at: Array, inside: Any) -> Array:
    """(cases, unknowns): the solutions of all cases, of which those `inside` are not on the boundary."""
    from scipy.sparse.linalg import splu

    skfem = require_skfem()
    energy = skfem.BilinearForm(lambda u, v, w: u.grad[0] * v.grad[0] + u.grad[1] * v.grad[1]).assemble(basis)
    x, y = np.asarray(basis.global_coordinates())
    sources = load(at.T[:, :, None, None], x, y) * basis.dx
    f = np.zeros((basis.N, len(at)))
    for dofs, shape in zip(basis.element_dofs, basis.basis, strict=True):
        values = np.broadcast_to(np.asarray(shape[0]), x.shape)
        np.add.at(f, dofs, np.einsum("ceq,eq->ec", sources, values))
    u = np.zeros((basis.N, len(at)))
    u[inside] = splu(energy.tocsc()[inside][:, inside]).solve(f[inside])
    return u.T


@cache
def _start(n: int, fine: int) -> Any:
    return locate(net(n), Sources(n, fine).points)
