"""What the menu is: named functions that compose parts, and their description as plain data."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import wraps
from typing import Any, Literal, TypeAlias, TypeVar, cast

from zograd.core.method import Method
from zograd.core.parts import concrete
from zograd.core.schedules import Schedule
from zograd.errors import UsageError
from zograd.estimators import Central, Estimator, Feasible, Forward, ForwardOrCentral
from zograd.laws import Law
from zograd.learning_rate import AutoRadius, Controller

__all__ = [
    "MENU",
    "MU",
    "LearningRate",
    "MenuEntry",
    "Queries",
    "Radius",
    "describe",
    "entry",
    "law_named",
    "make",
    "names",
    "plain",
    "register_law",
]

Queries: TypeAlias = Literal["relaxed", "feasible"]
"""Where a constrained method evaluates: anywhere within mu |v| of x, or inside of the set (`estimators.Feasible`)."""
Sides: TypeAlias = bool | Literal["auto"]
"""Of differences: True to both sides, False to one, "auto" to one while f repeats."""
Needs: TypeAlias = Literal["values", "blocks", "layers"]
LearningRate: TypeAlias = float | Controller | Literal["auto"]
Radius: TypeAlias = float | Schedule | AutoRadius | Literal["auto"]
Build = TypeVar("Build", bound=Callable[..., Method[Any]])
Made = TypeVar("Made", bound=type)

MU = 2.0**-10
"""Default radius: a power of two next to MeZO's 1e-3, so that adding it to a 16-bit weight rounds little."""


@dataclass(frozen=True)
class MenuEntry:
    """A line of the menu. `example` holds values for the settings that have no default.

    sized: the defaults that depend on the number of weights, where it is known (`zograd.methods.defaults`).
    needs: "values" of the loss alone, or the "blocks" or "layers" of a language model.
    """

    name: str
    build: Callable[..., Method[Any]]
    source: str
    extra_memory: str
    formula: str
    example: Mapping[str, Any] = field(default_factory=dict)
    sized: Callable[[int], Mapping[str, Any]] = lambda dim: {}
    needs: Needs = "values"


MENU: dict[str, MenuEntry] = {}
LAWS: dict[str, Callable[[], Law]] = {}
"""Laws of directions that are no part of zograd, by their names on the command line."""


class DuplicateNameError(UsageError):
    """Two methods, or two laws, of one name."""


def entry(
    *,
    source: str,
    extra_memory: str,
    formula: str,
    example: Mapping[str, Any] | None = None,
    sized: Callable[[int], Mapping[str, Any]] = lambda dim: {},
    needs: Needs = "values",
) -> Callable[[Build], Build]:
    """Decorator: put this function on the menu under its own name, which its methods then have."""

    def register(build: Build) -> Build:
        name = build.__name__
        known = MENU.get(name)
        if known is not None and not known.build.__module__ == build.__module__ == "__main__":  # a cell, run again
            raise DuplicateNameError(
                f"there are two methods {name!r}, in {_place(known.build)} and in {_place(build)}; rename one"
            )

        @wraps(build)
        def named(*args: Any, **settings: Any) -> Method[Any]:
            return replace(build(*args, **settings), name=name)

        MENU[name] = MenuEntry(name, named, source, extra_memory, formula, example or {}, sized, needs)
        return cast(Build, named)

    return register


def _place(build: Callable[..., Any]) -> str:
    """Where a function is defined."""
    return f"{build.__module__} ({inspect.getsourcefile(build)})"


def register_law(law: Made) -> Made:
    """Decorator: make a law known to `--law` and `--set law=` by the name of its class in lower case.

    It is called without arguments.
    """
    name = law.__name__.lower()
    if name in _built_in_laws() or name in LAWS:
        raise DuplicateNameError(f"there are two laws {name!r}, and {law.__module__}.{law.__name__} is one; rename it")
    LAWS[name] = law
    return law


def _built_in_laws() -> dict[str, Callable[[], Law]]:
    """The laws of zograd by their lower-case names."""
    return {law.__name__.lower(): law for law in concrete(Law) if law.__module__.startswith("zograd.")}


