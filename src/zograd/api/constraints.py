"""Constraints as users write them, SciPy's objects or values that f returns itself, as rows c <= 0 and c = 0."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from zograd.api.bounds import without_limits
from zograd.api.variables import Flat, Variables, copied
from zograd.control import Kind
from zograd.oracles import as_number

FEASIBLE = 1e-6
"""Violation, relative to the scale of its row, up to which a constraint holds."""

CLEAR = 3.0
"""Standard errors by which a noisy mean may be above zero and still count as zero."""


@dataclass(frozen=True)
class Constraints:
    """f returns (value, c) of one evaluation: c holds `at_most` numbers wanted <= 0, then `equal` numbers wanted = 0.

    keep_feasible: the first kind is kept below zero at every iterate, from an x0 where it is; f may be undefined
    elsewhere.

        >>> import numpy as np, zograd as zo
        >>> def f(x):  # the squared distance from (2, 0), within the unit disk
        ...     return (x[0] - 2) ** 2 + x[1] ** 2, [x[0] ** 2 + x[1] ** 2 - 1]
        >>> res = zo.minimize(f, np.zeros(2), constraints=zo.Constraints(at_most=1))
        >>> res.success, bool(np.allclose(res.x, [1, 0], atol=1e-4)), bool(abs(res.multipliers[0] - 1) < 1e-3)
        (True, True, True)
    """

    at_most: int = 0
    equal: int = 0
    keep_feasible: bool = False

    def __post_init__(self) -> None:
        if min(self.at_most, self.equal) < 0 or self.at_most + self.equal == 0:
            raise ValueError(
                f"Constraints(at_most={self.at_most}, equal={self.equal}) needs at least one constraint and no "
                f"negative number"
            )


class Evaluated(float):
    """A value of f with the constraint values of the same evaluation: a float, so that it travels where values do.

    c: one number for each row, unscaled, wanted <= 0 or = 0. The value is NaN where f or one of c is not finite.
    """

    c: Flat

    def __new__(cls, value: float, c: Any = ()) -> Evaluated:
        c = np.asarray(c, dtype=np.float64)
        self = super().__new__(cls, value if np.all(np.isfinite(c)) else math.nan)
        self.c = c
        return self


@dataclass(frozen=True)
class _Block:
    """Rows from one function g(x): c = sign g[index] - offset. fun None: the numbers that f itself returns."""

    fun: Callable[[Any], Any] | None
    args: tuple[Any, ...]
    size: int
    index: Flat
    sign: Flat
    offset: Flat
    kinds: tuple[Kind, ...]
    names: tuple[str, ...]
    guarded: bool
    matrix: Flat | None = None

    def rows(self, g: Any) -> Flat:
        """The rows from the values of g."""
        array = _array(g)
        if array.size != self.size:
            raise ValueError(f"a constraint returned {array.size} values, but {self.size} were expected")
        c: Flat = self.sign * array[self.index] - self.offset
        return c


class Rows:
    """All constraints as one vector c(x) = (c_1, ..., c_m), each row wanted <= 0 ("at most") or = 0 ("equal").

    scale: for each row, the change of c that counts as one; 1 until a strategy has measured the slopes at x0. units: of
    the variables in which a strategy works, None for those of x0.
    guarded: rows that every iterate has to keep below zero. linear: rows a x - b, known exactly at any x.
    """

    def __init__(self, blocks: Sequence[_Block], variables: Variables) -> None:
        self.blocks, self.variables = tuple(blocks), variables
        self.kinds: tuple[Kind, ...] = tuple(kind for b in blocks for kind in b.kinds)
        self.names = tuple(name for b in blocks for name in b.names)
        self.guarded = np.array([b.guarded and k == "at most" for b in blocks for k in b.kinds], dtype=bool)
        self.linear = np.array([b.matrix is not None for b in blocks for _ in b.kinds], dtype=bool)
        self.one_sided = np.array([kind == "at most" for kind in self.kinds], dtype=bool)
        self.scale = np.ones(len(self.kinds))
        self.units: Flat | None = None
        self.own = any(b.fun is None and b.matrix is None for b in blocks)

    @property
    def digest(self) -> str:
        """What is known of the rows: all but what their functions compute."""
        digest = hashlib.sha256(repr((self.kinds, self.names, self.guarded.tolist())).encode())
        for block in self.blocks:
            for array in (block.index, block.sign, block.offset, block.matrix):
                digest.update(b"" if array is None else array.tobytes())
        return digest.hexdigest()

    @property
    def matrix(self) -> tuple[Flat, Flat]:
        """(a, b) of the linear rows: c = a x - b, for x in `units`."""
        found = [(b, b.matrix) for b in self.blocks if b.matrix is not None]
        a = [b.sign[:, None] * matrix[b.index] for b, matrix in found]
        slopes = np.concatenate(a)
        if self.units is not None:
            slopes = slopes * self.units
        return slopes, np.concatenate([b.offset for b, _ in found])

    def excess(self, c: Flat) -> Flat:
        """By how much each row is violated, unscaled."""
        found: Flat = np.where(self.one_sided, np.maximum(c, 0.0), np.abs(c))
        return found

    def violation(self, value: float) -> float:
        """The largest violation of an evaluation, relative to the scale of its row; infinite for a failed one."""
        c = getattr(value, "c", None)
        return float(np.max(self.excess(c) / self.scale)) if c is not None and math.isfinite(value) else math.inf

    def hold(self, value: float) -> bool:
        """Whether all constraints hold at an evaluation."""
        return self.violation(value) <= FEASIBLE

    def around(self, f: Callable[..., Any]) -> Callable[..., tuple[float, Flat]]:
        """f that returns (value, c)."""
        return _Constrained(f, self)

    def failed(self) -> Evaluated:
        """A failed evaluation."""
        return Evaluated(math.nan, np.full(len(self.kinds), math.nan))

    def told(self, x: Any, answer: Any) -> Evaluated:
        """The evaluation at x from its answer: (value, c) with `Constraints`, the value alone with SciPy's objects."""
        if isinstance(answer, float) and not math.isfinite(answer):
            return self.failed()
        return Evaluated(*self.around(lambda _: answer)(x))

    def flat(self, values: Sequence[float]) -> list[float]:
        """Evaluations as one list of numbers: each value is followed by its c."""
        return [n for v in values if isinstance(v, Evaluated) for n in (float(v), *map(float, v.c))]

    def unflat(self, numbers: Sequence[float]) -> list[float]:
        """The inverse of `flat`."""
        width = 1 + len(self.kinds)
        return [Evaluated(numbers[i], numbers[i + 1 : i + width]) for i in range(0, len(numbers), width)]

    def why_violated(self, c: Flat, error: Flat | None) -> str | None:
        """A sentence on the row that is violated most; None where all hold. error: standard errors of c."""
        excess = self.excess(c)
        spread = np.zeros_like(excess) if error is None else CLEAR * error
        over = (excess - spread) / self.scale
        worst = int(np.argmax(over))
        if over[worst] <= FEASIBLE:
            return None
        noisy = "" if error is None or not error[worst] else f" +- {error[worst]:.2g} (standard error)"
        return f"{self.names[worst]} is violated by {excess[worst]:.3g}{noisy}"


