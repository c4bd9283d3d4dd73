"""What x0 was: a number, a list, an array, a dict of arrays or a tensor, and the flat array that strategies see."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from zograd import noise
from zograd.core.vector import Noise, Vector, noise_terms
from zograd.methods.defaults import LARGE
from zograd.spaces import Space
from zograd.stores import Store

Flat: TypeAlias = npt.NDArray[Any]
"""All variables in one array of one axis, in the order of x0."""

KEPT = 1024
"""Up to so many variables the points of a request are made together, and kept until their values are known."""

CATEGORIES = (
    "for categories use Optuna (pip install optuna): optuna.create_study().optimize(lambda t: "
    "f(t.suggest_categorical('name', ['a', 'b'])), n_trials=100)"
)
"""What is said of x0 that holds words."""


class Variables:
    """x0 as it was given, and as one flat array.

    x0: a number, a list, an array, a torch tensor, or a dict of these. `f` gets its points in the same form, and the
    result has it too; numbers and lists become arrays, integers float64, also in tensors. keys: of a dict, as they are;
    names: the same as text, which leaves and files have. flat: x0 in one axis, a copy; above
    `LARGE` variables x0 itself, where that is one array in C order.
    Raises ValueError for an empty or non-finite x0, TypeError for other types of numbers.
    """

    def __init__(self, x0: Any) -> None:
        self.names: tuple[str, ...] | None = None
        self.keys: tuple[Any, ...] = ()
        given = {"x0": x0}
        if isinstance(x0, Mapping):
            self.keys = tuple(x0)
            self.names = tuple(map(str, self.keys))
            if len(set(self.names)) < len(self.names):  # 1 and "1"
                self.names = tuple(f"{i}: {key!r}" for i, key in enumerate(self.keys))
            given = {f"x0[{name!r}]": value for name, value in x0.items()}
        self.likes = [_like(value) for value in given.values()]
        parts = [_array(_numpy(value, what), what, copy=False) for what, value in given.items()]
        if sum(part.size for part in parts) == 0:
            raise ValueError("x0 is empty; pass an array with at least one element")
        self.shapes = [part.shape for part in parts]
        self.plain = self.names is None and self.likes == [None] and len(self.shapes[0]) == 1
        """Whether x0 is one array of one axis."""
        self.dtypes = [part.dtype for part in parts]
        self.sizes = [part.size for part in parts]
        dtype = np.result_type(*self.dtypes)
        self.flat: Flat = parts[0].reshape(-1)
        if len(parts) > 1 or self.flat.size <= LARGE:
            self.flat = np.concatenate([part.reshape(-1) for part in parts]).astype(dtype, copy=False)

    @property
    def dim(self) -> int:
        return int(self.flat.size)

    def shaped(self, flat: Flat) -> Any:
        """The form of x0; arrays are views of `flat` where their dtype is its own."""
        if self.plain:
            return flat
        if self.names is None:
            return _as(self.likes[0], flat.reshape(self.shapes[0]))
        found, start = {}, 0
        parts = zip(self.keys, self.shapes, self.sizes, self.dtypes, self.likes, strict=True)
        for name, shape, size, dtype, like in parts:
            found[name] = _as(like, flat[start : start + size].reshape(shape).astype(dtype, copy=False))
            start += size
        return found

    def flattened(self, x: Any, what: str) -> Flat:
        """A value for each variable: a number for all, or the form of x0."""
        if self.names is not None and isinstance(x, Mapping):
            if set(x) != set(self.keys):
                raise ValueError(f"{what} names {sorted(map(repr, x))}, but x0 has {sorted(map(repr, self.keys))}")
            parts = [np.broadcast_to(np.asarray(x[n], self.flat.dtype), s).reshape(-1)
                     for n, s in zip(self.keys, self.shapes, strict=True)]  # fmt: skip
            return np.concatenate(parts)
        array = np.asarray(x.detach().cpu() if isinstance(x, torch.Tensor) else x, self.flat.dtype)
        if array.size in (1, self.dim):
            return np.broadcast_to(array.reshape(-1), (self.dim,)).copy()
        raise ValueError(f"{what} has {array.size} values, but x0 has {self.dim} variables")

    def store(self, space: Space, x: Flat | None = None) -> ArrayStore:
        """A store whose weights are a copy of x, a flat array; of x0 without."""
        return ArrayStore(self.flat if x is None else x, space, names=self.names, shapes=self.shapes)


class ArrayStore(Store):
    """Arrays as the iterate; a single one is the leaf "x"."""

    def __init__(
        self,
        x0: npt.ArrayLike,
        space: Space,
        *,
        names: Sequence[str] | None = None,
        shapes: Sequence[tuple[int, ...]] | None = None,
    ) -> None:
        x = _array(x0, "x0")
        if x.size == 0:
            raise ValueError("x0 is empty; pass an array with at least one element")
        flat = x.reshape(-1)
        tensors, start = {}, 0
        for name, shape in zip(names or ("x",), shapes or (x.shape,), strict=True):
            size = math.prod(shape)
            tensors[name] = torch.from_numpy(flat[start : start + size].reshape(shape))
            start += size
        super().__init__(tensors, space=space)
        self._last: npt.NDArray[Any] | None = None
        self._rows: tuple[npt.NDArray[Any], list[torch.Tensor]] | None = None
        """The points of the last request, as one matrix and as the tensors of its rows."""

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_last": None, "_rows": None}

    @property
    def array(self) -> npt.NDArray[Any]:
        """The iterate itself, in its shape; with several leaves a flat copy."""
        if len(self.leaves) > 1:
            return np.concatenate([leaf.tensor.numpy().reshape(-1) for leaf in self.leaves])
        array: npt.NDArray[Any] = self.leaves[0].tensor.numpy()
        return array

    @property
    def flat(self) -> Flat:
        """The iterate as one array of one axis: itself, with several leaves a copy."""
        return self.array.reshape(-1)

    def unused(self) -> npt.NDArray[Any]:
        """An array like x: the last one, if nobody holds it any more, otherwise a fresh one.

        Of a large array, its pages cost more time than its numbers, and those of freed arrays stay with the process.
        """
        if self._last is None or sys.getrefcount(self._last) > 2:  # that of this object, and of the call
            self._last = np.empty_like(self.array)
        return self._last

    def let_go(self) -> None:
        """Drop the array that is kept for the next point."""
        self._last = None

    def points(self, ats: Sequence[Vector]) -> npt.NDArray[Any] | None:
        """The rows Retr_x(at) of a matrix, which the next call overwrites. None where points are better made singly.

        It is for pairs x + v, x - v along noise in few variables: noise is computed once a pair, and no tensor is made.
        """
        leaf = self.leaves[0]
        if len(self.leaves) > 1 or self.dim > KEPT or not leaf.space.flat or not ats or len(ats) % 2:
            return None
        pairs = []
        for plus, minus in zip(ats[::2], ats[1::2], strict=True):
            if len(plus.terms) != 1:
                return None
            e, c = plus.terms[0]
            if type(e) is not Noise or minus.terms != ((e, -c),):
                return None
            pairs.append(noise.Term(e.kind, e.key, c))
        self.make_moves()
        if self._rows is None or len(self._rows[1]) != len(ats):
            matrix = torch.empty((len(ats), self.dim), dtype=leaf.dtype, device=leaf.tensor.device)
            self._rows = matrix.numpy(), list(matrix.unbind())
        found, rows = self._rows
        noise.shifted_pairs(rows, leaf.flat, pairs, leaf=leaf.index)
        return found

    def point(self, at: Vector) -> npt.NDArray[Any]:
        """An array at Retr_x(at); the caller may keep or overwrite it. With several leaves it is flat."""
        array: npt.NDArray[Any]
        first = self.leaves[0]
        if len(self.leaves) == 1:
            terms, others = noise_terms(at, on_vector=first.matrix_shape[1] == 1)
            if first.space.flat and not others:  # most methods: then all is one call of the kernel
                self.make_moves()
                if self.dim > LARGE:
                    array = self.unused()
                    noise.combine(torch.from_numpy(array), first.tensor, terms=terms, leaf=first.index)
                    return array
                shifted: npt.NDArray[Any] = noise.shifted(first.tensor, terms=terms, leaf=first.index).numpy()
                return shifted
            out = torch.empty(first.numel, dtype=first.dtype, device=first.tensor.device)
            array = self.point_(out, first, at).view(first.tensor.shape).numpy()
            return array
        flat = np.empty(self.dim, self.leaves[0].tensor.numpy().dtype)
        start = 0
        for leaf in self.leaves:
            self.point_(torch.from_numpy(flat[start : start + leaf.numel]), leaf, at)
            start += leaf.numel
        return flat


def copied(x: Any) -> Any:
    """A copy of a point in the form of x0."""
    if isinstance(x, Mapping):
        return {name: copied(value) for name, value in x.items()}
    return x.clone() if isinstance(x, torch.Tensor) else np.array(x, copy=True)


def _like(value: Any) -> torch.Tensor | None:
    """An empty tensor of the type and device of a tensor, of float64 for integers; None for others."""
    if not isinstance(value, torch.Tensor):
        return None
    whole = not (value.dtype.is_floating_point or value.dtype.is_complex)
    return torch.empty(0, dtype=torch.float64 if whole else value.dtype, device=value.device)


def _as(like: torch.Tensor | None, array: Flat) -> Any:
    """An array in the form of its part of x0."""
    return array if like is None else torch.from_numpy(array).to(like.device, like.dtype)


def _numpy(value: Any, what: str) -> Any:
    """A tensor as an array. TypeError for 16-bit weights, and for a tensor without numbers."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.dtype in (torch.bfloat16, torch.float16):
        raise TypeError(
            f"{what} has dtype {value.dtype}, in which a probe of radius mu is lost; pass {what}.float(), or train "
            f"16-bit weights in place with zograd.ZOOptimizer"
        )
    if value.is_meta:
        raise TypeError(f"{what} is on the device 'meta', where it has no numbers; pass a tensor that has")
    return value.detach().cpu().numpy()