def names(*, blocks: bool = False) -> list[str]:
    """The names on the menu. blocks: also of methods that need the blocks or layers of a language model."""
    return [name for name, item in MENU.items() if blocks or item.needs == "values"]


class UnknownMethodError(UsageError):
    """A name that is not on the menu."""


def _unknown(name: str) -> str:
    """The menu, and last, where it is read, what is nearest to a name that is not on it."""
    near = difflib.get_close_matches(name.lower(), MENU, n=3)
    nearest = f"; nearest to it: {', '.join(near)}" if near else ""
    return f"there is no method {name!r}; the menu has {', '.join(MENU)}{nearest}"


def make(name: str, **settings: Any) -> Method[Any]:
    """The menu entry `name` with some of its defaults replaced; an unknown name or setting says what there is."""
    if name not in MENU:
        raise UnknownMethodError(_unknown(name))
    known = inspect.signature(MENU[name].build).parameters
    if unknown := sorted(settings.keys() - known.keys()):
        raise ValueError(f"{name} has no setting {unknown[0]!r}; it has {', '.join(known)}")
    if isinstance(settings.get("law"), str):
        settings["law"] = law_named(settings["law"])
    for key, value in settings.items():
        default = known[key].default
        if isinstance(value, str) and value != "auto" and type(default) in (int, float):
            raise TypeError(f"{name}: {key}={value!r} is a text; pass a number, such as {default!r}")
    return MENU[name].build(**settings)


def law_named(name: str) -> Law:
    """A law of directions, with its defaults, by its lower-case name as the command line gives it."""
    kinds = _built_in_laws() | LAWS
    if name not in kinds:
        raise ValueError(f"there is no law {name!r}; use one of {', '.join(sorted(kinds))}")
    return kinds[name]()


def describe(name: str) -> dict[str, Any]:
    """A line of the menu as plain data: formula, parts, defaults, evaluations a step, extra memory, source."""
    item = MENU.get(name)
    if item is None:
        raise UnknownMethodError(_unknown(name))
    parameters = inspect.signature(item.build).parameters
    needed = [p for p in parameters.values() if p.default is p.empty]
    method = item.build(**item.example)
    return {
        "name": name,
        "summary": inspect.getdoc(item.build) or "",
        "formula": item.formula,
        "law": type(method.law).__name__,
        "estimator": type(method.estimator).__name__,
        "space": type(method.space).__name__,
        "rule": type(method.rule).__name__,
        "defaults": {k: plain(p.default) for k, p in parameters.items() if p.default is not p.empty},
        "required": [p.name for p in needed],
        "needs": item.needs,
        "evaluations_per_step": method.evaluations,
        "extra_memory": item.extra_memory,
        "slots": sorted(method.slots),
        "source": item.source,
    }


def differences(n: int, central: Sides) -> Estimator[None]:
    """Central differences, forward ones, or ("auto") forward ones while f repeats. ValueError for anything else."""
    if central not in (True, False, "auto"):
        raise ValueError(f"central is True, False or 'auto', got {central!r}")
    return ForwardOrCentral(n) if central == "auto" else Central(n) if central else Forward(n)


def inside(queries: Queries, estimator: Estimator[Any], set: Any) -> Estimator[Any]:
    """The estimator with its queries kept in the set where that is wanted. ValueError says why it cannot be done."""
    if queries not in ("relaxed", "feasible"):
        raise ValueError(f"queries must be 'relaxed' or 'feasible', got {queries!r}")
    if queries == "relaxed":
        return estimator
    if not hasattr(set, "ball"):
        raise ValueError(
            f"queries='feasible' needs a set to stay in, and {type(set).__name__} is a penalty, for which every x is "
            f"feasible; leave queries out"
        )
    return Feasible(estimator, set)


def plain(value: Any) -> Any:
    """A part as plain data for JSON: dataclasses become {"type": name, field: value}."""
    if is_dataclass(value) and not isinstance(value, type):
        fields = {k: v for k, v in asdict(value).items() if k not in ("flat", "fixed_norm")}
        return {"type": type(value).__name__, **fields} if fields else type(value).__name__
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(v) for v in value]
    return value
