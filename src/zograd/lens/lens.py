"""The lens: while it is on, every torch function that reads a trained weight reads Retr_x(point) instead.

The lens sees each call that has a trained tensor among its arguments, whoever makes the call: the module that owns the
weight, a module that borrows it (`nn.MultiheadAttention` and its `out_proj`), a tied head, a loop over `parameters()`.
The weights are never written, so nothing has to be restored. While the lens is on, each parameter has a class with
`__torch_function__`; calls without a weight cost nothing. A `TorchFunctionMode`, which looks at every call, covers
tensors of other classes, nested lenses, and lenses in several threads.

`F.linear` regenerates the weight in tiles that stay in the cache, and `F.embedding` only the rows that are looked up;
other functions get a fresh tensor of the leaf's size. So the memory of a query is one tile above that of inference.

`lens/branches.py` shows several points to one forward.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary

from zograd import noise
from zograd.core.vector import HALF, Vector, accumulation_dtype, noise_terms, of_signs
from zograd.lens.parameters import ELEMENTWISE, WATCHED, half_gain, lenses, shape_only
from zograd.stores.low_rank import sign_side, sign_sides
from zograd.stores.master_weights import expand

if TYPE_CHECKING:
    from zograd.stores import Leaf, Store

TILE = 1 << 20
"""Elements of a weight matrix that are regenerated at a time (4 MiB of float32)."""

DEVICE_TILE = 1 << 26
"""The same on a device where each tile is a launch: a matrix takes few of them."""

AT_ONCE = 1 << 24
"""Elements of small leaves that a query makes in one launch, where launches cost more than elements (64 MiB)."""

_WRITING_OPERATORS = frozenset(
    {"__set__", "__setitem__"} | {f"__i{op}__" for op in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")}
)
_POINTERS = frozenset({Tensor.data_ptr, Tensor.untyped_storage, Tensor.storage})
_NORMS = frozenset(
    {F.layer_norm, F.rms_norm, F.group_norm, F.batch_norm, torch.layer_norm, torch.rms_norm, torch.group_norm}
)
CASTS = frozenset({Tensor.float, Tensor.to, Tensor.type_as})


def tile_elements(device: torch.device) -> int:
    """Elements of a weight matrix that are regenerated at a time on this device."""
    return TILE if device.type == "cpu" else DEVICE_TILE


def linear_rows(input: Tensor, weight: Tensor, start: int, stop: int) -> Tensor:
    """input @ weight[start:stop].T: rows of a linear layer, of which a lens regenerates no others."""
    if has_torch_function_unary(weight):
        rows: Tensor = handle_torch_function(linear_rows, (weight,), input, weight, start, stop)
        return rows
    return F.linear(input, weight[start:stop])


_switching = threading.Lock()


def _transformed() -> bool:
    """Whether the loss is inside of a transform of torch.func, such as vmap, jacrev or jvp."""
    return torch._C._functorch.peek_interpreter_stack() is not None


class _Everywhere(TorchFunctionMode):
    """Takes every torch call of this thread to a lens."""

    def __init__(self, lens: Lens) -> None:
        super().__init__()
        self.lens = lens

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self.lens.answer(func, args, kwargs or {})


class Lens:
    """Shows Retr_x(point) in place of the weights of `store` to every torch function called in this thread.

    everywhere: look at every torch call, not only at those that name a weight. copies: lenses that share one forward.
    """

    def __init__(self, store: Store, point: Vector, *, everywhere: bool = False, copies: int = 1) -> None:
        self.store, self.point, self.everywhere, self.copies = store, point, everywhere, copies
        self.terms, others = noise_terms(point)
        self.noise_only = not others
        self.leaves = store.by_id
        self._mode: _Everywhere | None = None
        self._switched: list[tuple[Tensor, type]] = []

    def __enter__(self) -> Lens:
        with _switching:
            tensors = self.store.tensors
            if self.everywhere or lenses.on or any(type(t) not in WATCHED for t in tensors):
                self._mode = _Everywhere(self)
            else:
                self._switched = [(t, type(t)) for t in tensors]
                for t in tensors:
                    t.__class__ = WATCHED[type(t)]
        if self._mode is not None:
            self._mode.__enter__()  # type: ignore[no-untyped-call]
            lenses.everywhere += 1
        else:
            lenses.on.append(self)
        return self

    def __exit__(self, *error: Any) -> None:
        if self._mode is not None:
            mode, self._mode = self._mode, None
            lenses.everywhere -= 1
            mode.__exit__(*error)  # type: ignore[no-untyped-call]
            return
        lenses.on.remove(self)
        with _switching:
            for t, kind in self._switched:
                t.__class__ = kind
            self._switched = []

    def answer(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of a torch function."""
        leaves = self.leaves
        for a in (*args, *kwargs.values()):
            if id(a) in leaves or (type(a) in (list, tuple) and any(id(e) in leaves for e in a)):
                return self._show(func, args, kwargs)
        return func(*args, **kwargs)

    def _show(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if shape_only(func):
            return func(*args, **kwargs)
        if func is Tensor.type and len(args) == 1 and not kwargs:  # the name; w.type(dtype) asks for values
            return func(*args, **kwargs)
        if func in _POINTERS:  # the caller reads the memory itself: this leaf must be perturbed in place
            self.store.pointed.add(self.leaves[id(args[0])].index)
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        for leaf in self._written(name, args, kwargs):
            raise RuntimeError(
                f"the loss writes to trained tensor {leaf.name!r} (torch function {name}); an evaluation must only "
                f"read the weights. Move the write out of the loss, or leave the tensor out of the selection."
            )
        return self._dispatch(func, args, kwargs)

    def _dispatch(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of a function that reads leaves."""
        if any(self._split(a) for a in (*args, *kwargs.values())):
            return func(*self._replace(args), **{k: self._replace_one(v) for k, v in kwargs.items()})
        if func is F.linear:
            return self._linear(*args, **kwargs)
        if func is linear_rows:
            return self._linear_rows(*args, **kwargs)
        if func is F.embedding:
            return self._embedding(*args, **kwargs)
        if (func in ELEMENTWISE or func in _NORMS) and self._any_split_half(args, kwargs):
            return self._in_float32(func, args, kwargs)
        if func in CASTS and self._any_split_half(args[:1], {}):
            return func(self._float32(self.leaves[id(args[0])]), *args[1:], **kwargs)
        return func(*self._replace(args), **{k: self._replace_one(v) for k, v in kwargs.items()})

    def _written(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Leaf]:
        """The leaves that a call writes to: the first argument of an in-place function, and `out`."""
        targets: list[Any] = [kwargs.get("out")]
        if name in _WRITING_OPERATORS or (name.endswith("_") and not name.endswith("__")):
            targets.append(args[0] if args else next(iter(kwargs.values())))
        flat = [t for target in targets for t in (target if isinstance(target, list | tuple) else [target])]
        return [self.leaves[id(t)] for t in flat if id(t) in self.leaves]

    # ---- what a leaf looks like --------------------------------------------------------------------------------

    def _leaf(self, a: object) -> Leaf | None:
        """The leaf of tensor `a`, marked as seen; None where `a` is no leaf, or its memory is perturbed in place."""
        leaf = self.leaves.get(id(a))
        if leaf is None or leaf.index in self.store.escaped:
            return None
        self.store.seen.add(leaf.index)
        return leaf

    def _replace_one(self, a: Any) -> Any:
        if type(a) in (list, tuple):
            return type(a)(self._replace_one(e) for e in a)
        leaf = self._leaf(a)
        return a if leaf is None else self._shown(leaf, leaf.dtype)

    def ready(self, leaf: Leaf) -> Tensor | None:
        """A small leaf at the point, made with all others in a few launches; None where it is made alone.

        Flat, in the dtype of the leaf, or in float32 where its weights are split. For reading: nobody writes to it.
        """
        return self._at_once.get(leaf.index) if self.point and self.store.grouped(leaf) else None

    @cached_property
    def _at_once(self) -> dict[int, Tensor]:
        """The smallest leaves, up to `AT_ONCE` elements, by number."""
        left = AT_ONCE // self.copies
        alike: dict[tuple[torch.device, torch.dtype, bool, tuple[noise.Term, ...]], list[Leaf]] = {}
        for leaf in sorted(self.store.leaves, key=lambda leaf: leaf.numel):
            if (left := left - leaf.numel) < 0:
                break
            terms, others = noise_terms(self.point, on_vector=leaf.matrix_shape[1] == 1)
            free = leaf.index not in self.store.escaped and not self.store.deferred.moves(leaf)
            if free and not others and self.store.grouped(leaf):
                kind = leaf.tensor.device, leaf.dtype, leaf.low is not None, tuple(terms)
                alike.setdefault(kind, []).append(leaf)
        made: dict[int, Tensor] = {}
        for (*_, terms_), leaves in alike.items():
            low = [leaf.low for leaf in leaves if leaf.low is not None]
            x = torch.cat([leaf.flat for leaf in leaves])
            parts = (expand(x, torch.cat(low)) if low else x).split_with_sizes([leaf.numel for leaf in leaves])
            noise.combine_group(
                [noise.Job(part, part, leaf.index) for leaf, part in zip(leaves, parts, strict=True)], terms=terms_
            )
            made |= {leaf.index: part for leaf, part in zip(leaves, parts, strict=True)}
        return made

    def _shown(self, leaf: Leaf, dtype: torch.dtype) -> Tensor:
        """A fresh tensor with the leaf at the point."""
        if _transformed():  # a tensor that is made inside of a transform of torch.func has no memory to write to
            with temporarily_clear_interpreter_stack():
                return self._regenerated(leaf, dtype)
        return self._regenerated(leaf, dtype)

    def _regenerated(self, leaf: Leaf, dtype: torch.dtype) -> Tensor:
        """The same, outside of transforms."""
        if (ready := self.ready(leaf)) is not None and dtype in (leaf.dtype, ready.dtype):
            return ready.to(dtype, copy=True).view(leaf.shape)
        out = torch.empty(leaf.numel, dtype=dtype, device=leaf.tensor.device)
        self.store.point_(out, leaf, self.point)
        return out.view(leaf.shape) if leaf.portion is None else leaf.portion.wrap(out.view(leaf.portion.sizes))

    def _replace(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(self._replace_one(a) for a in args)

    def _any_split_half(self, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Whether a 16-bit norm gain or bias is among the arguments: those are shown in float32."""
        leaves = (self.leaves.get(id(a)) for a in (*args, *kwargs.values()))
        return any(leaf is not None and half_gain(leaf.tensor) for leaf in leaves)

    def _split(self, a: object) -> bool:
        """Whether `a` is a leaf of which other processes hold parts: it is shown as the distributed tensor it is."""
        leaf = self.leaves.get(id(a))
        return leaf is not None and leaf.portion is not None

    def _float32(self, leaf: Leaf) -> Tensor:
        self.store.seen.add(leaf.index)
        if leaf.index in self.store.escaped:
            return leaf.tensor.float()
        return self._shown(leaf, torch.float32)

    def _in_float32(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """func with every 16-bit tensor widened, and its result in the dtype that func would have given."""
        everything = (*args, *kwargs.values())
        tensors = [a for a in everything if isinstance(a, Tensor)]
        if func in ELEMENTWISE:
            x, y = everything[0], everything[1]
            dtype = torch.result_type(x, y)
        else:
            dtype = tensors[0].dtype

        def wide(a: Any) -> Any:
            if isinstance(a, Tensor):
                leaf = self.leaves.get(id(a))
                if leaf is not None:
                    return self._float32(leaf)
                return a.float() if a.dtype in HALF else a
            return a

        return func(*(wide(a) for a in args), **{k: wide(a) for k, a in kwargs.items()}).to(dtype)

    def rows_of(self, weight: Tensor, rows: int) -> Tensor:
        """A leaf as each of so many rows of an activation meets it, or all rows; a 16-bit gain or bias in float32."""
        leaf = self.leaves[id(weight)]
        shown: Tensor = self._float32(leaf) if half_gain(weight) else self._replace_one(weight)
        return shown

    # ---- the two functions that read almost every weight of a language model -------------------------------------

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if bias is not None and self._any_split_half((bias,), {}):
            y = self._linear(input, weight)
            return (y.float() + self._float32(self.leaves[id(bias)])).to(y.dtype)
        leaf = self._leaf(weight)
        # Autograd and the cache of autocast keep the weight: they need a tensor of their own.
        kept = torch.is_grad_enabled() or torch.is_autocast_enabled(weight.device.type) or _transformed()
        if leaf is None or weight.ndim != 2 or kept:
            return F.linear(*self._replace((input, weight, bias)))
        x, bias = self._replace_one(input), self._replace_one(bias)
        if len(list(self.tiles(leaf, 0, leaf.shape[0]))) == 1:
            return F.linear(x, self.tile(leaf, 0, leaf.shape[0]).view(leaf.shape), bias)
        y = self._product(x, leaf, 0, leaf.shape[0])
        return y if bias is None else y.add_(bias)

    def _linear_rows(self, input: Tensor, weight: Tensor, start: int, stop: int) -> Tensor:
        leaf = self._leaf(weight)
        if leaf is None or torch.is_grad_enabled() or _transformed():
            return F.linear(self._replace_one(input), self._replace_one(weight)[start:stop])
        return self._product(self._replace_one(input), leaf, start, stop)

    def _product(self, x: Tensor, leaf: Leaf, start: int, stop: int) -> Tensor:
        """x W^T for rows start .. stop of W at the point."""
        columns = leaf.shape[1]
        shape = (*x.shape[:-1], stop - start)
        x = x.reshape(-1, columns)
        out: Tensor = x.new_empty(x.shape[0], stop - start)
        for a, b in self.tiles(leaf, start, stop):
            w = self.tile(leaf, a, b).view(-1, columns)
            torch.mm(x, w.t(), out=out[:, a - start : b - start])
        return out.view(shape)

    def tiles(self, leaf: Leaf, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Row ranges of a matrix to regenerate at a time: all at once where nothing is to be regenerated."""
        whole = self._as_it_is(leaf) or leaf.space.unit == "leaf"
        size = stop - start if whole else max(1, tile_elements(leaf.tensor.device) // max(leaf.shape[1], 1))
        return ((a, min(a + size, stop)) for a in range(start, stop, size))

    def _as_it_is(self, leaf: Leaf) -> bool:
        """Whether the matrix is at the point already, once moves that may not wait are made."""
        return not self.point and leaf.low is None and not self.store.deferred.sides(leaf)

    def tile(self, leaf: Leaf, start: int, stop: int) -> Tensor:
        """Rows start .. stop of a matrix at the point, flat; in workspace that the next tile overwrites."""
        columns = leaf.shape[1]
        if (ready := self.ready(leaf)) is not None:
            return ready[start * columns : stop * columns].to(leaf.dtype)
        if self._as_it_is(leaf):
            return leaf.flat[start * columns : stop * columns]
        if leaf.space.unit == "leaf":
            whole = self.store.scratch(leaf, leaf.numel, use=-1, dtype=leaf.dtype)
            return self.store.point_(whole, leaf, self.point)[start * columns : stop * columns]
        w = self.store.scratch(leaf, (stop - start) * columns, use=-1, dtype=leaf.dtype)
        return self.store.point_(w, leaf, self.point, start * columns, stop * columns)

    def _embedding(
        self,
        input: Tensor,
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        *rest: Any,
        **named: Any,
    ) -> Tensor:
        leaf = self._leaf(weight)
        if max_norm is not None and leaf is not None:
            raise RuntimeError(
                f"embedding {leaf.name!r} has max_norm, which writes to the weights in each forward; "
                f"set max_norm=None or leave it out of the selection"
            )
        if leaf is None or leaf.space.unit != "element" or input.numel() >= weight.shape[0] or _transformed():
            return F.embedding(*self._replace((input, weight)), padding_idx, max_norm, *rest, **named)  # type: ignore[call-arg]
        rows = input.reshape(-1).to(torch.int64)
        if leaf.space.flat and leaf.low is None and all(of_signs(e) for e, _ in self.point.terms):
            dtype = accumulation_dtype(leaf.dtype)
            add = torch.zeros((), dtype=dtype, device=weight.device)
            sides = [*map(sign_side, self.store.deferred.sides(leaf)), *sign_sides(self.point.terms, leaf)]
            for c, u, v in sides:
                add = add + (u[rows].to(dtype) * c)[:, None] * v.to(dtype)
            shown = F.embedding(rows, weight.detach()).to(dtype) + add
            return shown.to(leaf.dtype).view(*input.shape, weight.shape[1])
        if not (leaf.space.flat and self.noise_only) or leaf.low is not None:
            return self._rows(leaf, rows).view(*input.shape, weight.shape[1])
        self.store.make_moves([leaf])
        out = torch.empty((*input.shape, weight.shape[1]), dtype=leaf.dtype, device=weight.device)
        noise.combine_rows(out.view(-1, weight.shape[1]), weight.detach(), rows, terms=self.terms, leaf=leaf.index)
        return out

    def _rows(self, leaf: Leaf, rows: Tensor) -> Tensor:
        """The rows of a matrix at the point, neighbouring ones in one go."""
        wanted, place = torch.unique(rows, return_inverse=True)
        found = torch.empty(len(wanted), leaf.shape[1], dtype=leaf.dtype, device=leaf.tensor.device)
        first = 0
        for last, row in enumerate(numbers := wanted.tolist(), 1):
            if last == len(numbers) or numbers[last] != row + 1:
                start, stop = numbers[first] * leaf.shape[1], (row + 1) * leaf.shape[1]
                self.store.point_(found[first:last].view(-1), leaf, self.point, start, stop)
                first = last
        return found[place]