@dataclass(frozen=True)
class _Constrained:
    """(value, c) from f and the functions of the constraints; it can be pickled where they can.

    Where a row that must stay feasible, and that f does not return itself, is violated, f is not called: NaN. Each
    function gets a copy of x, which it may change.
    """

    f: Callable[..., Any]
    rows: Rows

    def __call__(self, x: Any, *args: Any, **named: Any) -> tuple[float, Flat]:
        parts: list[Any] = []
        inside = True
        for block in self.rows.blocks:
            if block.matrix is not None:
                parts.append(block.rows(block.matrix @ self.rows.variables.flattened(x, "x")))
            else:
                parts.append(None if block.fun is None else block.rows(block.fun(copied(x), *block.args)))
            c = parts[-1]
            if block.guarded and c is not None:
                inside &= all(ci <= 0 for ci, kind in zip(c, block.kinds, strict=True) if kind == "at most")
        value: Any = math.nan
        if inside:
            value = self.f(x, *args, **named)
            if self.rows.own:
                value, own = _pair(value)
                parts = [
                    b.rows(own) if b.fun is None and b.matrix is None else p
                    for b, p in zip(self.rows.blocks, parts, strict=True)
                ]
        c = np.concatenate(
            [np.full(len(b.kinds), math.nan) if p is None else p for b, p in zip(self.rows.blocks, parts, strict=True)]
        )
        return as_number(value), c


