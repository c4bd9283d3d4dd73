"""A program without derivatives as a layer of a torch network: its backward pass takes evaluations of it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zograd.api.gradient import dense
from zograd.api.variables import ArrayStore
from zograd.core import keys
from zograd.core.query import Query
from zograd.estimators.differences import Central
from zograd.estimators.standalone import answered, asking
from zograd.laws import Law, Rademacher
from zograd.spaces import Euclidean
from zograd.stores import Store

Array: TypeAlias = npt.NDArray[np.float64]
Solver: TypeAlias = Callable[[Array], npt.ArrayLike]


class BlackBox:
    """What `black_box` returns: y = S(m), with gradients. `solves` counts evaluations, `backwards` backward passes."""

    def __init__(self, solver: Solver, estimator: Central, mu: float, law: Law, seed: int, workers: Any) -> None:
        self.solver, self.estimator, self.mu, self.law, self.seed = solver, estimator, mu, law, seed
        self.map: Callable[..., Iterable[Any]] = map if workers is None else workers
        self.solves = self.backwards = 0

    def __call__(self, m: Tensor) -> Tensor:
        """S(m), of the dtype and on the device of m."""
        if not (isinstance(m, Tensor) and m.is_floating_point()):
            raise TypeError(
                f"a black box takes a tensor of floating point numbers, got {_what(m)}; pass torch.tensor(m)"
            )
        if m.numel() == 0:
            raise ValueError("a black box takes a tensor with at least one element, got an empty one")
        out: Tensor = _Pass.apply(m, self)  # type: ignore[no-untyped-call]
        return out

    def values(self, points: Sequence[Array]) -> list[Array]:
        """S at each point."""
        found = [_solved(y) for y in self.map(self.solver, points)]
        self.solves += len(points)
        return found

    def pullback(self, m: Array, a: Array) -> Array:
        """An estimate of J(m)^T a, where J is the Jacobian of S: see `black_box`. Costs 2 n solves.

        Raises ValueError where S changes its shape, or no pair of solves is finite.
        """
        store = ArrayStore(m, Euclidean())

        def oracle(_: Store, queries: Sequence[Query], key: int) -> list[float]:
            found = self.values([np.asarray(store.point(query.at), np.float64) for query in queries])
            wrong = next((y.shape for y in found if y.shape != a.shape), None)
            if wrong is not None:
                raise ValueError(
                    f"the black box returned the shape {a.shape}, and near that point {wrong}; keep one shape"
                )
            return [float(np.vdot(y, a)) for y in found]

        step, self.backwards = self.backwards, self.backwards + 1
        ask = asking(store, self.law, keys.Part.BLACK_BOX, mu=self.mu, seed=self.seed, step=step)
        estimate = answered(self.estimator(ask), oracle, store, step)
        if not estimate.vector.terms:
            raise ValueError(
                f"none of {self.estimator.n} pairs of solves around the point was finite; examine the solver there, or "
                f"pass a smaller mu than {self.mu:g}"
            )
        return dense(store, estimate.vector).reshape(m.shape)


def black_box(
    solver: Solver,
    *,
    n: int = 16,
    mu: float = 1e-3,
    law: Law = Rademacher(),
    seed: int = 0,
    workers: Callable[..., Iterable[Any]] | None = None,
) -> BlackBox:
    """A program m -> S(m) as a differentiable function of torch, whose backward pass evaluates the program.

        J(m)^T a  ~  (1/n) sum_j <(S(m + mu v_j) - S(m - mu v_j)) / (2 mu), a> v_j,      E v v^T = I,

    where a is the gradient of the loss in S(m). The estimate is unbiased up to O(mu^2) and exact in the mean for a
    linear S. With signs its variance is (d - 1)/n |J^T a|^2 for d inputs. Directions come from `seed` and the number of
    the backward pass, so a run repeats to the bit. Spall (1992); as a layer between networks, cf. Belbute-Peres,
    Economon and Kolter, "Combining differentiable PDE solvers and graph neural networks" (ICML 2020), who
    differentiate the solver.

    Args:
        solver: takes a float64 array of the shape of m and returns an array of any shape, the same for all m. It runs
            on the CPU.
        n: pairs of evaluations for a backward pass.
        mu: the radius of the differences, in units of m. Above the noise of the solver, below the scale of its bends.
        law: the law of the directions.
        seed: of the directions.
        workers: a `map` that runs the 2 n evaluations of a backward pass side by side, such as `Executor.map`.

    Costs 1 evaluation forward and 2 n backward. Only m is kept between them. Gradients of gradients
    are refused by torch. A pair with a value that is not finite is left out.

    Raises ValueError for n < 1 and mu <= 0, and in a backward pass for a changed shape or where no pair is finite.

        >>> import torch
        >>> square = black_box(lambda m: m**2, n=64)
        >>> m = torch.ones(3, dtype=torch.float64, requires_grad=True)
        >>> square(m).sum().backward()
        >>> square.solves
        129
    """
    if not callable(solver):
        raise TypeError(f"solver={solver!r} is no function; pass a callable that takes an array and returns one")
    if not (isinstance(mu, int | float) and mu > 0):
        raise ValueError(f"mu={mu!r} must be > 0: it is the radius of the differences, for example 1e-3")
    if workers is not None and not callable(workers):
        raise TypeError(f"workers={workers!r} is no map; pass executor.map of concurrent.futures, or pool.map")
    return BlackBox(solver, Central(operator.index(n)), float(mu), law, operator.index(seed), workers)


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, m: Tensor, box: BlackBox) -> Tensor:
        ctx.save_for_backward(m)
        ctx.box = box
        (y,) = box.values([_numpy(m)])
        return torch.from_numpy(y.copy()).to(m.device, m.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, a: Tensor) -> tuple[Tensor, None]:
        (m,) = ctx.saved_tensors
        return torch.from_numpy(ctx.box.pullback(_numpy(m), _numpy(a))).to(m.device, m.dtype), None


def _numpy(t: Tensor) -> Array:
    """A float64 copy."""
    return np.array(t.detach().cpu().double().numpy())


def _solved(y: Any) -> Array:
    """What a solver returned, as float64. TypeError for what are no real numbers."""
    said = repr(y)
    try:
        array = np.asarray(y.detach().cpu() if isinstance(y, Tensor) else y)
        if array.dtype.kind in "biuf":
            return array.astype(np.float64)
        if array.dtype.kind == "c":
            said = "complex numbers"
    except ValueError:
        said = "parts of different shapes"
    raise TypeError(f"the black box has to return an array of real numbers, but it returned {said}")


def _what(m: Any) -> str:
    return f"a tensor of {m.dtype}" if isinstance(m, Tensor) else type(m).__name__
