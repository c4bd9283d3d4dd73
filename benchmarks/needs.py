"""What entries of the menu need in the comparison of methods, beyond their defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from zograd import methods
from zograd.core.run import Method
from zograd.estimators import Central
from zograd.problems.problem import ComparedProblem, L1Projection
from zograd.rules import EuclideanMap
from zograd.sets import Box, L1Ball

DENSITY = 0.1
SCORES_SHARE = 0.05
"""Share of the budget that choosing a mask takes."""


@dataclass(frozen=True)
class Need:
    """What a menu entry needs beyond its defaults; entries that are not in `NEEDS` need nothing.

    settings(problem): in place of the entry's defaults. tuned: whether its lr is a scale to be tuned; if not, the
    default stays. sums: it draws terms of a finite sum itself. matrices: it acts on matrices, and is another entry on
    a vector. only, never: kinds of problems. constrained: it stays in the set by itself, where others are projected
    after each step. own_mu: mu means something else here, the entry's default stays. scores: the mask is chosen by
    `laws.sensitivity`, at the cost of a share of the budget. why: it has no place where it does not run. note: what
    the page says of its settings.
    """

    settings: Callable[[ComparedProblem], Mapping[str, Any]] = field(default=lambda problem: {})
    tuned: bool = True
    sums: bool = False
    matrices: bool = False
    only: str = "abcdefg"
    never: str = ""
    constrained: bool = False
    own_mu: bool = False
    scores: bool = False
    why: str = ""
    note: str = ""


def _ball(problem: ComparedProblem) -> L1Ball:
    return L1Ball(problem.radius or 1.0)


LOW_RANK = Need(matrices=True, why="it acts on matrices; on a vector it is another entry")
SET = "it needs a set or a penalty"
POSITIVE = "it trains positive numbers"
EIGHTH = "as many terms a step as an eighth of an evaluation takes"

SPREAD = Need(
    tuned=False, own_mu=True, note="no learning rate; its first spread is 0.3 |x0| / sqrt(d), or 1 where x0 = 0"
)

NEEDS: dict[str, Need] = {
    **{name: SPREAD for name in ("snes", "sep_cma", "cr_fm_nes")},
    **{name: LOW_RANK for name in ("eggroll", "lozo", "lozo_m", "subzero", "tezo", "zo_dct", "zo_muon")},
    "cbo": Need(
        tuned=False,
        never="e",
        own_mu=True,
        why="a projection of the consensus would move all particles",
        note="no learning rate, and its own mu, the width of the first population",
    ),
    "deepzero": Need(lambda p: {"count": max(1, p.dim // 10)}, note="count = d / 10 coordinates a step, as the paper"),
    "fd_fista": Need(
        lambda p: {"prox": L1Projection(p.radius or 1.0)},
        tuned=False,
        only="e",
        constrained=True,
        why=SET,
        note="lr by its own search, differences along all coordinates",
    ),
    "frank_wolfe": Need(
        lambda p: {"set": _ball(p)}, tuned=False, only="e", constrained=True, why=SET, note="lr = 1, its own step"
    ),
    "frank_wolfe_page": Need(
        lambda p: {"set": _ball(p)},
        tuned=False,
        sums=True,
        only="e",
        constrained=True,
        why=SET,
        note="lr = 1, its own step",
    ),
    "frank_wolfe_vr": Need(
        lambda p: {"set": _ball(p)},
        tuned=False,
        sums=True,
        only="e",
        constrained=True,
        why=SET,
        note="lr = 1, its own step",
    ),
    "hozo": Need(only="g", own_mu=True, why=POSITIVE),
    "optimistic_mirror": Need(
        lambda p: {"map": EuclideanMap(L1Projection(p.radius or 1.0)), "diameter": 2 * (p.radius or 1.0)},
        tuned=False,
        only="e",
        constrained=True,
        why=SET,
        note="lr = 1, its own rate",
    ),
    "qzo": Need(
        only="g",
        own_mu=True,
        constrained=True,
        why=POSITIVE,
        note="additive, projected, with its own mu; all others on (g) are on log s",
    ),
    "senszoq": Need(
        lambda p: {"density": DENSITY},
        scores=True,
        note=f"{DENSITY:.0%} of the weights (0.1 % in the paper, of billions), chosen by differences that take "
        f"{SCORES_SHARE:.0%} of the budget",
    ),
    "sparse_mezo": Need(note="its thresholds are those of the start: where that is 0, only the first step moves"),
    "vertex_search": Need(
        lambda p: {"box": Box(-1.0, 1.0)},
        tuned=False,
        own_mu=True,
        only="",
        why="it looks at vertices of a box only, and these problems are least elsewhere",
    ),
    "zo_halpern": Need(
        lambda p: {"batch": _batch(p), "full": Central(16)}, sums=True, note=EIGHTH + ", 16 directions for all terms"
    ),
    "zo_lsvrg": Need(lambda p: {"batch": _batch(p)}, sums=True, note=EIGHTH),
    "zo_prox": Need(lambda p: {"prox": L1Projection(p.radius or 1.0)}, only="e", constrained=True, why=SET),
    "zo_saddle": Need(
        lambda p: {"ascend": ("*",), "inner": Central(1), "lr": 1e-4},
        tuned=False,
        only="",
        why="it looks for a saddle, and these problems are minimised",
    ),
    "zo_richardson": Need(lambda p: {"mu": 16 * p.mu}, note="16 times the mu of the others, as on the menu"),
    "zo_svrg": Need(lambda p: {"batch": _batch(p)}, sums=True, note=EIGHTH),
    "zpdvr": Need(lambda p: {"batch": _batch(p)}, sums=True, note=EIGHTH),
}


def _batch(problem: ComparedProblem) -> int:
    return max(1, problem.unit // 8)


def need_of(name: str) -> Need:
    return NEEDS.get(name, Need())


def settings_of(problem: ComparedProblem, name: str) -> dict[str, Any]:
    """What the entry is made with on this problem, but for its learning rate and its scores."""
    need = need_of(name)
    mu = {} if need.own_mu else {"mu": problem.mu}
    example = methods.MENU[name].example if need.scores else {}
    return {**example, **mu, **need.settings(problem)}


def method_of(problem: ComparedProblem, name: str, **more: Any) -> Method[Any]:
    """The entry as it runs on this problem: with its settings, and in the space that the problem asks for."""
    method = methods.make(name, **{**settings_of(problem, name), **more})
    fitted = getattr(problem, "fitted", None)
    return method if fitted is None else fitted(method)
