"""Adaptive meshes: interior nodes are convex combinations of their neighbours, the solver is scikit-fem.

Floater's theorem (One-to-one piecewise linear mappings over triangulations, Math. Comp. 72, 2003, Theorem 4.1; Tutte
1963 for equal weights): map a triangulation's boundary one-to-one onto that of a convex region, and each interior node
to a convex combination of its neighbours with positive weights. Then the piecewise linear map is one-to-one, that is,
every triangle keeps its orientation. The exception is an edge that joins two boundary nodes through the interior and
is mapped into the boundary.

So for any positive weights p_ik, the nodes that solve the system x_i = sum_k p_ik x_k(i) form a valid mesh. (The
system is solvable: its matrix is an irreducible diagonally dominant M-matrix.) It is not enough to move each node into
the hull of the old positions of its neighbours, because these move too. The converse also holds: in a valid mesh each
interior node sees all its neighbours, so mean value coordinates (Floater, CAGD 20, 2003) give it positive weights.
Therefore the product of simplices covers exactly the valid meshes with this connectivity.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from zograd.core.vector import Array

Ints = npt.NDArray[np.intp]

FLOOR = 0.01
"""The share of equal weights that is mixed into every mean. In exact arithmetic 0 would suffice, but with weights of
1e-17 rounding of coordinates destroys the area of triangles. This excludes only meshes in which a neighbour has a
weight below 1/600."""


def require_skfem() -> Any:
    try:
        import skfem
    except ImportError:
        raise ImportError("the mesh problems need scikit-fem: pip install 'zograd[pde]'") from None
    return skfem


@dataclass(frozen=True)
class Net:
    """A triangulation of the unit square with n x n cells, each cut by a diagonal of the same direction.

    nodes: (N, 2), the uniform grid. triangles: (T, 3) counter-clockwise. interior: (I,) nodes that may move.
    neighbours: (I, 6), those of each interior node, counter-clockwise. across: (T, 3), the triangle on the other side
    of the edge opposite each corner; -1 at the boundary.
    """

    nodes: Array
    triangles: Ints
    interior: Ints
    neighbours: Ints
    across: Ints

    def place(self, weights: Array) -> Array:
        """(N, 2) nodes; each interior node is the mean of its neighbours with these weights > 0, of shape (I, 6).

        Rows sum to 1. They are mixed with equal weights: (1 - FLOOR) p + FLOOR / 6. Solves one sparse system of size I.
        """
        from scipy.sparse import csc_array
        from scipy.sparse.linalg import splu

        n, moving = len(self.nodes), len(self.interior)
        index = np.full(n, -1)
        index[self.interior] = np.arange(moving)
        column = index[self.neighbours]
        free = column >= 0
        weights = (1 - FLOOR) * weights + FLOOR / column.shape[1]
        rows = np.broadcast_to(np.arange(moving)[:, None], column.shape)
        total = weights.sum(1)
        entries = np.concatenate([total, -weights[free]])
        where = np.concatenate([np.arange(moving), rows[free]]), np.concatenate([np.arange(moving), column[free]])
        fixed = np.where(free[..., None], 0.0, self.nodes[self.neighbours])
        right = (weights[..., None] * fixed).sum(1)
        nodes = self.nodes.copy()
        nodes[self.interior] = splu(csc_array((entries, where), (moving, moving))).solve(right)
        return nodes

    def moved(self, interior: Array) -> Array:
        """(N, 2) all nodes, with these positions of the interior nodes."""
        nodes = self.nodes.copy()
        nodes[self.interior] = interior
        return nodes

    def areas(self, nodes: Array) -> Array:
        """Signed areas of the triangles; positive if the triangle keeps its orientation."""
        a, b, c = (nodes[self.triangles[:, k]] for k in range(3))
        ab, ac = b - a, c - a
        return np.asarray(0.5 * (ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]))

    def valid(self, nodes: Array) -> bool:
        return bool(np.all(self.areas(nodes) > 0))  # False for NaN

    def weights(self, nodes: Array) -> Array:
        """(I, 6) weights with place(weights) = nodes, from mean value coordinates among the neighbours.

        w_k = (tan(a_{k-1} / 2) + tan(a_k / 2)) / |x_k - x|, a_k the angle at x between neighbours k and k + 1.
        """
        spokes = nodes[self.neighbours] - nodes[self.interior][:, None]
        after = np.roll(spokes, -1, axis=1)
        cross = spokes[..., 0] * after[..., 1] - spokes[..., 1] * after[..., 0]
        half = np.tan(0.5 * np.arctan2(cross, (spokes * after).sum(-1)))
        w = (half + np.roll(half, 1, axis=1)) / np.linalg.norm(spokes, axis=-1)
        return np.asarray((w / w.sum(1, keepdims=True) - FLOOR / w.shape[1]) / (1 - FLOOR))


@cache
def net(n: int) -> Net:
    """The uniform net of n x n cells."""
    skfem = require_skfem()
    grid = np.linspace(0.0, 1.0, n + 1)
    mesh = skfem.MeshTri.init_tensor(grid, grid)
    nodes, triangles = mesh.p.T.copy(), mesh.t.T.astype(np.intp)
    a, b, c = (nodes[triangles[:, k]] for k in range(3))
    clockwise = np.cross(np.c_[b - a, 0 * a[:, :1]], np.c_[c - a, 0 * a[:, :1]])[:, 2] < 0
    triangles[clockwise] = triangles[clockwise][:, [0, 2, 1]]
    edges: dict[tuple[int, int], tuple[int, int]] = {}
    for t, corners in enumerate(triangles):
        for k in range(3):
            edges[int(corners[(k + 1) % 3]), int(corners[(k + 2) % 3])] = (t, k)
    across = np.full(triangles.shape, -1)
    for (i, j), (t, k) in edges.items():
        if (j, i) in edges:
            across[t, k] = edges[j, i][0]
    interior = np.asarray(mesh.interior_nodes(), dtype=np.intp)
    of: dict[int, list[int]] = {int(i): [] for i in range(len(nodes))}
    for i, j in edges:
        of[i].append(j)
    around = []
    for i in interior:
        spoke = nodes[of[int(i)]] - nodes[i]
        around.append(np.array(of[int(i)])[np.argsort(np.arctan2(spoke[:, 1], spoke[:, 0]))])
    return Net(nodes, triangles, interior, np.stack(around), across)


def interpolate(mesh: Net, nodes: Array, u: Array, points: Array, start: Ints, steps: int = 200) -> Array:
    """The piecewise linear function with values u at the nodes, at `points`; `start`: triangles near them.

    u: (..., nodes), one function or several on one mesh, whose points are looked for once. Returns (..., points).

    For each point, walks from triangle to triangle across the edge beyond which the point lies farthest. Points not
    found after `steps` are searched in every triangle. Needs a valid mesh.
    """
    corner = nodes[mesh.triangles]
    inverse = np.linalg.inv(np.stack([corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]], axis=-1))
    out = np.empty((*u.shape[:-1], len(points)), dtype=u.dtype)
    todo, at = np.arange(len(points)), start.copy()
    for _ in range(steps):
        local = _barycentric(corner[at, 0], inverse[at], points[todo])
        worst = local.argmin(1)
        beyond = mesh.across[at, worst]
        done = (local[np.arange(len(at)), worst] >= -1e-12) | (beyond < 0)
        out[..., todo[done]] = (u[..., mesh.triangles[at[done]]] * local[done]).sum(-1)
        todo, at = todo[~done], beyond[~done]
        if not len(todo):
            return out
    for i in todo:
        local = _barycentric(corner[:, 0], inverse, points[i])
        t = int(local.min(1).argmax())
        out[..., i] = (u[..., mesh.triangles[t]] * local[t]).sum(-1)
    return out


def _barycentric(origin: Array, inverse: Array, points: Array) -> Array:
    b = np.einsum("tij,tj->ti", inverse, points - origin)
    return np.asarray(np.concatenate([1 - b.sum(1, keepdims=True), b], axis=1))


def locate(mesh: Net, points: Array) -> Ints:
    """A triangle of the uniform net that holds each point."""
    corner = mesh.nodes[mesh.triangles]
    inverse = np.linalg.inv(np.stack([corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]], axis=-1))
    local = np.stack([_barycentric(corner[:, 0], inverse, p).min(1) for p in points])
    return np.asarray(local.argmax(1), dtype=np.intp)