def _array(value: Any, what: str, *, copy: bool = True) -> npt.NDArray[Any]:
    """An array of float64 or float32, finite and in C order; an own one, without `copy` only where it has to be."""
    if value is None:
        raise TypeError(f"{what} is None; pass a starting point, such as np.zeros(3)")
    if isinstance(value, Mapping):
        raise TypeError(f"{what} is a dict in a dict; pass one dict of arrays, such as {{'layer.weight': ...}}")
    try:
        x = np.array(value, copy=True, order="C") if copy else np.asarray(value, order="C")
    except ValueError:
        raise ValueError(
            f"{what} has parts of different shapes; pass a dict of arrays, such as {{'a': first, 'b': second}}"
        ) from None
    if x.dtype == object and not any(isinstance(part, str | bytes) for part in x.flat):
        with suppress(TypeError, ValueError):
            x = x.astype(np.float64)
    if x.size and x.dtype.kind in "biu":
        x = x.astype(np.float64)
    if x.size and x.dtype not in (np.float32, np.float64):
        elsewhere = "" if x.dtype.kind in "fc" else f"; {CATEGORIES}"
        raise TypeError(f"{what} has dtype {x.dtype}; pass float64 or float32{elsewhere}")
    flat = x.reshape(-1)
    if not all(np.isfinite(flat[i : i + LARGE]).all() for i in range(0, x.size, LARGE)):
        raise ValueError(f"{what} holds NaN or infinite values; pass a finite starting point")
    return x.astype(np.float64) if not x.size else x
