"""zograd: zeroth-order optimization, from evaluations alone, in the memory of inference.

Entry points: `minimize`, `AskTell`, `ZOOptimizer` and `Hybrid`. The menu of methods is `methods`. The parts of a method
of your own are `estimators`, `laws`, `rules`, `spaces`, `sets` and `schedules`; `Method` puts them together.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zograd import addresses

__version__ = "0.1.0.dev0"

_NAMES = {
    "zograd.api.ask_tell": ("AskTell",),
    "zograd.api.black_box": ("black_box",),
    "zograd.api.constraints": ("Constraints",),
    "zograd.api.gradient": ("gradient",),
    "zograd.api.hybrid": ("Hybrid",),
    "zograd.api.minimize": ("Result", "minimize"),
    "zograd.api.scipy_method": ("scipy_method",),
    "zograd.api.torch_optimizer": ("ZOOptimizer",),
    "zograd.core.method": ("Method",),
    "zograd.core.record": ("Record",),
    "zograd.core.run": ("Run",),
    "zograd.core.tape": ("Tape", "TapeWriter"),
    "zograd.core.query": ("Ask", "Estimate", "Query", "Routine"),
    "zograd.core.vector": ("Basis", "Vector", "basis", "combination"),
    "zograd.estimators.differences": ("pairs", "slopes"),
    "zograd.oracles": ("batched",),
    "zograd.spaces": ("check_space",),
    "zograd.stores": ("Store",),
}
_MODULES = {
    **{
        name: f"zograd.{name}"
        for name in (
            "api", "bench", "cli", "compress", "control", "core", "design", "diagnostics", "distributed",
            "errors", "estimators", "hf", "hub", "kernels", "laws", "learning_rate", "lens", "llm", "methods",
            "noise", "objectives", "offload", "oracles", "problems", "quantized", "rules", "runs", "serve",
            "sets", "spaces", "stores",
        )
    },
    **{name: f"zograd.core.{name}" for name in ("schedules", "tape", "vector")},
}  # fmt: skip
addresses.install()
_HOMES = {name: home for home, names in _NAMES.items() for name in names}

if TYPE_CHECKING:
    from zograd import (
        compress,
        control,
        design,
        diagnostics,
        distributed,
        estimators,
        laws,
        learning_rate,
        methods,
        noise,
        objectives,
        oracles,
        problems,
        rules,
        sets,
        spaces,
        stores,
    )
    from zograd.api.ask_tell import AskTell
    from zograd.api.black_box import black_box
    from zograd.api.constraints import Constraints
    from zograd.api.gradient import gradient
    from zograd.api.hybrid import Hybrid
    from zograd.api.minimize import Result, minimize
    from zograd.api.scipy_method import scipy_method
    from zograd.api.torch_optimizer import ZOOptimizer
    from zograd.core import schedules, tape, vector
    from zograd.core.method import Method
    from zograd.core.query import Ask, Estimate, Query, Routine
    from zograd.core.record import Record
    from zograd.core.run import Run
    from zograd.core.tape import Tape, TapeWriter
    from zograd.core.vector import Basis, Vector, basis, combination
    from zograd.estimators.differences import pairs, slopes
    from zograd.oracles import batched
    from zograd.spaces import check_space
    from zograd.stores import Store

__all__ = [
    "Ask", "AskTell", "Basis", "Constraints", "Estimate", "Hybrid", "Method", "Query", "Record",
    "Result", "Routine", "Run", "Store", "Tape", "TapeWriter", "Vector", "ZOOptimizer", "__version__", "basis",
    "batched", "black_box", "check_space", "combination", "compress", "control", "design", "diagnostics",
    "distributed", "estimators", "gradient", "laws", "learning_rate", "methods", "minimize", "noise",
    "objectives", "oracles", "pairs", "problems", "rules", "schedules", "scipy_method", "sets", "slopes",
    "spaces", "stores", "tape", "vector",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that `import zograd` and the command line start without torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    raise AttributeError(f"module 'zograd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*_HOMES, *_MODULES, "__version__"})
