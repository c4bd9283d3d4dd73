"""A coarse solver and a network that corrects it, trained together: one by autograd, its mesh by evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from zograd.api.black_box import black_box
from zograd.core.vector import Array
from zograd.problems.sources import Sources, places

Cases = tuple[Array, Tensor]
"""Places of the source, (cases, 2), and the exact solutions at the points of the problem, (cases, points)."""


def cases(problem: Sources, number: int, near: float, far: float, seed: int) -> Cases:
    """Sources at an angle and a distance from the middle, `near` to `far`, drawn evenly. Needs scikit-fem."""
    rng = np.random.default_rng(seed)
    at = places(rng.uniform(0, 2 * np.pi, number), rng.uniform(near, far, number))
    return at, torch.from_numpy(problem.exact(at)).float()


class Network(torch.nn.Module):
    """Three layers relu(A h W) of `width` and a linear one on the fine grid, with A the average over neighbours.

    It reads the point, the place of the source and, with `sees_solution`, the value u of a solver, which it corrects.
    Kipf and Welling 2017; as in CFD-GCN.
    """

    def __init__(self, problem: Sources, sees_solution: bool, width: int = 32) -> None:
        super().__init__()
        side = problem.fine + 1
        line = torch.diag(torch.ones(side)) + torch.diag(torch.ones(side - 1), 1) + torch.diag(torch.ones(side - 1), -1)
        self.average = line / line.sum(1, keepdim=True)
        self.points = torch.from_numpy(problem.points).float()
        self.sees_solution = sees_solution
        sizes = (4 + sees_solution, width, width, width)
        self.hidden = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in pairwise(sizes))
        self.out = torch.nn.Linear(width, 1)

    def averaged(self, h: Tensor) -> Tensor:
        """A h, (cases, points, width): A is the average along one axis of the grid, then along the other."""
        number, side = len(h), len(self.average)
        rows = self.average @ h.reshape(number, side, -1)
        return (self.average @ rows.reshape(number * side, side, -1)).reshape(h.shape)

    def forward(self, at: Tensor, u: Tensor) -> Tensor:
        """u, or zero where it is not seen, plus a correction: (cases, points)."""
        number, points = u.shape
        h = torch.cat([self.points.expand(number, -1, -1), at[:, None].expand(-1, points, -1)], dim=2)
        if self.sees_solution:
            h = torch.cat([h, u[:, :, None]], dim=2)
        for layer in self.hidden:
            h = torch.relu(self.averaged(layer(h)))
        out: Tensor = self.out(h)[:, :, 0] + (u if self.sees_solution else 0)
        return out


def softmax(m: Array) -> Array:
    """Weights of the nodes on their simplices: softmax of each row."""
    e = np.exp(m - m.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


@dataclass(frozen=True)
class Trained:
    """What `train` gives: the network, the mesh m (of `Sources.shape`), the loss of each step, and the solves."""

    network: Network
    mesh: Tensor
    losses: list[float]
    solves: int


def train(
    problem: Sources,
    known: Cases,
    steps: int,
    seed: int,
    *,
    solver: bool,
    mesh_rate: float,
    warm: float = 0.0,
    rate: float = 1e-2,
    pairs: int = 5,
    mu: float = 1e-3,
) -> Trained:
    """Adam with a cosine schedule on the mean square error over all known cases.

    solver: the network sees the coarse solution. mesh_rate: of m; 0 keeps the uniform mesh. warm: share of the steps
    before which the mesh is kept too. rate: of the network. The gradient in m is (1/n) sum_j <(S(m + mu v_j)
    - S(m - mu v_j)) / 2 mu, a> v_j over n = `pairs` directions (`zo.black_box`), with a the gradient in the solution.
    A solve is the coarse solver on all known cases; a step with a moving mesh takes 2 n + 1 of them.
    """
    torch.manual_seed(seed)
    at, wanted = known
    network = Network(problem, solver)
    box = black_box(lambda m: problem.coarse(softmax(m), at), n=pairs, mu=mu, seed=seed)
    m = torch.zeros(problem.shape, requires_grad=True)
    groups = [{"params": network.parameters(), "lr": rate}, {"params": [m], "lr": mesh_rate}]
    opt = torch.optim.Adam(groups)
    falls = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    places_, fixed, losses = torch.from_numpy(at).float(), box(m).detach(), []
    for step in range(steps):
        moves = mesh_rate > 0 and step >= warm * steps
        loss = ((network(places_, box(m) if moves else fixed) - wanted) ** 2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        falls.step()
        losses.append(float(loss.detach()))
    return Trained(network, m.detach(), losses, box.solves)


def output(problem: Sources, network: Network | None, m: Tensor, at: Array) -> Tensor:
    """What solver and network say of sources at `at`, (cases, points); the solver alone without a network."""
    u = torch.from_numpy(problem.coarse(softmax(m.double().numpy()), at)).float()
    with torch.no_grad():
        found: Tensor = u if network is None else network(torch.from_numpy(at).float(), u)
    return found


def error(problem: Sources, network: Network | None, m: Tensor, test: Cases) -> float:
    """Root mean square error of `output` on cases."""
    return float(((output(problem, network, m, test[0]) - test[1]) ** 2).mean().sqrt())
