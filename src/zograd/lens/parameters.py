"""The classes that trained tensors have while a lens is on, so that torch hands their calls to the lens.

Where torch.compile traces a call, each read of a weight becomes one opaque operation. When the compiled code runs, the
operation asks the lens that is on in its thread. One compilation therefore serves every point, every way to show it,
and every block of the same shape.

    zograd::linear(x, w, b)    what the lens answers to F.linear
    zograd::addmm(b, x, w)     what it answers to torch.addmm
    zograd::rows(x, w)         w at the point, for each row of x: for elementwise functions, which then are fused

Any other read of a weight causes a graph break, and the lens answers it outside of the graph.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zograd.core.vector import HALF

if TYPE_CHECKING:
    from zograd.lens.lens import Lens

# Calls that read no elements: the real tensor answers them, and the leaf does not count as seen.
SHAPE_ONLY = frozenset(
    {
        Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel, Tensor.nelement, Tensor.stride, Tensor.storage_offset,
        Tensor.is_contiguous, Tensor.is_floating_point, Tensor.is_complex, Tensor.element_size, Tensor.get_device,
        Tensor.__len__, Tensor.__hash__, Tensor.__repr__, Tensor.requires_grad_, torch.is_tensor,
        torch.is_floating_point, torch.is_complex, torch.numel, torch.empty_like, torch.zeros_like, torch.ones_like,
        torch.result_type, Tensor.new_empty, Tensor.new_zeros, Tensor.new_ones, Tensor.new_full,
        Tensor.is_inference, Tensor.is_signed,
    }
)  # fmt: skip
_VALUE_PROPERTIES = frozenset(getattr(Tensor, name).__get__ for name in ("data", "T", "mT", "H", "mH", "real", "imag"))
ELEMENTWISE = frozenset(
    {
        torch.mul, torch.add, torch.sub, torch.div, Tensor.mul, Tensor.add, Tensor.sub, Tensor.div, Tensor.__mul__,
        Tensor.__rmul__, Tensor.__add__, Tensor.__radd__, Tensor.__sub__, Tensor.__rsub__, Tensor.__truediv__,
        Tensor.__rtruediv__,
    }
)  # fmt: skip


def shape_only(func: Callable[..., Any]) -> bool:
    """Whether a torch function reads no elements."""
    return func in SHAPE_ONLY or (getattr(func, "__name__", "") == "__get__" and func not in _VALUE_PROPERTIES)


def half_gain(weight: Tensor) -> bool:
    """Whether a weight is a 16-bit norm gain or bias: those are shown in float32."""
    return weight.ndim <= 1 and weight.dtype in HALF


class Unbranchable(RuntimeError):
    """A function reads a trained weight in a way that cannot be split by branches."""


class _Lenses(threading.local):
    """The lenses of this thread that are on by way of the class of their weights, and how many look at every call."""

    def __init__(self) -> None:
        self.on: list[Lens] = []
        self.everywhere = 0


lenses = _Lenses()


class Watched:
    """A tensor that a lens watches."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if torch.compiler.is_dynamo_compiling():
                return _traced(func, args, kwargs or {})
            if not lenses.on or torch.compiler.is_compiling():  # another thread's, or the compiler's own question
                return func(*args, **(kwargs or {}))
            return lenses.on[-1].answer(func, args, kwargs or {})


class WatchedTensor(Watched, Tensor):
    """A plain tensor under a lens."""


class WatchedParameter(Watched, nn.Parameter):
    """A parameter under a lens."""


class WatchedStack(WatchedTensor):
    """[n, ...]: made of weights alone, one for each branch."""


WATCHED: dict[type, type] = {Tensor: WatchedTensor, nn.Parameter: WatchedParameter}


# ---- what torch.compile sees ---------------------------------------------------------------------------------------


