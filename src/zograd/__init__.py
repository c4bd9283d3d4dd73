"""zograd: zeroth-order optimization, from evaluations alone, in the memory of inference.

The doors are `minimize`, `AskTell`, `ZOOptimizer` and `Hybrid`; the menu is `methods`; the parts to build a method of
your own are `estimators`, `laws`, `rules`, `spaces`, `sets` and `schedules`, put together by `Method`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

_HOMES = {
    "AskTell": "zograd.faces.asktell",
    "minimize": "zograd.faces.minimize",
    "Result": "zograd.faces.minimize",
    "ZOOptimizer": "zograd.faces.torch_optim",
    "Hybrid": "zograd.faces.hybrid",
    "Method": "zograd.run",
    "Record": "zograd.run",
    "Run": "zograd.run",
    "Store": "zograd.stores",
    "Tape": "zograd.tape",
    "batched": "zograd.oracles",
    "TapeWriter": "zograd.tape",
    "Vector": "zograd.vector",
    "check_space": "zograd.spaces",
    "Query": "zograd.vector",
    "Estimate": "zograd.vector",
    "Ask": "zograd.vector",
}
_MODULES = (
    "control", "diagnostics", "estimators", "faces", "hub", "laws", "llm", "methods", "noise", "oracles", "rules",
    "schedules", "sets", "spaces", "stores", "tape", "vector",
)  # fmt: skip

if TYPE_CHECKING:
    from zograd import (
        control,
        diagnostics,
        estimators,
        laws,
        methods,
        noise,
        oracles,
        rules,
        schedules,
        sets,
        spaces,
        stores,
        tape,
        vector,
    )
    from zograd.faces.asktell import AskTell
    from zograd.faces.hybrid import Hybrid
    from zograd.faces.minimize import Result, minimize
    from zograd.faces.torch_optim import ZOOptimizer
    from zograd.oracles import batched
    from zograd.run import Method, Record, Run
    from zograd.spaces import check_space
    from zograd.stores import Store
    from zograd.tape import Tape, TapeWriter
    from zograd.vector import Ask, Estimate, Query, Vector

__all__ = [
    "Ask", "AskTell", "Estimate", "Hybrid", "Method", "Query", "Record", "Result", "Run", "Store", "Tape", "TapeWriter",
    "Vector", "ZOOptimizer", "__version__", "batched", "check_space", "control", "diagnostics", "estimators", "laws",
    "methods", "minimize", "noise", "oracles", "rules", "schedules", "sets", "spaces", "stores", "tape", "vector",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that `import zograd` and the command line start without torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"zograd.{name}")
    raise AttributeError(f"module 'zograd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*_HOMES, *_MODULES, "__version__"})
