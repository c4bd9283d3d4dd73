"""Branches: one forward that evaluates the loss at several points, each on its own copy of the batch.

The caller repeats its inputs n times along the first axis, branch after branch. Where a torch function reads a trained
weight, branch k sees Retr_x(point_k). A function that reads no trained weight is one call on all n copies.

    directions of low rank, sum_j c_j U_j^T V_j    x W^T once for all branches, then (x V^T)(c U) for each: the weights
                                                   are neither copied nor regenerated
    all others                                     tile by tile: each is regenerated for every branch in turn, while
                                                   its weights are in the cache

A branch gives the value that the lens gives for its point alone, up to rounding: matrix products of another shape
add in another order, and in 16 bits a side branch does not round x + v. All branches share the dropout masks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zograd import kernels, noise
from zograd.core.vector import Basis, Vector, noise_terms
from zograd.kernels import Side
from zograd.lens.lens import CASTS, Lens, linear_rows
from zograd.lens.parameters import ELEMENTWISE, Unbranchable, WatchedStack, half_gain, shape_only
from zograd.stores.low_rank import Drawn

if TYPE_CHECKING:
    from zograd.stores import Leaf, Store
    from zograd.stores.deferred import FusedMove

_UNARY = ("exp", "log", "neg", "abs", "sigmoid", "tanh", "relu", "sqrt", "rsqrt", "square", "reciprocal")
POINTWISE = CASTS | {F.softplus, F.silu} | {getattr(home, name) for home in (torch, Tensor) for name in _UNARY}
"""Functions of one tensor, element by element."""

SIDE = 4
"""Elements of inputs and outputs that a side branch handles in the time that one regenerated weight takes."""

FEW, LARGE = 64, 1 << 19
"""(W x^T)^T is faster than x W^T for at most FEW rows of x and at least LARGE elements of a tile (float32, CPU)."""


class Branches(Lens):
    """Shows Retr_x(points[k]) to rows k m .. (k + 1) m of every tensor whose first axis has n m rows, n = len(points).

    everywhere: look at every torch call, so that dropout masks are shared: for forwards that draw random numbers.
    Raises Unbranchable from within the forward where it cannot tell the branches apart.
    """

    def __init__(self, store: Store, points: Sequence[Vector], *, everywhere: bool = False) -> None:
        super().__init__(store, Vector(), everywhere=everywhere)
        self.n = len(points)
        self.one = [Lens(store, point, copies=len(points)) for point in points]
        self.rows = 0
        """Rows of all branches together, of the last branched tensor that was seen."""
        self.stacks: dict[int, tuple[Tensor, int]] = {}
        """Tensors [n, ...] that were made of weights alone: one for each branch, of so many axes."""
        self._mirrored = {
            a: b for a, b in itertools.combinations(range(self.n), 2) if points[a] and points[b] == -points[a]
        }
        """Branch a -> branch b where point b is -point a."""
        self._turned: tuple[tuple[int, torch.Size, int], Tensor, list[Tensor]] | None = None
        """The input of the last large layers and its transposes."""
        self._one_pair = self.n == 2 and 0 in self._mirrored
        self._drawn: dict[Basis, Drawn] = {}
        self._sides: dict[int, list[list[Side]] | None] = {}

    # ---- which tensors have branches -----------------------------------------------------------------------------

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.store.deferred.factors = self._drawn if self.store.deferred.merge else {}

    def answer(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is F.linear and len(args) > 1 and id(args[1]) in self.leaves:  # most calls: straight to the answer
            return self._linear(*args, **kwargs)
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention and (kwargs.get("dropout_p") or 0.0) > 0.0 and self.n > 1:
            raise Unbranchable("attention draws dropout masks, which its kernels cannot share between branches")
        if self.stacks and any(id(a) in self.stacks for a in itertools.chain(args, kwargs.values())):
            return self._stacked(func, args, kwargs)
        return super().answer(func, args, kwargs)

    def _branched(self, a: Any, axes: int | None = None) -> bool:
        """Whether `a` has rows of all branches: it is no weight, and its first axis can be cut into n parts.

        Indices and masks have the same rows for every branch, as the batch that they come from: others, such as
        positions or the numbers of some tokens, are for all branches alike. axes: of a weight that meets `a` element by
        element; rows of branches lie in front of those axes.
        """
        if not isinstance(a, Tensor) or id(a) in self.leaves or id(a) in self.stacks or a.ndim == 0:
            return False
        if a.shape[0] == 0 or a.shape[0] % self.n or type(a) is nn.Parameter:
            return False
        if axes is not None and a.ndim <= axes:
            return False
        if self.n > 1 and not (a.is_floating_point() or a.is_complex()):
            parts = a.reshape(self.n, -1)
            if not bool((parts == parts[:1]).all()):
                return False
            if a.ndim == 1 and bool((a == a[0]).all()):
                raise Unbranchable(f"{len(a)} equal indices may be for all of {self.n} branches, or for each some")
        self.rows = a.shape[0]
        return True

    def _meets(self, args: tuple[Any, ...]) -> int:
        """Axes of the largest weight among the arguments of an elementwise function, without leading ones of size 1."""
        axes = [0]
        for a in args:
            if id(a) in self.leaves:
                shape = tuple(self.leaves[id(a)].shape)
            elif id(a) in self.stacks:
                shape = tuple(a.shape[a.ndim - self.stacks[id(a)][1] :])
            else:
                continue
            axes.append(len(shape) - next((k for k, size in enumerate(shape) if size != 1), len(shape)))
        return max(axes)

    def _dispatch(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is linear_rows:
            return self._linear_rows(*args, **kwargs)
        if func is F.linear:
            return self._linear(*args, **kwargs)
        if func is F.embedding:
            return self._embedding(*args, **kwargs)
        axes = self._meets(args) if func in ELEMENTWISE else None
        branched = [a for a in (*args, *kwargs.values()) if self._branched(a, axes)]
        if func in ELEMENTWISE and len(branched) == 1 and not kwargs:
            return self._elementwise(func, args)
        if branched:
            return self._apart(func, args, kwargs)
        of_vector = func is Tensor.__getitem__ and args[0].ndim == 1  # a bias
        if func in ELEMENTWISE or func in POINTWISE or of_vector:
            return self._stack(func, args, kwargs)
        name = getattr(func, "__name__", func)
        raise Unbranchable(
            f"its forward calls torch's {name} of a trained weight without an input beside it, as blocks of experts do"
        )

    def _apart(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """func for one branch after the other, results below each other.

        A vector of numbers beside an activation of more axes goes with its last ones (a running mean), not with rows.
        """
        everything = (*args, *kwargs.values())
        rows = [a for a in everything if self._branched(a)]
        most = max((a.ndim for a in rows), default=0)
        own = {id(a) for a in rows if a.ndim > 1 or most == 1 or not a.is_floating_point()}
        if len({a.shape[0] for a in rows if id(a) in own}) > 1:
            name = getattr(func, "__name__", func)
            raise Unbranchable(f"torch function {name} reads a weight and tensors of different numbers of rows")

        def part(a: Any, k: int) -> Any:
            if id(a) in own:
                m = a.shape[0] // self.n
                return a[k * m : (k + 1) * m]
            return a[k] if id(a) in self.stacks else a

        results = [
            one._dispatch(func, tuple(part(a, k) for a in args), {name: part(a, k) for name, a in kwargs.items()})
            for k, one in enumerate(self.one)
        ]
        if not all(isinstance(r, Tensor) and r.ndim for r in results):
            raise Unbranchable(f"torch function {getattr(func, '__name__', func)} returns no tensor with rows")
        return torch.cat(results)

    # ---- tensors made of weights alone, and elementwise functions ------------------------------------------------

    def _stack(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """func(weights of each branch), [n, ...], remembered as such."""
        out = torch.stack([one._dispatch(func, args, kwargs) for one in self.one])
        return self._remember(out, out.ndim - 1)

    def _remember(self, stack: Tensor, axes: int) -> Tensor:
        self.stacks[id(stack)] = (stack, axes)
        if not self.everywhere:
            stack.__class__ = WatchedStack
        return stack

    def _stacked(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function of tensors made of weights alone."""
        everything = (*args, *kwargs.values())
        if func is F.linear:
            return self._linear(*args, **kwargs)
        if shape_only(func):
            return func(*(a[0] if id(a) in self.stacks else a for a in args), **kwargs)
        if any(self._branched(a, self._meets(args) if func in ELEMENTWISE else None) for a in everything):
            if func in ELEMENTWISE and not kwargs:
                return self._elementwise(func, args)
            return self._apart(func, args, kwargs)
        others = [a for a in everything if isinstance(a, Tensor) and id(a) not in self.stacks and a.ndim]
        if (func not in ELEMENTWISE and func not in POINTWISE) or others:
            raise Unbranchable(f"torch function {getattr(func, '__name__', func)} of a trained weight")
        axes = max(self.stacks[id(a)][1] for a in everything if id(a) in self.stacks)
        return self._remember(func(*args, **kwargs), axes)

    def _elementwise(self, func: Callable[..., Any], args: tuple[Any, ...]) -> Tensor:
        """func of one activation [n m, ...] and weights, broadcast against [n, m, ...]."""
        axes_of_weights = self._meets(args)
        x = next(a for a in args if self._branched(a, axes_of_weights))
        dtype = torch.result_type(args[0], args[1])
        wide = any((leaf := self.leaves.get(id(a))) and half_gain(leaf.tensor) for a in args)

        def spread(a: Any) -> Any:
            if a is x:
                a = x.reshape(self.n, -1, *x.shape[1:])
                return a.float() if wide else a
            if (leaf := self.leaves.get(id(a))) is not None:
                a, axes = self._shown_to_all(leaf, wide), leaf.tensor.ndim
            elif id(a) in self.stacks:
                a, axes = self.stacks[id(a)]
            else:
                return a
            if axes > x.ndim:
                raise Unbranchable(f"a weight of {axes} axes meets an activation of {x.ndim}")
            return a.view(self.n, *[1] * (x.ndim - axes), *a.shape[1:])

        out: Tensor = func(*map(spread, args))
        return out.to(dtype).flatten(0, 1) if wide else out.flatten(0, 1)

    def _shown_to_all(self, leaf: Leaf, wide: bool) -> Tensor:
        """[n, ...]: the leaf at each branch's point, in float32 where that is wanted."""
        self.store.seen.add(leaf.index)
        dtype = torch.float32 if wide else leaf.dtype
        if leaf.index in self.store.escaped:
            return leaf.tensor.to(dtype).expand(self.n, *leaf.shape)
        made = [part for one in self.one if (part := one.ready(leaf)) is not None]
        if len(made) == self.n and dtype in (leaf.dtype, made[0].dtype):
            return torch.stack(made).to(dtype).view(self.n, *leaf.shape)
        out = torch.empty(self.n, leaf.numel, dtype=dtype, device=leaf.tensor.device)
        terms, others = noise_terms(self.one[0].point, on_vector=leaf.matrix_shape[1] == 1)
        if self._one_pair and not others and leaf.low is None and leaf.space.flat and not wide:
            with self.store.deferred.fused(leaf) as move:
                self._pair(out[0], out[1], leaf, 0, terms, move)
            return out.view(self.n, *leaf.shape)
        for row, one in zip(out, self.one, strict=True):
            self.store.point_(row, leaf, one.point)
        return out.view(self.n, *leaf.shape)

    def rows_of(self, weight: Tensor, rows: int) -> Tensor:
        if rows == 0 or rows % self.n:
            raise Unbranchable(f"{rows} rows, which are not the same number for each of {self.n} branches")
        self.rows = rows
        shown = self._shown_to_all(self.leaves[id(weight)], wide=half_gain(weight))
        return shown.repeat_interleave(rows // self.n, 0)

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0.0:
            return input
        if not self._branched(input):
            raise Unbranchable("dropout of a tensor without branches")
        parts = input.view(self.n, -1, *input.shape[1:])
        mask = F.dropout(torch.ones_like(parts[0]), p, True)
        return (parts.mul_(mask) if inplace else parts * mask).flatten(0, 1)

    # ---- linear and embedding ------------------------------------------------------------------------------------

    def _side(self, leaf: Leaf) -> list[list[Side]] | None:
        """For each branch the factors of its displacement, when all of it is of low rank on this leaf."""
        if leaf.index not in self._sides:
            self._sides[leaf.index] = self._find_side(leaf)
        return self._sides[leaf.index]

    def _find_side(self, leaf: Leaf) -> list[list[Side]] | None:
        if not leaf.space.flat or leaf.index in self.store.escaped:
            return None
        sides: list[list[Side]] = []
        for one in self.one:
            sides.append([])
            for e, c in one.point.terms:
                if e not in self._drawn:
                    self._drawn[e] = self.store.deferred.factors.get(e) or Drawn(self.store.leaves, e)
                factors = self._drawn[e][leaf.index]
                if factors is None:
                    return None
                sides[-1].append(((c,) * factors.u.shape[0], factors))
        return sides

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not self._branched(input):
            raise Unbranchable("a linear layer whose input has no branches")
        leaf = self.leaves.get(id(weight))
        if leaf is not None:
            y = self._product(input, leaf, 0, leaf.shape[0])
        elif id(weight) in self.stacks:
            y = torch.cat([F.linear(x, w) for x, w in zip(input.chunk(self.n), weight.unbind(), strict=True)])
        else:
            y = F.linear(input, weight)
        if bias is None:
            return y
        if id(bias) in self.leaves or id(bias) in self.stacks:
            return self._elementwise(torch.add, (y, bias))
        return y.add_(bias)

    def _linear_rows(self, input: Tensor, weight: Tensor, start: int, stop: int) -> Tensor:
        if not self._branched(input):
            raise Unbranchable(f"{input.shape[0]} rows, which are not the same number for each of {self.n} branches")
        leaf = self.leaves.get(id(weight))
        return F.linear(input, weight[start:stop]) if leaf is None else self._product(input, leaf, start, stop)

    def _product(self, input: Tensor, leaf: Leaf, start: int, stop: int) -> Tensor:
        """x W^T for rows start .. stop of the trained matrix W, in each branch its own."""
        self.store.seen.add(leaf.index)
        columns = leaf.shape[1]
        x = input.reshape(self.n, -1, columns)
        shape = (*input.shape[:-1], stop - start)
        side = None if x.shape[1] * sum(leaf.shape) > SIDE * leaf.numel else self._side(leaf)
        if side is None:
            out = x.new_empty(*x.shape[:2], stop - start)
            self._tiles(out, x, leaf, start, stop)
            return out.view(shape)
        waiting = self.store.deferred.sides(leaf)
        y = F.linear(x, leaf.tensor.detach()[start:stop])
        side = [[*waiting, *terms] for terms in side] if waiting else side
        return kernels.add_sides_(y, x.contiguous(), side, start).view(shape)

    def _tiles(self, out: Tensor, x: Tensor, leaf: Leaf, start: int, stop: int) -> None:
        """out[k] <- x[k] W_k^T, tile by tile and branch by branch; the two sides of a pair are made together."""
        whole = (start, stop) == (0, leaf.shape[0]) and self._one_pair and self.one[0].noise_only
        xs, outs = x.unbind(), out.unbind()
        large = (stop - start) * x.shape[2] >= LARGE
        turned = large and x.shape[1] <= FEW and x.dtype == torch.float32 and x.device.type == "cpu"
        columns = self._columns(x) if turned else []
        with self.store.deferred.fused(leaf) if whole else nullcontext() as move:
            for a, b in next((one for one in self.one if one.point), self.one[0]).tiles(leaf, start, stop):
                for k, tile in self._made(leaf, a, b, move):
                    to = outs[k] if b - a == stop - start else outs[k][:, a - start : b - start]
                    w = tile.view(b - a, -1)
                    if columns and tile.numel() >= LARGE:
                        to.copy_(torch.mm(w, columns[k]).t())
                    else:
                        torch.mm(xs[k], w.t(), out=to)

    def _columns(self, x: Tensor) -> list[Tensor]:
        """x[k]^T of each branch; kept for further layers with the same input, and for further rows of this one."""
        if x.is_inference():  # nothing tells when it is written to
            return [xk.t().contiguous() for xk in x]
        same = (x.data_ptr(), x.shape, x._version)
        if self._turned is None or self._turned[0] != same:
            self._turned = same, x, [xk.t().contiguous() for xk in x]
        return self._turned[2]

    def _made(self, leaf: Leaf, a: int, b: int, move: FusedMove | None) -> Iterator[tuple[int, Tensor]]:
        """Rows a .. b of a matrix in each branch, in workspace that the next one overwrites.

        move: a move of the weights that is to be made in the same pass, where there are the two sides of one pair.
        """
        done: set[int] = set()
        columns = leaf.shape[1]
        for k, one in enumerate(self.one):
            if k in done:
                continue
            other = self._mirrored.get(k)
            apart = leaf.low is not None or not leaf.space.flat or not one.noise_only or one.ready(leaf) is not None
            if other is None or apart:
                yield k, one.tile(leaf, a, b)
                continue
            done.add(other)
            plus, minus = (self.store.scratch(leaf, (b - a) * columns, use, leaf.dtype) for use in (-1, -2))
            self._pair(plus, minus, leaf, a * columns, one.terms, move)
            yield k, plus
            yield other, minus

    def _pair(
        self, plus: Tensor, minus: Tensor, leaf: Leaf, start: int, terms: list[noise.Term], move: FusedMove | None
    ) -> None:
        """x + v and x - v at the elements of a leaf from `start` on, which a move that is given makes first."""
        if move is not None:
            move.pair(plus, minus, terms)
            return
        self.store.make_moves([leaf])
        x = leaf.flat[start : start + plus.numel()]
        noise.combine_pair(plus, minus, x, terms=terms, leaf=leaf.index, start=start)

    def _embedding(self, input: Tensor, weight: Tensor, *rest: Any, **named: Any) -> Tensor:
        if not self._branched(input):
            if self.rows and input.shape[0] == 1:  # positions that all rows share
                each = self.rows // self.n
                return torch.cat(
                    [one._embedding(input, weight, *rest, **named).repeat_interleave(each, 0) for one in self.one]
                )
            return self._stack(F.embedding, (input, weight, *rest), named)
        side = self._side(self.leaves[id(weight)])
        if side is None or len(rest) > 1 or named.get("max_norm") is not None:
            parts = zip(self.one, input.chunk(self.n), strict=True)
            return torch.cat([one._embedding(ids, weight, *rest, **named) for one, ids in parts])
        self.store.seen.add(self.leaves[id(weight)].index)
        waiting = self.store.deferred.sides(self.leaves[id(weight)])
        ids = input.reshape(self.n, -1)
        y = F.embedding(ids, weight.detach())
        wide = torch.promote_types(y.dtype, torch.float32)
        for k, terms in enumerate(side):
            for c, factors in (*waiting, *terms):
                u, v = factors.u.T[ids[k]].to(wide), factors.v.to(wide)
                y[k].add_(((u * u.new_tensor(c)) @ v).to(y.dtype))
        return y.view(*input.shape, weight.shape[1])