def _array(g: Any) -> Flat:
    """What a constraint returned, as one array of one axis; masked is NaN. TypeError for what are no real numbers."""
    if isinstance(g, np.ma.MaskedArray):
        filled: Flat = np.ma.filled(g.astype(np.float64), math.nan).reshape(-1)
        return filled
    array = np.asarray(g.detach().cpu().numpy() if hasattr(g, "detach") else g)
    if array.dtype == object or array.dtype.kind not in "biuf":
        with suppress(TypeError, ValueError):
            if g is not None and array.dtype == object:
                found: Flat = array.astype(np.float64).reshape(-1)
                return found
        raise TypeError(f"a constraint has to return a real number or an array of them, but it returned {g!r}")
    return array.astype(np.float64).reshape(-1)


def _pair(value: Any) -> tuple[Any, Any]:
    try:
        first, c = value
    except (TypeError, ValueError):
        raise TypeError(
            f"with constraints=Constraints(...), f has to return (value, c), but it returned {type(value).__name__}; "
            f"write return value, [c_1, ...], and with AskTell tell([(value, [c_1, ...]), ...])"
        ) from None
    return first, c


def as_rows(constraints: Any, variables: Variables) -> Rows | None:
    """Rows from what a user passes as `constraints`; None where there are none. TypeError says what may be passed.

    `scipy.optimize.LinearConstraint` and `NonlinearConstraint` (its derivatives are not used), a dict {"type": "ineq"
    or "eq", "fun", "args"} as for SciPy's SLSQP, `Constraints`, or a list of them. A function is called once at x0, to
    learn how many values it returns. Where lb < ub and both are finite, a value makes two rows.
    """
    if constraints is None:
        return None
    many = list(constraints) if isinstance(constraints, list | tuple) else [constraints]
    if not many:
        return None
    if sum(isinstance(one, Constraints) for one in many) > 1:
        raise ValueError("constraints holds Constraints(...) twice; f returns one c: pass one with the sums of both")
    return Rows([_block(one, k, variables) for k, one in enumerate(many)], variables)


