"""Modules that have moved: scripts that import an old address get the module at its new one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "zograd.faces": "zograd.api",
    "zograd.faces.asktell": "zograd.api.ask_tell",
    "zograd.faces.hybrid": "zograd.api.hybrid",
    "zograd.faces.minimize": "zograd.api.minimize",
    "zograd.faces.torch_optim": "zograd.api.torch_optimizer",
    "zograd.llm.task": "zograd.llm.scoring",
    "zograd.run": "zograd.core.run",
    "zograd.schedules": "zograd.core.schedules",
    "zograd.tape": "zograd.core.tape",
    "zograd.vector": "zograd.core.vector",
}
"""Old address -> new address, of the modules that were public before the move."""


class _Loader(Loader):
    def __init__(self, address: str) -> None:
        self.address = address

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(self.address)  # importlib takes what it finds there


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, _Loader(MOVED[fullname])) if fullname in MOVED else None


def install() -> None:
    """Let old addresses be found; first, because folders of old byte code would be found as packages."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