def _traced(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call that names a watched tensor, in operations that torch.compile takes into its graph."""
    if func is F.linear:
        return _linear(*args, **kwargs)
    if func is torch.addmm and not kwargs:
        return torch.ops.zograd.addmm(*args)
    if func in ELEMENTWISE and not kwargs and _for_rows(*args):
        return _elementwise(func, *args)
    if func is F.layer_norm or func is F.rms_norm:
        return _normalized(func, *args, **kwargs)
    if shape_only(func):
        return func(*args, **kwargs)
    return _untraced(func, args, kwargs)


def _asked(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    result = lenses.on[-1].answer(func, args, kwargs) if lenses.on else func(*args, **kwargs)
    if isinstance(result, WatchedStack):
        name = getattr(func, "__name__", func)
        raise Unbranchable(f"torch function {name} of a trained weight alone, in a model that torch.compile compiled")
    return result


_outside: list[Callable[..., Any]] = []


def _untraced(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not _outside:  # not at import: this loads the compiler
        _outside.append(cast(Any, torch.compiler).disable(_asked))
    return _outside[0](func, args, kwargs)


cast(Any, _untraced)._torchdynamo_disable = True  # the mark that torch.compiler.disable leaves


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if isinstance(weight, Watched):
        return torch.ops.zograd.linear(input, weight, bias)  # type: ignore[no-any-return]
    assert bias is not None
    return _elementwise(torch.add, F.linear(input, weight), bias)


def _for_rows(a: Any, b: Any) -> bool:
    """Whether one of two is watched, and the other has rows for it to be shown to."""
    if isinstance(a, Watched) == isinstance(b, Watched):
        return False
    w: Any
    w, x = (a, b) if isinstance(a, Watched) else (b, a)
    return isinstance(x, Tensor) and bool(x.ndim > w.ndim > 0)


def _elementwise(func: Callable[..., Any], a: Tensor, b: Tensor) -> Tensor:
    """func(a, b), one of which is watched; in float32 where that one is a 16-bit gain or bias."""
    w, x = (a, b) if isinstance(a, Watched) else (b, a)
    shown = torch.ops.zograd.rows(x, w)
    wide = x.float() if shown.dtype != w.dtype and x.dtype in HALF else x
    y: Tensor = func(*((shown, wide) if w is a else (wide, shown)))
    return y.to(torch.promote_types(x.dtype, w.dtype))


def _normalized(
    func: Callable[..., Tensor],
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """layer_norm or rms_norm: the statistics, then gain and bias elementwise."""
    half = input.dtype in HALF
    x = input.float() if half else input
    if func is F.layer_norm:
        y = F.layer_norm(x, normalized_shape, eps=1e-5 if eps is None else eps)
    else:
        y = F.rms_norm(x, normalized_shape, eps=torch.finfo(input.dtype).eps if eps is None else eps)
    for elementwise, w in ((torch.mul, weight), (torch.add, bias)):
        if w is not None:
            y = _elementwise(elementwise, y, w) if isinstance(w, Watched) else elementwise(y, w)
    return y.to(input.dtype)


def _answer(func: Callable[..., Any], *args: Any) -> Any:
    """What the lens that is on answers, when compiled code runs."""
    with torch._C.DisableTorchFunctionSubclass():
        if not lenses.on:
            return func(*args)
        lens = lenses.on[-1]
        if not any(id(a) in lens.leaves for a in args):
            raise RuntimeError("torch.compile copied a weight before it read it, so that no point can be shown in it")
        return lens.answer(func, args, {})


def _rows(x: Tensor, w: Tensor) -> Tensor:
    """[len(x), 1, ..., 1, *w.shape]: w as each row of x meets it; a 16-bit gain or bias in float32."""
    out = _rows_like(x, w)
    with torch._C.DisableTorchFunctionSubclass():
        shown = lenses.on[-1].rows_of(w, len(x)) if lenses.on else w.detach()
        return out.copy_(shown.view(-1, *out.shape[1:]))


def _linear_like(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], w.shape[0])


def _addmm_like(b: Tensor, x: Tensor, w: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], w.shape[1])


def _rows_like(x: Tensor, w: Tensor) -> Tensor:
    dtype = torch.float32 if half_gain(w) else w.dtype
    return x.new_empty((x.shape[0], *[1] * (x.ndim - 1 - w.ndim), *w.shape), dtype=dtype)


_operations: Any = cast(Any, torch.library).Library("zograd", "DEF")


def _define(signature: str, answer: Callable[..., Tensor], like: Callable[..., Tensor]) -> None:
    """An operation that runs `answer`, and of whose result torch.compile knows the shape and dtype of `like`."""
    name = signature.partition("(")[0]
    _operations.define(f"{signature} -> Tensor")
    _operations.impl(name, answer, "CompositeExplicitAutograd")
    cast(Any, torch.library).register_fake(f"zograd::{name}", like, lib=_operations)


_define("linear(Tensor x, Tensor w, Tensor? b)", partial(_answer, F.linear), _linear_like)
_define("addmm(Tensor b, Tensor x, Tensor w)", partial(_answer, torch.addmm), _addmm_like)
_define("rows(Tensor x, Tensor w)", _rows, _rows_like)
