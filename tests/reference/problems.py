"""What the tests of the core share: the form of a case, and small losses (`small_problems` has the cases)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from bases import expand
from torch import Tensor, nn

from zograd import methods
from zograd.core.query import Ask, Query
from zograd.core.run import Method, Record, Run
from zograd.core.vector import Vector
from zograd.laws import Draw
from zograd.spaces import PositiveOrthant
from zograd.stores import Store

Array = npt.NDArray[Any]
VECTORS: tuple[tuple[int, ...], ...] = ((12,), (8,))
"""Two leaves, so that a slip in the address of an element shows."""


@dataclass(frozen=True)
class Case:
    """A menu entry with settings that move a small problem, and the paper's recurrence it must follow.

    draws: directions a step that the paper takes; None: the estimator's n. terms: number of terms of the finite sum
    that the comparison with the paper runs on (the other laws run on `smooth`). ours: settings that the paper's
    function does not take. pulls: x moves even where all losses are equal (towards a set, by a penalty).
    shapes: of the two leaves, 20 elements together, that the comparison with the paper runs on.
    """

    name: str
    paper: Callable[..., Iterator[Array]]
    settings: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    draws: int | None = None
    terms: int = 0
    ours: tuple[str, ...] = ("n", "law", "replay")
    pulls: bool = False
    shapes: tuple[tuple[int, ...], ...] = VECTORS

    @property
    def id(self) -> str:
        return f"{self.name}-{self.label}" if self.label else self.name

    def method(self, **changed: Any) -> Method[Any]:
        return methods.make(self.name, **{**self.settings, **changed})

    def widened(self, radius: float) -> Method[Any]:
        """The method on weights that `settings` did not foresee: a constraint set wide enough to hold them."""
        if "set" not in self.settings:
            map_ = self.settings.get("map")
            if not hasattr(map_, "set"):
                return self.method()
            return self.method(map=replace(map_, set=replace(map_.set, radius=radius)))
        return self.method(set=replace(self.settings["set"], radius=radius))

    def store(self, weights: dict[str, Tensor], rounding: Any = "stochastic") -> Store:
        """The weights in the space where the method stands."""
        return Store(weights, rounding=rounding, space=self.method().space)

    def tensors(self, dtype: torch.dtype, *shapes: tuple[int, ...], seed: int = 1) -> dict[str, Tensor]:
        """`tensors`, in the space of the method."""
        found = tensors(dtype, *shapes, seed=seed)
        positive = isinstance(self.method().space, PositiveOrthant)
        return {name: w.double().exp().to(w.dtype) for name, w in found.items()} if positive else found

    @property
    def has_law(self) -> bool:
        """Whether the entry leaves the law of directions open."""
        return "law" in methods.describe(self.name)["defaults"]

    @property
    def decays(self) -> bool:
        """Whether the entry has a weight decay to set."""
        return "weight_decay" in methods.describe(self.name)["defaults"]


def dense(vector: Vector, sizes: Sequence[int | tuple[int, ...]], slots: dict[str, Array] | None = None) -> Array:
    """A Vector as numbers on leaves of these sizes or shapes, from the formulas of `bases`, never through a store."""
    shapes = [s if isinstance(s, tuple) else (s,) for s in sizes]
    total = np.zeros(sum(math.prod(shape) for shape in shapes))
    for e, c in vector.terms:
        total += c * expand(e, shapes, slots)
    return total


def directions(
    method: Method[Any], n: int, shapes: tuple[tuple[int, ...], ...], seed: int, steps: int
) -> Iterator[Array]:
    """The matrix of directions of each step, one a row, from the seed alone.

    A law that masks the directions of another has them masked by the paper, which knows the weights: the rows are the
    inner law's.
    """
    law = getattr(method.law, "inner", method.law)
    for t in range(steps):
        draws = [Draw(seed, t, j, shapes, exact_gram(shapes)) for j in range(n)]
        yield np.stack([dense(law(draw), shapes) for draw in draws])


def coordinates(method: Method[Any], shapes: Sequence[tuple[int, ...]], seed: int, step: int) -> list[int]:
    """The numbers of the coordinates, all leaves end to end, that an estimator of `Coordinates` takes in a step."""
    starts = np.cumsum([0, *(math.prod(shape) for shape in shapes)])
    nothing = (lambda j: Vector()), (lambda v: np.zeros((0, 0)))
    ask = Ask(step, int(starts[-1]), 1.0, *nothing, 0, shapes=tuple(shapes), run=seed)
    estimator: Any = getattr(method.estimator, "inner", method.estimator)
    return [int(starts[unit.leaf]) + unit.element for unit in estimator.chosen(ask)]


def exact_gram(sizes: Sequence[int | tuple[int, ...]]) -> Callable[[Sequence[Vector]], Array]:
    def gram(vectors: Sequence[Vector]) -> Array:
        rows = np.stack([dense(v, sizes) for v in vectors])
        return rows @ rows.T

    return gram


def smooth(x: Array) -> float:
    """A smooth, convex, badly scaled function of any number of variables, neither separable nor quadratic."""
    i = np.arange(x.size)
    x = x.reshape(-1).astype(np.float64)
    return float(
        np.sum(np.log(np.cosh(x - np.sin(i)))) + 0.05 * np.sum((i % 5 + 1) * x**2) + 0.1 * np.sum(x[1:] * x[:-1]) + 0.3
    )


def smooth_sum(x: Array, rows: Sequence[int] | None = None, terms: int = 6) -> float:
    """The mean over `rows` of f_i(x) = smooth(x) + 0.3 sum_j sin(x_j + i) (1 + i / terms), i = 0 .. terms - 1."""
    chosen = range(terms) if rows is None else rows
    x = x.reshape(-1).astype(np.float64)
    return smooth(x) + float(np.mean([0.3 * np.sum(np.sin(x + i)) * (1 + i / terms) for i in chosen]))


def start(method: Method[Any] | None = None, d: int = 20) -> Array:
    """Twenty small numbers of both signs; on the positive orthant their exponentials."""
    x = 0.15 * np.cos(1.7 * np.arange(d))
    return np.exp(x) if method is not None and isinstance(method.space, PositiveOrthant) else x


# ---- torch problems --------------------------------------------------------------------------------------------------

DTYPES = {
    "float32": (torch.float32, "stochastic"),
    "float64": (torch.float64, "stochastic"),
    "bfloat16": (torch.bfloat16, "stochastic"),
    "bfloat16-split": (torch.bfloat16, "split"),
    "bfloat16-nearest": (torch.bfloat16, "nearest"),
    "float16": (torch.float16, "stochastic"),
    "float16-split": (torch.float16, "split"),
}


def tensors(dtype: torch.dtype, *shapes: tuple[int, ...], seed: int = 1) -> dict[str, Tensor]:
    """Named tensors of small weights: sum |x_i| < 4 for the default shapes, the radius of the set in CASES."""
    g = torch.Generator().manual_seed(seed)
    shapes = shapes or ((6, 5), (7,), (3, 4))
    return {f"w{i}": (0.05 * torch.randn(s, generator=g, dtype=torch.float64)).to(dtype) for i, s in enumerate(shapes)}


def loss_of(weights: dict[str, Tensor]) -> Callable[[], float]:
    """`smooth` of the tensors end to end, read through torch functions."""
    return lambda: smooth(torch.cat([w.reshape(-1).double() for w in weights.values()]).numpy())


def values_oracle(store: Store, queries: Sequence[Query], key: int) -> list[float]:
    """Evaluates `smooth` on what `Store.point_` gives: no lens, no torch arithmetic."""
    answers = []
    for query in queries:
        parts = []
        for leaf in store.leaves:
            out = torch.empty(leaf.numel, dtype=torch.float64 if leaf.dtype == torch.float64 else torch.float32)
            parts.append(store.point_(out, leaf, query.at).double())
        x = torch.cat(parts).numpy()
        answers.append(smooth(x) if query.rows is None else smooth_sum(x, query.rows))
    return answers


def sum_oracle(store: Store, queries: Sequence[Query], key: int) -> list[float]:
    """The same for `smooth_sum`."""
    return values_oracle(store, [Query(q.at, tuple(range(6)) if q.rows is None else q.rows) for q in queries], key)


def digest(named: Any) -> str:
    """SHA-256 over the bytes of a module's parameters and buffers, or of a mapping of tensors."""
    if isinstance(named, nn.Module):
        named = {**dict(named.named_parameters()), **dict(named.named_buffers())}
    h = hashlib.sha256()
    for name, t in named.items():
        raw = t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b""
        h.update(name.encode() + raw)
    return h.hexdigest()


def records_of(run: Run[Any], oracle: Any, steps: int) -> list[Record]:
    return [run.step(oracle) for _ in range(steps)]
