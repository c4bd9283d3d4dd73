"""Problems with a domain: simplices, meshes, positive hyper-parameters, orthonormal frames.

Each problem (`base.GeometryProblem`) has one loss in two kinds of coordinates: those of a space that fits its domain,
and flat ones. `python -m benchmarks.geometry` measures the benefit of the space.

Files: base.py (the base class, and a run that counts points outside), simplex.py, mesh.py and pde.py (Poisson and
Helmholtz by scikit-fem), gaussian_process.py, stiefel.py. Problems without a domain: problem.py and small.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from zograd.problems.base import GeometryProblem, View, Walk
from zograd.problems.gaussian_process import hyperparameters
from zograd.problems.pde import helmholtz, poisson
from zograd.problems.simplex import near_boundary
from zograd.problems.stiefel import trace

__all__ = [
    "PROBLEMS", "GeometryProblem", "View", "Walk", "helmholtz", "hyperparameters", "near_boundary", "poisson",
    "problem_named", "trace",
]  # fmt: skip

PROBLEMS: dict[str, Callable[[], GeometryProblem]] = {
    "simplex-kl-20": lambda: near_boundary("kl", 20),
    "simplex-kl-50": lambda: near_boundary("kl", 50),
    "simplex-square-20": lambda: near_boundary("square", 20),
    "mesh-poisson": poisson,
    "mesh-helmholtz": helmholtz,
    "gp-diabetes": hyperparameters,
    "stiefel-trace": trace,
}
"""The problems of docs/geometry.md, by name."""


@cache
def problem_named(name: str) -> GeometryProblem:
    """A problem by its name. Raises ImportError if its library is not installed."""
    return PROBLEMS[name]()
