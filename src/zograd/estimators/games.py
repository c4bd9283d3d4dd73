"""Games from evaluations: leaves that ascend while others descend, and players who each have a loss of their own.

Write F(z) for the field of the game: (grad_x f, -grad_y f) for min_x max_y f, the stacked grad_{x_i} f_i for players.
A plain step z - lr F spirals outwards on a bilinear game. The optimistic step (`rules.Optimistic`) converges there
when F is measured whole: by differences along all coordinates, or along d orthogonal directions. With one random
direction it diverges on a bilinear game at every rate, since the noise of a step grows as lr^2 d |F|^2 while the step
contracts by lr^2 sigma^2. Where f is strongly convex in x and strongly concave in y, with modulus m and Lipschitz
constant L of F, one direction suffices for rates below about m / (d L^2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from zograd.core.query import Ask, Estimate, Routine
from zograd.core.vector import Address, Basis, Noise, Vector, basis, combination
from zograd.estimators.base import Estimator, Feedback, Wrapper
from zograd.estimators.differences import Central
from zograd.laws.coordinate import Unit
from zograd.noise import Term, combine

if TYPE_CHECKING:
    from zograd.core.method import Method
    from zograd.stores import Store


@basis
@dataclass(frozen=True, slots=True)
class OnLeaves(Basis):
    """A linear combination, times `inside` on the leaves of these numbers and times `outside` on all others."""

    terms: tuple[tuple[Basis, float], ...]
    leaves: tuple[int, ...]
    inside: float
    outside: float

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for e, _ in self.terms for name in e.reads))

    def add_(self, out: Tensor, coef: float, at: Address, slots: Mapping[str, Tensor]) -> None:
        scale = coef * (self.inside if at.leaf in self.leaves else self.outside)
        if scale == 0.0:
            return
        noise = [Term(e.kind, e.key, scale * c) for e, c in self.terms if isinstance(e, Noise)]
        if noise:
            combine(out, out, terms=noise, leaf=at.leaf, start=at.start)
        for e, c in self.terms:
            if not isinstance(e, Noise):
                e.add_(out, scale * c, at, slots)


def on_leaves(v: Vector, leaves: Sequence[int], inside: float, outside: float) -> Vector:
    """v with its elements scaled leaf by leaf. Coordinates keep their own terms; all others become one term."""

    def factor(leaf: int) -> float:
        return inside if leaf in leaves else outside

    units = tuple((e, c * factor(e.leaf)) for e, c in v.terms if isinstance(e, Unit) and factor(e.leaf))
    others = tuple((e, c) for e, c in v.terms if not isinstance(e, Unit))
    whole = ((OnLeaves(others, tuple(leaves), inside, outside), 1.0),) if others else ()
    return Vector((*whole, *units))


def selected(patterns: Sequence[str], names: Sequence[str]) -> tuple[int, ...]:
    """The numbers of the leaves that one of these shell-style patterns names."""
    return tuple(i for i, name in enumerate(names) if any(fnmatchcase(name, pattern) for pattern in patterns))


def check_patterns(what: str, patterns: object) -> None:
    if isinstance(patterns, str) or not isinstance(patterns, Sequence):
        raise TypeError(f"{what} is {patterns!r}, and expected is a tuple of names or patterns: {what}=({patterns!r},)")
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(f"{what} is {patterns!r}, and expected are names of tensors or patterns, such as ('y*',)")


def refuse_unmatched(what: str, patterns: Sequence[str], store: Store) -> None:
    names = [leaf.name for leaf in store.leaves]
    for pattern in patterns:
        if not selected((pattern,), names):
            shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
            raise ValueError(f"{what} names {pattern!r}, and no tensor is called so; there are {shown}")


class _Field(Wrapper[Any]):
    """What estimators of a field take over from the estimator inside."""

    __slots__ = ()
    estimates_gradient: ClassVar[bool] = False
    works_on_pieces: ClassVar[bool] = True

    @property
    def takes_failures(self) -> bool:
        return self.inner.takes_failures

    @property
    def aux(self) -> None:
        """None: scalars of `inner` belong to its directions, which are turned here."""
        return None


@dataclass(frozen=True, slots=True)
class Saddle(_Field):
    """(grad_x f, -grad_y f) from evaluations of f alone: the estimate of `inner`, with the sign turned where y stands.

    A step along it descends in x and ascends in y, for min_x max_y f(x, y). One set of evaluations serves both
    players. ascend: names of the tensors of y, or shell-style patterns (`*`, `?`, `[seq]`); each must name at least
    one. Costs the evaluations of `inner`, and its slots.

    With which `inner` and which rates steps converge is said in `zograd.estimators.games`. `minimize` judges a run by
    whether f fell, which has no meaning here: use `AskTell` or `ZOOptimizer`.

    ValueError for a name that no tensor has; TypeError for a string in place of a tuple.

    >>> import zograd as zo
    >>> loop = zo.AskTell({"x": 1.0, "y": 1.0}, zo.methods.zo_saddle(("y",), lr=0.3))
    >>> for _ in range(200):
    ...     _ = loop.tell([float(p["x"] * p["y"]) for p in loop.ask()])
    >>> bool(abs(loop.x["x"]) < 1e-3 and abs(loop.x["y"]) < 1e-3)
    True
    """

    ascend: tuple[str, ...]
    inner: Estimator[Any] = field(default=Central(1))

    def __post_init__(self) -> None:
        check_patterns("ascend", self.ascend)

    @property
    def evaluations(self) -> int:
        return self.inner.evaluations

    @property
    def fewest_evaluations(self) -> int:
        return self.inner.fewest_evaluations

    def most_evaluations(self, terms: int) -> int:
        return self.inner.most_evaluations(terms)

    @property
    def slots(self) -> Mapping[str, float]:
        return self.inner.slots

    @property
    def feedback(self) -> Feedback:
        return self.inner.feedback

    def misfit(self, method: Method[Any]) -> str | None:
        return self.inner.misfit(method)

    def prepare(self, store: Store) -> None:
        refuse_unmatched("ascend", self.ascend, store)
        self.inner.prepare(store)

    def __call__(self, ask: Ask) -> Routine[Any]:
        e = yield from self.inner(ask)
        return replace(e, vector=on_leaves(e.vector, selected(self.ascend, ask.names), -1.0, 1.0), aux=None)


@dataclass(frozen=True, slots=True)
class Players(_Field):
    """(grad_{x_1} f_1, ..., grad_{x_k} f_k): each player's loss is measured along the leaves that it owns.

    owners: the patterns of names of each player's tensors; a tensor belongs to the first player who names it, and one
    that nobody names stays as it is. A step asks k rounds of questions, one for each player, who moves alone in it:
    the variance of a slope is that of d_i dimensions. `zograd.oracles.by_round(f_1, ..., f_k)` answers them in order.
    `inner` is used for each player, without slots. k times the evaluations of `inner`, fewer with `Coordinates`.

    Nested problems are players too: the inner variables have the inner loss, and a larger learning rate (a parameter
    group). The loss that is shown is the mean over the players. ValueError for a name that no tensor has.

    >>> import torch, zograd as zo
    >>> x, y = torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    >>> exact = zo.estimators.Coordinates(1, central=True)
    >>> method = zo.Method(
    ...     zo.estimators.Players((("x",), ("y",)), exact), zo.laws.Rademacher(), zo.rules.SGD(), lr=0.5
    ... )
    >>> run = zo.Run(zo.Store({"x": x, "y": y}), method)
    >>> losses = zo.oracles.by_round(lambda: ((x - y / 2) ** 2).sum(), lambda: ((y - x / 2 - 3) ** 2).sum())
    >>> for _ in range(40):
    ...     _ = run.step(losses)
    >>> round(x.item(), 6), round(y.item(), 6)  # x = y / 2 and y = x / 2 + 3
    (2.0, 4.0)
    """

    owners: tuple[tuple[str, ...], ...]
    inner: Estimator[Any] = field(default=Central(1))

    def __post_init__(self) -> None:
        if len(self.owners) < 2:
            raise ValueError(f"owners is {self.owners!r}, and a game has at least two players: (('x',), ('y',))")
        for i, patterns in enumerate(self.owners):
            check_patterns(f"owners[{i}]", patterns)

    @property
    def evaluations(self) -> int:
        return len(self.owners) * self.inner.evaluations

    @property
    def fewest_evaluations(self) -> int:
        return len(self.owners) * self.inner.fewest_evaluations

    def most_evaluations(self, terms: int) -> int:
        return len(self.owners) * self.inner.most_evaluations(terms)

    def in_dimensions(self, dim: int) -> Players:
        return self

    def misfit(self, method: Method[Any]) -> str | None:
        if self.inner.slots:
            return f"Players measures several losses, and the memory of {type(self.inner).__name__} is of one"
        return self.inner.misfit(method)

    def prepare(self, store: Store) -> None:
        refuse_unmatched("owners", [pattern for patterns in self.owners for pattern in patterns], store)
        for i, leaves in enumerate(self.shares([leaf.name for leaf in store.leaves])):
            if not leaves:
                raise ValueError(f"player {i} owns no tensor: all that it names belong to players before it")

    def shares(self, names: Sequence[str]) -> Iterator[tuple[int, ...]]:
        """The numbers of the leaves of each player."""
        taken: set[int] = set()
        for patterns in self.owners:
            own = tuple(i for i in selected(patterns, names) if i not in taken)
            taken.update(own)
            yield own

    def __call__(self, ask: Ask) -> Routine[None]:
        found: list[Estimate[Any]] = []
        for i, leaves in enumerate(self.shares(ask.names)):
            found.append((yield from self.inner(alone(ask.after(i * self.inner.directions), leaves))))
        losses = [f for e in found for f in e.losses]
        vector = combination([1.0] * len(found), [e.vector for e in found])
        return Estimate(vector, sum(e.loss for e in found) / len(found), losses, None)


def alone(ask: Ask, leaves: tuple[int, ...]) -> Ask:
    """The same with directions on these leaves only."""
    dim = sum(math.prod(ask.shapes[i]) for i in leaves)
    return replace(ask, dim=dim, within=leaves, draw=lambda j: on_leaves(ask.draw(j), leaves, 1.0, 0.0))
