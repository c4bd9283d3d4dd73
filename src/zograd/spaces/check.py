"""`check_space`: the laws that every space obeys, checked on one space, also of a user."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zograd.core.parts import check
from zograd.sets.base import one_thread
from zograd.spaces.base import Space, riemannian_gradient
from zograd.spaces.product import Product

LARGEST = 10.0
"""Moves are drawn with standard deviations from 1e-3 to this, in frame units an element."""
CHAIN = 10
"""Moves in a row of one walker: the points from which moves are made come near the edge."""


@dataclass(frozen=True, slots=True)
class Check:
    """One law: `value` is what was measured, and the law holds when it is at most `bound`."""

    name: str
    value: float
    bound: float

    @property
    def ok(self) -> bool:
        return self.value <= self.bound

    def __str__(self) -> str:
        return f"{'ok  ' if self.ok else 'FAIL'} {self.name}: {self.value:.3g}, at most {self.bound:.3g}"


@dataclass(frozen=True, slots=True)
class SpaceReport:
    """What `check_space` found. `ok` when every law holds; `raise_` raises AssertionError otherwise."""

    space: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    def __getitem__(self, name: str) -> Check:
        return next(check for check in self.checks if check.name == name)

    def raise_(self) -> SpaceReport:
        if not self.ok:
            raise AssertionError(str(self))
        return self

    def __str__(self) -> str:
        return "\n".join((self.space, *(f"  {check}" for check in self.checks)))


def check_space(
    space: Space,
    x: Tensor | None = None,
    seed: int = 0,
    *,
    draws: int | None = None,
    slots: Mapping[str, Tensor] | None = None,
) -> SpaceReport:
    """Measure on a space what optimizers rely on, at a point x inside of it.

    - x is inside: `explain(x)` is None; lift_ and move_ work in place;
    - lift is linear, and white in the metric: the matrix of <lift e_i, lift e_j> is a projection, to 1 %;
    - Retr_x(0) = x, and |Retr_x(t v) - x - t v| shrinks like t^2;
    - no move of any length leaves the space, along random walks of 10 moves: `draws` moves, by default 100,000, or
      2,000 where a space sees its leaf whole;
    - the mean of c v over directions is `riemannian_gradient` within 2 standard errors (chance: about 1 failure in 20
      seeds for one dimension, less for more);
    - where the space has `log`, it inverts `exp`; where it has `transport`, that keeps lengths.

    x: a float64 tensor of a leaf's shape, small (its d x d matrices are formed); None: tried for a few common ones.
    slots: values of the slots of the metric, by default their initial values. Raises ValueError when x is outside.
    """
    check(space, Space, "space")
    if isinstance(space, Product):
        raise TypeError("a product is checked by its parts: check_space(product.of(name), x)")
    g = torch.Generator().manual_seed(seed)
    leaf = _some_point(space) if x is None else x.detach().double().contiguous()
    if (why := space.explain(leaf)) is not None:
        raise ValueError(f"the x to check {type(space).__name__} at is not in it: {why}")
    x = leaf.clone().view(-1, leaf.shape[-1] if leaf.ndim else 1) if space.unit == "row" else leaf.clone()
    slots = slots or {name: torch.full_like(x, float(value)) for name, value in space.slots.items()}
    with one_thread():  # small tensors: threads would only wait for each other
        checks = tuple(_checks(space, x, slots, g, draws or (2_000 if space.unit == "leaf" else 100_000)))
    return SpaceReport(str(space), checks)


def _some_point(space: Space) -> Tensor:
    """Ones, halves, sixths, zeros, a unit vector, orthonormal columns or the unit matrix: what lies inside first."""
    eye = torch.eye(6, 3, dtype=torch.float64)
    for x in (eye[:, 0] * 0 + 0.5, eye[:, 0] * 0 + 1 / 6, eye[:, 0] * 0, eye[:, 0], eye, eye[:3]):
        if space.explain(x) is None:
            return x
    raise ValueError(f"no point of {type(space).__name__} is known; give one: check_space(space, x)")


def _checks(space: Space, x: Tensor, slots: Mapping[str, Tensor], g: torch.Generator, draws: int) -> Iterator[Check]:
    def noise() -> Tensor:
        return torch.randn(x.shape, generator=g, dtype=x.dtype)

    def lift(z: Tensor) -> Tensor:
        return space.lift_(z.clone(), x, slots)

    def move(v: Tensor) -> Tensor:
        return space.move_(x.clone(), v.clone())

    z, w = noise(), noise()
    here, there, before = z.clone(), x.clone(), x.clone()
    in_place = space.lift_(here, x, slots) is here and space.move_(there, here) is there
    yield Check("lift_ and move_ return what they overwrote (0: yes)", float(not in_place), 0.0)
    yield Check("lift_ leaves x alone (0: yes)", float(not torch.equal(x, before)), 0.0)
    x.copy_(before)
    scale = float(lift(z).abs().max() + lift(w).abs().max())
    gap = lift(2.0 * z + w) - 2.0 * lift(z) - lift(w)
    yield Check("lift is linear", float(gap.abs().max()) / scale, 1e-9)
    moved = move(torch.zeros_like(x)) - x
    yield Check("the zero vector moves nothing", float(moved.abs().max()), 1e-12 * max(1.0, float(x.abs().max())))
    if space.flat:
        yield Check("flat: lift and move are x + z", float((move(lift(z)) - (x + z)).abs().max()), 0.0)
    yield _whiteness(space, x, slots)
    yield _order(move, x, lift(z))
    yield Check(f"moves that leave the space, of {draws}", float(_escapes(space, x, slots, g, draws)), 0.0)
    yield _gradient(space, x, slots, g, min(draws, 20_000))
    yield from _closed_forms(space, x, 0.1 * lift(z), 0.1 * lift(w), slots)


def _whiteness(space: Space, x: Tensor, slots: Mapping[str, Tensor]) -> Check:
    frame = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
    lifted = [space.lift_(e.clone(), x, slots) for e in frame]
    gram = torch.tensor([[float(space.inner(x, u, v, slots)) for v in lifted] for u in lifted], dtype=x.dtype)
    off = float((gram @ gram - gram).abs().max()) if float(gram.trace()) > 0.5 else math.inf
    return Check("lifted noise is isotropic in the metric: |G G - G|", off, 0.01)


def _order(move: object, x: Tensor, v: Tensor) -> Check:
    steps = 0.1 / math.sqrt(x.numel()) * torch.tensor([1.0, 0.1, 0.01], dtype=x.dtype)
    gaps = torch.stack([torch.linalg.vector_norm(move(t * v) - x - t * v) for t in steps])  # type: ignore[operator]
    exact = float(gaps.max()) <= 1e-12 * max(1.0, float(x.abs().max()))
    slopes = (gaps[:-1] / gaps[1:]).log10()
    return Check("2 - order of |Retr(t v) - x - t v|", 0.0 if exact else 2.0 - float(slopes[0]), 0.1)


def _walkers(space: Space, x: Tensor, slots: Mapping[str, Tensor], n: int) -> tuple[Tensor, Mapping[str, Tensor]]:
    """n copies of x that a space that does not see whole leaves takes in one call."""

    def copies(a: Tensor) -> Tensor:
        return a.expand(n, *a.shape).reshape(-1, *a.shape[1:]) if space.unit == "row" else a.repeat(n, *[1] * a.ndim)

    return copies(x), {name: copies(slot) for name, slot in slots.items()}


def _escapes(space: Space, x: Tensor, slots: Mapping[str, Tensor], g: torch.Generator, draws: int) -> int:
    n = -(-draws // CHAIN)
    batched = space.unit != "leaf"
    start, states = _walkers(space, x, slots, n) if batched else (x, slots)
    escapes = 0
    for _ in range(1 if batched else n):
        y = start.clone()
        for _ in range(CHAIN):
            size = 10.0 ** (-3.0 + (3.0 + math.log10(LARGEST)) * float(torch.rand((), generator=g)))
            v = space.lift_(size * torch.randn(y.shape, generator=g, dtype=y.dtype), y, states)
            y = space.move_(y, v)
            escapes += space.explain(y) is not None
    return escapes


def _gradient(space: Space, x: Tensor, slots: Mapping[str, Tensor], g: torch.Generator, n: int) -> Check:
    """f(x) = sum_i sin(a_i x_i), a_i about 1: |mean of c v - grad f| in standard errors."""
    mu, a = 1e-5, 1.0 + 0.5 * torch.randn(x.shape, generator=g, dtype=x.dtype)
    expected = riemannian_gradient(space, x, a * (a * x).cos(), slots)
    if space.unit == "leaf":
        samples = []
        for _ in range(n):
            v = space.lift_(torch.randn(x.shape, generator=g, dtype=x.dtype), x, slots)
            plus, minus = space.move_(x.clone(), mu * v), space.move_(x.clone(), -mu * v)
            samples.append(float(((a * plus).sin() - (a * minus).sin()).sum()) / (2 * mu) * v)
        estimates = torch.stack(samples)
    else:
        y, states = _walkers(space, x, slots, n)
        v = space.lift_(torch.randn(y.shape, generator=g, dtype=y.dtype), y, states)
        plus, minus = space.move_(y.clone(), mu * v), space.move_(y.clone(), -mu * v)
        slopes = ((a * plus.view(n, *x.shape)).sin() - (a * minus.view(n, *x.shape)).sin()).flatten(1).sum(1) / (2 * mu)
        estimates = slopes.view(n, *[1] * x.ndim) * v.view(n, *x.shape)
    error = float(torch.linalg.vector_norm(estimates.mean(0) - expected))
    standard_error = math.sqrt(float(estimates.flatten(1).var(0).sum()) / n)
    return Check(f"gradient estimates ({n}) off by this many standard errors", error / standard_error, 2.0)


def _closed_forms(space: Space, x: Tensor, u: Tensor, v: Tensor, slots: Mapping[str, Tensor]) -> Iterator[Check]:
    try:
        y = space.exp(x, u)
        back = space.log(x, y)
    except NotImplementedError:
        return
    size = max(1e-300, float(u.abs().max()))
    yield Check("log inverts exp", float((back - u).abs().max()) / size, 1e-6)
    try:
        carried = space.transport(x, y, v)
    except NotImplementedError:
        return
    before, after = float(space.inner(x, v, v, slots)), float(space.inner(y, carried, carried, slots))
    yield Check("transport keeps lengths", abs(after / before - 1.0), 1e-6)