def _block(one: Any, k: int, variables: Variables) -> _Block:
    x0 = variables.shaped(variables.flat.copy())
    if isinstance(one, Constraints):
        n = one.at_most + one.equal
        low = np.concatenate([np.full(one.at_most, -math.inf), np.zeros(one.equal)])
        return _sided(None, (), n, low, np.zeros(n), k, one.keep_feasible)
    if isinstance(one, Mapping):
        kind, fun = str(one.get("type", "")).lower(), one.get("fun")
        if kind not in ("ineq", "eq") or not callable(fun):
            raise ValueError(
                f"constraint {k} is a dict with type={one.get('type')!r}; pass {{'type': 'ineq' (fun >= 0) or 'eq' "
                f"(fun = 0), 'fun': a function}}"
            )
        args = tuple(one.get("args", ()))
        n = _array(fun(x0, *args)).size
        return _sided(fun, args, n, np.zeros(n), np.full(n, math.inf if kind == "ineq" else 0.0), k, False)
    if hasattr(one, "A") and hasattr(one, "lb"):
        a = one.A.toarray() if hasattr(one.A, "toarray") else np.atleast_2d(np.asarray(one.A, dtype=np.float64))
        if a.ndim != 2 or a.shape[1] != variables.dim:
            raise ValueError(f"constraint {k}: A has shape {a.shape}, but x0 has {variables.dim} variables")
        n = a.shape[0]
        low, high = _limits(one, n, k)
        return _sided(None, (), n, low, high, k, bool(np.any(one.keep_feasible)), matrix=a.astype(np.float64))
    if hasattr(one, "fun") and hasattr(one, "lb"):
        n = _array(one.fun(x0)).size
        low, high = _limits(one, n, k)
        return _sided(one.fun, (), n, low, high, k, bool(np.any(one.keep_feasible)))
    raise TypeError(
        f"constraints holds a {type(one).__name__}; pass scipy.optimize.LinearConstraint or NonlinearConstraint, a "
        f"dict {{'type', 'fun'}}, zograd.Constraints(at_most=m, equal=p), or, alone, a set of zograd.sets; several "
        f"sets are one sets.Intersection, and a penalty goes into penalty="
    )


def _limits(one: Any, n: int, k: int) -> tuple[Flat, Flat]:
    """lb and ub of a constraint of SciPy, one number for each of its n values; infinite where there is none."""
    low, high = (np.asarray(b, dtype=np.float64) for b in (one.lb, one.ub))
    for name, limit in (("lb", low), ("ub", high)):
        if limit.size not in (1, n):
            raise ValueError(
                f"constraint {k} has {n} values, but its {name} has {limit.size}; pass one number, or {n} of them"
            )
    return without_limits(np.broadcast_to(low.reshape(-1), (n,)), np.broadcast_to(high.reshape(-1), (n,)))


def _sided(
    fun: Callable[[Any], Any] | None, args: tuple[Any, ...], size: int, low: Flat, high: Flat, k: int,
    guarded: bool, matrix: Flat | None = None,
) -> _Block:  # fmt: skip
    """low <= g <= high as rows, in the order of g; of two sides, the upper one first."""
    if np.any(np.isnan(low) | np.isnan(high)) or np.any(low > high):
        raise ValueError(f"constraint {k}: its bounds hold NaN, or a lower bound is above the upper one")
    index, sign, offset = [], [], []
    kinds: list[Kind] = []
    names = []
    for i in range(size):
        where = f"constraint {k}" if size == 1 else f"constraint {k}, value {i}"
        if fun is None and matrix is None:
            where = f"c[{i}]"
        if low[i] == high[i]:
            sides: list[tuple[float, float, Kind, str]] = [(1.0, high[i], "equal", where)]
        else:
            both = math.isfinite(low[i]) and math.isfinite(high[i])
            sides = []
            if math.isfinite(high[i]):
                sides.append((1.0, high[i], "at most", f"{where}, upper bound" if both else where))
            if math.isfinite(low[i]):
                sides.append((-1.0, -low[i], "at most", f"{where}, lower bound" if both else where))
        for one_sign, one_offset, kind, name in sides:
            index.append(i)
            sign.append(one_sign)
            offset.append(one_offset)
            kinds.append(kind)
            names.append(name)
    if guarded and matrix is None and "equal" in kinds and "at most" not in kinds:
        raise ValueError(
            f"constraint {k} is an equality with keep_feasible: no step along a straight line keeps it; pass a space "
            f"of zograd.spaces on which it holds, such as space=Sphere(), or leave keep_feasible out"
        )
    return _Block(
        fun, args, size, np.array(index, dtype=np.intp), np.array(sign), np.array(offset), tuple(kinds), tuple(names),
        guarded, matrix,
    )  # fmt: skip
